"""What goes back in when a soft token is not collapsed (K2)? A feedback is a callable ``thought -> vectors (B, m)``."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..registry import Registry
from ..soft_inputs import posterior_gumbel
from .thought import Thought

FEEDBACKS = Registry("feedback")
register, names, resolve = FEEDBACKS.register, FEEDBACKS.names, FEEDBACKS.resolve


def mixture(probs: Float[Tensor, "B V"], embedding: Float[Tensor, "V m"]) -> Float[Tensor, "B m"]:
    """The probability-weighted mean of the rows, pE: (B, V) @ (V, m) -> (B, m)."""
    return probs @ embedding


@register("mixture")
@dataclass(frozen=True)
class Mixture:
    """pE with the model's own p(w | prefix): Soft Thinking's concept token."""

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        return mixture(thought.prediction.probs, thought.embedding)


@register("raw")
@dataclass(frozen=True)
class Raw:
    """The predicted vector y itself, on the hull of the table or off it."""

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        return thought.prediction.vector


@register("gumbel")
@dataclass(frozen=True)
class GumbelSoft:
    """softmax((log p + g) / temperature) E, the Gumbel noise g drawn given that the symbol shown wins.

    A soft token that leans towards what was said. For symbols drawn from p (collapse "softmax" at temperature 1) it is
    plain Gumbel noise; towards temperature 0 it becomes the symbol's own row.
    """

    temperature: float | int = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"gumbel(temperature) needs a temperature above 0, not {self.temperature!r}")

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        log_probs = thought.prediction.log_probs
        perturbed = posterior_gumbel(log_probs, thought.token_ids, thought.uniform(log_probs.shape[-1]))
        return mixture(torch.softmax(perturbed / self.temperature, dim=-1), thought.embedding)


@register("norm-restored")
@dataclass(frozen=True)
class NormRestored:
    """pE made as long as the rows it mixes are in the mean, sum p|e|: a mixture is shorter, so positions outweigh it.

    A mixture of length 0 has no direction and stays where it is.
    """

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        probs, mixed = thought.prediction.probs, mixture(thought.prediction.probs, thought.embedding)
        length = probs @ thought.embedding.norm(dim=-1, keepdim=True)  # (B, 1)
        return mixed * (length / mixed.norm(dim=-1, keepdim=True).clamp_min(1e-12))


@register("sampled")
@dataclass(frozen=True)
class Sampled:
    """Mixture of Inputs (arXiv 2505.14827): wE with w = (H p + (beta + 1 - H) y) / (beta + 1), y the symbol shown.

    H is the entropy of p over ln V. The surer the model, or the larger `beta`, the more weight the symbol has.
    """

    beta: float | int = 1.0

    def __post_init__(self):
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"sampled(beta) needs a number of at least 0, not {self.beta!r}")

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        probs, shown = thought.prediction.probs, thought.embedding[thought.token_ids]  # (B, V), (B, m)
        entropy = thought.prediction.entropy[:, None] / max(math.log(probs.shape[-1]), 1e-12)
        weight = entropy / (self.beta + 1)
        return weight * mixture(probs, thought.embedding) + (1 - weight) * shown


@register("hidden")
@dataclass(frozen=True)
class Hidden:
    """The body's last hidden state goes back in (Coconut, arXiv 2412.06769): the vector read most like it.

    The model reads R^m through a linear map; where m is less than the body's width, part of the state is lost.
    Raises ValueError for a model that is not a SoftAR.
    """

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        inverse = thought.session.inverse  # (d, m)
        return thought.state.hidden @ inverse
