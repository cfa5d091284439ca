"""A model that has read soft tokens before every text (K32)."""

from copy import copy
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.predictor import Predictor
from ...models.soft_ar import SoftAR
from ...models.window_memory.memories import MemoryState
from .prompts import LearnedPrompt, check_prompt
from .soft_reading import check_trainable
from .wrapper import Pretrained


def prompted(model: Predictor, prompt: LearnedPrompt | Float[Tensor, "n m"]) -> Predictor:
    """A model that has read a prompt before every text; it generates and scores as any other.

    The prompt takes its part of the context, whose rest is for the text. Where a text goes on in a
    new window, the prompt stands before that window, too. A prompt for a model that has one follows
    it.

    Args:
        model: a model that reads vectors; it does not change, and shares its weights.
        prompt: soft tokens, at least one.

    Raises:
        ValueError: where the vectors have another width than the model's, are not finite, or leave
            no two tokens of its context.
    """
    check_trainable(model)
    vectors = prompt.vectors if isinstance(prompt, LearnedPrompt) else prompt
    if not isinstance(vectors, Tensor):
        raise ValueError(f"a prompt is a LearnedPrompt or a tensor (n, m), not {vectors!r:.40}")
    if not len(vectors):
        raise ValueError("a prompt has at least one soft token")
    check_prompt(model, vectors)
    vectors = vectors.detach().to(model.device)
    if isinstance(model, Prompted):
        model, vectors = model.unprompted, torch.cat([model.prompt, vectors])
    left = model.config.context - len(vectors)
    if left < 2:
        raise ValueError(
            f"a prompt of {len(vectors)} soft tokens leaves {max(0, left)} of the context of "
            f"{model.config.context}; a text needs at least 2"
        )
    other = copy(model)  # the same weights: what is put in front is no part of them
    other.__class__ = PromptedSoftAR if isinstance(model, SoftAR) else PromptedPretrained
    other.__dict__["unprompted"] = model  # no module of its own
    other.prompt, other.config = vectors, replace(model.config, context=left)
    if isinstance(other, SoftAR):
        other.n_front = model.n_front + len(vectors)
    return other


class Prompted:
    """What stands before every text of a model.

    Attributes:
        prompt: the soft tokens (n, m).
        unprompted: the model without them.
    """

    prompt: Tensor
    unprompted: Predictor

    def _before_text(self, batch_size: int) -> Float[Tensor, "B n m"]:
        device = self.unprompted.device  # it may have moved
        return self.prompt.to(device).expand(batch_size, -1, -1)


class PromptedSoftAR(Prompted, SoftAR):
    """A SoftAR whose front slots end with a prompt."""

    def front(self, batch_size: int, memory_state: MemoryState) -> Float[Tensor, "B front d"]:
        before = super().front(batch_size, memory_state)
        return torch.cat([before, self.input(self._before_text(batch_size))], 1)

    def _slots(
        self, token_ids: Tensor | None, vectors: Tensor | None, memory: Tensor | None
    ) -> Tensor:
        slots, front = super()._slots(token_ids, vectors, memory), self.unprompted.n_front
        before = self.input(self._before_text(len(slots)))
        return torch.cat([slots[:, :front], before.to(slots.dtype), slots[:, front:]], 1)

    def with_readout(self, readout: str) -> SoftAR:
        return prompted(self.unprompted.with_readout(readout), self.prompt)

    def save(self, folder: str | Path, **files: bytes) -> None:
        """A checkpoint has no place for a prompt.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a checkpoint has no place for a prompt: save the model without it "
            "(model.unprompted.save), and the prompt by LearnedPrompt(model.prompt).save(folder)"
        )


class PromptedPretrained(Prompted, Pretrained):
    """A pretrained model that reads a prompt behind what its tokenizer puts before a text."""

    predicts_first = True

    @property
    def n_front(self) -> int:
        return super().n_front + len(self.prompt)

    def _front(self, batch_size: int) -> Float[Tensor, "B front m"]:
        return torch.cat([super()._front(batch_size), self._before_text(batch_size)], 1)
