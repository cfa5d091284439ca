"""Which mixture of the rows lies closest to a vector? The weights are a reading of it as probabilities (K3)."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import nnls
from torch import Tensor

from ..predictor import check_finite
from .by_row import product

HEAVY = 1e4  # weighs "the weights sum to 1" against the distance
RIDGE = 1e-6  # where several p share the best mixture
LARGE = 4096  # rows of a table, from which on only some of them come into question for a vector:
FIRST, MORE, MOST = 64, 32, 128  # the closest, then so many a round, so many at most


@torch.no_grad()
def barycentric(vectors: Float[Tensor, "N m"], table: Float[Tensor, "V m"]) -> Float[Tensor, "N V"]:
    """argmin over p in the simplex of |pE - y|², exact to 1e-6: (N, m), (V, m) -> (N, V).

    Orthonormal rows: one projection onto the simplex. Otherwise non-negative least squares, vector by vector, its sum
    held to 1 by a heavy row (Lawson and Hanson 1974). Where rows are affinely dependent (V > m + 1) several p can share
    the best mixture pE; a ridge of 1e-12 of a row's square then chooses one close to the least squared weights.
    Of a table of more than `LARGE` rows those come into question that are closest, then those that would bring the
    mixture closer, until no row would, or there are `MOST` of them: then p is the best mixture of these.
    Raises ValueError where vectors hold NaN or infinity, naming the first bad row.
    """
    check_finite(vectors)
    if len(table) > LARGE:
        return _of_large(vectors, table.to(vectors))
    rows, points = table.double(), vectors.double()
    gram = rows @ rows.T  # (V, V)
    if torch.allclose(gram, torch.eye(len(gram)).to(gram), atol=1e-6):
        return project_to_simplex(product(points, rows.T)).to(vectors.dtype)
    (count, width), length = rows.shape, gram.diagonal().mean().sqrt().clamp_min(1e-15).item()
    matrix = [rows.T.cpu().numpy(), np.full((1, count), HEAVY * length)]
    if count > width + 1:
        matrix.append(RIDGE * length * np.eye(count))
    matrix = np.concatenate(matrix)
    wanted = np.zeros((len(points), len(matrix)))
    wanted[:, :width], wanted[:, width] = points.cpu().numpy(), HEAVY * length
    weights = np.array([nnls(matrix, one, maxiter=30 * count)[0] for one in wanted]).reshape(-1, count)
    return torch.from_numpy(weights / weights.sum(-1, keepdims=True)).to(vectors)


def hull_distance(vectors: Float[Tensor, "N m"], table: Float[Tensor, "V m"]) -> Float[Tensor, " N"]:
    """How far each vector lies from the closest mixture of the rows, |pE - y| (N,), in embedding units.

    Raises ValueError where vectors hold NaN or infinity, naming the first bad row.
    """
    if len(table) > LARGE:  # tens of thousands of rows are looked at in the precision they come in
        return (barycentric(vectors, table) @ table.to(vectors) - vectors).norm(dim=-1)
    rows, points = table.double(), vectors.double()
    return (product(barycentric(points, rows), rows) - points).norm(dim=-1).to(vectors.dtype)


def _of_large(vectors: Float[Tensor, "N m"], table: Float[Tensor, "V m"]) -> Float[Tensor, "N V"]:
    """Column generation: the best mixture of some rows, then the rows that its residual asks for, and again."""
    squares, weights = table.norm(dim=-1).square(), vectors.new_zeros(len(vectors), len(table))
    near = [some.topk(FIRST, largest=False).indices for some in _products(vectors, table, squares)]
    columns, open_rows = list(torch.cat(near)) if near else [], list(range(len(vectors)))
    slack = 1e-5 * squares.mean()
    while open_rows:
        residuals, levels = [], []
        for i in open_rows:
            part = barycentric(vectors[i : i + 1], table[columns[i]])[0]
            weights[i] = 0
            weights[i, columns[i]] = part
            residuals.append(part @ table[columns[i]] - vectors[i])
            levels.append((part @ table[columns[i]]) @ residuals[-1])
        slope, still = torch.stack(residuals) @ table.T, []
        for i, row, level in zip(open_rows, slope, levels, strict=True):
            least = row.topk(MORE, largest=False)
            wanted = least.indices[least.values < level - slack]
            if len(wanted) and len(columns[i]) + len(wanted) <= MOST:
                columns[i] = torch.cat([columns[i], wanted]).unique()
                still.append(i)
        open_rows = still
    return weights


def _products(vectors: Tensor, table: Tensor, squares: Tensor) -> Iterator[Tensor]:
    """|e|² - 2 ye of some vectors at a time: the smaller, the closer."""
    return (torch.addmm(squares, some, table.T, alpha=-2) for some in vectors.split(256))


def project_to_simplex(points: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
    """The closest point of the probability simplex to each point (N, V), by sorting."""
    descending = points.sort(dim=-1, descending=True).values
    excess = (descending.cumsum(-1) - 1) / torch.arange(1, points.shape[-1] + 1).to(points)  # threshold if k are kept
    kept = (descending > excess).sum(-1, keepdim=True).clamp_min(1)
    return (points - excess.gather(-1, kept - 1)).clamp_min(0)
