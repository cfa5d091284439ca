"""What is kept of the steps while a text is written, and made into trajectories at the end."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..predictor import Prediction, Predictor
from .collapse import nearest_distance
from .trajectory import Trajectory

CANDIDATES = 8
FLUSH = 128  # steps whose full distributions are reduced at once
_LOG_PROBS, _VECTOR, _TOKEN_IDS, _COLLAPSED, _INPUTS = range(5)


class Record:
    """The steps of B rows, in order; the latest `reach` can still be mended, so that what is held does not grow."""

    def __init__(self, embedding: Float[Tensor, "V m"] | None, reach: int = 0):
        self.embedding, self.reach = embedding, reach
        self.pending: list[list] = []
        self.blocks: list[dict[str, Tensor]] = []
        self.taken = 0  # steps whose blocks were taken

    def keep(self, prediction: Prediction, token_ids: Tensor, collapsed: Tensor, inputs: Tensor | None) -> bool:
        """One more step. `inputs` (B, m): what was fed back; None: the rows of `token_ids`.

        Whether older ones were reduced to a block.
        """
        vector = torch.zeros(len(token_ids), 0) if self.embedding is None else prediction.vector
        self.pending.append([prediction.log_probs, vector, token_ids, collapsed, inputs])
        full = len(self.pending) == FLUSH + self.reach
        if full:
            self.flush(FLUSH)
        return full

    def revise(self, ago: int, token_ids: Int[Tensor, " B"]) -> None:
        """Other symbols for the step `ago` <= `reach` steps back, 1: the one kept last; what was fed back stays."""
        step = self.pending[-ago]
        if step[_INPUTS] is None:
            step[_INPUTS] = self._rows(step)
        step[_TOKEN_IDS] = token_ids

    def soft(self, n: int) -> Bool[Tensor, "B n"]:
        """Which of the latest n <= `reach` steps stand soft in the context, the newest last."""
        return ~torch.stack([step[_COLLAPSED] for step in self.pending[-n:]], 1)

    def ground(self, ago: int, rows: Bool[Tensor, " B"]) -> None:
        """Let the step `ago` <= `reach` steps back, in some rows, have fed back the row of the symbol shown."""
        step = self.pending[-ago]
        hard = self.embedding[step[_TOKEN_IDS]]
        step[_INPUTS] = hard if step[_INPUTS] is None else torch.where(rows[:, None], hard, step[_INPUTS])
        step[_COLLAPSED] = step[_COLLAPSED] | rows

    def flush(self, n: int | None = None) -> None:
        """Reduce the oldest n steps of those that have piled up; None: all."""
        steps, self.pending = self.pending[:n], self.pending[len(self.pending) if n is None else n :]
        if steps:
            inputs = torch.stack([self._rows(step) if step[_INPUTS] is None else step[_INPUTS] for step in steps])
            self.reduce(*(torch.stack(column) for column in list(zip(*steps, strict=True))[:_INPUTS]), inputs)

    def _rows(self, step: list) -> Tensor:
        return step[_VECTOR] if self.embedding is None else self.embedding[step[_TOKEN_IDS]]

    def reduce(
        self,
        log_probs: Float[Tensor, "S B V"],
        vectors: Float[Tensor, "S B m"],
        token_ids: Int[Tensor, "S B"],
        collapsed: Bool[Tensor, "S B"],
        inputs: Float[Tensor, "S B m"],
    ) -> None:
        """Reduce the distributions of S steps to what a trajectory keeps."""
        prediction = Prediction(log_probs.flatten(0, 1))
        shape = token_ids.shape
        top_probs, top_ids = prediction.probs.topk(min(CANDIDATES, log_probs.shape[-1]))
        distance = torch.full(shape, math.nan)
        if self.embedding is not None:
            distance = nearest_distance(vectors.flatten(0, 1), self.embedding).view(shape)
        block = {
            "token_ids": token_ids,
            "vectors": vectors.float(),
            "inputs": inputs.float(),
            "log_probs": log_probs.gather(-1, token_ids[..., None]).squeeze(-1),
            "entropy": prediction.entropy.view(shape),
            "distance": distance,
            "collapsed": collapsed,
            "top_ids": top_ids.view(*shape, -1),
            "top_probs": top_probs.view(*shape, -1),
        }
        self.blocks.append({name: tensor.cpu() for name, tensor in block.items()})

    def trajectories(
        self, model: Predictor, prompts: list[str], first: list[int], steps: int, settings: dict[str, Any]
    ) -> list[Trajectory]:
        """One trajectory a prompt, its own steps only: those from `first` (B of them) on, at most `steps`.

        They are taken out of the record: what follows begins where they end. Raises ValueError where there is no step.
        """
        if not self.blocks:
            raise ValueError("stopped before the first step")
        joined = {name: torch.cat([block[name] for block in self.blocks]) for name in self.blocks[0]}
        done, self.taken = self.taken, self.taken + len(joined["token_ids"])
        self.blocks.clear()
        tokenizer, result = model.tokenizer, []
        for row, (prompt, begin) in enumerate(zip(prompts, first, strict=True)):
            own = slice(max(0, begin - done), max(0, begin + steps - done))
            arrays = {name: tensor[own, row].clone() for name, tensor in joined.items()}
            text = tokenizer.decode(arrays["token_ids"])
            result.append(Trajectory(prompt, text, tuple(tokenizer.tokens), **arrays, settings=settings))
        return result
