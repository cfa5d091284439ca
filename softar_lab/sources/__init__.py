"""Texts and symbols: corpora, languages whose truth is known, tokenizers."""
