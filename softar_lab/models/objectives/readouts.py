"""Readouts: how p(w | prefix) is computed from the vector that an objective predicts (K1).

A readout is one class with `read` and, if it has parameters, `calibrate`, which fits them on
training text. Any trained model can get another readout: `model.with_readout("barycentric")`, then
`evaluation.calibrate`.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...core.checks import whole_number
from ...core.registry import Registry
from ..by_row import log_softmax, product
from ..simplex import barycentric
from .fitting import best_log_tau, best_ridge, logistic, spread

READOUTS = Registry("readout")


class Readout(nn.Module):
    """Base class of the readouts. `tokens`: how many training tokens `calibrate` needs at least."""

    tokens = 1

    def __init__(self, vocab_size: int, embedding_dim: int):
        super().__init__()

    def read(
        self,
        objective: nn.Module,
        output: Tensor,
        vector: Float[Tensor, "N m"],
        table: Float[Tensor, "V m"],
    ) -> tuple[Float[Tensor, "N V"], Float[Tensor, "N V"] | None]:
        """log p(w | prefix) (N, V), in nats, and p itself where it has been computed, else None.

        Args:
            objective: the objective that made the prediction.
            output: the head's output (N, out).
            vector: the soft token (N, m).
            table: the embedding table (V, m).
        """
        raise NotImplementedError

    def log_probs(
        self, objective: nn.Module, output: Tensor, vector: Tensor, table: Tensor
    ) -> Float[Tensor, "N V"]:
        """log p(w | prefix), the first result of `read`."""
        return self.read(objective, output, vector, table)[0]

    def affine(
        self, objective: nn.Module, table: Float[Tensor, "V m"]
    ) -> tuple[Tensor, Tensor] | None:
        """(matrix (out, V), bias (V,)) if p is softmax(output @ matrix + bias); else None."""
        return None

    def calibrate(
        self,
        objective: nn.Module,
        output: Tensor,
        vector: Tensor,
        target_ids: Int[Tensor, " N"],
        table: Tensor,
    ) -> None:
        """Fit the parameters, if any, on N positions whose next symbols are `target_ids`."""


class Logits(Readout):
    """Base of the readouts that are a softmax of `logits`."""

    def logits(
        self, objective: nn.Module, output: Tensor, vector: Tensor, table: Tensor
    ) -> Float[Tensor, "N V"]:
        """log p(w | prefix) up to one constant per row (N, V)."""
        raise NotImplementedError

    def read(self, objective, output, vector, table):
        return log_softmax(self.logits(objective, output, vector, table))


@READOUTS.register("softmax")
class Softmax(Logits):
    """The softmax of the objective's own scores, as in training; nothing to fit."""

    def logits(self, objective, output, vector, table):
        found = objective.affine_scores(table)
        return (
            objective.scores(output, table)
            if found is None
            else product(output, found[0]) + found[1]
        )

    def affine(self, objective, table):
        return objective.affine_scores(table)


@READOUTS.register("density")
class Density(Softmax):
    """The exact density at the table's rows: p(w) = f(e_w) / sum f(e_u); nothing to fit.

    It is overconfident.
    """


@READOUTS.register("tau")
class Tau(Logits):
    """softmax(-|y - e_w|² / tau), with one fitted number tau.

    tau is always a compromise between sharp, where the text is certain, and blunt, where it is not.
    It is looked for around the mean range of |y - e_w|² over the rows. So scaling vectors and table
    together changes nothing but rounding: about 1e-5 of tau, and far less of the loss.
    """

    def __init__(self, vocab_size: int, embedding_dim: int):
        super().__init__(vocab_size, embedding_dim)
        self.register_buffer("log_tau", torch.zeros(()))

    def logits(self, objective, output, vector, table):
        matrix, bias = _centred_distance(table, self.log_tau)
        return product(vector, matrix) + bias

    def affine(self, objective, table):
        return _centred_distance(table, self.log_tau) if objective.linear else None

    def calibrate(self, objective, output, vector, target_ids, table):
        log_tau = best_log_tau(vector, target_ids, table)
        if log_tau is not None:
            self.log_tau.copy_(log_tau)


