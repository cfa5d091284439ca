"""When is a soft token collapsed inside the context (K5)? A schedule is a callable ``thought -> bool (B,)``.

That says whether the slot to be read now is hard. One that grounds slots late answers for the latest n of them,
``bool (B, n)``, this one last: where an earlier one is still soft, the row of the symbol shown for it takes its place,
and all after it is read again. One that also has its say in what is predicted has a method `open`; see liquid.py.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ..models.barycentric import hull_distance
from ..predictor import Predictor
from ..registry import Registry
from ..sources.corpora import load_language
from .collapse import nearest_distance, soft_tokens
from .thought import Thought

SCHEDULES = Registry("schedule")
register, names, resolve = SCHEDULES.register, SCHEDULES.names, SCHEDULES.resolve


@register("always")
@dataclass(frozen=True)
class Always:
    """Every token is hard: ordinary generation."""

    by_step: ClassVar[bool] = True  # it looks at the number of the step alone

    def __call__(self, thought: Thought) -> Bool[Tensor, " B"]:
        return torch.ones_like(thought.step, dtype=torch.bool)


@register("never")
@dataclass(frozen=True)
class Never:
    """Every token stays soft: a text is read off the path, but never fed back."""

    by_step: ClassVar[bool] = True  # it looks at the number of the step alone

    def __call__(self, thought: Thought) -> Bool[Tensor, " B"]:
        return torch.zeros_like(thought.step, dtype=torch.bool)


@register("every")
@dataclass(frozen=True)
class EveryK:
    """Each k-th token is hard, those between stay soft."""

    by_step: ClassVar[bool] = True  # it looks at the number of the step alone
    k: int = 4

    def __post_init__(self):
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise ValueError(f"every(k) needs a whole number k of at least 1, not {self.k!r}")

    def __call__(self, thought: Thought) -> Bool[Tensor, " B"]:
        return (thought.step + 1) % self.k == 0


@register("random")
@dataclass(frozen=True)
class Random:
    """Each token is hard with probability `rate`, whatever is predicted, drawn or shown: the control of the others."""

    rate: float | int = 0.5

    def __post_init__(self):
        if not 0 <= self.rate <= 1:
            raise ValueError(f"random(rate) needs a probability, not {self.rate!r}")

    def __call__(self, thought: Thought) -> Bool[Tensor, " B"]:
        return thought.uniform(1, "schedule").squeeze(1) < self.rate


@register("retro")
@dataclass(frozen=True)
class Retro:
    """Every token is fed back soft and grounded k steps later: at most the latest k slots are soft, older ones hard.

    What the context drops before that stays soft.
    """

    k: int = 4

    def __post_init__(self):
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise ValueError(f"retro(k) needs a whole number k of at least 1, not {self.k!r}")

    def __call__(self, thought: Thought) -> Bool[Tensor, "B n"]:
        hard = torch.zeros(len(thought.step), self.k + 1, dtype=torch.bool, device=thought.step.device)
        hard[:, 0] = True
        return hard


@dataclass(frozen=True)
class Within:
    """`schedule`, but none except the latest `newest` slots may be soft: those before are grounded (K8)."""

    schedule: Any
    newest: int

    def __call__(self, thought: Thought) -> Bool[Tensor, "B n"]:
        hard = self.schedule(thought)
        hard = hard if hard.ndim == 2 else hard[:, None]
        hard = F.pad(hard, (max(0, self.newest + 1 - hard.shape[1]), 0), value=False)
        grounded = torch.ones_like(hard[:, : -self.newest])
        return torch.cat([grounded, hard[:, -self.newest :]], 1)


def within(schedule: Any, newest: int | None) -> Any:
    """A schedule in a window whose `newest` tokens alone may be soft; None: all may.

    Raises ValueError for a schedule that would leave soft tokens where there is no place for one.
    """
    if newest is None or isinstance(schedule, Always) or hasattr(schedule, "open"):
        return schedule
    if newest == 0:
        raise ValueError(
            f'this window has no place for soft tokens, so only schedule "always" suits it, not '
            f'"{SCHEDULES.spec(schedule)}": give Window(soft=…), or hard=0 to let every token stay soft'
        )
    return Within(schedule, newest)


@dataclass(frozen=True)
class Threshold:
    """Base of the schedules that are hard where a measure of the step is larger than `above`.

    `until` adds hysteresis: once above, they stay hard until the measure falls below `until`.
    """

    above: float | int
    until: float | int | None = None

    def __post_init__(self):
        if not 0 <= self.above < math.inf:
            raise ValueError(f"above must be a number of at least 0, not {self.above!r}")
        if self.until is not None and not 0 <= self.until <= self.above:
            raise ValueError(f"until must be None or lie in 0 … above = {self.above}, not {self.until!r}")

    def measure(self, thought: Thought) -> Float[Tensor, " B"]:
        """What is compared (B,)."""
        raise NotImplementedError

    def __call__(self, thought: Thought) -> Bool[Tensor, " B"]:
        measure = self.measure(thought)
        hard = measure > self.above
        return hard if self.until is None else hard | (thought.was_hard & (measure >= self.until))


@register("entropy")
@dataclass(frozen=True)
class Entropy(Threshold):
    """Hard where the model is unsure: its entropy is above so many nats."""

    above: float | int = 1.0

    def measure(self, thought: Thought) -> Float[Tensor, " B"]:
        return thought.prediction.entropy


@register("distance")
@dataclass(frozen=True)
class Distance(Threshold):
    """Hard where the soft token lies far from every row, in embedding units. ValueError for a model without vectors."""

    above: float | int = 0.5

    def measure(self, thought: Thought) -> Float[Tensor, " B"]:
        vectors = soft_tokens('schedule "distance"', thought.prediction, thought.embedding)
        return nearest_distance(vectors, thought.embedding)


@register("off-hull")
@dataclass(frozen=True)
class OffHull(Threshold):
    """Hard where the soft token lies far from every mixture of the rows, in embedding units: no reader has seen such.

    Raises ValueError for a model without vectors.
    """

    above: float | int = 0.1

    def measure(self, thought: Thought) -> Float[Tensor, " B"]:
        vectors = soft_tokens('schedule "off-hull"', thought.prediction, thought.embedding)
        return hull_distance(vectors, thought.embedding)


@register("oracle")
@dataclass(frozen=True)
class Oracle(Threshold):
    """Hard where the model is wrong: KL(truth || model) is above so many nats (the truth has read what was shown).

    `truth`: any predictor with a tokenizer, the name of a built-in language, or None: the model itself, reading hard
    tokens alone, so that the divergence is what its soft tokens have done to it. Once a row has shown a symbol that
    the truth holds impossible, it stays hard.
    """

    above: float | int = 0.1
    truth: Predictor | str | None = None

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self._truth, Predictor | None):
            raise ValueError(f"truth must be a predictor, the name of a language or None, not {self.truth!r:.80}")

    def measure(self, thought: Thought) -> Float[Tensor, " B"]:
        reader = thought.session.read_by(thought.session.model if self._truth is None else self._truth)
        model = thought.prediction.log_probs.double()
        truth = reader.log_probs.to(model)  # (B, V)
        share = truth.exp()
        divergence = torch.where(share > 0, share * (truth - model), 0).sum(-1)
        return divergence.masked_fill(reader.lost.to(model.device), math.inf)

    @cached_property
    def _truth(self) -> Predictor | None:
        return load_language(self.truth) if isinstance(self.truth, str) else self.truth
