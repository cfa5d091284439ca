"""Rows of a memory in parts, each with what bounds the rounding of its scores in float32.

A score is the less, the closer the row: l2 is |y|² - 2 q·y + |q|², dot is -q·y, cosine is -q·y with
q and y of length 1. All rows may be moved by a centre: distances stay, and products change by a
number that is the same for all rows of a part. A centre is taken where rows lie far from the origin
and close to each other; there the products would drown the differences.

With u = 2^-24 a product of m factors is off by at most m·u times the product of the lengths (by
Cauchy and Schwarz), in any order of its terms; the other operations add a few u. Under l2 |y|² may
be one of the terms: the sum is off by at most m·u times |y|² + 2 |q| |y|, which is below
(|q| + |y|)².
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

METRICS = {"l2": "squared distance", "dot": "inner product", "cosine": "cosine"}
GROUP = 64  # rows that are looked at together
SIZE = 1024 * GROUP  # rows of a part
_SOME = 64 * GROUP  # rows that are measured at once
_LARGE, _SMALL = 1e30, 1e-30  # lengths beyond these are left to float64


@dataclass
class Part:
    """Up to `SIZE` rows, in the order of their ids.

    Args:
        rows: the vectors, as they were added (n, m).
        ids: their ids (n,), ascending.
        scale: 1/length of each row (n,), 0 for a row of zeros; all 1 unless the metric is cosine.
        centre: what is taken off each row after scaling (m,); zeros: nothing.
        squares: squared length of each row after both (n,).
        reach: the greatest such length in each group of `GROUP` rows (G,); infinite: float32 tells
            nothing about this group.
        alive: which rows are not deleted (n,).
    """

    rows: Float32[Tensor, "n m"]
    ids: Int64[Tensor, " n"]
    scale: Float32[Tensor, " n"]
    centre: Float32[Tensor, " m"]
    squares: Float32[Tensor, " n"]
    reach: Float64[Tensor, " G"]
    alive: Bool[Tensor, " n"]

    @classmethod
    def of(cls, rows: Float32[Tensor, "n m"], ids: Int64[Tensor, " n"], metric: str) -> "Part":
        """Measure rows that are added."""
        scale = _scales(rows) if metric == "cosine" else torch.ones(len(rows))
        part = cls(
            rows=rows,
            ids=ids,
            scale=scale,
            centre=_centre(rows, scale),
            squares=torch.empty(len(rows)),
            reach=torch.empty(-(-len(rows) // GROUP), dtype=torch.float64),
            alive=torch.ones(len(rows), dtype=torch.bool),
        )
        for begin in range(0, len(rows), _SOME):
            end = min(begin + _SOME, len(rows))
            squares = part.moved(begin, end, metric).double().square().sum(-1)  # (n,)
            part.squares[begin:end] = squares
            lost = squares.isinf() | (squares > _LARGE)
            if metric == "cosine":  # a length whose inverse float32 does not hold
                lengths = rows[begin:end].double().norm(dim=-1)
                lost |= (lengths > _LARGE) | ((lengths > 0) & (lengths < _SMALL))
            lengths = torch.where(lost, torch.inf, squares.sqrt())
            padded = torch.nn.functional.pad(lengths, (0, -len(lengths) % GROUP))
            groups = slice(begin // GROUP, -(-end // GROUP))
            part.reach[groups] = padded.view(-1, GROUP).amax(-1)
        return part

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def centred(self) -> bool:
        """Whether rows have to be moved before they are multiplied."""
        return bool(self.centre.any())

    def moved(self, begin: int, end: int, metric: str) -> Float32[Tensor, "n m"]:
        """Rows after scaling and moving, in float32."""
        rows = self.rows[begin:end]
        if metric == "cosine":
            rows = rows * self.scale[begin:end, None]
        return rows - self.centre


def prepared(
    parts: Sequence[Part], queries: Float64[Tensor, "Q m"], metric: str
) -> tuple[Float32[Tensor, "P Q m"], Float64[Tensor, "Q P"], Float64[Tensor, "Q P"]]:
    """Queries as each part needs them.

    Returns:
        The queries (P, Q, m) times -2 (l2) or -1, their lengths before that (Q, P), and what is to
        be added to the scores (Q, P).
    """
    centres = torch.stack([part.centre for part in parts]).double()
    if metric == "l2":
        moved = (queries - centres[:, None]).float()
        lengths = moved.double().norm(dim=-1).T
        return -2 * moved, lengths, lengths.square()
    lengths = queries.norm(dim=-1)[:, None].expand(-1, len(parts))
    return -queries.float().expand(len(parts), -1, -1), lengths, -(queries @ centres.T)


def errors(
    reach: np.ndarray, lengths: np.ndarray, offset: np.ndarray, width: int, metric: str
) -> np.ndarray:
    """How far the score of a row may be off, at most (…); infinite where float32 tells nothing.

    Args:
        reach: the greatest length of a row, as in `Part` (…).
        lengths, offset: of a query, as in `prepared` (…).
        width: of the rows.
        metric: a member of `METRICS`.
    """
    unit = 2.0**-24
    if torch.get_float32_matmul_precision() != "highest":  # factors of 8 bits
        unit += 2.0**-7 / width
    size = (reach + lengths) ** 2 if metric == "l2" else reach * lengths
    error = (width + 16) * unit * (size + np.abs(offset) / width)
    if metric == "cosine":  # rows of length 1 were rounded before they were moved
        error += 4 * 2.0**-24 * lengths
    error += width * float(torch.finfo(torch.float32).tiny) * (1 + reach + lengths)
    return np.where(size < _LARGE, error, np.inf)


def _scales(rows: Float32[Tensor, "n m"]) -> Float32[Tensor, " n"]:
    """1/length of each row, rounded once; 0 where float32 does not hold it."""
    found = torch.empty(len(rows))
    for begin in range(0, len(rows), _SOME):
        lengths = rows[begin : begin + _SOME].double().norm(dim=-1)
        usual = (lengths >= _SMALL) & (lengths <= _LARGE)
        found[begin : begin + _SOME] = torch.where(usual, 1 / lengths, 0)
    return found


def _centre(rows: Float32[Tensor, "n m"], scale: Float32[Tensor, " n"]) -> Float32[Tensor, " m"]:
    """The mean row where most of the length of rows lies in it; zeros elsewhere."""
    total, squares = torch.zeros(rows.shape[1], dtype=torch.float64), 0.0
    for some, scales in zip(rows.split(_SOME), scale.split(_SOME)):
        scaled = some.double() * scales[:, None]
        total += scaled.sum(0)
        squares += float(scaled.square().sum())
    mean = total / max(1, len(rows))
    wanted = float(mean.square().sum()) * len(rows) > squares / 2
    return mean.float() if wanted and squares < _LARGE else torch.zeros(rows.shape[1])
