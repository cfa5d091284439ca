"""How readouts of vectors are fitted: one sharpness, or an affine map, on training text."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

PART = 4096  # tokens at a time, so that a processor's caches hold what is computed of them


def best_log_tau(
    vector: Float[Tensor, "N m"],
    target_ids: Int[Tensor, " N"],
    table: Float[Tensor, "V m"],
    reach: float = 15.0,
) -> Float[Tensor, ""] | None:
    """log tau of the softmax(-|y - e_w|² / tau) that gives the targets the fewest nats.

    None where there is one symbol, or all rows are equal: every tau reads the same.

    Args:
        vector: the vectors y (N, m).
        target_ids: the symbols that followed (N,).
        table: the embedding table (V, m).
        reach: how far log tau may lie from the log of the mean range of |y - e_w|² over the rows.
    """
    from scipy.optimize import minimize_scalar  # it takes long to load

    # |y|² is the same for all w and cancels; float64, since what is left may be small beside it
    rows = table.double()
    gaps = rows.square().sum(-1) - 2 * vector.double() @ rows.T  # (N, V)
    unit = (gaps.amax(-1) - gaps.amin(-1)).mean().item()
    if not 0 < unit < math.inf:
        return None

    def nats(log_tau: float) -> float:
        return F.cross_entropy(-gaps / math.exp(log_tau), target_ids).item()

    bounds = (math.log(unit) - reach, math.log(unit) + reach)
    found = minimize_scalar(nats, bounds=bounds, method="bounded").x
    return torch.tensor(found).to(vector)


def best_ridge(
    x: Float[Tensor, "N m"],
    target_ids: Int[Tensor, " N"],
    anchor: Float[Tensor, "_ V"],
    ridges: Sequence[float],
) -> tuple[float, Float[Tensor, "_ V"]]:
    """The ridge that reads the last quarter of the tokens best, after a fit to the others.

    Args:
        x, target_ids, anchor: as in `logistic`.
        ridges: the strongest first. Each fit begins where the one before ended, and the search ends
            where the last quarter is read worse.

    Returns:
        The ridge, and the W and b that were fitted with it.
    """
    cut = max(1, 3 * len(x) // 4)
    least, best, both = math.inf, (ridges[0], anchor), anchor
    for ridge in ridges:
        both = logistic(x[:cut], target_ids[:cut], anchor, ridge, both)
        rest = x[cut:] @ both[:-1] + both[-1]
        nats = F.cross_entropy(rest, target_ids[cut:]).item() if len(rest) else math.inf
        if nats >= least:
            break
        least, best = nats, (ridge, both)
    return best


def logistic(
    x: Float[Tensor, "N m"],
    target_ids: Int[Tensor, " N"],
    anchor: Float[Tensor, "_ V"],
    ridge: float,
    start: Float[Tensor, "_ V"],
) -> Float[Tensor, "_ V"]:
    """W and b of softmax(x @ W + b) that minimise the nats per token plus a penalty.

    Args:
        x: the vectors (N, m).
        target_ids: the symbols that followed (N,).
        anchor: a W (m rows) and a b (the last row); the penalty is ridge · |W - its W|².
        ridge: the price of a departure from the anchor.
        start: where L-BFGS begins, as `anchor`.
    """
    from scipy.optimize import minimize  # it takes long to load

    ends, count = F.pad(x, (0, 1), value=1.0), len(x)  # (N, m+1)

    def nats(flat: np.ndarray) -> tuple[float, np.ndarray]:
        both = torch.from_numpy(flat).to(x).view(start.shape)
        away, slope, cost = both[:-1] - anchor[:-1], torch.zeros_like(both), 0.0
        for part, hits in zip(ends.split(PART), target_ids[:, None].split(PART)):
            log_probs = torch.log_softmax(part @ both, dim=-1)  # (n, V)
            cost -= log_probs.gather(1, hits).double().sum().item()
            error = log_probs.exp_().scatter_add_(1, hits, -torch.ones_like(hits).to(x))
            slope.addmm_(part.T, error)
        slope /= count
        slope[:-1] += 2 * ridge * away
        loss = cost / count + ridge * away.square().sum().item()
        return loss, slope.double().cpu().numpy().ravel()

    first = start.double().cpu().numpy().ravel()
    found = minimize(nats, first, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return torch.from_numpy(found).to(x).view(start.shape)


def spread(vectors: Float[Tensor, "N m"]) -> Tensor:
    """The root mean square standard deviation of the coordinates; 1 where all vectors are equal."""
    spread = vectors.double().var(0, correction=0).mean().sqrt()
    noise = torch.finfo(vectors.dtype).eps * vectors.double().square().mean().sqrt()
    return torch.where(spread > noise, spread, 1.0).to(vectors)
