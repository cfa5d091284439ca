"""A few steps of a path in the plane of the table, and the mixture of symbols that is nearest."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.trajectory import Trajectory
from ..metrics.held import by_plane
from ..metrics.pca import PCABasis
from .style import visible

TRAIL = 6  # steps that a plane shows at most
ALL = 60  # of a larger table only the symbols are written that these steps hold
HEAVY, LEAST = 8, 0.01  # symbols of a mixture that are marked at most, and the least weight of one


def plane_state(
    trajectory: Trajectory,
    basis: PCABasis,
    embedding: Float[Tensor, "V m"],
    weights: Float[Tensor, " V"],
    off_hull: float,
    step: int,
) -> dict[str, Any]:
    """What a plane shows of one step, as plain lists and numbers.

    Args:
        trajectory: a path of a model with this table.
        basis: the plane: its first two directions.
        embedding: the table (V, m).
        weights: the mixture of rows (V,) that is nearest to the step's soft token.
        off_hull: the distance of the soft token from the hull of all symbols.
        step: the step; the latest ones before it are drawn, too.

    Returns:
        `symbols`, each [text, x, y, weight in the mixture if it is one of the heaviest]; `trail`,
        the points of the latest steps; `first`, the number of the first of them; `mixture`, its
        point; `off_hull`; and the shares of these steps and of the table that the plane holds
        (`held`, `table`).
    """
    embedding = embedding.detach().cpu().float()
    latest = slice(max(0, step - TRAIL + 1), step + 1)
    vectors, weights = trajectory.vectors[latest], weights.cpu().float()
    heavy = weights.topk(min(HEAVY, len(weights))).indices
    heavy = heavy[weights[heavy] >= LEAST]
    best = trajectory.top_ids[latest, :3]
    used = torch.cat([trajectory.token_ids[latest], best.flatten(), heavy]).unique().tolist()
    ids = list(range(len(embedding))) if len(embedding) <= ALL else used
    rows = basis.transform(embedding[ids])[:, :2]
    mixed = set(heavy.tolist())
    texts = ["".join(map(visible, trajectory.tokens[i])) for i in ids]
    return {
        "symbols": [
            [text, *_point(row), round(float(weights[i]), 3) if i in mixed else 0]
            for text, row, i in zip(texts, rows, ids, strict=True)
        ],
        "trail": [_point(point) for point in basis.transform(vectors)[:, :2]],
        "first": latest.start,
        "mixture": _point(basis.transform(weights @ embedding)[:2]),
        "off_hull": round(off_hull, 4),
        "held": round(by_plane(vectors, basis), 3),
        "table": round(float(basis.explained[:2].sum()), 3),
    }


def _point(coordinates: Tensor) -> list[float]:
    return [float(f"{x:.4g}") for x in coordinates.tolist()]
