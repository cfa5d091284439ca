"""The recipe of a training run."""

import math
from dataclasses import dataclass

from ..core.checks import plain_fields, real_number, whole_number
from .soft_inputs import SOFT_INPUTS


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The recipe of a training run.

    The defaults are the best ones found for the lab's small models (benchmarks/README.md).

    Args:
        steps: how many steps the run has.
        batch_size: training rows per step.
        window: tokens per training row; None: the model's context.
        muon_learning_rate: of the matrices.
        adam_learning_rate: of all other parameters.
        weight_decay: of both optimizers.
        warmup: the share of the steps in which the learning rates rise.
        precision: "bf16", "fp32", or "auto": bf16 where the processor has it, else fp32.
        soft_inputs: None: hard tokens only; or a member of soft_inputs.py such as "scheduled(0.5)".
        level_weight: of the levels' mean loss beside the objective's (ModelConfig.levels).
        level_curriculum: the share of the steps in which the levels are switched on, one by one,
            the nearest first; 0: all from the first step.
        history: in running text, how many tokens before a row a model's memory (ModelConfig.window)
            holds at most.
        eval_every, save_every: in steps; 0: only at the end.

    Raises:
        ValueError: for a value out of range; the message names the field.
    """

    steps: int = 400
    batch_size: int = 16
    window: int | None = None
    muon_learning_rate: float | int = 0.02
    adam_learning_rate: float | int = 3e-3
    weight_decay: float | int = 0.0
    warmup: float | int = 0.05
    precision: str = "auto"
    soft_inputs: str | None = None
    level_weight: float | int = 1.0
    level_curriculum: float | int = 0.0
    history: int = 1024
    eval_every: int = 100
    save_every: int = 100

    def __post_init__(self):
        plain_fields(self)
        for name, least in (
            ("steps", 1),
            ("batch_size", 1),
            ("window", 1),
            ("history", 0),
            ("eval_every", 0),
            ("save_every", 0),
        ):
            value = getattr(self, name)
            if value is None and name == "window":
                continue
            object.__setattr__(self, name, whole_number(f"TrainConfig.{name}", value, least))
        for name in ("muon_learning_rate", "adam_learning_rate"):
            value = getattr(self, name)
            real_number(f"TrainConfig.{name}", value, "above 0", lambda one: 0 < one < math.inf)
        for name, wanted, end in (
            ("weight_decay", "at least 0", math.inf),
            ("warmup", "a share of the steps in [0, 1)", 1),
            ("level_weight", "at least 0", math.inf),
            ("level_curriculum", "a share of the steps in [0, 1)", 1),
        ):
            value = getattr(self, name)
            real_number(f"TrainConfig.{name}", value, wanted, lambda one, end=end: 0 <= one < end)
        if not isinstance(self.precision, str) or self.precision not in ("auto", "bf16", "fp32"):
            raise ValueError(
                f"TrainConfig.precision must be auto, bf16 or fp32, not {self.precision!r}"
            )
        if self.soft_inputs is not None:
            object.__setattr__(
                self, "soft_inputs", SOFT_INPUTS.spec(SOFT_INPUTS.make(self.soft_inputs))
            )
