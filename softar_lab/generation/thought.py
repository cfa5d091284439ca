"""What a strategy gets to see at one step."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..predictor import Prediction
from .session import Session

# Added to a row's seed, so that each axis draws numbers of its own, apart from those that choose the symbols.
_STREAMS = {"feedback": 2**31, "schedule": 3 * 2**30, "collapse": 2**30}


@dataclass(frozen=True)
class Thought:
    """One step of B rows: `step` (B,) counts from 0 after each row's prompt; `token_ids` (B,) is what was collapsed to.

    `prediction` is None for a schedule that looks at the step alone. `collapsed_probs` (B, V) is the distribution that
    the collapse gave, before temperature; it and the ids are None for a collapse, which comes first. `embedding` is the
    table (V, m); `seeds` are the rows' own, all 0 where none are given; `was_hard` (B,) what the schedule said one step
    before, False at a row's first; `state` the model's, as it predicts; `session` what the steps of one call of
    generate() share.
    """

    step: Int[Tensor, " B"]
    prediction: Prediction | None
    collapsed_probs: Float[Tensor, "B V"] | None
    token_ids: Int[Tensor, " B"] | None
    embedding: Float[Tensor, "V m"] | None
    seeds: tuple[int, ...] = ()
    was_hard: Bool[Tensor, " B"] | None = None
    state: Any = None
    session: Session | None = None

    def generators(self, stream: str) -> list[torch.Generator]:
        """One generator a row, decided by its seed, its step and the axis that draws ("collapse", …) alone.

        torch reads the lower 32 bits of a seed, so streams are parts of that range: at one seed they meet only if steps
        are a billion apart.
        """
        steps, begin = self.step.tolist(), _STREAMS[stream]
        seeds = [(seed * 1_000_003 + step + begin) % 2**32 for seed, step in zip(self.seeds or [0] * len(steps), steps)]
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def uniform(self, width: int, stream: str = "feedback") -> Float[Tensor, "B width"]:
        """Numbers in [0, 1), (B, width), for strategies that draw: a row's depend on its own seed and step alone."""
        rows = [torch.rand(width, generator=one, dtype=torch.float64) for one in self.generators(stream)]
        return torch.stack(rows).to(self.step.device)
