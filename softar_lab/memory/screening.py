"""Scores in float32 of one part: the least in each group of rows, and the rows that are low enough.

A score is x · (scale·row - centre) + plus. Few queries meet the rows in one pass of compiled code
(`models/kernels.py`), which takes hardly longer than reading them; many in matrix products. The
numbers of both differ by roundings that `parts.errors` covers.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from ..core.threads import for_each
from ..models.compiled import kernels
from .parts import GROUP, Part

FEW = 4  # queries that compiled code meets quicker than a product does
_BUFFER = 2**18  # scores of a block, so that it stays in the processor's cache
_WITHIN = np.arange(GROUP)


@dataclass
class Screen:
    """A part and the queries as it needs them.

    Args:
        part: the part.
        mask: which rows may be found (n,); None: all.
        queries: from `prepared` (Q, m).
        metric: a member of `METRICS`.
    """

    part: Part
    mask: Bool[Tensor, " n"] | None
    queries: Float32[Tensor, "Q m"]
    metric: str

    def __post_init__(self):
        part = self.part
        plus = part.squares if self.metric == "l2" else torch.zeros(len(part))
        self.plus = plus if self.mask is None else plus.masked_fill(~self.mask, torch.inf)
        self.x = self.queries.contiguous().numpy()
        rows = (part.rows, part.scale, part.centre, self.plus)
        self.rows = tuple(one.numpy() for one in rows)

    def least(self) -> Float32[Tensor, "Q G"]:
        """The least score in each group."""
        found = torch.empty(len(self.queries), len(self.part.reach))
        compiled = kernels() if len(self.queries) <= FEW else None
        if compiled is None:
            self._products(found)
            return found
        least, about = found.numpy(), (self.x, *self.rows)

        def some(begin: int, end: int) -> None:
            compiled.least_of_groups(begin, end, *about, least)

        for_each(some, found.shape[1], 256, len(self.x) * self.rows[0].size)
        return found

    def _products(self, least: Float32[Tensor, "Q G"]) -> None:
        """Fill the least scores, block by block."""
        part, count = self.part, len(self.queries)
        step = max(_BUFFER // count // GROUP, 1) * GROUP
        buffer = torch.empty(count * min(step, -(-len(part) // GROUP) * GROUP))
        for begin in range(0, len(part), step):
            end = min(begin + step, len(part))
            found = buffer[: count * (end - begin)].view(count, end - begin)
            rows = part.moved(begin, end, self.metric) if part.centred else part.rows[begin:end]
            if self.metric == "cosine" and not part.centred:
                torch.mm(self.queries, rows.T, out=found)
                found.mul_(part.scale[begin:end]).add_(self.plus[begin:end])
            else:
                torch.addmm(self.plus[begin:end], self.queries, rows.T, out=found)
            if rest := -(end - begin) % GROUP:
                found = torch.nn.functional.pad(found, (0, rest), value=torch.inf)
            groups = slice(begin // GROUP, -(-end // GROUP))
            torch.amin(found.view(count, -1, GROUP), -1, out=least[:, groups])

    def below(self, i: int, groups: np.ndarray, ceilings: np.ndarray) -> np.ndarray:
        """The rows of some groups whose score for query i is not above their group's ceiling.

        A score that is no number is not above anything.

        Args:
            i: the number of the query.
            groups: the groups (g,).
            ceilings: their ceilings (g,).
        """
        compiled = kernels()
        if compiled is None:
            found = self._below(i, groups, ceilings)
        else:
            found = np.empty(len(groups) * GROUP, np.int64)
            count = compiled.rows_below(self.x[i], *self.rows, groups, ceilings, found)
            found = found[:count]
        return found if self.mask is None else found[self.mask.numpy()[found]]

    def _below(self, i: int, groups: np.ndarray, ceilings: np.ndarray) -> np.ndarray:
        """The same among all rows, without compiled code."""
        rows, scale, centre, plus = self.rows
        places = (groups[:, None] * GROUP + _WITHIN).ravel()
        inside = places < len(rows)
        places, ceilings = places[inside], ceilings.repeat(GROUP)[inside]
        with np.errstate(over="ignore", invalid="ignore"):
            scores = (rows[places] * scale[places, None] - centre) @ self.x[i] + plus[places]
            return places[~(scores > ceilings)]
