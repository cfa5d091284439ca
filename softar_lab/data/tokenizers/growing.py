"""How a vocabulary grows (K20): two units become one where the second is predictable.

A pair is joined once its second unit was predicted with confidence, often enough.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd

from .segmented import Segmented
from .subword import EMPTY, HALF_BYTES, WORD, UnitTokenizer

# One round joins pairs that are counted at least CLOSE times as often as its best pair, and it adds
# at most the share SHARE to the vocabulary.
CLOSE, SHARE = 0.7, 0.1


Pair = tuple[int, int]


def candidates(text: Segmented, confidence: float | int, context: int) -> list[tuple[Pair, int]]:
    """Pairs of units, each with the number of times its second unit was predictable.

    A time counts where the confidence was at least `confidence`. The most frequent pair is first.
    """
    at, sure = text.follower_confidence(context)
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
    free: int,
    confidence: float | int,
    least: float | int,
    fall: float | int,
    context: int,
) -> Iterator[tuple[list[tuple[str, str]], dict[str, Any]]]:
    """Grow a vocabulary in rounds; yields the pairs joined in each round and its report row.

    A pair joins once its second unit was predicted with `confidence` at least `least` times. Where
    there is no such pair, both thresholds are multiplied by `fall`. Growth ends where `free` is
    used up, where `least` would fall below 2, or where no pair is left and `fall` is 1.

    Args:
        text: the text as it is cut now.
        names: the unit of each id; new units are added to it in place.
        place: gives a new unit its id.
        free: how many units may be added.
        confidence: the least confidence that counts, in [0, 1].
        least: how many confident predictions a pair needs.
        fall: factor in (0, 1] for both thresholds.
        context: number of units that predict the next one.
    """
    while free:
        taken = _compatible(
            candidates(text, confidence, context), least, names, min(free, _most(names))
        )
        if taken:
            for left, right in taken:
                unit = names[left] + names[right]
                names[new := place(unit)] = unit
                text = text.join(left, right, new)
            free -= len(taken)
            row = {
                "units": len(names),
                "confidence": confidence,
                "least": least,
                "tokens": text.tokens,
            }
            yield [(names[left], names[right]) for left, right in taken], row
        elif fall == 1 or least * fall < 2:
            return
        else:
            confidence, least = confidence * fall, least * fall


def _most(names: dict[int, str]) -> int:
    return max(1, int(SHARE * len(names)))


def _compatible(
    found: list[tuple[Pair, int]], least: float | int, names: dict[int, str], most: int
) -> list[Pair]:
    """The pairs that may join in one round, so that no joining changes another pair's count."""
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
    """A vocabulary that grows out of characters: a unit joins once its second part is predictable.

    Each unit gets one of `buckets` places: the one of its hash or, where that is taken, the next
    free one. So the embedding table has the same number of rows before and after growth, and no
    row ever moves. `grow` can continue with another text. Two tokenizers are equal where
    characters, merges and buckets are equal.

    Args:
        buckets: number of places for units.
        rounds: the report of the growth so far, one dictionary per round.

    Raises:
        ValueError: where there are fewer buckets than units, and as in `UnitTokenizer`.

    Source: K20.
    """

    buckets: int
    rounds: tuple[dict[str, Any], ...] = field(default=(), compare=False)
    kind = "growing"

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.buckets, int) or self.buckets < len(self.units):
            raise ValueError(
                f"buckets must be at least {len(self.units)}, one a unit, not {self.buckets!r}"
            )

    @classmethod
    def fit(cls, text: str, vocab_size: int, **how: Any) -> "GrowingTokenizer":
        """A vocabulary of `vocab_size` tokens: the text's characters, 16 half bytes, and units.

        `how` takes the arguments of `GrowingTokenizer.grow`.

        Raises:
            ValueError: where the text is empty or has too many characters, and as in `grow`.
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
        """This tokenizer with more units, until the text gives no more or no bucket is free.

        Existing tokens keep their ids. Where no pair reaches both thresholds, both are multiplied
        by `fall`. At confidence 0, frequency alone decides, as in BPE.

        Args:
            text: the text whose pairs are counted.
            confidence: two units join once the second was predicted with this confidence, in
                [0, 1], at least `least` times.
            least: the number of such predictions; None: one per 50 characters of the text.
            fall: factor in (0, 1] for both thresholds; with 1 they never fall, and growth ends
                where no pair is left.
            context: the prediction uses the last `context` units of the word.

        Raises:
            ValueError: where a number is out of range; the message lists the numbers.
        """
        least = len(text) / 50 if least is None else least
        if not (0 <= confidence <= 1 and least > 0 and 0 < fall <= 1 and context >= 1):
            given = f"confidence={confidence}, least={least}, fall={fall}, context={context}"
            raise ValueError(
                f"confidence must lie in [0, 1], fall in (0, 1], least above 0, context 1 or more: {given}"
            )
        # 1) cut the text as it is now, each distinct word once
        counts = Counter(WORD.findall(self._spelled(text)))
        ids, lengths = self._cut(list(counts))
        words = np.repeat(np.arange(len(counts)), lengths)
        cut = Segmented(ids, words, np.fromiter(counts.values(), np.float64, len(counts)))
        # 2) grow into the free buckets, and report each round
        names = {i: token for i, token in enumerate(self.tokens) if not token.startswith(EMPTY)}
        free = np.array([token.startswith(EMPTY) for token in self.tokens])
        merges, rounds = list(self.merges), list(self.rounds)
        place = partial(_take, free, self._first)
        for pairs, row in grow(
            cut, names, place, int(free.sum()), confidence, least, fall, context
        ):
            merges += pairs
            rounds.append({"chars_per_token": len(text) / row.pop("tokens"), **row})
        return replace(self, merges=tuple(merges), rounds=tuple(rounds))

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The tokens by id: characters, half bytes, then one token per bucket.

        An empty bucket has a name that no encoded text contains.
        """
        tokens = [*self.chars, *HALF_BYTES, *(f"{EMPTY}{number}" for number in range(self.buckets))]
        free = np.arange(len(tokens)) >= self._first
        for unit in self.units:
            tokens[_take(free, self._first, unit)] = unit
        return tuple(tokens)

    @property
    def growth(self) -> pd.DataFrame:
        """One row per round: number of tokens, thresholds of the round, characters per token."""
        return pd.DataFrame(
            self.rounds, columns=["units", "confidence", "least", "chars_per_token"]
        )

    @property
    def displaced(self) -> int:
        """Number of units that are not in the bucket of their hash, because it was taken."""
        return sum(
            self.tokens[self._first + _hash(unit) % self.buckets] != unit for unit in self.units
        )

    def to_dict(self) -> dict:
        return {**super().to_dict(), "buckets": self.buckets, "rounds": list(self.rounds)}


def _hash(unit: str) -> int:
    """A hash that, unlike Python's own, is the same on every machine and in every process."""
    return zlib.crc32(unit.encode("utf-8"))


def _take(free: np.ndarray, first: int, unit: str) -> int:
    """Take the bucket of a unit's hash, or else the next free one, and return its token id.

    The first bucket follows the last. `free` is changed in place.
    """
    buckets = free[first:]
    order = (_hash(unit) + np.arange(len(buckets))) % len(buckets)
    bucket = order[buckets[order].argmax()]
    buckets[bucket] = False
    return int(first + bucket)
