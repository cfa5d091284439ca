"""Objectives that turn noise into vectors, without a density: `energy`, `flow`.

Their default readout is "votes".
"""

import torch
from torch import nn
from torch.nn import functional as F

from ..by_row import product, single
from .base import OBJECTIVES, Objective, normal


class Sampler(Objective):
    """Base class of objectives whose head is conditioned on noise.

    The head is g(h, ε) = head(h) + out(silu(from_hidden(h) + from_noise(ε))). The soft token is the
    mean of 16 draws, always from the same noise.
    """

    readouts = ("votes", "tau", "affine", "barycentric")

    def __init__(self, d_model: int, vocab_size: int, embedding_dim: int, net_in: int):
        super().__init__(d_model, vocab_size, embedding_dim)
        width = d_model
        self.from_hidden = nn.Linear(d_model, width)
        self.from_noise = nn.Linear(net_in, width, bias=False)
        self.out = nn.Linear(width, embedding_dim, bias=False)

    def initialise(self, generator):
        """Draw the weights of the noise branch, because equal draws would stay equal."""
        self.from_hidden.bias.data.zero_()
        for linear in (self.from_hidden, self.from_noise, self.out):
            linear.weight.data.normal_(0, linear.in_features**-0.5, generator=generator)
        self.out.weight.data.mul_(self.embedding_dim**-0.5)

    def output(self, hidden):
        """The part of g that does not depend on the noise: (N, d) -> (N, m + width)."""
        inner = product(hidden, self.from_hidden.weight.T) + self.from_hidden.bias
        return single(torch.cat([product(hidden, self.head.weight.T), inner], -1))

    def net(self, output, noise):
        """g: output (N, m + width) and noise (…, N, k) or (…, 1, k) -> vectors (…, N, m)."""
        straight, inner = output.split([self.embedding_dim, self.out.in_features], -1)
        wide = F.silu(inner + product(noise, self.from_noise.weight.T))
        return straight + product(wide, self.out.weight.T)

    def vector(self, output, table):
        noise = normal((16, 1, self.noise_dim), torch.Generator().manual_seed(1), output)
        share = torch.full((1, 16), 1 / 16).to(output)
        drawn = [self.draw(part, noise, table) for part in output.split(128)]  # (16, n, m) each
        return torch.cat(
            [product(share, draws.flatten(1)).view(draws.shape[1:]) for draws in drawn]
        )


@OBJECTIVES.register("energy")
class EnergyScore(Sampler):
    """The energy score of N = `samples` draws z_n against the row e, one target per position.

    The loss is 2/N Σ |z_n - e|^alpha - 1/(N(N-1)) Σ_{n≠k} |z_n - z_k|^alpha. For alpha < 2 it
    identifies q at any m. At alpha = 2 the draws may all equal their mean, as with `mse`.

    Raises:
        ValueError: where samples is below 2 or alpha is not in [1, 2].

    Source:
        CALM, arXiv 2510.27688.
    """

    noise_dim = 16

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        embedding_dim: int,
        samples: int = 8,
        alpha: float | int = 1,
    ):
        super().__init__(d_model, vocab_size, embedding_dim, net_in=self.noise_dim)
        if samples < 2 or not 1 <= alpha <= 2:
            raise ValueError(
                f"samples must be at least 2 and alpha in [1, 2], not {samples} and {alpha}"
            )
        self.samples, self.alpha = samples, alpha

    def draw(self, output, noise, table):
        return self.net(output, noise)

    def losses(self, output, target_ids, table, generator):
        noise = normal((self.samples, len(output), self.noise_dim), generator, output)
        return energy_score(
            self.draw(output, noise, table), F.embedding(target_ids, table), self.alpha
        )


def energy_score(draws, targets, alpha):
    """The unbiased energy score: draws (S, N, m), targets (N, m) -> (N,); lower is better."""
    away = (draws - targets).norm(dim=-1).pow(alpha).mean(0)
    # (N, S, m); centred, so that the products lose little precision
    centred = (draws - draws.mean(0)).transpose(0, 1)
    gram = centred @ centred.mT  # (N, S, S)
    i, j = torch.triu_indices(len(draws), len(draws), 1)
    square = (
        gram.diagonal(dim1=1, dim2=2)[:, i]
        + gram.diagonal(dim1=1, dim2=2)[:, j]
        - 2 * gram[:, i, j]
    )
    return 2 * away - square.clamp_min(1e-12).pow(alpha / 2).mean(1)  # each pair once


@OBJECTIVES.register("flow")
class FlowMatching(Sampler):
    """A small flow-matching head: a velocity v(x_t, t, h) moves noise to the next token's row.

    It is trained on straight paths x_t = (1 - t) x_0 + t e with the target v = e - x_0. A draw
    takes `steps` Euler steps.

    Raises:
        ValueError: where steps is not in 1 … 10.
    """

    def __init__(self, d_model: int, vocab_size: int, embedding_dim: int, steps: int = 8):
        super().__init__(d_model, vocab_size, embedding_dim, net_in=embedding_dim + 1)
        if not 1 <= steps <= 10:
            raise ValueError(f"steps must lie in 1 … 10, not {steps}")
        self.steps, self.noise_dim = steps, embedding_dim

    def velocity(self, output, points, time):
        """v at points (…, N, m) and times (…, N, 1)."""
        # each input has about unit variance
        inputs = torch.cat([points * self.embedding_dim**0.5, time], -1)
        return self.net(output, inputs)

    def draw(self, output, noise, table):
        points = noise * self.embedding_dim**-0.5  # of length about 1, like the rows
        for step in range(self.steps):
            time = points.new_full((*points.shape[:-1], 1), step / self.steps)
            points = points + self.velocity(output, points, time) / self.steps
        return points

    def losses(self, output, target_ids, table, generator):
        target = F.embedding(target_ids, table)
        begin = normal(tuple(target.shape), generator, output) * self.embedding_dim**-0.5
        time = torch.rand(len(target), 1, generator=generator, device=generator.device).to(output)
        velocity = self.velocity(output, begin + time * (target - begin), time)
        return (velocity - (target - begin)).square().sum(-1)
