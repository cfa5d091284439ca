"""Serve a model at an OpenAI-compatible address: python -m softar_studies.serving FOLDER"""
