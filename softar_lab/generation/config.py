"""The choices of one generation, checked when they are made."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from ..core.checks import SEEDS, plain_fields, real_number, sequence, whole_number
from . import collapse as collapses
from . import drafts, exiting
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
        forced: {step: symbol}, steps counted from 0 after the prompt; there each row emits this
            symbol, a string or an id, whatever it would choose, and reads it as a hard token.
        exit: where a slot may leave the network early, such as "entropy(0.1)" (exiting.py): saves
            layers, and may change the text. None: nowhere.
        draft: "levels" or "levels(8, 0.5)" lets the model's heads propose symbols, which one pass
            checks (drafts.py): saves passes, and changes nothing. None: one symbol per pass.
        device: "auto" is where the model is.

    Raises:
        ValueError: for an unknown name, fewer than one step, a negative or infinite temperature, a
            forced step that is not among the steps, and forced steps with a collapse that decides
            several together.
    """

    steps: int = 200
    collapse: Any = "softmax"
    schedule: Any = "always"
    feedback: Any = "mixture"
    window: Any = None
    temperature: float | int = 1.0
    soft_temperature: float | int | None = None
    seed: int | Sequence[int] = 0
    forced: Mapping[int, str | int] | None = None
    exit: Any = None
    draft: Any = None
    device: str = "auto"

    def __post_init__(self):
        plain_fields(self)
        for name, axis in (
            ("collapse", collapses),
            ("schedule", schedules),
            ("feedback", feedbacks),
        ):
            object.__setattr__(self, name, axis.resolve(getattr(self, name)))
        for name, known in (("exit", exiting.EXITS), ("draft", drafts.DRAFTS)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, known.resolve(getattr(self, name)))
        if self.exit is not None and self.draft is not None:
            raise ValueError("exit changes the text and draft promises not to: give one of them")
        object.__setattr__(self, "steps", whole_number("steps", self.steps))
        self._check_forced()
        real_number("temperature", self.temperature, "0 (greedy) or above", _is_temperature)
        if self.soft_temperature is not None:
            wanted = "None, 0 (the most probable) or above"
            real_number("soft_temperature", self.soft_temperature, wanted, _is_temperature)
        object.__setattr__(self, "seed", _checked_seed(self.seed))

    def _check_forced(self) -> None:
        if not self.forced:
            return
        if self.collapse.look:
            raise ValueError(
                f"{collapses.COLLAPSES.spec(self.collapse)} decides several steps together, so none "
                "of them can be forced"
            )
        for step in self.forced:
            whole_number("a forced step", step, 0, self.steps - 1)

    def forced_ids(self, tokenizer: Any) -> dict[int, int]:
        """The token id of each forced step, in the order of steps.

        Raises:
            ValueError: where a forced symbol is not one token of the tokenizer's.
        """
        found = {}
        for step, symbol in sorted((self.forced or {}).items()):
            ids = [symbol] if isinstance(symbol, int) else tokenizer.encode(symbol).tolist()
            if len(ids) != 1 or not 0 <= ids[0] < tokenizer.vocab_size:
                raise ValueError(
                    f"step {step} can be forced to one symbol of the vocabulary, not to {symbol!r}"
                )
            found[step] = ids[0]
        return found

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
        more: dict[str, Any] = {}
        if self.soft_temperature is not None:
            more["soft_temperature"] = self.soft_temperature
        if self.forced:
            more["forced"] = [[step, symbol] for step, symbol in sorted(self.forced.items())]
        if self.exit is not None:
            more["exit"] = exiting.EXITS.spec(self.exit)
        if self.draft is not None:
            more["draft"] = drafts.DRAFTS.spec(self.draft)
        return {
            "collapse": collapses.COLLAPSES.spec(self.collapse),
            "schedule": schedules.SCHEDULES.spec(self.schedule),
            "feedback": feedbacks.FEEDBACKS.spec(self.feedback),
            "temperature": self.temperature,
            "steps": self.steps,
            **more,
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
