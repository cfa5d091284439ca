"""Which mixture of the rows lies closest to a vector? The weights are a reading of it as probabilities (K3)."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import nnls
from torch import Tensor

from ..predictor import check_finite

WARM_STEPS = 24  # projected-gradient steps that find most of the support
PIVOTS = 40  # rounds of the exact method; rows it has not settled by then, if any, go to scipy
CHUNK = 1024  # rows solved at a time


@torch.no_grad()
def barycentric(vectors: Float[Tensor, "N m"], table: Float[Tensor, "V m"]) -> Float[Tensor, "N V"]:
    """argmin over p in the simplex of |pE - y|², exact to 1e-6: (N, m), (V, m) -> (N, V).

    Orthonormal rows: one projection onto the simplex. Otherwise accelerated projected gradient guesses the support and
    block principal pivoting (Kim and Park 2011) makes it exact. Where rows are affinely dependent (V > m + 1) several
    p can share the best mixture pE; a ridge of 1e-12 then chooses one close to the least squared weights.
    Raises ValueError where vectors hold NaN or infinity, naming the first bad row.
    """
    check_finite(vectors)
    rows = table.double()
    gram = rows @ rows.T  # (V, V)
    linear = vectors.double() @ rows.T  # (N, V)
    if torch.allclose(gram, torch.eye(len(gram)).to(gram), atol=1e-6):
        return project_to_simplex(linear).to(vectors.dtype)
    # Weights sum to 1, so adding a constant to every product of rows changes nothing but the conditioning.
    size = gram.diagonal().mean().clamp_min(1e-30)
    gram = gram + size + 1e-12 * size * torch.eye(len(gram)).to(gram)
    parts = [_pivot(gram, part, _accelerated(gram, part) > 1e-3) for part in linear.split(CHUNK) if len(part)]
    return torch.cat(parts).to(vectors.dtype) if parts else vectors.new_zeros(0, len(table))


def hull_distance(vectors: Float[Tensor, "N m"], table: Float[Tensor, "V m"]) -> Float[Tensor, " N"]:
    """How far each vector lies from the closest mixture of the rows, |pE - y| (N,), in embedding units.

    Raises ValueError where vectors hold NaN or infinity, naming the first bad row.
    """
    rows, points = table.double(), vectors.double()
    return (barycentric(points, rows) @ rows - points).norm(dim=-1).to(vectors.dtype)


def project_to_simplex(points: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
    """The closest point of the probability simplex to each point (N, V), by sorting."""
    descending = points.sort(dim=-1, descending=True).values
    excess = (descending.cumsum(-1) - 1) / torch.arange(1, points.shape[-1] + 1).to(points)  # threshold if k are kept
    kept = (descending > excess).sum(-1, keepdim=True).clamp_min(1)
    return (points - excess.gather(-1, kept - 1)).clamp_min(0)


def _accelerated(gram: Tensor, linear: Tensor) -> Tensor:
    """FISTA on ½ pᵀGp - cᵀp over the simplex, in float32: roughly right weights (N, V)."""
    gram, linear = gram.float(), linear.float()
    centred = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()  # what differences of weights see
    rate = 1 / (torch.linalg.matrix_norm(centred, 2) + 1e-6 * gram.diagonal().mean())
    weights = ahead = torch.full_like(linear, 1 / linear.shape[1])
    for step in range(1, WARM_STEPS + 1):
        after = project_to_simplex(ahead - rate * (ahead @ gram - linear))
        weights, ahead = after, after + (step - 1) / (step + 2) * (after - weights)
    return weights


def _pivot(gram: Tensor, linear: Tensor, support: Tensor) -> Tensor:
    """Exact weights (N, V) from a guess of where they are positive: exchange all that is wrong until nothing is.

    Where the number of wrong entries has not fallen for three rounds, only the last of them is exchanged, which keeps
    most rows from going round in circles.
    """
    weights = torch.zeros_like(linear)
    open_rows = torch.arange(len(linear))
    fewest, patience = torch.full((len(linear),), linear.shape[1] + 1), torch.full((len(linear),), 3)
    tolerance = 1e-9 * gram.diagonal().mean()
    for _ in range(PIVOTS):
        here, c = support[open_rows], linear[open_rows]
        p, level = _solve(gram, c, here)
        slope = p @ gram - c - level[:, None]  # at the minimum 0 on the support, at least 0 elsewhere
        wrong = torch.where(here, p < -1e-12, slope < -tolerance)  # (n, V)
        count = wrong.sum(-1)
        weights[open_rows] = p
        fewer = count < fewest[open_rows]
        left = torch.where(fewer, 3, patience[open_rows] - 1)
        fewest[open_rows], patience[open_rows] = torch.minimum(count, fewest[open_rows]), left
        last = wrong & (wrong.flip(-1).cumsum(-1).flip(-1) == 1)
        support[open_rows] = here ^ torch.where((left >= 0)[:, None], wrong, last)
        open_rows = open_rows[count > 0]
        if not len(open_rows):
            break
    for row in open_rows.tolist():
        weights[row] = _by_scipy(gram, linear[row])
    weights = weights.clamp_min(0)
    return weights / weights.sum(-1, keepdim=True)


def _solve(gram: Tensor, linear: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum on each row's support with weights that sum to 1, of any sign: weights (n, V), multipliers (n,)."""
    most = max(1, int(support.sum(-1).max()))
    index = support.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :most]  # (n, K)
    real = support.gather(1, index)
    small = gram[index[:, :, None], index[:, None, :]] * (real[:, :, None] & real[:, None, :])
    small.diagonal(dim1=1, dim2=2).add_(~real)
    sides = torch.stack([linear.gather(1, index) * real, real.to(linear)], -1)  # (n, K, 2)
    free, ones = torch.cholesky_solve(sides, torch.linalg.cholesky(small)).unbind(-1)
    level = (1 - free.sum(-1)) / ones.sum(-1).clamp_min(1e-300)
    return torch.zeros_like(linear).scatter(1, index, (free + level[:, None] * ones) * real), level


def _by_scipy(gram: Tensor, linear: Tensor) -> Tensor:
    """The same minimum by non-negative least squares, the sum held to 1 by a heavy row."""
    lower = torch.linalg.cholesky(gram).numpy()  # G = L Lᵀ, so ½ pᵀGp - cᵀp = ½ |Lᵀp - L⁻¹c|² + …
    heavy = 1e4 * np.sqrt(np.diag(gram.numpy()).mean())
    matrix = np.vstack([lower.T, np.full(len(lower), heavy)])
    return torch.from_numpy(nnls(matrix, np.append(np.linalg.solve(lower, linear.numpy()), heavy), maxiter=10_000)[0])
