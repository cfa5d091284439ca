"""The rows closest to queries, exactly: float32 says where they may be, float64 which they are.

All parts are read once (`screening`), and only the least score of every `GROUP` rows is held. A
group whose least score is certainly more than k others is passed by. The rows of the groups that
are left, the most promising first, are ordered without rounding (`exact`).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from .exact import closest
from .parts import Part, errors, prepared
from .screening import Screen

MOST = 128  # queries that are searched together
_FEW, _MANY = 8, 1024  # groups that are looked into at once: at first as many more than k, later

Masks = Sequence[Bool[Tensor, " _"] | None]  # for each part, which rows may be found; None: all


def search(
    parts: Sequence[Part], masks: Masks, queries: Float32[Tensor, "Q m"], k: int, metric: str
) -> tuple[Int64[Tensor, "Q k"], Float64[Tensor, "Q k"]]:
    """The k closest rows to each query, exactly; equal ones in the order of their ids.

    Neither the batch nor the order of additions has a say in it.

    Args:
        parts: the rows; their ids ascend from part to part.
        masks: which of them may be found.
        queries: finite vectors (Q, m).
        k: how many rows per query, at most as many as may be found.
        metric: a member of `METRICS`.

    Returns:
        Ids (Q, k) and scores (Q, k), which are what `METRICS` says: the squared distance, the inner
        product or the cosine.
    """
    ids = torch.empty(len(queries), k, dtype=torch.int64)
    values = torch.empty(len(queries), k, dtype=torch.float64)
    if not k:
        return ids, values
    for begin in range(0, len(queries), MOST):
        some = slice(begin, begin + MOST)
        batch = _Batch(parts, masks, queries[some], k, metric)
        found = zip(*(batch.closest(i) for i in range(len(queries[some]))))
        ids[some], values[some] = (torch.from_numpy(np.stack(one)) for one in found)
    return ids, values if metric == "l2" else -values + 0.0


class _Batch:
    """A search for some queries.

    Groups are numbered through all parts; `number` (G,) is the part of each, `reach` (G,) its
    greatest length, and `least` (Q, G) the least score in it, infinite where nothing may be found.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        masks: Masks,
        queries: Float32[Tensor, "Q m"],
        k: int,
        metric: str,
    ):
        self.k, self.metric, wanted = k, metric, queries.double()
        if metric == "cosine":
            lengths = wanted.norm(dim=-1, keepdim=True)
            wanted = torch.where(lengths > 0, wanted / lengths, 0)
        moved, lengths, offset = prepared(parts, wanted, metric)
        self.queries, self.lengths, self.offset = (
            one.numpy() for one in (queries, lengths, offset)
        )
        self.screens = [
            Screen(part, mask, own, metric) for part, mask, own in zip(parts, masks, moved)
        ]
        counts = [len(part.reach) for part in parts]
        self.number = np.repeat(np.arange(len(parts)), counts)
        self.firsts = np.cumsum([0, *counts])
        self.reach = torch.cat([part.reach for part in parts]).numpy()
        self.least = torch.cat([screen.least() for screen in self.screens], 1).numpy()

    def closest(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the k closest rows to query i and their scores, the less the closer."""
        # 1) the groups that may hold one of them, the most promising first
        offset, k = self.offset[i, self.number], self.k
        about = (self.lengths[i, self.number], offset, self.queries.shape[1], self.metric)
        with np.errstate(invalid="ignore"):  # where nothing is certain
            error, middle = errors(self.reach, *about), self.least[i] + offset
            low = np.where(error < np.inf, middle - error, -np.inf)
            high = np.where(error < np.inf, middle + error, np.inf)
        limit = np.partition(high, k - 1)[k - 1] if k <= len(high) else np.inf
        groups = np.flatnonzero((low <= limit) & (low < np.inf))
        groups = groups[low[groups].argsort(kind="stable")]
        # 2) their rows, until the next group is certainly farther than k rows
        query, begin, size = self.queries[i], 0, k + _FEW
        rows, ids = np.empty((0, len(query)), np.float32), np.empty(0, np.int64)
        while begin < len(groups) and low[groups[begin]] <= limit:
            some = groups[begin : begin + size]
            with np.errstate(invalid="ignore"):
                ceilings = limit + error[some] - offset[some]
            more, names = self._rows(i, some, ceilings)
            rows, ids = np.concatenate([rows, *more]), np.concatenate([ids, *names])
            order, values, slack = closest(rows, ids, query, k, self.metric)
            rows, ids = rows[order], ids[order]
            if len(order) == k:
                limit = min(limit, float((values + slack).max()))
            begin, size = begin + size, min(2 * size, max(size, _MANY))
        return ids, values

    def _rows(
        self, i: int, groups: np.ndarray, ceilings: np.ndarray
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The rows of some groups that may be found and are not above a ceiling, and their ids."""
        numbers, rows, ids = self.number[groups], [], []
        for number in np.unique(numbers).tolist():
            screen, mine = self.screens[number], numbers == number
            places = screen.below(i, groups[mine] - self.firsts[number], ceilings[mine])
            rows.append(screen.rows[0][places])
            ids.append(screen.part.ids.numpy()[places])
        return rows, ids
