"""What all steps of one call of generate() share: the model, the tokens so far, aligned predictors."""

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.predictor import Predictor
from ..models.aligned_predictor import AlignedPredictor, AlignedState, TokenHistory
from ..models.soft_ar import SoftAR


class RunContext:
    """One call of generate() with `model` in B rows.

    Attributes:
        tokens: the token history, prompts included, (B,) per position.
        reach: how many of the latest symbols may still be revised.
        scratch: what a strategy saves from step to step, under its own name.
    """

    def __init__(self, model: Predictor, batch_size: int, reach: int = 0):
        self.model, self.batch_size, self.reach = model, batch_size, reach
        self.tokens = TokenHistory(batch_size)
        self.scratch: dict[str, Any] = {}
        self._aligned: dict[Predictor, AlignedPredictor] = {}
        # States by the number of symbols read, the latest last; `reach` older ones stay.
        self._states: dict[Predictor, dict[int, AlignedState]] = {}

    def aligned(self, predictor: Predictor) -> "AlignedPredictor":
        """`predictor` in the model's symbols.

        Raises:
            ValueError: where it has no tokenizer, or could emit a symbol that the model cannot.
        """
        if predictor not in self._aligned:
            self._aligned[predictor] = AlignedPredictor(predictor, self.model.tokenizer.tokens)
            self._states[predictor] = {0: self._aligned[predictor].start(self.batch_size)}
        return self._aligned[predictor]

    def aligned_state(self, predictor: Predictor, ago: int = 0) -> "AlignedState":
        """The state of `predictor` after it has read the token history as hard tokens.

        The last `ago` <= `reach` tokens are left out. Each token is read once, unless it is revised.
        Raises ValueError as `aligned` does.
        """
        aligned, position = self.aligned(predictor), len(self.tokens) - ago
        states = self._states[predictor]
        while (last := next(reversed(states))) < position:
            states[last + 1] = aligned.advance(states[last], token_ids=self.tokens[last])
            states.pop(last - self.reach, None)
        return states[position]

    def revise(self, position: int, token_ids: Int[Tensor, " B"]) -> None:
        """Replace the symbols at a position; states of aligned predictors after it are dropped."""
        self.tokens[position] = token_ids
        for states in self._states.values():
            while next(reversed(states)) > position:
                states.popitem()

    @cached_property
    def inverse(self) -> Float[Tensor, "d m"]:
        """The pseudo-inverse of the model's input map, by which hidden states become soft tokens.

        Raises:
            ValueError: for a model whose input is not one linear map.
        """
        if isinstance(self.model, SoftAR):
            return torch.linalg.pinv(self.model.input.weight.detach()).T
        if self.model.reads_hidden_states:  # as wide as a soft token: fed back as it is
            return torch.eye(self.model.config.embedding_dim, device=self.model.device)
        raise ValueError(
            f"only a SoftAR reads through one linear map, which can be undone; not {self.model!r:.80}"
        )
