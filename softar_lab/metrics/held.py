"""What a picture of soft tokens holds of them: a few candidates, or a plane through the table."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.trajectory import Trajectory
from .pca import PCABasis

TINY = torch.finfo(torch.float32).tiny


def by_candidates(
    trajectories: Sequence[Trajectory], embedding: Float[Tensor, "V m"], k: int = 3
) -> float:
    """Share of the soft tokens that their k most probable symbols give back.

    Each soft token is rebuilt as the mixture of these symbols' rows by their probabilities; the
    probability that is left stands for the mean row. The share is 1 - sum |y - rebuilt|² / sum
    |y - mean|², over all steps: 1 where the candidates say all, 0 where they say no more than the
    mean row does.

    Args:
        trajectories: paths of one model.
        embedding: the model's table (V, m).
        k: how many candidates, at most as many as a trajectory records.
    """
    rows, vectors = embedding.detach().cpu().double(), _vectors(trajectories)
    mean = rows.mean(0)
    best = [one.top_probs.double().topk(min(k, one.top_probs.shape[1])) for one in trajectories]
    probs = torch.cat([top.values for top in best])  # (N, k)
    ids = torch.cat(
        [one.top_ids.gather(1, top.indices) for one, top in zip(trajectories, best, strict=True)]
    )
    rebuilt = mean + (probs[..., None] * (rows[ids] - mean)).sum(1)  # (N, m)
    return 1 - float((vectors - rebuilt).square().sum() / _spread(vectors, mean))


def by_plane(vectors: Float[Tensor, "N m"], basis: PCABasis) -> float:
    """Share of the vectors' squared distance from the table's mean row that lies in the plane of
    the first two directions of a basis, in [0, 1].
    """
    mean, axes = basis.mean.double(), basis.components[:2].double()
    inside = ((vectors.double() - mean) @ axes.T).square().sum()
    return float(inside / _spread(vectors.double(), mean))


def right_in_plane(
    trajectories: Sequence[Trajectory], embedding: Float[Tensor, "V m"], doubt: float = 0.9
) -> float:
    """How often the symbol drawn nearest to a soft token is the most probable one, in [0, 1].

    Drawn is the plane in which the table varies most. Only steps in doubt count, where the most
    probable symbol has less than `doubt`; NaN without any.
    """
    basis = PCABasis.fit(embedding, 2)
    points, rows = basis.transform(_vectors(trajectories).float()), basis.transform(embedding)
    nearest = torch.cdist(points.double(), rows.double()).argmin(1)
    probs = torch.cat([one.top_probs for one in trajectories])
    ids = torch.cat([one.top_ids for one in trajectories])
    best, place = probs.max(1)
    right = nearest == ids.gather(1, place[:, None])[:, 0]
    return float(right[best < doubt].double().mean())


def _vectors(trajectories: Sequence[Trajectory]) -> Float[Tensor, "N m"]:
    return torch.cat([one.vectors for one in trajectories]).double()


def _spread(vectors: Float[Tensor, "N m"], mean: Float[Tensor, " m"]) -> Tensor:
    return (vectors - mean).square().sum().clamp_min(TINY)
