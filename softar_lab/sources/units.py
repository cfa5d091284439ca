"""Tokenizers whose units are longer than a character, and that still know every text."""

import json
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import tokenizers as library
import torch
from jaxtyping import Int64
from torch import Tensor

from .growth import Segmented, grow

# Sixteen code points that Unicode keeps free of characters for ever stand for the values of half a byte, and one more
# begins the name of a bucket that is still empty. Where a text holds them all the same, they are spelled out, too.
HALF_BYTES = tuple(chr(0xFDD0 + value) for value in range(16))
EMPTY = chr(0xFDE0)
_SPELLED = re.compile(f"[{HALF_BYTES[0]}-{HALF_BYTES[-1]}]+")
_WORD = re.compile(r" ?[^\s]+|\s")


def code_points(text: str) -> np.ndarray:
    """Code points of a text, lone surrogates included: (T,) uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def checked_ids(ids: Tensor | np.ndarray | Sequence[int], vocab_size: int) -> np.ndarray:
    """Ids (T,) as an array; ValueError for what is no row of whole numbers in 0 … vocab_size - 1."""
    ids = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if ids.shape == (0,):
        return ids.astype(np.int64)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"ids must be one row of whole numbers, not {ids.dtype} of shape {ids.shape}")
    wrong = (ids < 0) | (ids >= vocab_size)
    if wrong.any():
        position = int(wrong.argmax())
        raise ValueError(f"id {ids[position]} at position {position} is not in 0..{vocab_size - 1}")
    return ids


@dataclass(frozen=True, repr=False)
class UnitTokenizer:
    """What tokenizers with longer units share: known `chars`, and `merges`, the pairs that joined, oldest first.

    A text is cut into words, each with the one space before it; all other white space stands alone, so that no unit
    crosses the end of a line or of a document. Of each word's pairs the one that joined first joins again, leftmost
    first, until none is left. The library `tokenizers` does that, once for every distinct word.

    Every text comes back exactly. An unknown character (lone surrogates among them) is spelled out: its bytes in UTF-8,
    a surrogate's as if it were a character, each as two of the 16 `HALF_BYTES`. So nothing is unknown.
    Raises ValueError where characters are not distinct or ascending, or a merge joins what is no unit yet.
    """

    chars: tuple[str, ...]
    merges: tuple[tuple[str, ...], ...]
    kind = "bpe"
    unk_id = None

    def __post_init__(self):
        if not all(isinstance(char, str) and len(char) == 1 for char in self.chars):
            raise ValueError(f"chars must be single characters, not {self.chars!r:.80}")
        if self.chars != _characters("".join(self.chars)):
            raise ValueError(
                f"chars must be distinct, in ascending order and possible in UTF-8, not {self.chars!r:.80}"
            )
        units = {*self.chars, *HALF_BYTES}
        for pair in self.merges:
            if len(pair) != 2 or not units.issuperset(pair):
                raise ValueError(f"merges must join two units that are there already, not {pair!r:.80}")
            units.add("".join(pair))

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The tokens by id: characters, half bytes, units as they joined."""
        return (*self.chars, *HALF_BYTES, *self.units)

    @property
    def units(self) -> tuple[str, ...]:
        """What is longer than a character, oldest first."""
        return tuple(dict.fromkeys(left + right for left, right in self.merges))

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def encode(self, text: str) -> Int64[Tensor, " T"]:
        """Token ids (T,) of any text; see the class for where it is cut."""
        words = _WORD.findall(self._spelled(text))
        distinct = {word: i for i, word in enumerate(dict.fromkeys(words))}
        ids, counts = self._cut(list(distinct))
        begins = counts.cumsum() - counts
        which = np.fromiter(map(distinct.__getitem__, words), np.int64, len(words))
        counts = counts[which]
        offsets = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        return torch.from_numpy(ids[np.repeat(begins[which], counts) + offsets])

    def decode(self, ids: Tensor | np.ndarray | Sequence[int]) -> str:
        """Text of token ids (T,); half bytes that no text begins with become U+FFFD, an empty bucket nothing.

        Raises ValueError at an id outside the vocabulary, naming it and its position.
        """
        written = "".join(map(self._written.__getitem__, checked_ids(ids, self.vocab_size).tolist()))
        return _SPELLED.sub(_spoken, written)

    def lengths(self, ids: Int64[Tensor, " T"]) -> Int64[Tensor, " T"]:
        """How many characters each token stands for; one that is spelled out counts where its spelling begins."""
        pieces = [self._written[i] for i in ids.tolist()]
        codes = code_points("".join(pieces))
        half = (codes >= ord(HALF_BYTES[0])) & (codes <= ord(HALF_BYTES[-1]))
        place = np.arange(len(codes))
        run = place - np.maximum.accumulate(np.where(half, -1, place))  # 1, 2, … within a spelling, else 0
        inside = (codes & 15) >> 2 == 2  # bytes 10xxxxxx go on with a character
        begins = ~half | ((run % 2 == 1) & ~inside)
        owner = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
        return torch.from_numpy(np.bincount(owner[begins], minlength=len(pieces)).astype(np.int64))

    def unknown_in(self, text: str) -> dict[str, int]:
        """Nothing is unknown: {}."""
        return {}

    def to_dict(self) -> dict:
        """What a checkpoint keeps, ready for JSON."""
        return {"type": self.kind, "chars": list(self.chars), "merges": [list(pair) for pair in self.merges]}

    @classmethod
    def from_dict(cls, saved: dict) -> "UnitTokenizer":
        """The tokenizer that to_dict was asked of. Raises ValueError where this is no such dictionary."""
        if not isinstance(saved, dict) or saved.get("type") != cls.kind:
            raise ValueError(f'{cls.__name__} is saved as {{"type": "{cls.kind}", ...}}, not as {saved!r:.80}')
        given = {name: _tuples(value) for name, value in saved.items() if name != "type"}
        try:
            return cls(**given)
        except TypeError:
            raise ValueError(f"{cls.__name__} is not made of {', '.join(given) or 'nothing'}") from None

    @cached_property
    def _written(self) -> tuple[str, ...]:
        return tuple("" if token.startswith(EMPTY) else token for token in self.tokens)

    @cached_property
    def _library(self) -> library.Tokenizer:
        ids = {token: i for i, token in enumerate(self.tokens) if not token.startswith(EMPTY)}
        return library.Tokenizer(library.models.BPE(ids, list(self.merges)))

    def _spelled(self, text: str) -> str:
        """The text with each unknown character as half bytes."""
        return text.translate({ord(char): _half_bytes(char) for char in set(text).difference(self.chars)})

    def _cut(self, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all words, one after the other, and how many each has."""
        found = self._library.encode(words, is_pretokenized=True)
        return np.array(found.ids, np.int64), np.bincount(np.array(found.word_ids, np.int64), minlength=len(words))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.vocab_size} tokens, {len(self.units)} units: {', '.join(self.units)!r:.50})"
        )


class BPETokenizer(UnitTokenizer):
    """Byte-pair encoding as the library `tokenizers` learns it: the pair that stands side by side most often joins."""

    @classmethod
    def fit(cls, text: str, vocab_size: int) -> "BPETokenizer":
        """At most `vocab_size` tokens, the characters of a text and 16 half bytes among them.

        Raises ValueError where the text is empty or has too many characters.
        """
        plain = cls(_characters(text), ())
        _has_room(plain, text, vocab_size)
        learner = library.Tokenizer(library.models.BPE())
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=list(plain.tokens), show_progress=False
        )
        learner.train_from_iterator(_WORD.findall(plain._spelled(text)), trainer)
        return cls(plain.chars, _tuples(json.loads(learner.to_str())["model"]["merges"]))


@dataclass(frozen=True, repr=False)
class GrowingTokenizer(UnitTokenizer):
    """A vocabulary that grows out of characters (K20): a unit joins once its second part is foreseen confidently.

    Each unit gets one of `buckets` places, by its hash, or, where that is taken, the next free one. So the table has
    as many rows before the vocabulary has grown as after, no row ever moves, and `grow` goes on with another text.
    `rounds` tells how it grew. Two are equal where characters, merges and buckets are.
    """

    buckets: int
    rounds: tuple[dict[str, Any], ...] = field(default=(), compare=False)
    kind = "growing"

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.buckets, int) or self.buckets < len(self.units):
            raise ValueError(f"buckets must be at least {len(self.units)}, one a unit, not {self.buckets!r}")

    @classmethod
    def fit(cls, text: str, vocab_size: int, **how: Any) -> "GrowingTokenizer":
        """A vocabulary of `vocab_size` tokens: the characters of a text, 16 half bytes, and room for units.

        `how`: as in `grow`. Raises ValueError where the text is empty or has too many characters.
        """
        plain = cls(_characters(text), (), 0)
        _has_room(plain, text, vocab_size)
        return replace(plain, buckets=vocab_size - plain.vocab_size).grow(text, **how)

    def grow(
        self,
        text: str,
        confidence: float | int = 0.5,
        least: float | int | None = None,
        fall: float | int = 0.8,
        context: int = 2,
    ) -> "GrowingTokenizer":
        """This tokenizer with more units, as many as a text gives or buckets are free; what was there keeps its id.

        Two units join once the second was foreseen, from the last `context` units of the word, with `confidence` at
        least `least` times (None: one in 50 characters of the text). Where no pair is left, both thresholds fall to
        a share `fall` of what they were; 1: they never do, and growth ends there. At confidence 0 frequency alone
        decides, as in BPE.
        Raises ValueError for a number out of range, naming it.
        """
        least = len(text) / 50 if least is None else least
        if not (0 <= confidence <= 1 and least > 0 and 0 < fall <= 1 and context >= 1):
            given = f"confidence={confidence}, least={least}, fall={fall}, context={context}"
            raise ValueError(
                f"confidence must lie in [0, 1], fall in (0, 1], least above 0, context 1 or more: {given}"
            )
        counts = Counter(_WORD.findall(self._spelled(text)))
        ids, lengths = self._cut(list(counts))
        words = np.repeat(np.arange(len(counts)), lengths)
        cut = Segmented(ids, words, np.fromiter(counts.values(), np.float64, len(counts)))
        names = {i: token for i, token in enumerate(self.tokens) if not token.startswith(EMPTY)}
        free = np.array([token.startswith(EMPTY) for token in self.tokens])
        merges, rounds = list(self.merges), list(self.rounds)
        place = partial(_take, free, len(free) - self.buckets)
        for pairs, row in grow(cut, names, place, int(free.sum()), confidence, least, fall, context):
            merges += pairs
            rounds.append({"chars_per_token": len(text) / row.pop("tokens"), **row})
        return replace(self, merges=tuple(merges), rounds=tuple(rounds))

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The tokens by id: characters, half bytes, then a bucket each; an empty one has a name that no text holds."""
        first = len(self.chars) + len(HALF_BYTES)
        tokens = [*self.chars, *HALF_BYTES, *(f"{EMPTY}{number}" for number in range(self.buckets))]
        free = np.arange(len(tokens)) >= first
        for unit in self.units:
            tokens[_take(free, first, unit)] = unit
        return tuple(tokens)

    @property
    def growth(self) -> pd.DataFrame:
        """A row a round: tokens there are, the thresholds of that round, characters per token of the text."""
        return pd.DataFrame(self.rounds, columns=["units", "confidence", "least", "chars_per_token"])

    @property
    def displaced(self) -> int:
        """How many units found the bucket of their hash taken and lie in another one."""
        first = len(self.chars) + len(HALF_BYTES)
        return sum(self.tokens[first + _hash(unit) % self.buckets] != unit for unit in self.units)

    def to_dict(self) -> dict:
        return {**super().to_dict(), "buckets": self.buckets, "rounds": list(self.rounds)}


def _tuples(value: Any) -> Any:
    """Lists, as JSON has them, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _characters(text: str) -> tuple[str, ...]:
    """The distinct characters of a text, ascending; surrogates and what half bytes need are none, but spelled out."""
    spelled = (*map(chr, range(0xD800, 0xE000)), *HALF_BYTES, EMPTY)
    return tuple(sorted(set(text).difference(spelled)))


def _has_room(plain: UnitTokenizer, text: str, vocab_size: int) -> None:
    if not text:
        raise ValueError("text must not be empty: its characters become the first tokens")
    if vocab_size < plain.vocab_size:
        raise ValueError(
            f"vocab_size must be at least {plain.vocab_size}, for {len(plain.chars)} characters and "
            f"{len(HALF_BYTES)} half bytes, not {vocab_size}"
        )


def _half_bytes(char: str) -> str:
    return "".join(HALF_BYTES[byte >> 4] + HALF_BYTES[byte & 15] for byte in char.encode("utf-8", "surrogatepass"))


def _spoken(spelled: re.Match) -> str:
    """The characters of a run of half bytes."""
    halves = [ord(half) - ord(HALF_BYTES[0]) for half in spelled.group()]
    whole = bytes(high << 4 | low for high, low in zip(halves[::2], halves[1::2]))
    left = "\ufffd" * (len(halves) % 2)
    try:
        return whole.decode("utf-8", "surrogatepass") + left
    except UnicodeDecodeError:
        return whole.decode("utf-8", "replace") + left


def _hash(unit: str) -> int:
    """The same on every machine and every day, as Python's own is not."""
    return zlib.crc32(unit.encode("utf-8"))


def _take(free: np.ndarray, first: int, unit: str) -> int:
    """The bucket of a unit's hash or the next free one, the last followed by the first; from then on it is taken."""
    buckets = free[first:]
    order = (_hash(unit) + np.arange(len(buckets))) % len(buckets)
    bucket = order[buckets[order].argmax()]
    buckets[bucket] = False
    return int(first + bucket)
