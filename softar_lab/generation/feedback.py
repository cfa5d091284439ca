"""Feedbacks: what is fed back when a soft token is not collapsed (K2).

A feedback is a callable ``context -> vectors (B, m)``.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import whole_number
from ..core.predictor import MixturePrediction
from ..core.registry import Adapted, Registry
from ..models.by_row import largest, product
from ..models.embedding_tables import TINY, mean_norm
from ..models.simplex import posterior_dirichlet, posterior_gumbel, softened
from .step_context import StepContext


class Feedback:
    """Base of the feedbacks with settings: what each of them declares.

    Attributes:
        needs_symbol: whether its vectors depend on the symbol that was collapsed to, and not on the
            prediction alone.
        needs_batch: whether it reads other rows of the batch, so that there must be at least two.
    """

    needs_symbol: ClassVar[bool] = True
    needs_batch: ClassVar[bool] = False


class FunctionFeedback(Adapted, Feedback):
    """A function, or any other callable, as a feedback."""


FEEDBACKS = Registry(
    "feedback", lambda one: one if isinstance(one, Feedback) else FunctionFeedback(one)
)
register, names, resolve = FEEDBACKS.register, FEEDBACKS.names, FEEDBACKS.resolve


def mixture(probs: Float[Tensor, "B V"], embedding: Float[Tensor, "V m"]) -> Float[Tensor, "B m"]:
    """The probability-weighted mean of the rows, pE: (B, V) @ (V, m) -> (B, m)."""
    return product(probs, embedding)


@register("mixture")
@dataclass(frozen=True)
class Mixture(Feedback):
    """pE with the model's own p(w | prefix): the concept token of Soft Thinking.

    Args:
        temperature: sharpens p below 1 and flattens it above 1.
        top_k: then only the k most probable symbols count, scaled to sum to 1; None: all. The paper
            uses temperature 0.6 and top_k 30.

    Raises:
        ValueError: unless temperature is above 0 and finite, and top_k None or at least 1.

    Source: arXiv 2505.15778.
    """

    needs_symbol: ClassVar[bool] = False
    temperature: float | int = 1.0
    top_k: int | None = None

    def __post_init__(self):
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"mixture(temperature) needs a number above 0, not {self.temperature!r}"
            )
        if self.top_k is not None:
            object.__setattr__(self, "top_k", whole_number("mixture(top_k)", self.top_k))

    def __call__(self, context: StepContext) -> Float[Tensor, "B m"]:
        prediction, table = context.prediction, context.embedding
        if self.top_k is not None and self.top_k < len(table):
            best = largest(prediction.log_probs, self.top_k)
            weights = softened(prediction.log_probs.gather(1, best), self.temperature)  # (B, k)
            return (weights[..., None] * table[best]).sum(1)  # (B, k, 1) * (B, k, m)
        if self.temperature != 1:
            return mixture(softened(prediction.log_probs, self.temperature), table)
        return (
            prediction.vector
            if isinstance(prediction, MixturePrediction)
            else mixture(prediction.probs, table)
        )


@register("raw")
@dataclass(frozen=True)
class Raw(Feedback):
    """The predicted vector y itself, whether or not it lies in the hull of the table."""

    needs_symbol: ClassVar[bool] = False

    def __call__(self, context: StepContext) -> Float[Tensor, "B m"]:
        return context.prediction.vector


@register("gumbel")
@dataclass(frozen=True)
class GumbelSoft(Feedback):
    """softmax((log p + g) / temperature) E, with Gumbel noise g given that the emitted symbol wins.

    So the soft token leans towards the emitted symbol. For symbols drawn from p (collapse "softmax"
    at temperature 1), g is plain Gumbel noise. Towards temperature 0 the vector becomes the
    symbol's own row.

    Raises:
        ValueError: unless temperature is above 0 and finite.
    """

    temperature: float | int = 1.0

    def __post_init__(self):
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"gumbel(temperature) needs a temperature above 0, not {self.temperature!r}"
            )

    def __call__(self, context: StepContext) -> Float[Tensor, "B m"]:
        log_probs = context.prediction.log_probs
        perturbed = posterior_gumbel(
            log_probs, context.token_ids, context.uniform(log_probs.shape[-1])
        )
        return mixture(softened(perturbed, self.temperature), context.embedding)


@register("dirichlet")
@dataclass(frozen=True)
class DirichletSoft(Feedback):
    """wE, with w from Dirichlet(concentration · p + one-hot of the emitted symbol).

    For symbols drawn from p, w is distributed as Dirichlet(concentration · p), whose mean is p.
    Towards 0 the vector becomes the symbol's own row, towards infinity the mixture pE.

    Raises:
        ValueError: unless concentration is above 0 and finite.
    """

    concentration: float | int = 1.0

    def __post_init__(self):
        if not 0 < self.concentration < math.inf:
            raise ValueError(
                "dirichlet(concentration) needs a concentration above 0, "
                f"not {self.concentration!r}"
            )

    def __call__(self, context: StepContext) -> Float[Tensor, "B m"]:
        log_probs = context.prediction.log_probs
        uniform = context.uniform(log_probs.shape[-1])
        weights = posterior_dirichlet(log_probs, context.token_ids, uniform, self.concentration)
        return mixture(weights, context.embedding)


@register("norm-restored")
@dataclass(frozen=True)
class NormRestored(Feedback):
    """pE, scaled to the mean length of the rows that it mixes, sum p|e|.

    A mixture is shorter than its rows, so positions outweigh it. A mixture of length 0 has no
    direction and stays as it is.
    """

    needs_symbol: ClassVar[bool] = False

    def __call__(self, context: StepContext) -> Float[Tensor, "B m"]:
        probs = context.prediction.probs  # (B, V)
        mixed = mixture(probs, context.embedding)  # (B, m)
        length = product(probs, context.embedding.norm(dim=-1, keepdim=True))  # (B, 1)
        return mixed * (length / mixed.norm(dim=-1, keepdim=True).clamp_min(TINY))


@register("sampled")
@dataclass(frozen=True)
class Sampled(Feedback):
    """Mixture of Inputs: wE with w = (H p + (beta + 1 - H) y) / (beta + 1), y the emitted symbol.

    H is the entropy of p, divided by ln V; y is one-hot. The symbol has the more weight, the surer
    the model is and the larger `beta` is.

    Raises:
        ValueError: where beta is negative or infinite.

    Source: arXiv 2505.14827.
    """

    beta: float | int = 1.0

    def __post_init__(self):
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"sampled(beta) needs a number of at least 0, not {self.beta!r}")

    def __call__(self, context: StepContext) -> Float[Tensor, "B m"]:
        probs = context.prediction.probs  # (B, V)
        emitted = context.embedding[context.token_ids]  # (B, m)
        entropy = context.prediction.entropy[:, None] / max(math.log(probs.shape[-1]), 1e-12)
        weight = entropy / (self.beta + 1)
        return weight * mixture(probs, context.embedding) + (1 - weight) * emitted


@register("projected")
@dataclass(frozen=True)
class Projected(Feedback):
    """A step from the latest input u towards the predicted vector y: u + rate (y - u) + noise |e| g.

    |e| is the mean length of the table's rows; g is normal. At rate 1 without noise it is "raw". The
    latest input is the row of a hard token (the prompt's last one, to begin with) or the vector fed
    back before; where there is none, u is y.

    Args:
        rate: the direction rate, above 0 and at most 1.
        noise: the history noise, in units of |e|.

    Raises:
        ValueError: for other numbers.

    Source: the dials of Projected Autoregression (arXiv 2601.04854), here for one slot at a time;
    schedule "liquid" has them for a tail.
    """

    needs_symbol: ClassVar[bool] = False
    rate: float | int = 0.5
    noise: float | int = 0.0

    def __post_init__(self):
        if not 0 < self.rate <= 1:
            raise ValueError(
                f"projected(rate) must lie above 0 and be at most 1, not {self.rate!r}"
            )
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"projected(noise) needs a number of at least 0, not {self.noise!r}")

    def __call__(self, context: StepContext) -> Float[Tensor, "B m"]:
        aim = context.prediction.vector
        found = torch.lerp(self._latest(context, aim), aim, self.rate)
        if self.noise:
            rows = [torch.randn(aim.shape[1], generator=g) for g in context.generators("feedback")]
            found = found + self.noise * mean_norm(context.embedding) * torch.stack(rows).to(aim)
        if context.run is not None:
            self._saved(context)[len(context.run.tokens)] = found
        return found

    def _latest(self, context: StepContext, aim: Tensor) -> Float[Tensor, "B m"]:
        """What each row read last."""
        run = context.run
        if run is None or not (position := len(run.tokens)):
            return aim
        row = context.embedding[run.tokens[-1]]
        before = self._saved(context).get(position - 1)
        if before is None:  # the last step was hard in every row
            return row
        soft = (context.step > 0) & ~context.was_hard
        return torch.where(soft[:, None], before, row)

    def _saved(self, context: StepContext) -> dict[int, Tensor]:
        """What was fed back at the last positions, by position."""
        saved = context.run.scratch.setdefault(f"projected {self.rate} {self.noise}", {})
        for old in [position for position in saved if position < len(context.run.tokens) - 1]:
            del saved[old]
        return saved


@register("hidden")
@dataclass(frozen=True)
class Hidden(Feedback):
    """The body's last hidden state, as the vector that the input map brings closest to it.

    The model reads R^m through a linear map. Where m is less than the body's width, part of the
    state is lost.

    Raises:
        ValueError: for a model whose input is not one linear map.

    Source: Coconut (arXiv 2412.06769).
    """

    needs_symbol: ClassVar[bool] = False

    def __call__(self, context: StepContext) -> Float[Tensor, "B m"]:
        inverse = context.run.inverse  # (d, m)
        return product(context.state.hidden, inverse)


@register("shown")
@dataclass(frozen=True)
class Shown(Feedback):
    """The row of the emitted symbol: a hard token wherever the schedule would leave a soft one.

    This is the same-rule hard control. Rule and temperatures are the same, so what remains of a
    gain is due to the rule. The other controls are in controls.py.
    """

    def __call__(self, context: StepContext) -> Float[Tensor, "B m"]:
        return context.embedding[context.token_ids]