@READOUTS.register("affine")
class Affine(Logits):
    """softmax(y @ W + b): a multinomial logistic regression on the vectors, fitted by L-BFGS.

    It starts from the reading `tau`, which it contains, and `ridge` is what a departure from that
    reading's W costs. So few training tokens leave `tau`, and many find the best map.
    Scaling or rotating the vectors changes only where L-BFGS stops, about 1e-5 of the loss.

    Args:
        tokens: how many training tokens it is fitted on.
        ridge: the penalty on |W - W of tau|², in units of the vectors' standard deviation; None:
            the one of `RIDGES` that reads the last quarter of these tokens best, after a fit to the
            others.

    Raises:
        ValueError: where tokens is below 4, or ridge is not above 0.
    """

    RIDGES = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)  # the first one is all but `tau`

    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int,
        tokens: int = 65_536,
        ridge: float | int | None = None,
    ):
        super().__init__(vocab_size, embedding_dim)
        if ridge is not None and not 0 < ridge < math.inf:
            raise ValueError(f"ridge must be above 0, not {ridge}")
        self.tokens, self.ridge = whole_number("tokens", tokens, 4), ridge
        self.register_buffer("weight", torch.zeros(embedding_dim, vocab_size))
        self.register_buffer("bias", torch.zeros(vocab_size))

    def logits(self, objective, output, vector, table):
        return product(vector, self.weight) + self.bias

    def affine(self, objective, table):
        return (self.weight, self.bias) if objective.linear else None

    def calibrate(self, objective, output, vector, target_ids, table):
        # 1) standardise the vectors, by one scale for all coordinates: a rotation changes nothing
        mean, scale = vector.mean(0), spread(vector)
        x = (vector - mean) / scale
        # 2) begin with the best reading by distance, in these units
        start = torch.zeros(len(self.weight) + 1, self.weight.shape[1]).to(x)
        log_tau = best_log_tau(vector, target_ids, table)
        if log_tau is not None:
            matrix, bias = _centred_distance(table, log_tau)
            start = torch.cat([matrix * scale, (bias + mean @ matrix)[None]])
        # 3) fit, then undo the standardisation in weight and bias
        ridge, both = (self.ridge, start)
        if ridge is None:
            ridge, both = best_ridge(x, target_ids, start, self.RIDGES)
        both = logistic(x, target_ids, start, ridge, both)
        self.weight.copy_(both[:-1] / scale)
        self.bias.copy_(both[-1] - mean @ both[:-1] / scale)


class Smoothed(Readout):
    """Base of the readouts that are mixed with a prior: the frequencies of the symbols.

    Without the prior, some symbols would get probability 0.
    """

    def __init__(self, vocab_size: int, embedding_dim: int):
        super().__init__(vocab_size, embedding_dim)
        self.register_buffer("prior", torch.full((vocab_size,), 1 / vocab_size))

    def calibrate(self, objective, output, vector, target_ids, table):
        counts = torch.bincount(target_ids, minlength=len(self.prior)) + 1
        self.prior.copy_(counts / counts.sum())


@READOUTS.register("barycentric")
class Barycentric(Smoothed):
    """(1 - share) p̂ + share · prior, where p̂ are the weights of the mixture of rows closest to y.

    Raises:
        ValueError: where share does not lie between 0 and 1.
    """

    def __init__(self, vocab_size: int, embedding_dim: int, share: float = 0.07):
        super().__init__(vocab_size, embedding_dim)
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, not {share}")
        self.share = share

    def read(self, objective, output, vector, table):
        return ((1 - self.share) * barycentric(vector, table) + self.share * self.prior).log(), None


@READOUTS.register("votes")
class Votes(Smoothed):
    """How often a row is the nearest one, among `draws` draws, plus a prior worth one draw.

    The noise is the same in every call and for every position, so p depends on the prefix alone.
    A rotation of the space meets other noise, so it changes p as other draws would.

    Raises:
        ValueError: where draws is below 1.
    """

    def __init__(self, vocab_size: int, embedding_dim: int, draws: int = 32):
        super().__init__(vocab_size, embedding_dim)
        if draws < 1:
            raise ValueError(f"draws must be at least 1, not {draws}")
        self.draws = draws

    def read(self, objective, output, vector, table):
        noise = torch.randn(
            self.draws, 1, objective.noise_dim, generator=torch.Generator().manual_seed(0)
        )
        noise, half, found = noise.to(output), table.square().sum(-1) / 2, []
        for part in output.split(max(1, 4096 // self.draws)):  # as many as fit the processor cache
            drawn = objective.draw(part, noise, table)
            nearest = (product(drawn, table.T) - half).argmax(-1)  # (S, N): |y - e|² without |y|²
            votes = torch.zeros(len(part), len(table)).to(output)
            found.append(votes.scatter_add_(1, nearest.T, torch.ones(nearest.T.shape).to(output)))
        return ((torch.cat(found) + self.prior) / (self.draws + 1)).log(), None


def squared_distance(
    vectors: Float[Tensor, "N m"], table: Float[Tensor, "V m"]
) -> Float[Tensor, "N V"]:
    """|y - e_w|² of every vector to every row, (N, V), in squared embedding units."""
    products = product(vectors, table.T)  # (N, V)
    return (
        vectors.square().sum(-1, keepdim=True) + table.square().sum(-1) - 2 * products
    ).clamp_min(0)


def _centred_distance(
    table: Float[Tensor, "V m"], log_tau: Tensor
) -> tuple[Float[Tensor, "m V"], Float[Tensor, " V"]]:
    """As `affine_distance`, for a table whose rows may lie close together and far from the origin.

    With c the mean of the rows, |y - c|² is the same for all w, too. What is left is as large as the
    distances among the rows, so little is lost in single precision where tau is as small as these.
    """
    rows, tau = table.double(), log_tau.double().exp()
    centre = rows.mean(0)
    rest = rows - centre  # (V, m)
    bias = -(rest.square().sum(-1) + 2 * rest @ centre) / tau
    return (rest.T * (2 / tau)).to(table), bias.to(table)


def affine_distance(
    table: Float[Tensor, "V m"], tau: Tensor
) -> tuple[Float[Tensor, "m V"], Float[Tensor, " V"]]:
    """(matrix, bias) such that softmax(-|y - e_w|² / tau) is softmax(y @ matrix + bias).

    |y|² is the same for all w, so it cancels; the other terms are affine in y.
    """
    return table.T * (2 / tau), -table.square().sum(-1) / tau
