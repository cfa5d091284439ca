"""What a soft token believes: the distribution over states that can be read from it linearly (K10)."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..models.simplex import project_to_simplex

RIDGE = 1e-3  # of the mean squared entry of the vectors: steadies directions that hardly occur


class BeliefProbe:
    """A linear map from soft tokens to distributions over states, fitted by least squares.

    What it gives is replaced by the nearest distribution. It is fitted on problems whose states are
    known, and should be asked about others.

    Args:
        vectors: soft tokens (N, m).
        states: the distributions that they should hold (N, V).

    Raises:
        ValueError: for fewer soft tokens than their width.
    """

    def __init__(self, vectors: Float[Tensor, "N m"], states: Float[Tensor, "N V"]):
        if len(vectors) <= vectors.shape[1]:
            raise ValueError(
                f"{len(vectors)} soft tokens are too few to fit a map of {vectors.shape[1]} numbers"
            )
        x, y = vectors.double(), states.double()
        self.centre, self.mean = x.mean(0), y.mean(0)
        x = x - self.centre
        spread = x.square().mean()
        ridge = RIDGE * spread * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        self.map = torch.linalg.solve(x.T @ x + ridge, x.T @ (y - self.mean))  # (m, V)

    def read(self, vectors: Float[Tensor, "*n m"]) -> Float64[Tensor, "*n V"]:
        """The distribution over states that each soft token holds."""
        found = (vectors.double() - self.centre) @ self.map + self.mean
        return project_to_simplex(found.view(-1, found.shape[-1])).view(found.shape)


def overlap(one: Float[Tensor, "*n V"], other: Float[Tensor, "*n V"]) -> Float64[Tensor, "*n"]:
    """The probability that two distributions have in common: 1 less their total variation."""
    return torch.minimum(one.double(), other.double()).sum(-1)


def states_held(probs: Float[Tensor, "*n V"]) -> Float64[Tensor, "*n"]:
    """How many states a distribution holds: exp(entropy), 4 for four equally likely ones."""
    return torch.special.entr(probs.double()).sum(-1).exp()
