"""When is a soft token collapsed inside the context (K5)? A schedule is a callable ``thought -> bool (B,)``."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ..registry import Registry
from .thought import Thought

SCHEDULES = Registry("schedule")
register, names, resolve = SCHEDULES.register, SCHEDULES.names, SCHEDULES.resolve


@register("always")
@dataclass(frozen=True)
class Always:
    """Every token is hard: ordinary generation."""

    def __call__(self, thought: Thought) -> Bool[Tensor, " B"]:
        return torch.ones_like(thought.step, dtype=torch.bool)


@register("never")
@dataclass(frozen=True)
class Never:
    """Every token stays soft: a text is read off the path, but never fed back."""

    def __call__(self, thought: Thought) -> Bool[Tensor, " B"]:
        return torch.zeros_like(thought.step, dtype=torch.bool)


@register("every")
@dataclass(frozen=True)
class EveryK:
    """Each k-th token is hard, those between stay soft."""

    k: int = 4

    def __post_init__(self):
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise ValueError(f"every(k) needs a whole number k of at least 1, not {self.k!r}")

    def __call__(self, thought: Thought) -> Bool[Tensor, " B"]:
        return (thought.step + 1) % self.k == 0
