"""The mixture of rows closest to a vector; its weights are read as probabilities (K3)."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import gammaincinv
from torch import Tensor

from ..core.predictor import check_finite
from .by_row import product

RIDGE = 1e-6  # decides where several p share the best mixture
NEAR = 1e-4  # of the mean distance to a row: a mixture that misses the point by less may reach it
LARGE = 4096  # in a table with more rows, only candidate rows are considered for a vector:
FIRST, MORE, MOST = 64, 32, 128  # the closest at first, more in each round, the most in total


@torch.no_grad()
def barycentric(vectors: Float[Tensor, "N m"], table: Float[Tensor, "V m"]) -> Float[Tensor, "N V"]:
    """argmin over p in the simplex of |pE - y|², exact to 1e-6: (N, m), (V, m) -> (N, V).

    Orthonormal rows need one projection onto the simplex. Other rows need non-negative least
    squares (Lawson and Hanson 1974), one vector at a time: the weights w >= 0 with the least
    |w(E - y)|² + (sum w - 1)² are a multiple of p, whatever the units. Where rows are affinely
    dependent (V > m + 1), several p can share the best mixture pE. A ridge of 1e-12 of a row's
    squared distance then chooses one close to the least sum of squared weights. Inside the hull pE
    is y to rounding, but where rows nearly coincide the ridge may move it by 1e-6 of a row's
    distance.

    In a table of more than `LARGE` rows, p uses only some rows: first the closest ones, then rows
    that would bring the mixture closer. It stops when no row would, or when the next ones would
    make more than `MOST`. Then p is the best mixture of the rows it has.

    Raises:
        ValueError: where vectors hold NaN or infinity, naming the first bad row.
    """
    check_finite(vectors)
    if len(table) > LARGE:
        return _of_large(vectors, table.to(vectors))
    rows, points = table.double(), vectors.double()
    gram = rows @ rows.T  # (V, V)
    if torch.allclose(gram, torch.eye(len(gram)).to(gram), atol=1e-6):
        return project_to_simplex(product(points, rows.T)).to(vectors.dtype)
    weights = np.array([_mixture(rows.cpu().numpy(), one) for one in points.cpu().numpy()])
    return torch.from_numpy(weights.reshape(-1, len(rows))).to(vectors)


def _mixture(rows: np.ndarray, point: np.ndarray) -> np.ndarray:
    """The weights (V,) of the mixture of rows (V, m) that is closest to a point (m,)."""
    from scipy.optimize import nnls  # it takes long to load

    away = rows - point
    (count, width), length = away.shape, np.sqrt(np.square(away).sum(1).mean())
    away = away / (length or 1)  # in units of the mean distance, so that no scale matters
    matrix = [away.T, np.ones((1, count))]
    if count > width + 1:
        matrix.append(RIDGE * np.eye(count))
    matrix = np.concatenate(matrix)
    wanted = np.zeros(len(matrix))
    wanted[width] = 1
    weights = nnls(matrix, wanted, maxiter=30 * count)[0]
    weights = weights / weights.sum()
    return _reaching(weights, away) if np.abs(weights @ away).max() < NEAR else weights


def _reaching(weights: np.ndarray, away: np.ndarray) -> np.ndarray:
    """The weights (V,) of a mixture that nearly is the point, changed as little as lets it be it.

    Args:
        weights: of the rows.
        away: the rows minus the point (V, m).
    """
    found = [weights]
    for least in (0, 1e-5):  # on the border of the hull, rounding alone gives a row its weight
        used = weights > least
        matrix = np.concatenate([away[used].T, np.ones((1, used.sum()))])
        missed = np.append(weights[used] @ away[used], weights[used].sum() - 1)
        better = np.zeros_like(weights)
        better[used] = weights[used] - np.linalg.lstsq(matrix, missed, rcond=1e-12)[0]
        found.append(better.clip(min=0) / better.clip(min=0).sum())
    return min(found, key=lambda one: np.abs(one @ away).max())


def hull_distance(
    vectors: Float[Tensor, "N m"], table: Float[Tensor, "V m"]
) -> Float[Tensor, " N"]:
    """The distance |pE - y| of each vector from the closest mixture (N,), in embedding units.

    Raises:
        ValueError: where vectors hold NaN or infinity, naming the first bad row.
    """
    if len(table) > LARGE:  # tens of thousands of rows: in the vectors' precision, not float64
        return (barycentric(vectors, table) @ table.to(vectors) - vectors).norm(dim=-1)
    rows, points = table.double(), vectors.double()
    return (product(barycentric(points, rows), rows) - points).norm(dim=-1).to(vectors.dtype)


def _of_large(vectors: Float[Tensor, "N m"], table: Float[Tensor, "V m"]) -> Float[Tensor, "N V"]:
    """Column generation: fit a mixture of few rows, add the rows its residual asks for, repeat."""
    # 1) begin with the closest rows of each vector
    squares, weights = table.norm(dim=-1).square(), vectors.new_zeros(len(vectors), len(table))
    near = [some.topk(FIRST, largest=False).indices for some in _products(vectors, table, squares)]
    columns, open_rows = list(torch.cat(near)) if near else [], list(range(len(vectors)))
    slack = 1e-5 * squares.mean()
    while open_rows:
        # 2) the best mixture of the rows that each vector has so far
        residuals, levels = [], []
        for i in open_rows:
            part = barycentric(vectors[i : i + 1], table[columns[i]])[0]
            weights[i] = 0
            weights[i, columns[i]] = part
            residuals.append(part @ table[columns[i]] - vectors[i])
            levels.append((part @ table[columns[i]]) @ residuals[-1])
        # 3) a row helps where its product with the residual is below that of the mixture
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
    """|e|² - 2 ye for some vectors at a time; the smaller it is, the closer the row."""
    return (torch.addmm(squares, some, table.T, alpha=-2) for some in vectors.split(256))


def project_to_simplex(points: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
    """The closest point of the probability simplex to each point (N, V), by sorting."""
    descending = points.sort(dim=-1, descending=True).values
    # entry k: what to subtract from every entry if only the k largest stay positive
    excess = (descending.cumsum(-1) - 1) / torch.arange(1, points.shape[-1] + 1).to(points)
    kept = (descending > excess).sum(-1, keepdim=True).clamp_min(1)
    return (points - excess.gather(-1, kept - 1)).clamp_min(0)


TINY = 1e-37  # the least temperature that float32 can divide by
SMALL = 1e-30  # below such a temperature, scores divided by it may overflow in float32


def softened(scores: Float[Tensor, "B n"], temperature: float | int) -> Float[Tensor, "B n"]:
    """softmax(scores / temperature), also where dividing by the temperature overflows."""
    if temperature < SMALL:
        scores, temperature = scores - scores.amax(-1, keepdim=True), max(temperature, TINY)
    return torch.softmax(scores / temperature, dim=-1)


def posterior_gumbel(
    log_probs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], uniform: Float[Tensor, "N V"]
) -> Float[Tensor, "N V"]:
    """log p + g with standard Gumbel noise g, given which entry of each row is the largest.

    The largest entry is a standard Gumbel variable, whichever symbol it belongs to. The others are
    Gumbel variables truncated at it. Where the ids are drawn from p, the result is distributed like
    log p plus plain Gumbel noise, and symbol and noise are coupled (Gumbel-max).

    Args:
        log_probs: log p (N, V).
        token_ids: the symbol whose entry is the largest in each row (N,).
        uniform: random numbers in [0, 1) (N, V).

    Returns:
        The perturbed log p (N, V).

    Source:
        Maddison et al., arXiv 1411.0030.
    """
    gumbel = -(-uniform.double().clamp_min(1e-300).log()).log()  # (N, V)
    winner = token_ids[:, None]
    best = gumbel.gather(1, winner)  # (N, 1): p sums to 1, so the largest has location 0
    others = -torch.logaddexp(-best, -(log_probs.double() + gumbel))
    return others.scatter(1, winner, best).to(log_probs.dtype)


def posterior_dirichlet(
    log_probs: Float[Tensor, "N V"],
    token_ids: Int[Tensor, " N"],
    uniform: Float[Tensor, "N V"],
    concentration: float,
) -> Float[Tensor, "N V"]:
    """Weights (N, V) drawn from Dirichlet(concentration · p + one-hot of the symbol).

    Where the ids are drawn from p, the weights are distributed as Dirichlet(concentration · p):
    their mean is p, and given the weights, each symbol is as likely as its weight. So a small
    concentration tells the symbol, and a large one only p.

    Args:
        log_probs: log p (N, V).
        token_ids: the symbol of each row (N,).
        uniform: random numbers in [0, 1) (N, V).
        concentration: above 0.
    """
    shapes = (concentration * log_probs.double().exp()).clamp_min(1e-300)
    shapes.scatter_add_(1, token_ids[:, None], shapes.new_ones(len(shapes), 1))
    quantiles = gammaincinv(shapes.cpu().numpy(), uniform.double().cpu().numpy())
    drawn = torch.from_numpy(quantiles).to(log_probs.device)  # gamma numbers; their shares follow
    # the symbol's own is 0 only where its uniform number is
    drawn.scatter_add_(1, token_ids[:, None], drawn.new_full((len(drawn), 1), 1e-300))
    return (drawn / drawn.sum(1, keepdim=True)).to(log_probs.dtype)
