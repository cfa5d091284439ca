"""What goes back in when a soft token is not collapsed (K2)? A feedback is a callable ``thought -> vectors (B, m)``."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..registry import Registry
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
