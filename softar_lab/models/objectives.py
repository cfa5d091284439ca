"""What the output is and how it is trained (K1, K7, K22). Each objective is one class and states its p(w | prefix).

An objective gets the body's hidden state (N, d) and the table E (V, m). It answers with a loss while training and with
a `Prediction` afterwards. To add one: subclass `Objective`, decorate with ``@OBJECTIVES.register("name")``.
"""

import math

import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from ..predictor import Prediction
from ..registry import Registry

OBJECTIVES = Registry("objective")
names = OBJECTIVES.names


class Objective(nn.Module):
    """Base class. `out_dim(vocab_size, embedding_dim)` is the width of the linear head on the hidden state."""

    def __init__(self, d_model: int, vocab_size: int, embedding_dim: int):
        super().__init__()
        self.head = nn.Linear(d_model, self.out_dim(vocab_size, embedding_dim), bias=False)
        nn.init.zeros_(self.head.weight)  # the first prediction is uniform, the first loss that of knowing nothing

    def output(self, hidden: Float[Tensor, "N d"]) -> Float[Tensor, "N out"]:
        """The head's output in float32 (N, out). A product, not a call of the module, which costs as much again."""
        return F.linear(hidden, self.head.weight).float()

    @staticmethod
    def out_dim(vocab_size: int, embedding_dim: int) -> int:
        """Most objectives aim at a point of R^m."""
        return embedding_dim

    def loss(
        self, hidden: Float[Tensor, "N d"], target_ids: Int[Tensor, " N"], table: Float[Tensor, "V m"]
    ) -> Float[Tensor, ""]:
        """The mean training loss over N positions."""
        raise NotImplementedError

    def predict(self, hidden: Float[Tensor, "N d"], table: Float[Tensor, "V m"]) -> Prediction:
        """The prediction: p(w | prefix) and the soft token of each of N positions."""
        raise NotImplementedError

    def readout(self, table: Float[Tensor, "V m"]) -> tuple[Float[Tensor, "d V"], Float[Tensor, " V"]] | None:
        """(weight, bias) where p(w | prefix) is softmax(hidden @ weight + bias), as it is of distances; else None."""
        return None

    def calibrate(
        self, hidden: Float[Tensor, "N d"], target_ids: Int[Tensor, " N"], table: Float[Tensor, "V m"]
    ) -> None:
        """Fit the parameters, if any, that turn a vector into probabilities (never on validation text)."""


@OBJECTIVES.register("ce")
class CrossEntropy(Objective):
    """The baseline row of every table: p = softmax(logits). Its soft token is the mixture pE."""

    @staticmethod
    def out_dim(vocab_size: int, embedding_dim: int) -> int:
        """One logit a symbol."""
        return vocab_size

    def loss(self, hidden, target_ids, table):
        return F.cross_entropy(self.output(hidden), target_ids)

    def predict(self, hidden, table):
        log_probs = torch.log_softmax(self.output(hidden), dim=-1)
        probs = log_probs.exp()
        return Prediction(log_probs, probs @ table, probs=probs)

    def readout(self, table):
        weight = self.head.weight.T
        return weight, weight.new_zeros(weight.shape[1])


@OBJECTIVES.register("mse")
class MeanSquaredError(Objective):
    """Regression on the next token's row. The best y is qE, the mixture of rows under the true q.

    p(w | prefix) = softmax(-|y - e_w|² / tau), tau fitted by `calibrate`: sharp enough where the text is certain, blunt
    enough where it is not, so always a compromise (FACTS: exp(-d²/tau) costs bits that other readings do not).
    """

    def __init__(self, d_model: int, vocab_size: int, embedding_dim: int):
        super().__init__(d_model, vocab_size, embedding_dim)
        self.register_buffer("log_tau", torch.zeros(()))

    def loss(self, hidden, target_ids, table):
        return (self.output(hidden) - F.embedding(target_ids, table)).square().sum(-1).mean()

    def predict(self, hidden, table):
        vector = self.output(hidden)
        return Prediction(torch.log_softmax(-squared_distance(vector, table) / self.log_tau.exp(), dim=-1), vector)

    def readout(self, table):
        return distance_readout(self.head.weight, table, self.log_tau.exp())

    def calibrate(self, hidden, target_ids, table):
        distance = squared_distance(self.output(hidden), table)

        def nats(log_tau: float) -> float:
            return F.cross_entropy(-distance / math.exp(log_tau), target_ids).item()

        self.log_tau.fill_(minimize_scalar(nats, bounds=(-7.0, 3.0), method="bounded").x)


@OBJECTIVES.register("metric")
class MetricSoftmax(Objective):
    """softmax(-|y - e_w|² / tau) trained by cross-entropy: a vector output that keeps a likelihood."""

    def __init__(self, d_model: int, vocab_size: int, embedding_dim: int):
        super().__init__(d_model, vocab_size, embedding_dim)
        self.log_tau = nn.Parameter(torch.zeros(()))

    def logits(self, vector, table):
        """-|y - e_w|² / tau: (N, m), (V, m) -> (N, V)."""
        return -squared_distance(vector, table) / self.log_tau.exp()

    def loss(self, hidden, target_ids, table):
        return F.cross_entropy(self.logits(self.output(hidden), table), target_ids)

    def predict(self, hidden, table):
        vector = self.output(hidden)
        return Prediction(torch.log_softmax(self.logits(vector, table), dim=-1), vector)

    def readout(self, table):
        return distance_readout(self.head.weight, table, self.log_tau.exp())


def squared_distance(vectors: Float[Tensor, "N m"], table: Float[Tensor, "V m"]) -> Float[Tensor, "N V"]:
    """|y - e_w|² of every vector to every row: (N, m), (V, m) -> (N, V), in squared embedding units."""
    products = vectors @ table.T  # (N, V)
    return (vectors.square().sum(-1, keepdim=True) + table.square().sum(-1) - 2 * products).clamp_min(0)


def distance_readout(head: Float[Tensor, "m d"], table: Float[Tensor, "V m"], tau: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(-|y - e_w|² / tau) for y = head @ hidden: |y|² is the same for all w, the rest is affine in hidden."""
    return head.T @ table.T * (2 / tau), -table.square().sum(-1) / tau
