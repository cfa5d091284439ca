"""Rows of a memory in parts, each with what bounds the rounding of its scores in float32.

A score is the less, the closer the row: l2 is |y|² - 2 q·y + |q|², dot is -q·y, cosine is -q·y with
q and y of length 1. All rows may be moved by a centre: distances stay, and products change by a
number that is the same for all rows of a part. A centre is taken where rows lie far from the origin
and close to each other; there the products would drown the differences.

With u = 2^-24 a product of m factors is off by at most m·u times the product of the lengths (by
Cauchy and Schwarz), in any order of its terms; the other operations add a few u.
"""

from dataclasses import dataclass
from functools import cached_property

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
    part: Part, queries: Float64[Tensor, "Q m"], metric: str
) -> tuple[Float32[Tensor, "Q m"], Float64[Tensor, " Q"], Float64[Tensor, " Q"]]:
    """Queries as this part needs them.

    Returns:
        The queries (Q, m) times -2 (l2) or -1, their lengths before that (Q,), and what is to be
        added to the scores (Q,).
    """
    centre = part.centre.double()
    if metric == "l2":
        moved = (queries - centre).float()
        lengths = moved.double().norm(dim=-1)
        return -2 * moved, lengths, lengths.square()
    return -queries.float(), queries.norm(dim=-1), -(queries @ centre)


def errors(
    part: Part, lengths: Float64[Tensor, " Q"], offset: Float64[Tensor, " Q"], metric: str
) -> Float64[Tensor, "Q G"]:
    """How far the score of a row in each group may be off, at most (Q, G), for `prepared` queries."""
    reach, lengths = part.reach, lengths[:, None]
    width, unit = part.rows.shape[1], 2.0**-24
    if torch.get_float32_matmul_precision() != "highest":  # factors of 8 bits
        unit += 2.0**-7 / width
    size = (reach + lengths).square() / 2 if metric == "l2" else reach * lengths
    error = (width + 16) * unit * (size + offset.abs()[:, None] / width)
    if metric == "cosine":  # rows of length 1 were rounded before they were moved
        error += 4 * 2.0**-24 * lengths
    error += width * torch.finfo(torch.float32).tiny * (1 + reach + lengths)
    return torch.where(size < _LARGE, error, torch.inf)


def scores(
    part: Part, queries: Float32[Tensor, "Q m"], begin: int, end: int, metric: str, out: Tensor
) -> Float32[Tensor, "Q n"]:
    """The scores of rows begin … end without the offset, in the memory of `out`."""
    found = out[: len(queries) * (end - begin)].view(len(queries), end - begin)
    rows = part.moved(begin, end, metric) if part.centred else part.rows[begin:end]
    torch.mm(queries, rows.T, out=found)
    if metric == "l2":
        found += part.squares[begin:end]
    elif metric == "cosine" and not part.centred:
        found *= part.scale[begin:end]
    return found


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
