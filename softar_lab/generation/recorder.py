"""Records the steps while a text is written, and turns them into trajectories."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.predictor import MixturePrediction, Prediction, Predictor
from ..core.trajectory import Trajectory
from ..models.by_row import largest, product
from ..models.nearest import nearest_distance

CANDIDATES = 8  # symbols per step whose probabilities a trajectory holds
FLUSH = 128  # steps that are joined into one block, and whose distributions are reduced at once
# So many log-probabilities at most are reduced at once, but never less than one step: a vocabulary
# of 50,000 symbols soon makes them many.
ENTRIES = 2**22
_TOKEN_IDS, _COLLAPSED, _INPUTS = range(3)


def candidates(
    probs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"]
) -> tuple[Int[Tensor, "N k"], Float[Tensor, "N k"]]:
    """The most probable symbols and their probabilities, the emitted symbol always among them.

    Among equally probable symbols the smaller id comes first. An emitted symbol that is not among
    the best takes the last place.
    """
    size = min(CANDIDATES, probs.shape[1])
    top_ids = largest(probs, size)
    # where the emitted symbol is none of them
    absent = (top_ids != token_ids[:, None]).all(1)
    top_ids[:, -1] = torch.where(absent, token_ids, top_ids[:, -1])
    return top_ids, probs.gather(1, top_ids)


class Recorder:
    """The steps of B rows, in order; only the latest of them are held in full.

    Older steps are reduced and joined into blocks on the CPU, until `trajectories` takes them.

    Args:
        embedding: the embedding table (V, m); None for a model without vectors.
        reach: in how many of the latest steps the vector that was fed back may still change; it is
            raised to `look` where it is less.
        look: in how many of the latest steps the emitted symbol may still change.
    """

    def __init__(self, embedding: Float[Tensor, "V m"] | None, reach: int = 0, look: int = 0):
        self.embedding, self.reach, self.look = embedding, max(reach, look), look
        self.predictions: list[Prediction] = []  # of the latest steps, not reduced yet
        # Of the latest steps, at least those in `predictions`: [symbols, collapsed, inputs].
        self.pending: list[list] = []
        self.reduced: list[dict[str, Tensor]] = []  # what was predicted, reduced
        self.blocks: list[dict[str, Tensor]] = []  # the symbols and what was fed back, settled
        self.taken = 0  # steps that `trajectories` has taken
        self.piece = FLUSH  # steps that are handed over together

    def keep(
        self, prediction: Prediction, token_ids: Tensor, collapsed: Tensor, inputs: Tensor | None
    ) -> bool:
        """Record one more step.

        Args:
            prediction: what the model predicted.
            token_ids: the emitted symbols (B,).
            collapsed: whether what is fed back is a hard token (B,).
            inputs: what is fed back (B, m); None: the rows of `token_ids`.

        Returns:
            Whether older steps were joined into a block.
        """
        self.predictions.append(prediction)
        self.pending.append([token_ids, collapsed, inputs])
        several = min(self.piece, max(1, ENTRIES // prediction.log_probs.numel()))
        if len(self.predictions) >= several + self.look:
            self._reduce_oldest(several)
        full = len(self.pending) == self.piece + self.reach
        if full:
            # a step that is settled must be reduced, too
            self._reduce_oldest(max(0, len(self.predictions) - self.reach))
            self._settle_oldest(self.piece)
        return full

    def revise(self, ago: int, token_ids: Int[Tensor, " B"]) -> None:
        """Replace the symbols of the step `ago` <= `look` steps back; what was fed back stays.

        `ago` 1 is the step recorded last.
        """
        step = self.pending[-ago]
        if step[_INPUTS] is None:
            step[_INPUTS] = self._rows(step)
        step[_TOKEN_IDS] = token_ids

    def soft(self, n: int) -> Bool[Tensor, "B n"]:
        """Which of the latest n <= `reach` steps are soft in the context, the newest last."""
        return ~torch.stack([step[_COLLAPSED] for step in self.pending[-n:]], 1)

    def ground(self, ago: int, rows: Bool[Tensor, " B"]) -> None:
        """Ground the step `ago` <= `reach` steps back in some batch rows.

        What these rows fed back is replaced by the table's row of the emitted symbol.
        """
        step = self.pending[-ago]
        hard = self.embedding[step[_TOKEN_IDS]]
        step[_INPUTS] = (
            hard if step[_INPUTS] is None else torch.where(rows[:, None], hard, step[_INPUTS])
        )
        step[_COLLAPSED] = step[_COLLAPSED] | rows

    def flush(self) -> None:
        """Reduce all steps that remain, and join them into a block."""
        self._reduce_oldest(len(self.predictions))
        self._settle_oldest(len(self.pending))

    def _reduce_oldest(self, n: int) -> None:
        if n == 0:
            return
        first = len(self.pending) - len(self.predictions)
        token_ids = torch.stack([step[_TOKEN_IDS] for step in self.pending[first : first + n]])
        some, self.predictions = self.predictions[:n], self.predictions[n:]
        layers = None if some[0].layers is None else torch.stack([one.layers for one in some])
        log_probs = torch.stack([one.log_probs for one in some])  # (S, B, V)
        if self.embedding is None:
            vectors = torch.zeros(*token_ids.shape, 0)
        elif any(isinstance(one, MixturePrediction) and not one.has_vector for one in some):
            # one product for all steps is cheaper than one product per step
            vectors = product(log_probs.flatten(0, 1).exp(), self.embedding).view(
                *token_ids.shape, -1
            )
        else:
            vectors = torch.stack([one.vector for one in some])
        self.reduce(log_probs, vectors, token_ids, layers=layers)

    def _settle_oldest(self, n: int) -> None:
        steps, self.pending = self.pending[:n], self.pending[n:]
        if steps:
            inputs = torch.stack(
                [self._rows(step) if step[_INPUTS] is None else step[_INPUTS] for step in steps]
            )
            self.settle(
                *(torch.stack(column) for column in list(zip(*steps, strict=True))[:_INPUTS]),
                inputs,
            )

    def _rows(self, step: list) -> Tensor:
        token_ids = step[_TOKEN_IDS]
        return (
            torch.zeros(len(token_ids), 0) if self.embedding is None else self.embedding[token_ids]
        )

    def reduce(
        self,
        log_probs: Float[Tensor, "S B V"],
        vectors: Float[Tensor, "S B m"],
        token_ids: Int[Tensor, "S B"],
        layers: Int[Tensor, "S B"] | None = None,
        passes: Int[Tensor, "S B"] | None = None,
    ) -> None:
        """Reduce the predictions of S steps to what a trajectory holds.

        Args:
            log_probs: log p(w | prefix) (S, B, V), in nats.
            vectors: the predicted soft tokens (S, B, m).
            token_ids: the emitted symbols (S, B).
            layers: from which layer each was read (S, B); None: from the last one.
            passes: how many passes each took (S, B); None: one.
        """
        prediction = Prediction(log_probs.flatten(0, 1))
        shape = token_ids.shape
        top_ids, top_probs = candidates(prediction.probs, token_ids.flatten())
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
        block |= {} if layers is None else {"layers": layers}
        block |= {} if passes is None else {"passes": passes}
        self.reduced.append({name: tensor.cpu() for name, tensor in block.items()})

    def settle(
        self,
        token_ids: Int[Tensor, "S B"],
        collapsed: Bool[Tensor, "S B"],
        inputs: Float[Tensor, "S B m"],
    ) -> None:
        """Save the symbols and what was fed back at S steps; they can no longer change."""
        block = {"token_ids": token_ids, "collapsed": collapsed, "inputs": inputs.float()}
        self.blocks.append({name: tensor.cpu() for name, tensor in block.items()})

    def trajectories(
        self,
        model: Predictor,
        prompts: list[str],
        first: list[int],
        steps: int,
        settings: dict[str, Any],
        seeds: Sequence[int],
    ) -> list[Trajectory]:
        """Take the finished steps out of the record, as one trajectory per prompt.

        The next call begins where these steps end.

        Args:
            model: its tokenizer decodes the symbols.
            prompts: one text per batch row.
            first: the number of each row's own first step; what was recorded before it is left out.
            steps: how many own steps a row has at most; what was recorded after them is left out.
            settings: what the trajectories tell about how they were made.
            seeds: one per row; each trajectory tells its own, unless it is 0.

        Raises:
            ValueError: where no step is finished.
        """
        if not self.blocks:
            raise ValueError("stopped before the first step")
        joined = self._take()
        done, self.taken = self.taken, self.taken + len(joined["token_ids"])
        tokenizer, result = model.tokenizer, []
        rows = zip(prompts, first, seeds, strict=True)
        for row, (prompt, begin, seed) in enumerate(rows):
            own = slice(max(0, begin - done), max(0, begin + steps - done))
            arrays = {name: tensor[own, row].clone() for name, tensor in joined.items()}
            text = tokenizer.after(prompt).decode(arrays["token_ids"])
            recorded = {**settings, "seed": seed} if seed else settings
            result.append(
                Trajectory(prompt, text, tuple(tokenizer.tokens), **arrays, settings=recorded)
            )
        return result

    def _take(self) -> dict[str, Tensor]:
        """The steps that both kinds of blocks hold, joined; what only one kind holds stays."""
        kinds = [
            {name: torch.cat([one[name] for one in some]) for name in some[0]}
            for some in (self.blocks, self.reduced)
        ]
        n = min(len(tensor) for kind in kinds for tensor in kind.values())
        rest = [{name: tensor[n:] for name, tensor in kind.items()} for kind in kinds]
        self.blocks, self.reduced = (
            [kind] if len(next(iter(kind.values()))) else [] for kind in rest
        )
        return {name: tensor[:n] for kind in kinds for name, tensor in kind.items()}
