"""Texts behind a prompt: no space is put before them, and none is taken away."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

BEFORE = 16  # tokens of the prompt that are decoded with a text behind it


class Continuation:
    """A tokenizer of texts behind a prompt: their first word is not the first of a text.

    Many tokenizers put a space before a text, and take the first one away from what they decode.
    `tokenizer`: the PieceTokenizer of both.
    """

    def __init__(self, tokenizer: Any, prompt: str):
        self.tokenizer, self._before = tokenizer, tokenizer.encode(prompt)[-BEFORE:]

    def encode_with_lengths(self, text: str) -> tuple[Int64[Tensor, " T"], Int64[Tensor, " T"]]:
        """As that of `PieceTokenizer`; nothing is put before the text."""
        if not self.tokenizer.puts_space_before:
            return self.tokenizer.encode_with_lengths(text)
        found = self.tokenizer.inner.encode(text, add_special_tokens=False)
        return self.tokenizer.with_lengths(text, found.ids, found.offsets)

    def decode(self, ids: Tensor | np.ndarray | Sequence[int]) -> str:
        """As that of `PieceTokenizer`; nothing is taken from the text."""
        ids = torch.cat([self._before, torch.as_tensor(ids, dtype=torch.int64)])
        return self.tokenizer.decode(ids)[len(self.tokenizer.decode(self._before)) :]


def cutter_without_prefix(cutter: Any) -> Any:
    """A tokenizer of the library `tokenizers` that puts nothing before a text, else the same."""
    from tokenizers import Tokenizer

    found = json.loads(cutter.to_str())
    parts = {name: _without_prefix(found[name]) for name in ("normalizer", "pre_tokenizer")}
    return Tokenizer.from_str(json.dumps(found | parts))


def _without_prefix(part: Any) -> Any:
    """A part of the description of a tokenizer, so that nothing is put before a text."""
    if isinstance(part, list):
        return [_without_prefix(one) for one in part if one.get("type") != "Prepend"]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Prepend":
        return None
    new = {
        name: _without_prefix(one) if name in ("normalizers", "pretokenizers") else one
        for name, one in part.items()
    }
    return new | {
        name: value
        for name, value in (("prepend_scheme", "never"), ("add_prefix_space", False))
        if name in part
    }
