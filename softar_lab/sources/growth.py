"""How a vocabulary grows (K20): two units become one where the second was foreseen, with confidence, often enough."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

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
