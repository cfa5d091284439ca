"""Pretrained models of the transformers library."""
