"""A text in units: how predictable each one's follower is, and how two units become one."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segmented:
    """A text as it is cut now, with each distinct word stored once, one word after the other.

    Units of different words never join.

    Args:
        ids: the units, (N,).
        word: the index of each unit's word, (N,).
        counts: how often each word occurs in the text, (W,).
    """

    ids: np.ndarray
    word: np.ndarray
    counts: np.ndarray

    @property
    def tokens(self) -> int:
        """Number of units in the whole text."""
        return int(self.counts[self.word].sum())

    def follower_confidence(self, context: int) -> tuple[np.ndarray, np.ndarray]:
        """Find every unit that has a follower in its word, and how predictable that follower was.

        The follower is predicted from the last `context` units of the word, this unit included. The
        confidence is a share: of all other occurrences of this context, this one left out, how many
        continued in the same way. The end of a word is a continuation, too. A context that occurs
        once predicts nothing: its confidence is 0.

        Returns:
            Positions of the units (n,), and the confidence in each one's follower (n,), in [0, 1].
        """
        # 1) give each context (this unit and those before it) a number
        weight, within = self.counts[self.word], self.word[1:] == self.word[:-1]
        key = self.ids
        for ago in range(1, context):
            before = np.zeros_like(key)
            before[ago:] = np.where(self.word[ago:] == self.word[:-ago], self.ids[:-ago] + 1, 0)
            key = np.unique(key * (self.ids.max() + 2) + before, return_inverse=True)[1]
        # 2) count each context, and each context with its follower (0: the word ends)
        follower = np.append(np.where(within, self.ids[1:] + 1, 0), 0)
        both = np.unique(key * (self.ids.max() + 2) + follower, return_inverse=True)[1]
        seen, alike = np.bincount(key, weight)[key], np.bincount(both, weight)[both]
        at = np.flatnonzero(within)
        return at, (alike[at] - 1) / np.maximum(seen[at] - 1, 1)

    def join(self, left: int, right: int, new: int) -> "Segmented":
        """The text with each `left` directly before `right` in a word joined to one unit `new`."""
        side_by_side = (
            (self.ids[:-1] == left) & (self.ids[1:] == right) & (self.word[:-1] == self.word[1:])
        )
        at = np.flatnonzero(side_by_side)
        if left == right and len(at):
            # in a run of equal units the first two join, then the next two, and so on
            place = np.arange(len(at))
            begins = np.append(True, np.diff(at) > 1)
            at = at[(place - np.maximum.accumulate(np.where(begins, place, 0))) % 2 == 0]
        ids, stays = self.ids.copy(), np.ones(len(self.ids), dtype=bool)
        ids[at], stays[at + 1] = new, False
        return Segmented(ids[stays], self.word[stays], self.counts)
