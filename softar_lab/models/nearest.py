"""The rows of a table that are closest to vectors (K3)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.predictor import check_finite

LARGE = 4096  # in a table with more rows, only the distances to candidates are computed exactly
NEAREST = 16  # candidate rows per vector in such a table


def nearest(vectors: Float[Tensor, "B m"], embedding: Float[Tensor, "V m"]) -> Int[Tensor, " B"]:
    """Collapse each soft token to the closest row of the table (K3).

    Ties go to the smallest id, so the result does not depend on the device.

    Returns:
        Token ids (B,).

    Raises:
        ValueError: where vectors hold NaN or infinity, naming the first bad row.
    """
    return _closest(vectors, embedding)[1]


def nearest_distance(
    vectors: Float[Tensor, "B m"], embedding: Float[Tensor, "V m"]
) -> Float[Tensor, " B"]:
    """The distance from each soft token to the closest row (B,), in embedding units."""
    return _closest(vectors, embedding)[0]


def _closest(vectors: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
    """The distance to the closest row, and the id of that row, (B,) each.

    In a large table, one matrix product, which rounds, finds the `NEAREST` candidate rows of each
    vector. The distances to these candidates are then exact.
    """
    check_finite(vectors)
    if len(embedding) <= LARGE:
        found = torch.cdist(vectors, embedding, compute_mode="donot_use_mm_for_euclid_dist").min(-1)
        return found.values, found.indices
    # norm first, then square: squaring all entries would need a second table in memory
    squares, parts = embedding.norm(dim=-1).square(), []
    for some in vectors.split(512):
        near = (
            torch.addmm(squares, some, embedding.T, alpha=-2)
            .topk(NEAREST, largest=False)
            .indices.sort(-1)
            .values
        )
        exact = (embedding[near] - some[:, None]).norm(dim=-1)  # (b, NEAREST), ids ascending
        least = exact.min(-1)
        parts.append((least.values, near.gather(1, least.indices[:, None]).squeeze(1)))
    distances, rows = zip(*parts, strict=True)
    return torch.cat(distances), torch.cat(rows)
