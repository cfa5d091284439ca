"""Objectives trained by the likelihood of the next symbol: `ce`, `metric`, `anchored`."""

import torch
from torch import nn
from torch.nn import functional as F

from ...core.predictor import Prediction
from ..by_row import log_softmax, product
from .base import OBJECTIVES, Objective
from .readouts import affine_distance, squared_distance


@OBJECTIVES.register("ce")
class CrossEntropy(Objective):
    """The baseline of every comparison: p = softmax(logits). Its soft token is the mixture pE."""

    readouts = ("softmax",)

    def __init__(self, d_model: int, vocab_size: int, embedding_dim: int):
        super().__init__(d_model, vocab_size, embedding_dim, out_dim=vocab_size)

    def losses(self, output, target_ids, table, generator):
        return F.cross_entropy(output, target_ids, reduction="none")

    def vector(self, output, table):
        return product(log_softmax(output)[1], table)

    def scores(self, output, table):
        return output

    def affine_scores(self, table):
        eye = torch.eye(len(table)).to(table)
        return eye, eye.new_zeros(len(table))

    def predict(self, hidden, table):
        """As in the base class, but one softmax serves the probabilities and the soft token."""
        log_probs, probs = log_softmax(self.output(hidden))
        return Prediction(log_probs, product(probs, table), probs=probs)


@OBJECTIVES.register("metric")
class MetricSoftmax(Objective):
    """softmax(-|y - e_w|² / tau), trained by cross-entropy: a vector output with a likelihood."""

    readouts = ("softmax", "tau", "affine", "barycentric")
    linear = True

    def __init__(self, d_model: int, vocab_size: int, embedding_dim: int):
        super().__init__(d_model, vocab_size, embedding_dim)
        self.log_tau = nn.Parameter(torch.zeros(()))

    def losses(self, output, target_ids, table, generator):
        return F.cross_entropy(self.scores(output, table), target_ids, reduction="none")

    def scores(self, output, table):
        return -squared_distance(output, table) / self.log_tau.exp()

    def affine_scores(self, table):
        return affine_distance(table, self.log_tau.exp())


@OBJECTIVES.register("anchored")
class Anchored(MetricSoftmax):
    """`metric` plus pull · |y - e|² (K23).

    Cross-entropy keeps the rows apart, and the pull keeps y among them. Without the pull, y is a
    scaled logit direction, far from every row, and feeding it back means nothing.
    """

    def __init__(self, d_model: int, vocab_size: int, embedding_dim: int, pull: float | int = 1.0):
        super().__init__(d_model, vocab_size, embedding_dim)
        if not pull >= 0:
            raise ValueError(f"pull must be at least 0, not {pull}")
        self.pull = pull

    def losses(self, output, target_ids, table, generator):
        distance = (output - F.embedding(target_ids, table)).square().sum(-1)
        return super().losses(output, target_ids, table, generator) + self.pull * distance
