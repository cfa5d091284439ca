"""The rows of a table that are closest to vectors (K3): exactly, in tables of any size.

Most vectors are decided in single precision. With u = 2^-24, a sum of k products is off by at most
k·u times the product of the lengths (by Cauchy and Schwarz), and a sum of squared differences by at
most (k + 3)·u times itself. So each row's score lies between two known numbers. Where these leave
more than one row, float64 decides among the rows that are left, in the same way. Where float64
cannot tell them apart either, fractions do.

Many vectors meet a large table in one matrix product, which is quick and rounds more: it only tells
which groups of rows are worth a look.
"""

from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.predictor import check_finite
from ..core.threads import for_each
from .by_row import as_array
from .compiled import kernels

METRICS = ("l2", "dot", "cosine")  # in the order of L2, DOT and COSINE of kernels.py
GROUP = 64  # rows that are looked at together; GROUP of kernels.py
MOST = 2**24  # numbers in a matrix of scores: so many vectors are compared at once
MANY, LARGE = 17, 1024  # so many vectors and rows are compared by a matrix product first
CHUNK = 2**18  # numbers of rows in one such product, so that it stays in the processor's cache
UNITS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}  # u: of rounding, relative
SHORT = 1e-15  # the squares of a shorter row lose digits


def nearest(
    vectors: Float[Tensor, "B m"], embedding: Float[Tensor, "V m"], metric: str = "l2"
) -> Int[Tensor, " B"]:
    """Collapse each soft token to the closest row of the table (K3).

    The result is exact for the numbers as they stand. Ties go to the smallest id. So neither the
    device, nor the batch, nor the number of threads has a say in it. A scale of all numbers has
    none, either, and a rotation only as far as it rounds them.

    Args:
        vectors: soft tokens (B, m).
        embedding: the table (V, m).
        metric: "l2" distance; "dot" product; "cosine", where a row of zeros has cosine 0.

    Returns:
        Token ids (B,).

    Raises:
        ValueError: where vectors hold NaN or infinity, naming the first bad row, or for an unknown
            metric.
    """
    check_finite(vectors)
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    vectors, rows = _prepared(vectors, embedding)
    size = max(1, MOST // max(len(rows), 1))
    if len(vectors) <= size:
        return _closest(vectors, rows, metric)
    return torch.cat([_closest(some, rows, metric) for some in vectors.split(size)])


def nearest_distance(
    vectors: Float[Tensor, "B m"], embedding: Float[Tensor, "V m"]
) -> Float[Tensor, " B"]:
    """The distance from each soft token to the closest row (B,), in embedding units.

    It is computed in float64 and rounded once.
    """
    rows = embedding[nearest(vectors, embedding)].double()
    return (rows - vectors.double()).norm(dim=-1).to(vectors.dtype)


def _prepared(vectors: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Both without gradients, in one type, of single precision at least."""
    if vectors.dtype == embedding.dtype == torch.float32:
        return vectors.detach(), embedding.detach()
    kind = torch.promote_types(torch.promote_types(vectors.dtype, embedding.dtype), torch.float32)
    return vectors.detach().to(kind), embedding.detach().to(kind)


def _closest(vectors: Tensor, rows: Tensor, metric: str) -> Int[Tensor, " B"]:
    """The closest row to each vector: by `_screen`, and one by one where that leaves several."""
    lows, highs, ids = _screen(vectors, rows, metric)
    if not len(ids) or int(ids.min()) >= 0:
        return ids
    for i in (ids < 0).nonzero().flatten().tolist():
        groups = (lows[i] <= highs[i]).nonzero()  # (G, 1)
        left = (groups * GROUP + torch.arange(GROUP, device=rows.device)).flatten()
        ids[i] = _among(vectors[i], rows, left[left < len(rows)], metric)
    return ids


def _screen(
    vectors: Float[Tensor, "B m"], rows: Float[Tensor, "V m"], metric: str
) -> tuple[Float[Tensor, "B G"], Float[Tensor, " B"], Int[Tensor, " B"]]:
    """What is certain about the scores; a score is the less, the closer the row.

    Returns:
        A bound that no score in a group of rows is below (B, G), a bound that the least score is
        not above (B,), and the closest row, or -1 where more than one may be it (B,).
    """
    # 2 k: k for the product, half as much for the row's length, and the rest for small numbers
    error = (2 * vectors.shape[1] + 16) * UNITS[vectors.dtype]
    compiled = kernels() if vectors.device.type == "cpu" else None
    if compiled is None or vectors.dtype != torch.float32:
        return _screen_in_torch(vectors, rows, metric, error)
    x, table, count = as_array(vectors), as_array(rows), len(vectors)
    # 1) bounds of many scores at once, where that pays off
    if count >= MANY and len(rows) >= LARGE:
        lows, highs = (as_array(one) for one in _bounds_of_groups(vectors, rows, metric, error))
    else:
        lows = np.full((count, -(-len(table) // GROUP)), -np.inf, np.float32)
        highs = np.full(count, np.inf, np.float32)
    # 2) one row after the other in the groups that are left
    ids, about = np.empty(count, np.int64), (table, METRICS.index(metric), np.float32(error))

    def some(begin: int, end: int) -> None:
        mine = slice(begin, end)
        compiled.screen(x[mine], *about, lows[mine], highs[mine], ids[mine])

    if count <= 4:
        compiled.screen(x, *about, lows, highs, ids)
    else:
        for_each(some, count, max(4, -(-count // 16)), x.size * len(table))
    return torch.from_numpy(lows), torch.from_numpy(highs), torch.from_numpy(ids)


def _lengths(rows: Tensor) -> Tensor:
    """The length of each row (n,), rounded once."""
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64).to(rows)


def _bounds_of_groups(
    vectors: Float[Tensor, "B m"], rows: Float[Tensor, "V m"], metric: str, error: float
) -> tuple[Float[Tensor, "B G"], Float[Tensor, " B"]]:
    """Bounds of the scores in each group of rows, as `_screen` returns them, from products.

    With lengths x and e, the product is off by `error` / 2 times x·e at most. |x - row|² is computed
    as |x|² - 2 x·row + |row|², which is off by `error` times (x + e)². So both are taken about a
    point amid the rows where these lie far from the origin.
    """
    middle = _middle(rows) if metric == "l2" else None
    if middle is not None:
        vectors = vectors - middle
    filled = torch.nn.functional.pad(vectors, (0, 0, 0, -len(vectors) % 32))  # quicker products
    columns = (-2 * filled if metric == "l2" else -filled).T.contiguous()
    size = GROUP * max(1, CHUNK // (GROUP * rows.shape[1]))
    centred, scores = rows.new_empty(size, rows.shape[1]), rows.new_empty(size, len(filled))
    parts = []
    # 1) the least score in each group (g, B), and its longest and shortest row (g,)
    for some in rows.split(size):
        if middle is not None:
            some = torch.sub(some, middle, out=centred[: len(some)])
        norms = torch.linalg.vector_norm(some, dim=-1).clamp_min_(SHORT)
        found = torch.mm(some, columns, out=scores[: len(some)])
        if metric == "l2":
            found.add_(norms.square()[:, None])
        elif metric == "cosine":
            found.div_(norms[:, None])
        least = _by_group(found, torch.inf).amin(1)
        parts.append((least, _by_group(norms, 0.0).amax(1), _by_group(norms, torch.inf).amin(1)))
    least, longest, shortest = (torch.cat(some) for some in zip(*parts))
    # 2) what rounding may have done to it
    sizes, least = _lengths(vectors)[:, None], least.T[: len(vectors)]  # (B, 1), (B, G)
    lost = 4 * vectors.shape[1] * torch.finfo(vectors.dtype).tiny
    if metric == "l2":
        least = least + sizes.square()
        slack = error * (sizes + longest).square() + lost
    elif metric == "dot":
        slack = error * sizes * longest + lost
    else:
        slack = torch.where(shortest > SHORT, error * sizes + lost / shortest, torch.inf)
    known = least + slack < torch.inf
    lows = torch.where(known, least - slack, -torch.inf)
    return lows, torch.where(known, least + slack, torch.inf).amin(-1)


def _middle(rows: Float[Tensor, "V m"]) -> Float[Tensor, " m"] | None:
    """A point amid the rows; None where the origin is one: no farther off than they are spread."""
    some = rows[:: -(-len(rows) // 256)]
    middle = some.mean(0)
    spread = (some - middle).square().sum(-1).mean()
    return middle if middle.square().sum() > spread else None


def _by_group(numbers: Float[Tensor, "n *B"], padding: float) -> Float[Tensor, "g 64 *B"]:
    """Numbers of rows (n, …) in groups of `GROUP` rows, the last one filled up."""
    missing = -len(numbers) % GROUP
    if missing:
        filling = numbers.new_full((missing, *numbers.shape[1:]), padding)
        numbers = torch.cat([numbers, filling])
    return numbers.unflatten(0, (-1, GROUP))


def _screen_in_torch(
    vectors: Tensor, rows: Tensor, metric: str, error: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`_screen` without compiled code."""
    # 1) the scores, and how far rounding may have carried them
    lost = vectors.shape[1] * torch.finfo(vectors.dtype).tiny
    if metric == "l2":
        scores = torch.cdist(vectors, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
        slack = error * scores + lost
    else:
        norms = _lengths(rows).clamp_min(SHORT)
        scores = -(vectors @ rows.T)
        slack = error * _lengths(vectors)[:, None] * norms + lost
        if metric == "cosine":
            scores, slack = scores / norms, slack / norms
            slack = torch.where(norms > SHORT, slack, torch.inf)
    # 2) the bounds
    known = scores + slack < torch.inf
    low = torch.where(known, scores - slack, -torch.inf)
    highs = torch.where(known, scores + slack, torch.inf).amin(-1)
    several = (low <= highs[:, None]).sum(-1) > 1
    padding = (0, -low.shape[1] % GROUP)
    lows = torch.nn.functional.pad(low, padding, value=torch.inf).unflatten(1, (-1, GROUP)).amin(-1)
    return lows, highs, low.argmin(-1).masked_fill(several, -1)


def _among(vector: Tensor, rows: Tensor, ids: Int[Tensor, " n"], metric: str) -> int:
    """The closest to one vector (m,) of the rows `ids`, which ascend."""
    # 1) in float64: which of them are as good as the best one, up to rounding
    y = vector.double()
    scores, sizes = zip(*(_score(y, rows[some].double(), metric) for some in ids.split(4096)))
    scores, sizes = torch.cat(scores), torch.cat(sizes)
    slack = (2 * len(y) + 16) * 2.0**-53 * sizes
    ids = ids[scores - slack <= (scores + slack).amin()]
    # 2) equal rows are one
    distinct: dict[bytes, int] = {}
    for row in ids.tolist():
        distinct.setdefault(rows[row].cpu().numpy().tobytes(), row)
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    # 3) in fractions; of equal ones the first
    wanted = _fractions(vector)
    return min(distinct.values(), key=lambda row: _exact(wanted, _fractions(rows[row]), metric))


def _score(y: Tensor, rows: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Scores (n,) of rows (n, m), and what their rounding is relative to (n,)."""
    if metric == "l2":
        scores = (rows - y).square().sum(-1)
        return scores, scores
    scores, sizes = -(rows * y).sum(-1), rows.norm(dim=-1) * y.norm()
    if metric == "dot":
        return scores, sizes
    norms = rows.norm(dim=-1)
    return torch.where(norms > 0, scores / norms, 0.0), torch.where(norms > 0, y.norm(), 0.0)


def _exact(y: list[Fraction], row: list[Fraction], metric: str) -> Fraction:
    """A score that orders the rows as the metric does, without rounding."""
    if metric == "l2":
        return sum((a - b) ** 2 for a, b in zip(row, y, strict=True))
    product = sum(a * b for a, b in zip(row, y, strict=True))
    if metric == "dot":
        return -product
    square = sum(a * a for a in row)
    return -product * abs(product) / square if square else Fraction(0)


def _fractions(numbers: Tensor) -> list[Fraction]:
    return [Fraction(one) for one in numbers.tolist()]
