"""What is kept of the steps while a text is written, and made into trajectories at the end."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..models.by_row import product
from ..predictor import MixturePrediction, Prediction, Predictor
from .collapse import nearest_distance
from .trajectory import Trajectory

CANDIDATES = 8
FLUSH = 128  # steps that are put together at once, and whose distributions are reduced at once
ENTRIES = 2**22  # but no more log-probabilities than these, or of one step: with 50,000 symbols they are soon many
_TOKEN_IDS, _COLLAPSED, _INPUTS = range(3)


class Record:
    """The steps of B rows, in order; what is held at a time does not grow.

    In the latest `reach` steps what was fed back can still be mended, in the latest `look` of them what was shown.
    """

    def __init__(self, embedding: Float[Tensor, "V m"] | None, reach: int = 0, look: int = 0):
        self.embedding, self.reach, self.look = embedding, max(reach, look), look
        self.predictions: list[Prediction] = []  # of the latest steps, not reduced yet
        self.pending: list[list] = []  # of the latest steps, at least of those: what was shown and fed back
        self.said: list[dict[str, Tensor]] = []
        self.blocks: list[dict[str, Tensor]] = []
        self.taken = 0  # steps whose blocks were taken

    def keep(self, prediction: Prediction, token_ids: Tensor, collapsed: Tensor, inputs: Tensor | None) -> bool:
        """One more step. `inputs` (B, m): what was fed back; None: the rows of `token_ids`.

        Whether older ones were put together in a block.
        """
        self.predictions.append(prediction)
        self.pending.append([token_ids, collapsed, inputs])
        several = min(FLUSH, max(1, ENTRIES // prediction.log_probs.numel()))
        if len(self.predictions) >= several + self.look:
            self._reduce_oldest(several)
        full = len(self.pending) == FLUSH + self.reach
        if full:
            self._reduce_oldest(max(0, len(self.predictions) - self.reach))  # of those that leave
            self._settle_oldest(FLUSH)
        return full

    def revise(self, ago: int, token_ids: Int[Tensor, " B"]) -> None:
        """Other symbols for the step `ago` <= `look` steps back, 1: the one kept last; what was fed back stays."""
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

    def flush(self) -> None:
        """Reduce and put together all that has piled up."""
        self._reduce_oldest(len(self.predictions))
        self._settle_oldest(len(self.pending))

    def _reduce_oldest(self, n: int) -> None:
        if n == 0:
            return
        first = len(self.pending) - len(self.predictions)
        token_ids = torch.stack([step[_TOKEN_IDS] for step in self.pending[first : first + n]])
        some, self.predictions = self.predictions[:n], self.predictions[n:]
        log_probs = torch.stack([one.log_probs for one in some])  # (S, B, V)
        if self.embedding is None:
            vectors = torch.zeros(*token_ids.shape, 0)
        elif any(isinstance(one, MixturePrediction) and not one.has_vector for one in some):  # then of all at once
            vectors = product(log_probs.flatten(0, 1).exp(), self.embedding).view(*token_ids.shape, -1)
        else:
            vectors = torch.stack([one.vector for one in some])
        self.reduce(log_probs, vectors, token_ids)

    def _settle_oldest(self, n: int) -> None:
        steps, self.pending = self.pending[:n], self.pending[n:]
        if steps:
            inputs = torch.stack([self._rows(step) if step[_INPUTS] is None else step[_INPUTS] for step in steps])
            self.settle(*(torch.stack(column) for column in list(zip(*steps, strict=True))[:_INPUTS]), inputs)

    def _rows(self, step: list) -> Tensor:
        token_ids = step[_TOKEN_IDS]
        return torch.zeros(len(token_ids), 0) if self.embedding is None else self.embedding[token_ids]

    def reduce(
        self, log_probs: Float[Tensor, "S B V"], vectors: Float[Tensor, "S B m"], token_ids: Int[Tensor, "S B"]
    ) -> None:
        """Reduce what was predicted at S steps, at which `token_ids` were shown, to what a trajectory keeps."""
        prediction = Prediction(log_probs.flatten(0, 1))
        shape = token_ids.shape
        top_probs, top_ids = prediction.probs.topk(min(CANDIDATES, log_probs.shape[-1]))
        distance = torch.full(shape, math.nan)
        if self.embedding is not None:
            distance = nearest_distance(vectors.flatten(0, 1), self.embedding).view(shape)
        block = {
            "vectors": vectors.float(),
            "log_probs": log_probs.gather(-1, token_ids[..., None]).squeeze(-1),
            "entropy": prediction.entropy.view(shape),
            "distance": distance,
            "top_ids": top_ids.view(*shape, -1),
            "top_probs": top_probs.view(*shape, -1),
        }
        self.said.append({name: tensor.cpu() for name, tensor in block.items()})

    def settle(
        self, token_ids: Int[Tensor, "S B"], collapsed: Bool[Tensor, "S B"], inputs: Float[Tensor, "S B m"]
    ) -> None:
        """Keep what was shown and fed back at S steps; it can be mended no more."""
        block = {"token_ids": token_ids, "collapsed": collapsed, "inputs": inputs.float()}
        self.blocks.append({name: tensor.cpu() for name, tensor in block.items()})

    def trajectories(
        self, model: Predictor, prompts: list[str], first: list[int], steps: int, settings: dict[str, Any]
    ) -> list[Trajectory]:
        """One trajectory a prompt, its own steps only: those from `first` (B of them) on, at most `steps`.

        They are taken out of the record: what follows begins where they end. Raises ValueError where there is no step.
        """
        if not self.blocks:
            raise ValueError("stopped before the first step")
        joined = self._take()
        done, self.taken = self.taken, self.taken + len(joined["token_ids"])
        tokenizer, result = model.tokenizer, []
        for row, (prompt, begin) in enumerate(zip(prompts, first, strict=True)):
            own = slice(max(0, begin - done), max(0, begin + steps - done))
            arrays = {name: tensor[own, row].clone() for name, tensor in joined.items()}
            text = tokenizer.decode(arrays["token_ids"])
            result.append(Trajectory(prompt, text, tuple(tokenizer.tokens), **arrays, settings=settings))
        return result

    def _take(self) -> dict[str, Tensor]:
        """The steps of all blocks, of both kinds; where one kind is ahead of the other, its latest ones stay."""
        kinds = [
            {name: torch.cat([one[name] for one in some]) for name in some[0]} for some in (self.blocks, self.said)
        ]
        n = min(len(tensor) for kind in kinds for tensor in kind.values())
        rest = [{name: tensor[n:] for name, tensor in kind.items()} for kind in kinds]
        self.blocks, self.said = ([kind] if len(next(iter(kind.values()))) else [] for kind in rest)
        return {name: tensor[:n] for kind in kinds for name, tensor in kind.items()}
