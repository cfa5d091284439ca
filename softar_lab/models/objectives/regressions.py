"""Objectives that regress on one point: `mse`, `cosine`, `successor`."""

import torch
from torch.nn import functional as F

from ..embedding_tables import TINY, mean_norm
from .base import OBJECTIVES, Objective


@OBJECTIVES.register("mse")
class MeanSquaredError(Objective):
    """Regression on the next token's row. The best y is qE, the mixture of rows by the true q."""

    linear = True

    def losses(self, output, target_ids, table, generator):
        return (output - F.embedding(target_ids, table)).square().sum(-1)


@OBJECTIVES.register("cosine")
class Cosine(Objective):
    """1 - cos(y, e): only the direction counts, so the soft token gets the rows' mean length.

    The best direction is the direction of sum q_w e_w / |e_w|.
    """

    def initialise(self, generator):
        """Draw the head's weights, because a zero vector has no direction."""
        self.head.weight.data.normal_(0, self.head.in_features**-0.5, generator=generator)

    def losses(self, output, target_ids, table, generator):
        return 1 - F.cosine_similarity(output, F.embedding(target_ids, table), dim=-1, eps=TINY)

    def vector(self, output, table):
        return F.normalize(output, dim=-1, eps=TINY) * mean_norm(table)


@OBJECTIVES.register("successor")
class Successor(Objective):
    """Regression on the discounted sum of the coming tokens' rows, within the text row (K22).

    The target is the sum over k >= 0 of gamma^k e, where e is the row of the k-th token from here.
    The best y mixes the next symbols with later ones. So its nearest row need not be the likeliest
    symbol's, and its weights are not p(w | prefix); an affine map reads it. gamma = 0 is `mse`.

    Raises:
        ValueError: where gamma is not in [0, 1).
    """

    readouts = ("affine", "tau")
    linear = True

    def __init__(self, d_model: int, vocab_size: int, embedding_dim: int, gamma: float | int = 0.5):
        super().__init__(d_model, vocab_size, embedding_dim)
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma must lie in [0, 1), not {gamma}")
        self.gamma = gamma

    def targets(self, target_ids, table):
        """The discounted sums: ids (B, T), table (V, m) -> (B, T, m)."""
        ahead = torch.arange(target_ids.shape[1], device=table.device)
        ahead = ahead - ahead[:, None]  # (T, T): how far column j lies ahead of row i
        discount = torch.where(ahead >= 0, float(self.gamma) ** ahead.clamp_min(0), 0.0).to(table)
        return discount @ F.embedding(target_ids, table)

    def loss(self, hidden, target_ids, table, generator):
        output = self.output(hidden.flatten(0, 1)).unflatten(0, target_ids.shape)
        return (output - self.targets(target_ids, table)).square().sum(-1).mean()
