"""The rows closest to queries, exactly: float32 says where they may be, float64 which they are.

All parts are read once, in blocks. A block's scores are one matrix product, of which only the least
of every `GROUP` rows is held. A group whose least score is certainly more than k others is passed
by. The rows of the groups that are left, the most promising first, are ordered without rounding
(`exact`).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from .exact import closest
from .parts import GROUP, Part, errors, prepared, scores

MOST = 128  # queries that are searched together
_BUFFER = 2**20  # scores of a block
_WITHIN = np.arange(GROUP)
_FEW, _MANY = 8, 1024  # groups that are looked into at once, at first and later

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
        ids[some], values[some] = _Batch(parts, masks, queries[some], k, metric).run()
    return ids, values if metric == "l2" else -values + 0.0


class _Batch:
    """A search for some queries.

    `least` (Q, G) is the least score in each group of all parts, infinite where nothing may be
    found; `error` (Q, G) is how far it may be off, infinite where nothing is known.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        masks: Masks,
        queries: Float32[Tensor, "Q m"],
        k: int,
        metric: str,
    ):
        self.parts, self.masks, self.k, self.metric = parts, masks, k, metric
        self.queries, wanted = queries, queries.double()
        if metric == "cosine":
            lengths = wanted.norm(dim=-1, keepdim=True)
            wanted = torch.where(lengths > 0, wanted / lengths, 0)
        self.ready = [prepared(part, wanted, metric) for part in parts]
        self.firsts = np.cumsum([0, *(len(part.reach) for part in parts)])
        self.least, self.error = torch.empty(2, len(queries), int(self.firsts[-1]))

    def run(self) -> tuple[Int64[Tensor, "Q k"], Float64[Tensor, "Q k"]]:
        """The ids of the k closest rows and their scores, the less the closer."""
        step = max(_BUFFER // len(self.queries) // GROUP, 1) * GROUP
        buffer = torch.empty(len(self.queries) * step)
        for number, first in enumerate(self.firsts[:-1]):
            self._screen(number, int(first), step, buffer)
        found = [self._closest(i) for i in range(len(self.queries))]
        ids, values = (torch.from_numpy(np.stack(one)) for one in zip(*found))
        return ids, values

    def _screen(self, number: int, first: int, step: int, buffer: Tensor) -> None:
        """Read one part."""
        part, mask = self.parts[number], self.masks[number]
        queries, lengths, offset = self.ready[number]
        here = slice(first, first + len(part.reach))
        for begin in range(0, len(part), step):
            end = min(begin + step, len(part))
            found = scores(part, queries, begin, end, self.metric, buffer)  # (Q, n)
            if mask is not None:
                found.masked_fill_(~mask[begin:end], torch.inf)
            if rest := -(end - begin) % GROUP:
                found = torch.nn.functional.pad(found, (0, rest), value=torch.inf)
            groups = slice(first + begin // GROUP, first - (-end // GROUP))
            torch.amin(found.view(len(queries), -1, GROUP), -1, out=self.least[:, groups])
        middle = self.least[:, here].double() + offset[:, None]
        self.least[:, here] = middle
        # the least score is rounded once more, and so is the error itself
        off = errors(part, lengths, offset, self.metric)
        off += torch.where(middle.isfinite(), middle.abs() * 2.0**-24, 0)
        self.error[:, here] = off * (1 + 2.0**-20)

    def _closest(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the k closest rows to query i and their scores, the less the closer."""
        # 1) the groups that may hold one of them, the most promising first
        least, error = self.least[i].numpy().astype(np.float64), self.error[i].numpy()
        certain, k = error < np.inf, self.k
        with np.errstate(invalid="ignore"):
            low = np.where(certain, least - error, -np.inf)
            high = np.where(certain, least + error, np.inf)
        limit = np.partition(high, k - 1)[k - 1] if k <= len(high) else np.inf
        groups = np.flatnonzero((low <= limit) & (low < np.inf))
        groups = groups[low[groups].argsort(kind="stable")]
        # 2) their rows, until the next group is certainly farther than k rows
        query, begin, size = self.queries[i].numpy(), 0, _FEW
        rows, ids = np.empty((0, len(query)), np.float32), np.empty(0, np.int64)
        while begin < len(groups) and low[groups[begin]] <= limit:
            more, names = self._rows(i, groups[begin : begin + size], limit)
            rows, ids = np.concatenate([rows, more]), np.concatenate([ids, names])
            order, values, slack = closest(rows, ids, query, k, self.metric)
            rows, ids = rows[order], ids[order]
            if len(order) == k:
                limit = min(limit, float((values + slack).max()))
            begin, size = begin + size, min(2 * size, _MANY)
        return ids, values

    def _rows(self, i: int, groups: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
        """The rows of some groups that may be found and may be within a limit, and their ids."""
        numbers = np.searchsorted(self.firsts, groups, side="right") - 1
        rows, ids = [], []
        for number in sorted(set(numbers.tolist())):
            part, mask = self.parts[number], self.masks[number]
            mine = groups[numbers == number]
            places = ((mine - self.firsts[number])[:, None] * GROUP + _WITHIN).ravel()
            error = self.error[i].numpy()[mine].repeat(GROUP)
            inside = places < len(part)
            if mask is not None:
                inside[inside] = mask.numpy()[places[inside]]
            places, error = places[inside], error[inside]
            score, found = self._scores(i, number, places)
            # an error without bound, and a score that is none, keep a row
            with np.errstate(invalid="ignore"):
                keep = ~(score - error > limit)
            rows.append(found[keep])
            ids.append(part.ids.numpy()[places[keep]])
        return np.concatenate(rows), np.concatenate(ids)

    def _scores(self, i: int, number: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The scores of some rows of a part in float32 (n,), and the rows (n, m)."""
        part, (queries, _, offset) = self.parts[number], self.ready[number]
        rows = part.rows.numpy()[places]
        moved = rows * part.scale.numpy()[places, None] if self.metric == "cosine" else rows
        moved = moved - part.centre.numpy() if part.centred else moved
        with np.errstate(over="ignore", invalid="ignore"):
            score = moved @ queries[i].numpy()
            score = score + part.squares.numpy()[places] if self.metric == "l2" else score
        return score.astype(np.float64) + float(offset[i]), rows
