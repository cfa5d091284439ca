"""The recipe of an adaptation."""

import math
from dataclasses import dataclass

from ...core.checks import plain_fields, real_number, whole_number
from ...training.soft_inputs import SOFT_INPUTS

TARGETS = ("all", "attention", "mlp")
GOALS = ("text", "distil")


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """The recipe of an adaptation: a frozen model, and low-rank adapters that are trained (K32).

    Args:
        rank: of each adapter's matrices.
        alpha: the adapter's output is multiplied by alpha / rank.
        targets: which linear layers get an adapter: "all" (never the head), "attention" or "mlp".
        soft_inputs: None: hard tokens only; or a member of `training.soft_inputs`, such as
            "scheduled(0.5)" or "posterior-gumbel(0.5)".
        soft_share: the share of the tokens that may be soft; each is drawn by itself.
        goal: "text": the next token of the text; "distil": what the frozen model predicts when it
            reads the hard text. For "distil" the frozen model makes the soft inputs, too.
        steps: how many steps the run has.
        batch_size: rows per step.
        window: tokens per row.
        learning_rate: of AdamW.
        warmup: the share of the steps in which the learning rate rises; then it falls to 0.
        eval_every, save_every: in steps; 0: only at the end.

    Raises:
        ValueError: for a value out of range; the message names the field.

    Source:
        QLoRA, arXiv 2305.14314; scheduled sampling in two passes, arXiv 1906.04331.
    """

    rank: int = 8
    alpha: float | int = 16
    targets: str = "all"
    soft_inputs: str | None = None
    soft_share: float | int = 0.5
    goal: str = "text"
    steps: int = 60
    batch_size: int = 2
    window: int = 80
    learning_rate: float | int = 5e-4
    warmup: float | int = 0.05
    eval_every: int = 0
    save_every: int = 10

    def __post_init__(self):
        plain_fields(self)
        for name, least in (
            *(("rank", 1), ("steps", 1), ("batch_size", 1), ("window", 2)),
            *(("eval_every", 0), ("save_every", 0)),
        ):
            value = whole_number(f"AdaptConfig.{name}", getattr(self, name), least)
            object.__setattr__(self, name, value)
        for name in ("alpha", "learning_rate"):
            value = getattr(self, name)
            real_number(f"AdaptConfig.{name}", value, "above 0", lambda one: 0 < one < math.inf)
        real_number(
            "AdaptConfig.soft_share", self.soft_share, "in [0, 1]", lambda one: 0 <= one <= 1
        )
        real_number("AdaptConfig.warmup", self.warmup, "in [0, 1)", lambda one: 0 <= one < 1)
        for name, known in (("targets", TARGETS), ("goal", GOALS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"AdaptConfig.{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}"
                )
        if self.soft_inputs is not None:
            object.__setattr__(
                self, "soft_inputs", SOFT_INPUTS.spec(SOFT_INPUTS.make(self.soft_inputs))
            )

    def rate(self, step: int) -> float:
        """The learning rate at a step: a linear rise, then a linear fall towards 0."""
        rise = max(1, round(self.warmup * self.steps))
        share = min((step + 1) / rise, (self.steps - step) / max(1, self.steps - rise))
        return self.learning_rate * share
