"""What a schedule or a feedback gets to see at one step."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..predictor import Prediction


@dataclass(frozen=True)
class Thought:
    """One step of B rows: `step` (B,) counts from 0 after each row's prompt; `token_ids` (B,) is what was collapsed to.

    `collapsed_probs` (B, V) is the distribution the collapse gave, before temperature; `embedding` is the table (V, m);
    `seeds` are the rows' own, all 0 where none are given.
    """

    step: Int[Tensor, " B"]
    prediction: Prediction
    collapsed_probs: Float[Tensor, "B V"]
    token_ids: Int[Tensor, " B"]
    embedding: Float[Tensor, "V m"] | None
    seeds: tuple[int, ...] = ()

    def uniform(self, width: int) -> Float[Tensor, "B width"]:
        """Numbers in [0, 1), (B, width), for strategies that draw: a row's depend on its own seed and step alone."""
        steps = self.step.tolist()
        seeds = [(seed * 1_000_003 + step + 2**31) % 2**32 for seed, step in zip(self.seeds or [0] * len(steps), steps)]
        rows = [torch.rand(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
        return torch.stack(rows).to(self.token_ids.device)
