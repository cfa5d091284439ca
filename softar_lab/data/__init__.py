"""Texts and symbols: corpora, languages with known probabilities, tokenizers."""
