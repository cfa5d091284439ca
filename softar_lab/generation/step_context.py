"""What a collapse, a schedule and a feedback get to see at one step."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.predictor import Prediction
from .run_context import RunContext

# Added to a row's seed: each axis draws its own numbers, apart from those that choose the symbols.
_STREAMS = {"feedback": 2**31, "schedule": 3 * 2**30, "collapse": 2**30}


@dataclass(frozen=True)
class StepContext:
    """One step of B rows.

    Args:
        step: the step of each row (B,), counted from 0 after its prompt.
        prediction: what the model predicts; None for a schedule that looks at the step alone.
        collapsed_probs: the distribution of the collapse (B, V), before temperature; None for a
            collapse, which comes first.
        token_ids: the symbols collapsed to (B,); None for a collapse.
        embedding: the embedding table (V, m); None for a model without vectors.
        seeds: one seed per row; empty: all are 0.
        was_hard: what the schedule decided one step before (B,); False at a row's first step.
        state: the state the model predicts from.
        run: what all steps of one call of generate() share.
    """

    step: Int[Tensor, " B"]
    prediction: Prediction | None
    collapsed_probs: Float[Tensor, "B V"] | None
    token_ids: Int[Tensor, " B"] | None
    embedding: Float[Tensor, "V m"] | None
    seeds: tuple[int, ...] = ()
    was_hard: Bool[Tensor, " B"] | None = None
    state: Any = None
    run: RunContext | None = None

    def generators(self, stream: str) -> list[torch.Generator]:
        """One generator per row, which depends on its seed, its step and the axis that draws.

        torch reads the lower 32 bits of a seed. Streams ("collapse", …) are parts of that range: at
        the same seed they overlap only where steps are a billion apart.
        """
        steps, begin = self.step.tolist(), _STREAMS[stream]
        seeds = [
            (seed * 1_000_003 + step + begin) % 2**32
            for seed, step in zip(self.seeds or [0] * len(steps), steps)
        ]
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def uniform(self, width: int, stream: str = "feedback") -> Float[Tensor, "B width"]:
        """Random numbers in [0, 1), (B, width); a row's depend on its own seed and step only."""
        rows = [
            torch.rand(width, generator=one, dtype=torch.float64) for one in self.generators(stream)
        ]
        return torch.stack(rows).to(self.step.device)
