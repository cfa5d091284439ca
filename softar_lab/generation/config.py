"""The choices of one generation, checked when they are made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from ..core.checks import SEEDS, plain_fields, real_number, sequence, whole_number
from . import collapse as collapses
from . import feedback as feedbacks
from . import schedule as schedules


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How a text is written; the strategies may be given as names or as instances.

    Args:
        steps: how many symbols each row emits.
        collapse: how a soft token becomes a symbol.
        schedule: when that symbol is fed back.
        feedback: what is fed back otherwise.
        window: which vectors the model sees; None: its own window; see `SoftAR.with_window`.
        temperature: 0 takes the most probable symbol; above 0 it is drawn.
        soft_temperature: for a soft token that stays soft, by the same draw; None: `temperature`.
        seed: decides the draws; one for all prompts, or one for each.
        device: "auto" is where the model is.

    Raises:
        ValueError: for an unknown name, fewer than one step, a negative or infinite temperature.
    """

    steps: int = 200
    collapse: Any = "softmax"
    schedule: Any = "always"
    feedback: Any = "mixture"
    window: Any = None
    temperature: float | int = 1.0
    soft_temperature: float | int | None = None
    seed: int | Sequence[int] = 0
    device: str = "auto"

    def __post_init__(self):
        plain_fields(self)
        for name, axis in (
            ("collapse", collapses),
            ("schedule", schedules),
            ("feedback", feedbacks),
        ):
            object.__setattr__(self, name, axis.resolve(getattr(self, name)))
        object.__setattr__(self, "steps", whole_number("steps", self.steps))
        real_number("temperature", self.temperature, "0 (greedy) or above", _is_temperature)
        if self.soft_temperature is not None:
            wanted = "None, 0 (the most probable) or above"
            real_number("soft_temperature", self.soft_temperature, wanted, _is_temperature)
        object.__setattr__(self, "seed", _checked_seed(self.seed))

    def seeds(self, count: int) -> tuple[int, ...]:
        """One seed for each of `count` prompts; ValueError where that many were not given."""
        one = isinstance(self.seed, int)
        seeds = (self.seed,) * count if one else self.seed
        if len(seeds) != count:
            raise ValueError(
                f"{len(seeds)} seeds for {count} prompts; give one seed, or one a prompt"
            )
        return seeds

    def recorded(self) -> dict[str, Any]:
        """What a trajectory says of its making: strings that hold every parameter, and numbers."""
        soft = {} if self.soft_temperature is None else {"soft_temperature": self.soft_temperature}
        return {
            "collapse": collapses.COLLAPSES.spec(self.collapse),
            "schedule": schedules.SCHEDULES.spec(self.schedule),
            "feedback": feedbacks.FEEDBACKS.spec(self.feedback),
            "temperature": self.temperature,
            "steps": self.steps,
            **soft,
        }


NO_PROMPT = "no prompt given; an empty string starts from nothing"


def _is_temperature(value: float | int) -> bool:
    return 0 <= value < math.inf


def _checked_seed(seed: Any) -> int | tuple[int, ...]:
    """One seed, or one for each prompt; ValueError where it is none that torch takes."""
    if isinstance(seed, Integral):
        return whole_number("seed", seed, *SEEDS)
    return tuple(
        whole_number("seed", one, *SEEDS) for one in sequence("seed", seed, "whole numbers")
    )
