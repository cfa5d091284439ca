"""What the models that read only tokens share.

That is a vocabulary with tokens of any length, and a state of one tensor.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from ..core.predictor import Predictor
from ..data.tokenizers.char import CharTokenizer


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer whose tokens may be longer than one character.

    It cuts a text into the longest tokens that fit.

    Raises:
        ValueError: where tokens are not distinct, non-empty strings.
    """

    tokens: tuple[str, ...]
    unk_id = None

    def __post_init__(self):
        strings = all(isinstance(token, str) and token for token in self.tokens)
        if not (self.tokens and strings and len(set(self.tokens)) == len(self.tokens)):
            raise ValueError(f"tokens must be distinct, non-empty strings, not {self.tokens!r:.80}")

    @classmethod
    def fit(cls, sequences: Sequence[Sequence[str]]) -> "Vocabulary":
        """The tokens of sequences, or characters of strings, in order of first appearance.

        Raises:
            ValueError: for no sequence or an empty one.
        """
        if isinstance(sequences, str) or not len(sequences) or not all(map(len, sequences)):
            raise ValueError(
                f"sequences must be a list of at least one sequence, none empty, not {sequences!r:.80}"
            )
        return cls(tuple(dict.fromkeys(chain.from_iterable(sequences))))

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def encode(self, text: Sequence[str]) -> Int64[Tensor, " T"]:
        """Ids (T,) of a text or of a sequence of tokens.

        Raises:
            ValueError: at an unknown token, listing the known ones.
        """
        pieces = self._pattern.findall(text) if isinstance(text, str) else text
        try:
            return torch.tensor([*map(self._ids.__getitem__, pieces)], dtype=torch.int64)
        except KeyError as error:
            known = ", ".join(self.tokens[:50]) + (", …" if len(self.tokens) > 50 else "")
            raise ValueError(
                f"unknown token {error.args[0]!r} in {text!r:.80}; known: {known}"
            ) from None

    def decode(self, ids: Tensor | np.ndarray | Sequence[int]) -> str:
        """The tokens of ids (T,), joined.

        Raises:
            ValueError: at an id outside the vocabulary.
        """
        ids = torch.as_tensor(ids, dtype=torch.int64)
        check_ids(ids, self.vocab_size)
        return "".join(self.tokens[i] for i in ids.tolist())

    def lengths(self, ids: Int64[Tensor, " T"]) -> Int64[Tensor, " T"]:
        """How many characters each token stands for."""
        return torch.tensor([len(self.tokens[i]) for i in ids.tolist()], dtype=torch.int64)

    def encode_with_lengths(self, text: str) -> tuple[Int64[Tensor, " T"], Int64[Tensor, " T"]]:
        """Ids (T,) of a text, and the number of its characters that each stands for (T,)."""
        ids = self.encode(text)
        return ids, self.lengths(ids)

    def after(self, prompt: str) -> "Vocabulary":
        """The tokenizer of a text behind a prompt: this one."""
        return self

    def unknown_in(self, text: str) -> dict[str, int]:
        """How often each character that belongs to no token occurs in a text."""
        return dict(
            Counter(piece for piece in self._pattern.findall(text) if piece not in self._ids)
        )

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    @cached_property
    def _pattern(self) -> re.Pattern:
        longest_first = sorted(self.tokens, key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)


def encode(tokenizer: CharTokenizer | Vocabulary, text: Sequence[str]) -> Int64[Tensor, " T"]:
    """Ids (T,) of a text, which the tokenizer cuts, or of a sequence of its tokens.

    Raises:
        ValueError: at an unknown token.
    """
    lists_too = isinstance(tokenizer, Vocabulary)
    return (
        tokenizer if lists_too or isinstance(text, str) else Vocabulary(tokenizer.tokens)
    ).encode(text)


def check_ids(token_ids: Tensor, vocab_size: int) -> None:
    """Raise ValueError where an id is not in the vocabulary, naming the first one."""
    wrong = token_ids[(token_ids < 0) | (token_ids >= vocab_size)]
    if len(wrong):
        raise ValueError(f"token ids must lie in 0 … {vocab_size - 1}, not {int(wrong[0])}")


@dataclass(frozen=True)
class Memory:
    """The state of a model that reads only tokens: one tensor whose first axis is the batch B."""

    data: Tensor

    def select(self, rows: Int[Tensor, " n"] | Sequence[int]) -> "Memory":
        """Fork, drop or reorder batch rows."""
        return Memory(self.data[rows])


class TokenPredictor(Predictor):
    """A predictor that reads only tokens. Its state is one tensor.

    `_step(data, token_ids)` computes the tensor after one more token.
    """

    def advance(self, state, token_ids=None, vectors=None) -> Memory:
        """The state after one more token per row, (B,).

        Raises:
            ValueError: for vectors, another number of rows, or an id out of range.
        """
        if token_ids is None or vectors is not None or len(token_ids) != len(state.data):
            raise ValueError(
                f"this model reads token_ids only, one for each of its {len(state.data)} rows"
            )
        check_ids(token_ids, self.vocab_size)
        return Memory(self._step(state.data, token_ids))
