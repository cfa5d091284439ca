"""Tokenizers: text to token ids and back.

Every tokenizer has `tokens`, `vocab_size`, `unk_id`, `encode`, `decode`, `lengths`,
`encode_with_lengths`, `after`, `unknown_in`, `to_dict` and `from_dict`.
"""

from .char import CharTokenizer
from .growing import GrowingTokenizer
from .subword import BPETokenizer
from .word_level import WordTokenizer

_TYPES = {
    "char": CharTokenizer,
    "bpe": BPETokenizer,
    "growing": GrowingTokenizer,
    "words": WordTokenizer,
}


def tokenizer_from_dict(
    saved: dict,
) -> CharTokenizer | BPETokenizer | GrowingTokenizer | WordTokenizer:
    """The tokenizer, of any type, whose `to_dict` gave this dictionary.

    Raises:
        ValueError: where the dictionary does not come from a tokenizer.
    """
    kind = saved.get("type") if isinstance(saved, dict) else None
    if kind not in _TYPES:
        raise ValueError(f"unknown type of tokenizer {kind!r}; known: {', '.join(_TYPES)}")
    return _TYPES[kind].from_dict(saved)
