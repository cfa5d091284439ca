"""Measurement tools behind the large tables in data/results/, and single studies.

Notebooks may import them.
"""
