"""One token per character: the default tokenizer (K19)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from .subword import checked_ids, code_points

UNK = "<unk>"
PART = 2**20  # characters that are encoded at once


@dataclass(frozen=True, repr=False)
class CharTokenizer:
    """One token per character; usually made by `fit`.

    Two tokenizers are equal where their tokens are equal.

    Args:
        tokens: the characters in ascending order. "<unk>" comes last where the tokenizer accepts
            unknown characters.

    Raises:
        ValueError: where the tokens are not distinct, ascending single characters.

    Source: K19.
    """

    tokens: tuple[str, ...]

    def __post_init__(self):
        object.__setattr__(self, "tokens", tuple(self.tokens))
        chars = self.tokens[: self.unk_id]
        wrong = [token for token in chars if not isinstance(token, str) or len(token) != 1]
        if wrong:
            raise ValueError(
                f"tokens must be single characters, with {UNK!r} at most at the end, not {wrong[0]!r}"
            )
        if not chars:
            raise ValueError("tokens must hold at least one character")
        if list(chars) != sorted(set(chars)):
            raise ValueError(f"tokens must be distinct and in ascending order, not {list(chars)}")

    @classmethod
    def fit(cls, text: str, unk: bool = False) -> "CharTokenizer":
        """The tokenizer of a text's distinct characters; `unk` adds a last token for all others.

        Raises:
            ValueError: where the text is empty.
        """
        if not text:
            raise ValueError("text must not be empty: its characters become the tokens")
        return cls((*sorted(set(text)), *([UNK] if unk else [])))

    @property
    def vocab_size(self) -> int:
        """Number of tokens, "<unk>" included."""
        return len(self.tokens)

    @property
    def unk_id(self) -> int | None:
        """Id of "<unk>"; None where there is none."""
        return len(self.tokens) - 1 if self.tokens and self.tokens[-1] == UNK else None

    def encode(self, text: str) -> Int64[Tensor, " T"]:
        """Token ids (T,) of a text of T characters; an unknown character becomes "<unk>".

        Raises:
            ValueError: at an unknown character where there is no "<unk>"; the message names the
                character and its position.
        """
        ids = np.empty(len(text), np.int64)
        for begin in range(0, len(text), PART):  # a long text needs no more memory than its ids
            ids[begin : begin + PART] = self._encode(text, begin)
        return torch.from_numpy(ids)

    def _encode(self, text: str, begin: int) -> np.ndarray:
        """The ids of the part of a text that begins here."""
        codes = code_points(text[begin : begin + PART])
        ids = self._ids[np.minimum(codes, len(self._ids) - 1)]
        unknown = ids < 0
        if unknown.any():
            if self.unk_id is None:
                position = begin + int(unknown.argmax())
                raise ValueError(
                    f"unknown character {text[position]!r} at position {position}; "
                    "CharTokenizer.fit(..., unk=True) makes a tokenizer that lets it in"
                )
            ids[unknown] = self.unk_id
        return ids

    def decode(self, ids: Tensor | np.ndarray | Sequence[int]) -> str:
        """Text of T characters from token ids (T,); "<unk>" becomes U+FFFD (replacement character).

        Raises:
            ValueError: where ids are not one row of whole numbers, or one id is outside the
                vocabulary; the message then names the id and its position.
        """
        ids = checked_ids(ids, self.vocab_size)
        codes = (
            np.append(self._codes, np.uint32(0xFFFD)) if self.unk_id is not None else self._codes
        )
        return codes[ids].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")

    def lengths(self, ids: Int64[Tensor, " T"]) -> Int64[Tensor, " T"]:
        """Number of characters that each token stands for: always one."""
        return torch.ones_like(ids)

    def encode_with_lengths(self, text: str) -> tuple[Int64[Tensor, " T"], Int64[Tensor, " T"]]:
        """Ids (T,) of a text, and the number of its characters that each stands for (T,)."""
        ids = self.encode(text)
        return ids, self.lengths(ids)

    def after(self, prompt: str) -> "CharTokenizer":
        """The tokenizer of a text behind a prompt: this one."""
        return self

    def unknown_in(self, text: str) -> dict[str, int]:
        """Count, for each character of a text that is not a token, how often it occurs."""
        unknown = set(text).difference(self.tokens[: self.unk_id])
        return {char: text.count(char) for char in sorted(unknown)}

    def to_dict(self) -> dict:
        """The data that a checkpoint saves, ready for JSON."""
        return {"type": "char", "tokens": list(self.tokens)}

    @classmethod
    def from_dict(cls, saved: dict) -> "CharTokenizer":
        """The tokenizer whose `to_dict` gave this dictionary.

        Raises:
            ValueError: where the dictionary does not come from a character tokenizer.
        """
        if not isinstance(saved, dict) or saved.get("type") != "char":
            raise ValueError(
                f'a character tokenizer is saved as {{"type": "char", ...}}, not as {saved!r:.80}'
            )
        if not isinstance(saved.get("tokens"), list):
            raise ValueError(
                f"tokens must be a list of characters, not {saved.get('tokens')!r:.80}"
            )
        return cls(tuple(saved["tokens"]))

    @cached_property
    def _codes(self) -> np.ndarray:
        """Code points of the characters, ascending: (V,), or (V - 1,) where there is "<unk>"."""
        return code_points("".join(self.tokens[: self.unk_id]))

    @cached_property
    def _ids(self) -> np.ndarray:
        """The id of each code point up to one behind the last known; -1 where it is unknown."""
        ids = np.full(int(self._codes[-1]) + 2, -1, np.int32)
        ids[self._codes] = np.arange(len(self._codes))
        return ids

    def __repr__(self) -> str:
        return (
            f"CharTokenizer({self.vocab_size} tokens: {''.join(self.tokens[: self.unk_id])!r:.60})"
        )
