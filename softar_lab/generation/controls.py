"""Controls: feedbacks that say what a soft token was good for, or how much a replacement can do (K2).

A soft token is worth what it is better than these. "shown", the same-rule hard control, is in
feedback.py.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.nearest import nearest
from .collapse import soft_tokens
from .feedback import Feedback, mixture, register
from .step_context import StepContext


@register("mean")
@dataclass(frozen=True)
class Mean(Feedback):
    """The mean of all rows, whatever was predicted.

    It lies among the rows as a mixture does, but holds no information.
    """

    needs_symbol: ClassVar[bool] = False

    def __call__(self, context: StepContext) -> Float[Tensor, "B m"]:
        return context.embedding.mean(0).expand(len(context.token_ids), -1)


@register("other")
@dataclass(frozen=True)
class Other(Feedback):
    """The mixture pE of the previous row of the batch (the first takes that of the last).

    So it is a soft token of another text: as long, as sharp and as likely as the row's own, but not
    about this text. Only here does a row depend on its neighbours, so give prompts or seeds that
    differ.

    Raises:
        ValueError: for a batch of one.
    """

    needs_batch: ClassVar[bool] = True

    def __call__(self, context: StepContext) -> Float[Tensor, "B m"]:
        probs = context.prediction.probs
        if len(probs) < 2:
            raise ValueError(
                'feedback "other" takes the soft tokens of another row: give at least 2 prompts'
            )
        return mixture(probs.roll(1, dims=0), context.embedding)


@register("other-text")
@dataclass(frozen=True)
class OtherText(Feedback):
    """The row of the symbol that the previous row of the batch emitted: a hard token, and wrong.

    This is the positive control of the replacements above and below: it says how much a prediction
    changes where *text* of that length is replaced. What a replaced soft token changes is much or
    little beside that only.

    Raises:
        ValueError: for a batch of one.
    """

    needs_batch: ClassVar[bool] = True

    def __call__(self, context: StepContext) -> Float[Tensor, "B m"]:
        if len(context.token_ids) < 2:
            raise ValueError(
                'feedback "other-text" takes the symbols of another row: give at least 2 prompts'
            )
        return context.embedding[context.token_ids.roll(1)]


@register("nearest")
@dataclass(frozen=True)
class Nearest(Feedback):
    """The row closest to the predicted vector: a soft token without what lies between the rows.

    Raises:
        ValueError: for a model without vectors.
    """

    needs_symbol: ClassVar[bool] = False

    def __call__(self, context: StepContext) -> Float[Tensor, "B m"]:
        vectors = soft_tokens('feedback "nearest"', context.prediction, context.embedding)
        return context.embedding[nearest(vectors, context.embedding)]


@register("pause")
@dataclass(frozen=True)
class Pause(Feedback):
    """One fixed vector that stands for no symbol: one more slot to compute in, and no more.

    It is as long as the rows are in the mean. `seed` draws its direction; what the rows span is
    removed from it, unless they span everything. No model here has been trained to pause, so this
    is the untrained relative of a pause token (arXiv 2310.02226).
    """

    needs_symbol: ClassVar[bool] = False
    seed: int = 0

    def __call__(self, context: StepContext) -> Float[Tensor, "B m"]:
        memory, key = ({} if context.run is None else context.run.scratch), f"pause {self.seed}"
        if key not in memory:
            memory[key] = self.vector(context.embedding)
        return memory[key].expand(len(context.token_ids), -1)

    def vector(self, table: Float[Tensor, "V m"]) -> Float[Tensor, " m"]:
        """The vector (m,) for a table."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(table.shape[1], generator=generator, dtype=torch.float64).to(
            table.device
        )
        rows = table.double()
        # a high table is replaced by a small matrix of the same span
        spanned = rows.T @ rows if len(rows) > 4 * rows.shape[1] else rows
        # the part of the direction that lies outside the span
        free = drawn - torch.linalg.pinv(spanned) @ (spanned @ drawn)
        direction = free if free.norm() > 1e-6 * drawn.norm() else drawn
        paused = direction / direction.norm() * rows.norm(dim=-1).mean()
        return paused.to(table)
