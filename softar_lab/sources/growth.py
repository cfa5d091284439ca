"""How a vocabulary grows (K20): two units become one where the second was foreseen, with confidence, often enough."""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd

from .units import EMPTY, HALF_BYTES, WORD, UnitTokenizer

CLOSE, SHARE = 0.7, 0.1  # a round joins pairs counted nearly as often as its best, and adds a tenth at most


@dataclass(frozen=True)
class Segmented:
    """A text as it is cut now, each distinct word once: unit `ids` (N,), whose `word` each is (N,), word `counts` (W,).

    Units of different words never join. All words lie one after the other.
    """

    ids: np.ndarray
    word: np.ndarray
    counts: np.ndarray

    @property
    def tokens(self) -> int:
        """Units in the whole text."""
        return int(self.counts[self.word].sum())

    def foreseen(self, context: int) -> tuple[np.ndarray, np.ndarray]:
        """Where a unit has another behind it (n,), and how confidently that one was foreseen there (n,), in [0, 1].

        Foreseen from the last `context` units of the word: the share of their other occurrences, this one left out,
        that went on alike (a word's end is a continuation, too). What occurs once was not foreseen: 0.
        """
        weight, within = self.counts[self.word], self.word[1:] == self.word[:-1]
        key = self.ids
        for ago in range(1, context):
            before = np.zeros_like(key)
            before[ago:] = np.where(self.word[ago:] == self.word[:-ago], self.ids[:-ago] + 1, 0)
            key = np.unique(key * (self.ids.max() + 2) + before, return_inverse=True)[1]
        follower = np.append(np.where(within, self.ids[1:] + 1, 0), 0)
        both = np.unique(key * (self.ids.max() + 2) + follower, return_inverse=True)[1]
        seen, alike = np.bincount(key, weight)[key], np.bincount(both, weight)[both]
        at = np.flatnonzero(within)
        return at, (alike[at] - 1) / np.maximum(seen[at] - 1, 1)

    def join(self, left: int, right: int, new: int) -> "Segmented":
        """The same with `left` and `right`, where they stand side by side in a word, as one unit `new`."""
        side_by_side = (self.ids[:-1] == left) & (self.ids[1:] == right) & (self.word[:-1] == self.word[1:])
        at = np.flatnonzero(side_by_side)
        if left == right and len(at):  # of a run of equal units the first two join, then the next two
            place = np.arange(len(at))
            begins = np.append(True, np.diff(at) > 1)
            at = at[(place - np.maximum.accumulate(np.where(begins, place, 0))) % 2 == 0]
        ids, stays = self.ids.copy(), np.ones(len(self.ids), dtype=bool)
        ids[at], stays[at + 1] = new, False
        return Segmented(ids[stays], self.word[stays], self.counts)


Pair = tuple[int, int]


def candidates(text: Segmented, confidence: float | int, context: int) -> list[tuple[Pair, int]]:
    """Pairs of units with how often the second was foreseen with at least this confidence, the most frequent first."""
    at, sure = text.foreseen(context)
    at = at[sure >= confidence]
    base = int(text.ids.max()) + 1
    pairs, which = np.unique(text.ids[at] * base + text.ids[at + 1], return_inverse=True)
    counts = np.bincount(which, text.counts[text.word[at]], len(pairs)).astype(np.int64)
    order = np.argsort(-counts, kind="stable")
    return [((int(pairs[i]) // base, int(pairs[i]) % base), int(counts[i])) for i in order]


def grow(
    text: Segmented,
    names: dict[int, str],
    place: Callable[[str], int],
    room: int,
    confidence: float | int,
    least: float | int,
    fall: float | int,
    context: int,
) -> Iterator[tuple[list[tuple[str, str]], dict[str, Any]]]:
    """Rounds of growth: the pairs joined in each, and its row of the report. `names` (id: unit) gains what joins.

    A pair joins once its second unit was foreseen with `confidence` at least `least` times; where none was, both
    thresholds fall to a share `fall` of what they were. The end: no `room`, or nothing that came up twice.
    `place` gives a new unit its id.
    """
    while room:
        taken = _compatible(candidates(text, confidence, context), least, names, min(room, _most(names)))
        if taken:
            for left, right in taken:
                unit = names[left] + names[right]
                names[new := place(unit)] = unit
                text = text.join(left, right, new)
            room -= len(taken)
            row = {"units": len(names), "confidence": confidence, "least": least, "tokens": text.tokens}
            yield [(names[left], names[right]) for left, right in taken], row
        elif fall == 1 or least * fall < 2:
            return
        else:
            confidence, least = confidence * fall, least * fall


def _most(names: dict[int, str]) -> int:
    return max(1, int(SHARE * len(names)))


def _compatible(found: list[tuple[Pair, int]], least: float | int, names: dict[int, str], most: int) -> list[Pair]:
    """The pairs that may join in one round: no joining takes away what another one counted."""
    taken: list[Pair] = []
    lefts, rights, known, best = set(), set(), set(names.values()), 0
    for (left, right), count in found:
        if count < max(least, CLOSE * best) or len(taken) == most:
            break
        if left in rights or right in lefts or names[left] + names[right] in known:
            continue
        best = best or count
        known.add(names[left] + names[right])
        lefts.add(left)
        rights.add(right)
        taken.append((left, right))
    return taken


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
        plain = cls._plain(text, vocab_size, buckets=0)
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
        counts = Counter(WORD.findall(self._spelled(text)))
        ids, lengths = self._cut(list(counts))
        words = np.repeat(np.arange(len(counts)), lengths)
        cut = Segmented(ids, words, np.fromiter(counts.values(), np.float64, len(counts)))
        names = {i: token for i, token in enumerate(self.tokens) if not token.startswith(EMPTY)}
        free = np.array([token.startswith(EMPTY) for token in self.tokens])
        merges, rounds = list(self.merges), list(self.rounds)
        place = partial(_take, free, self._first)
        for pairs, row in grow(cut, names, place, int(free.sum()), confidence, least, fall, context):
            merges += pairs
            rounds.append({"chars_per_token": len(text) / row.pop("tokens"), **row})
        return replace(self, merges=tuple(merges), rounds=tuple(rounds))

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The tokens by id: characters, half bytes, then a bucket each; an empty one has a name that no text holds."""
        tokens = [*self.chars, *HALF_BYTES, *(f"{EMPTY}{number}" for number in range(self.buckets))]
        free = np.arange(len(tokens)) >= self._first
        for unit in self.units:
            tokens[_take(free, self._first, unit)] = unit
        return tuple(tokens)

    @property
    def growth(self) -> pd.DataFrame:
        """A row a round: tokens there are, the thresholds of that round, characters per token of the text."""
        return pd.DataFrame(self.rounds, columns=["units", "confidence", "least", "chars_per_token"])

    @property
    def displaced(self) -> int:
        """How many units found the bucket of their hash taken and lie in another one."""
        return sum(self.tokens[self._first + _hash(unit) % self.buckets] != unit for unit in self.units)

    def to_dict(self) -> dict:
        return {**super().to_dict(), "buckets": self.buckets, "rounds": list(self.rounds)}


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
