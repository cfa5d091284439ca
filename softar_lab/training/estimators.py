"""Estimators: what a thinking step draws, and how likely that draw was (K10).

A thinking step turns the prediction p into a vector to read next. Each estimator draws something,
the `Draw`, makes the vector of it, and knows the log-density of the draw. `reinforce` stores the
draws of its roll-outs. From them it computes the density again under the weights that it changes:
with fresh noise the gradient would be wrong.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Int64
from scipy.special import gammaincinv
from torch import Tensor
from torch.nn import functional as F

from ..core.checks import whole_number
from ..core.registry import Registry
from ..models.by_row import largest, product

ESTIMATORS = Registry("estimator")
names = ESTIMATORS.names


@dataclass(frozen=True)
class Draw:
    """What a thinking step drew: symbols (N, k), numbers, or both, whichever the estimator uses."""

    ids: Int64[Tensor, "N k"] | None = None
    values: Float[Tensor, "N c"] | None = None

    def clone(self) -> "Draw":
        """A copy that gradients may pass through, also where this was made in inference mode."""
        return Draw(*(None if one is None else one.clone() for one in (self.ids, self.values)))


class Estimator:
    """Base of the estimators: what each of them declares.

    Attributes:
        draws_symbols: whether a draw is a row of k symbols and nothing else, so that all draws can
            be enumerated.
        has_density: whether the gradient comes from the log-density of the draws. False: it flows
            through the thoughts themselves, and the answers count by their probabilities.
        has_noise: whether anything is drawn. False: one row per problem is enough.
        follows: the feedback that thinks by the same rule without noise, for evaluations.
    """

    draws_symbols: ClassVar[bool] = False
    has_density: ClassVar[bool] = True
    has_noise: ClassVar[bool] = True
    follows: ClassVar[str] = "mixture"

    def passes(self, steps: int) -> int:
        """How often the model reads a row for one estimate: the roll-out, and then to learn."""
        return 2 if self.has_density else self.has_noise + steps + 1

    def width(self, vocab_size: int, embedding_dim: int) -> int:
        """How many random numbers a draw takes."""
        raise NotImplementedError

    def draw(
        self,
        log_probs: Float[Tensor, "N V"],
        table: Float[Tensor, "V m"],
        uniform: Float64[Tensor, "N width"],
    ) -> Draw:
        """Draw once per row, from p and numbers in [0, 1)."""
        raise NotImplementedError

    def vectors(
        self, draw: Draw, table: Float[Tensor, "V m"], log_probs: Float[Tensor, "N V"] | None = None
    ) -> Float[Tensor, "N m"]:
        """What the model reads next; only estimators without a density look at log_probs."""
        raise NotImplementedError

    def log_density(
        self, draw: Draw, log_probs: Float[Tensor, "N V"], table: Float[Tensor, "V m"]
    ) -> Float[Tensor, " N"]:
        """The log-density of a draw given p, up to what does not depend on the weights."""
        raise NotImplementedError


@ESTIMATORS.register("hard")
@dataclass(frozen=True)
class Hard(Estimator):
    """REINFORCE on symbols: each thought is one symbol, drawn from p."""

    draws_symbols: ClassVar[bool] = True
    follows: ClassVar[str] = "shown"

    def width(self, vocab_size, embedding_dim):
        return 1

    def draw(self, log_probs, table, uniform):
        return Draw(ids=symbols(log_probs, uniform))

    def vectors(self, draw, table, log_probs=None):
        return F.embedding(draw.ids, table).mean(1)

    def log_density(self, draw, log_probs, table):
        return log_probs.gather(1, draw.ids).sum(1)


@ESTIMATORS.register("sampled")
@dataclass(frozen=True)
class Sampled(Hard):
    """The mean of K rows, whose symbols are drawn from p independently of each other.

    Raises:
        ValueError: for count below 1.

    Source: CoT2 (arXiv 2505.23648).
    """

    follows: ClassVar[str] = "mixture"
    count: int = 4

    def __post_init__(self):
        object.__setattr__(self, "count", whole_number("sampled(count)", self.count))

    def width(self, vocab_size, embedding_dim):
        return self.count


@ESTIMATORS.register("gaussian")
@dataclass(frozen=True)
class Gaussian(Estimator):
    """The mixture pE plus normal noise.

    The noise's deviation in every coordinate is `sigma` times the root mean square of the table's
    entries. In the gradient it counts as a constant, also where the table is trained.

    Raises:
        ValueError: unless sigma is above 0 and finite.

    Source: arXiv 2509.19170.
    """

    sigma: float | int = 0.33

    def __post_init__(self):
        positive("gaussian(sigma)", self.sigma)

    def width(self, vocab_size, embedding_dim):
        return embedding_dim

    def deviation(self, table: Float[Tensor, "V m"]) -> Float[Tensor, ""]:
        """The deviation of the noise in every coordinate."""
        return self.sigma * table.detach().square().mean().sqrt()

    def draw(self, log_probs, table, uniform):
        noise = torch.special.ndtri(uniform.clamp_min(TINY)).to(table)
        return Draw(values=product(log_probs.exp(), table) + self.deviation(table) * noise)

    def vectors(self, draw, table, log_probs=None):
        return draw.values

    def log_density(self, draw, log_probs, table):
        apart = (draw.values - product(log_probs.exp(), table)) / self.deviation(table)
        return -apart.square().sum(1) / 2


@ESTIMATORS.register("gumbel")
@dataclass(frozen=True)
class Gumbel(Estimator):
    """softmax(g / tau) E over the top_k symbols, with g = log p + Gumbel noise, which is stored.

    With top_k, the best symbols of a later thought may change at some draw of an earlier one. How
    that point moves with the weights is missing in the estimate: it is biased, but for one thought.

    Raises:
        ValueError: unless tau is above 0 and finite, and top_k None (all) or at least 1.

    Source: arXiv 2511.06411.
    """

    tau: float | int = 0.1
    top_k: int | None = 5

    def __post_init__(self):
        positive("gumbel(tau)", self.tau)
        if self.top_k is not None:
            object.__setattr__(self, "top_k", whole_number("gumbel(top_k)", self.top_k))

    def width(self, vocab_size, embedding_dim):
        return vocab_size if self.top_k is None else min(self.top_k, vocab_size)

    def draw(self, log_probs, table, uniform):
        ids = largest(log_probs, uniform.shape[1])
        noise = -(-uniform.clamp_min(TINY).log()).log()
        return Draw(ids, best_of(log_probs, ids) + noise.to(log_probs))

    def vectors(self, draw, table, log_probs=None):
        weights = (draw.values / self.tau).softmax(1)
        return (weights[..., None] * F.embedding(draw.ids, table)).sum(1)

    def log_density(self, draw, log_probs, table):
        noise = draw.values - best_of(log_probs, draw.ids)
        return (-noise - (-noise).exp()).sum(1)


@ESTIMATORS.register("dirichlet")
@dataclass(frozen=True)
class Dirichlet(Estimator):
    """wE over the top_k symbols, with w from the Dirichlet distribution around p.

    Its parameters are `concentration` times p, scaled to sum to 1 over these symbols. The larger it
    is, the closer w stays to p. With top_k it is biased as "gumbel" is.

    Raises:
        ValueError: unless concentration is above 0 and finite, and top_k None (all) or at least 1.
    """

    concentration: float | int = 20.0
    top_k: int | None = 5

    def __post_init__(self):
        positive("dirichlet(concentration)", self.concentration)
        if self.top_k is not None:
            object.__setattr__(self, "top_k", whole_number("dirichlet(top_k)", self.top_k))

    def width(self, vocab_size, embedding_dim):
        return 2 * (vocab_size if self.top_k is None else min(self.top_k, vocab_size))

    def draw(self, log_probs, table, uniform):
        """log w, because w itself may be too small for a number.

        A Gamma(a) number is one of Gamma(a + 1), times u^(1/a) with u uniform.
        """
        first, second = uniform.clamp_min(TINY).chunk(2, 1)
        ids = largest(log_probs, first.shape[1])
        shape = self._shape(log_probs, ids).double()
        larger = torch.from_numpy(gammaincinv((shape + 1).cpu().numpy(), first.cpu().numpy()))
        log_gamma = larger.to(shape).log() + second.log() / shape
        return Draw(ids, log_gamma.log_softmax(1))

    def vectors(self, draw, table, log_probs=None):
        weights = draw.values.exp().to(table)
        return (weights[..., None] * F.embedding(draw.ids, table)).sum(1)

    def log_density(self, draw, log_probs, table):
        shape = self._shape(log_probs, draw.ids).double()
        return ((shape * draw.values) - shape.lgamma()).sum(1).to(log_probs)

    def _shape(self, log_probs: Tensor, ids: Tensor) -> Float[Tensor, "N k"]:
        # what is impossible in float32 keeps a parameter above 0
        return (self.concentration * best_of(log_probs, ids).exp()).clamp_min(1e-6)


@ESTIMATORS.register("straight-through")
@dataclass(frozen=True)
class StraightThrough(Hard):
    """A symbol drawn from p is read, and the gradient flows as if the mixture had been: biased."""

    draws_symbols: ClassVar[bool] = False
    has_density: ClassVar[bool] = False

    def vectors(self, draw, table, log_probs=None):
        probs = log_probs.exp()
        weights = F.one_hot(draw.ids[:, 0], len(table)).to(probs) + (probs - probs.detach())
        return product(weights, table)


@ESTIMATORS.register("mixture")
@dataclass(frozen=True)
class Mixture(Estimator):
    """The mixture pE without any noise: the gradient flows through it, exact and without variance.

    It needs a reward of which the expectation over the answer can be differentiated, as here.
    """

    has_density: ClassVar[bool] = False
    has_noise: ClassVar[bool] = False

    def width(self, vocab_size, embedding_dim):
        return 0

    def draw(self, log_probs, table, uniform):
        return Draw()

    def vectors(self, draw, table, log_probs=None):
        return product(log_probs.exp(), table)


@ESTIMATORS.register("exact")
@dataclass(frozen=True)
class Exact(Estimator):
    """No draws: every row of symbols that the estimator `of` could draw counts with its probability.

    Only where these are few; see `enumeration.exact_reward`.

    Raises:
        ValueError: where `of` is unknown, or its draws are not symbols.
    """

    of: str = "hard"

    def __post_init__(self):
        inner = ESTIMATORS.make(self.of)
        if not inner.draws_symbols:
            known = "hard, sampled(count)"
            raise ValueError(f"the draws of {self.of!r} cannot be enumerated, those of {known} can")
        object.__setattr__(self, "of", ESTIMATORS.spec(inner))

    @property
    def inner(self) -> Estimator:
        """The estimator whose draws are enumerated."""
        return ESTIMATORS.make(self.of)

    @property
    def follows(self) -> str:
        """As the estimator whose draws are enumerated."""
        return self.inner.follows


TINY = 2.0**-54  # below the least positive number that torch.rand draws


def symbols(
    log_probs: Float[Tensor, "N V"], uniform: Float64[Tensor, "N k"]
) -> Int64[Tensor, "N k"]:
    """Symbols drawn from p, one for each number in [0, 1)."""
    cumulative = log_probs.double().exp().cumsum(1)
    chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return chosen.clamp_max(log_probs.shape[1] - 1)


def best_of(log_probs: Float[Tensor, "N V"], ids: Int64[Tensor, "N k"]) -> Float[Tensor, "N k"]:
    """log p of some symbols, scaled so that they alone sum to 1."""
    return log_probs.gather(1, ids).log_softmax(1)


def positive(name: str, value: float | int) -> None:
    """Raise ValueError unless a setting is above 0 and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, not {value!r}")
