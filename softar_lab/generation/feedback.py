"""What goes back in when a soft token is not collapsed (K2)? A feedback is a callable ``thought -> vectors (B, m)``."""

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
