"""Drafts: how many symbols a model's heads may propose for one pass, and for which choices (K25)."""

from dataclasses import dataclass
from typing import Any

from ..core.checks import real_number, whole_number
from ..core.predictor import Predictor
from ..core.registry import Registry
from ..models.soft_ar import SoftAR
from .collapse import COLLAPSES, softmax

DRAFTS = Registry("draft")


@DRAFTS.register("levels")
@dataclass(frozen=True)
class Draft:
    """What the heads of the top layer propose is read in one pass with the newest symbol.

    Args:
        most: how many slots a pass reads at most.
        above: proposals end where the product of their largest probabilities falls below it.

    Raises:
        ValueError: where `most` is below 2 or `above` is no probability.
    """

    most: int = 8
    above: float | int = 0.5

    def __post_init__(self):
        object.__setattr__(self, "most", whole_number("levels(most)", self.most, 2))
        real_number("levels(above)", self.above, "a probability", lambda one: 0 <= one <= 1)


def check(model: Predictor, draft: Draft, schedule: Any, collapse: Any) -> None:
    """Raise ValueError where a draft cannot serve these choices; the message says what could."""
    if not isinstance(model, SoftAR) or model.levels is None:
        raise ValueError(
            'draft needs a SoftAR with levels, such as ModelConfig(levels="recurrent(8)"), '
            f"not {model!r:.80}"
        )
    if model.levels.recurrent is None and not model.levels.proposals(model.embedding):
        raise ValueError(
            f"the top layer of levels {model.config.levels!r} does not read the symbol two steps on: "
            'only "recurrent", "multi-token" and "bound" propose symbols'
        )
    if not schedule.always_hard or not schedule.by_step:
        raise ValueError(
            'draft needs schedule "always": a soft token is known only once the step before it is'
        )
    if collapse is not softmax:
        raise ValueError(
            f'draft needs collapse "softmax", not "{COLLAPSES.spec(collapse)}": others are not in '
            "compiled code, where a pass of several slots is worth its cost"
        )
