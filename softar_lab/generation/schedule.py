"""Schedules: when a soft token is collapsed inside the context (K5).

A schedule is a callable ``context -> bool (B,)``: whether the slot to be read now is hard. A
schedule that grounds slots late answers for the latest n of them, ``bool (B, n)``, this one last.
Where an earlier one of them is still soft, the row of its emitted symbol replaces it, and all slots
after it are read again. A schedule that also takes part in the prediction has a method `open`; see
liquid.py.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ..core.checks import whole_number
from ..core.predictor import Predictor, divergence
from ..core.registry import Adapted, Registry
from ..data.corpora import load_language
from ..models.nearest import nearest_distance
from ..models.simplex import hull_distance
from .collapse import soft_tokens
from .step_context import StepContext


class Schedule:
    """Base of the schedules with settings: what each of them declares.

    Attributes:
        by_step: whether it looks at the number of the step alone, so all its answers are known
            beforehand.
        has_tail: whether a tail of slots that are not read yet takes part in the prediction; the
            method `open` makes the tail (see liquid.py).
    """

    by_step: ClassVar[bool] = False
    has_tail: ClassVar[bool] = False

    @property
    def always_hard(self) -> bool:
        """Whether no token can stay soft, whatever happens."""
        return False


class FunctionSchedule(Adapted, Schedule):
    """A function, or any other callable, as a schedule."""


SCHEDULES = Registry(
    "schedule", lambda one: one if isinstance(one, Schedule) else FunctionSchedule(one)
)
register, names, resolve = SCHEDULES.register, SCHEDULES.names, SCHEDULES.resolve


@register("always")
@dataclass(frozen=True)
class Always(Schedule):
    """Every token is hard: ordinary generation."""

    by_step: ClassVar[bool] = True  # it looks at the number of the step alone
    always_hard: ClassVar[bool] = True

    def __call__(self, context: StepContext) -> Bool[Tensor, " B"]:
        return torch.ones_like(context.step, dtype=torch.bool)


@register("never")
@dataclass(frozen=True)
class Never(Schedule):
    """Every token stays soft: symbols are read off the path, but never fed back."""

    by_step: ClassVar[bool] = True  # it looks at the number of the step alone

    def __call__(self, context: StepContext) -> Bool[Tensor, " B"]:
        return torch.zeros_like(context.step, dtype=torch.bool)


@register("every")
@dataclass(frozen=True)
class EveryK(Schedule):
    """Each k-th token is hard; those between stay soft."""

    by_step: ClassVar[bool] = True  # it looks at the number of the step alone
    k: int = 4

    def __post_init__(self):
        object.__setattr__(self, "k", whole_number("every(k)", self.k))

    @property
    def always_hard(self) -> bool:
        """At k = 1."""
        return self.k == 1

    def __call__(self, context: StepContext) -> Bool[Tensor, " B"]:
        return (context.step + 1) % self.k == 0


@register("random")
@dataclass(frozen=True)
class Random(Schedule):
    """Each token is hard with probability `rate`: the control of the other schedules.

    What is predicted, drawn or emitted has no influence.
    """

    rate: float | int = 0.5

    def __post_init__(self):
        if not 0 <= self.rate <= 1:
            raise ValueError(f"random(rate) needs a probability, not {self.rate!r}")

    @property
    def always_hard(self) -> bool:
        """At rate 1."""
        return self.rate == 1

    def __call__(self, context: StepContext) -> Bool[Tensor, " B"]:
        return context.uniform(1, "schedule").squeeze(1) < self.rate


@register("retro")
@dataclass(frozen=True)
class Retro(Schedule):
    """Every token is fed back soft and grounded k steps later, so at most the latest k are soft.

    A slot that leaves the context before that stays soft.
    """

    k: int = 4

    def __post_init__(self):
        object.__setattr__(self, "k", whole_number("retro(k)", self.k))

    def __call__(self, context: StepContext) -> Bool[Tensor, "B n"]:
        hard = torch.zeros(
            len(context.step), self.k + 1, dtype=torch.bool, device=context.step.device
        )
        hard[:, 0] = True
        return hard


@dataclass(frozen=True)
class Within(Schedule):
    """`schedule`, but only the latest `newest` slots may be soft; older ones are grounded (K8)."""

    schedule: Any
    newest: int

    def __call__(self, context: StepContext) -> Bool[Tensor, "B n"]:
        hard = self.schedule(context)
        hard = hard if hard.ndim == 2 else hard[:, None]
        hard = F.pad(hard, (max(0, self.newest + 1 - hard.shape[1]), 0), value=False)
        grounded = torch.ones_like(hard[:, : -self.newest])
        return torch.cat([grounded, hard[:, -self.newest :]], 1)


def within(schedule: Any, newest: int | None) -> Any:
    """A schedule for a window in which only the `newest` tokens may be soft; None: all may.

    Raises:
        ValueError: where no token may be soft and the schedule would leave some soft.
    """
    # a schedule with a tail reads hard tokens only
    if newest is None or schedule.always_hard or schedule.has_tail:
        return schedule
    if newest == 0:
        raise ValueError(
            f'this window has no place for soft tokens, so only schedule "always" suits it, not '
            f'"{SCHEDULES.spec(schedule)}": give Window(soft=…), or hard=0 to let every token stay soft'
        )
    return Within(schedule, newest)


@dataclass(frozen=True)
class Threshold(Schedule):
    """Base of the schedules that are hard where a measure of the step is larger than `above`.

    `until` adds hysteresis: once above, a row stays hard until the measure falls below `until`.

    Raises:
        ValueError: where `above` is negative or infinite, or `until` does not lie in [0, above].
    """

    above: float | int
    until: float | int | None = None

    def __post_init__(self):
        if not 0 <= self.above < math.inf:
            raise ValueError(f"above must be a number of at least 0, not {self.above!r}")
        if self.until is not None and not 0 <= self.until <= self.above:
            raise ValueError(
                f"until must be None or lie in 0 … above = {self.above}, not {self.until!r}"
            )

    def measure(self, context: StepContext) -> Float[Tensor, " B"]:
        """The measure of each row (B,)."""
        raise NotImplementedError

    def __call__(self, context: StepContext) -> Bool[Tensor, " B"]:
        measure = self.measure(context)
        hard = measure > self.above
        return hard if self.until is None else hard | (context.was_hard & (measure >= self.until))


@register("entropy")
@dataclass(frozen=True)
class Entropy(Threshold):
    """Hard where the model is unsure: its entropy is more than `above` nats."""

    above: float | int = 1.0

    def measure(self, context: StepContext) -> Float[Tensor, " B"]:
        return context.prediction.entropy


@register("distance")
@dataclass(frozen=True)
class Distance(Threshold):
    """Hard where the soft token lies far from every row, in embedding units.

    Raises:
        ValueError: for a model without vectors.
    """

    above: float | int = 0.5

    def measure(self, context: StepContext) -> Float[Tensor, " B"]:
        vectors = soft_tokens('schedule "distance"', context.prediction, context.embedding)
        return nearest_distance(vectors, context.embedding)


@register("off-hull")
@dataclass(frozen=True)
class OffHull(Threshold):
    """Hard where the soft token lies far from every mixture of the rows, in embedding units.

    A model that reads hard tokens or mixtures has never read such a vector.

    Raises:
        ValueError: for a model without vectors.
    """

    above: float | int = 0.1

    def measure(self, context: StepContext) -> Float[Tensor, " B"]:
        vectors = soft_tokens('schedule "off-hull"', context.prediction, context.embedding)
        return hull_distance(vectors, context.embedding)


@register("once")
@dataclass(frozen=True)
class Once(Schedule):
    """Soft until the model is sure of itself for the first time, then hard for good.

    A row switches at the first step whose entropy is less than `below` nats, not before it has
    `least` soft tokens, and in any case after `most`. A symbol that is forced is hard, and ends the
    soft part, too.

    Args:
        below: the entropy under which the model counts as sure, in nats.
        least: the number of soft tokens before it may switch.
        most: the number of soft tokens after which it switches in any case; None: no limit.

    Raises:
        ValueError: where `below` is negative or infinite, or `most` is less than `least`.

    Source: the training-free form of latent-then-explicit reasoning (arXiv 2605.07315), which asks
    the entropy and the model's stop token; a model of text has no stop token, so here the entropy
    alone decides.
    """

    below: float | int = 0.5
    least: int = 1
    most: int | None = None

    def __post_init__(self):
        if not 0 <= self.below < math.inf:
            raise ValueError(f"once(below) must be a number of at least 0, not {self.below!r}")
        object.__setattr__(self, "least", whole_number("once(least)", self.least, 0))
        if self.most is not None:
            most = whole_number("once(most)", self.most, self.least)
            object.__setattr__(self, "most", most)

    def __call__(self, context: StepContext) -> Bool[Tensor, " B"]:
        sure = (context.prediction.entropy < self.below) & (context.step >= self.least)
        late = context.step >= (math.inf if self.most is None else self.most)
        return context.was_hard | sure | late


@register("oracle")
@dataclass(frozen=True)
class Oracle(Threshold):
    """Hard where the model is wrong: KL(truth || model) is more than `above` nats.

    The truth has read the emitted symbols. Once a row has emitted a symbol that the truth holds
    impossible, it stays hard.

    Args:
        above: the threshold, in nats.
        truth: any predictor with a tokenizer, the name of a built-in language, or None: the model
            itself, reading hard tokens alone. Then the divergence is the effect of its soft tokens.

    Raises:
        ValueError: where truth is none of these.
    """

    above: float | int = 0.1
    truth: Predictor | str | None = None

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self._truth, Predictor | None):
            raise ValueError(
                f"truth must be a predictor, the name of a language or None, not {self.truth!r:.80}"
            )

    def measure(self, context: StepContext) -> Float[Tensor, " B"]:
        reader = context.run.aligned_state(
            context.run.model if self._truth is None else self._truth
        )
        model = context.prediction.log_probs
        found = divergence(reader.log_probs.to(model.device), model)
        return found.masked_fill(reader.lost.to(model.device), math.inf)

    @cached_property
    def _truth(self) -> Predictor | None:
        return load_language(self.truth) if isinstance(self.truth, str) else self.truth
