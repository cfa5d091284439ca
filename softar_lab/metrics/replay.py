"""Replay: what a model computed in generation, and a trajectory does not store.

`replay` reads a path again as the model did; `follow` reads its symbols as the truth does, too.

Tensors hold the steps of several trajectories one after the other: S steps in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..core.predictor import Predictor
from ..core.trajectory import Trajectory
from ..models.aligned_predictor import AlignedPredictor
from ..models.state import SoftState

# allowed difference from a recorded log-probability: float32 in batches of another size
_CLOSE = 1e-3


class ReplayError(ValueError):
    """A path cannot be read again as it was read in generation."""


class Batch:
    """N trajectories side by side, each from the beginning of its prompt; shorter ones are padded.

    `ids` (N, L); `begin`: the first position that is a step of any trajectory; `real` (N, L -
    begin): which positions are steps.
    """

    def __init__(self, trajectories: Sequence[Trajectory], model: Predictor):
        self.prompts = [model.tokenizer.encode(one.prompt) for one in trajectories]
        self.begin = min(map(len, self.prompts))
        ids = [
            torch.cat([prompt, one.token_ids])
            for prompt, one in zip(self.prompts, trajectories, strict=True)
        ]
        self.ids: Int[Tensor, "N L"] = pad_sequence(ids, batch_first=True)
        steps = torch.arange(self.ids.shape[1]) - torch.tensor(
            [[len(prompt)] for prompt in self.prompts]
        )
        real = (steps >= 0) & (steps < torch.tensor([[len(one)] for one in trajectories]))
        self.index = pd.MultiIndex.from_arrays(
            [real.nonzero()[:, 0].numpy(), steps[real].numpy()], names=["trajectory", "step"]
        )
        self.real: Bool[Tensor, "N _"] = real[:, self.begin :]

    def flat(self, steps: list[Tensor]) -> Tensor:
        """Real steps only, (S, …), from one tensor (N, …) for each position from `begin` on."""
        return torch.stack([one.cpu() for one in steps], 1)[self.real]


@dataclass(frozen=True)
class Replay:
    """What a model computed before each of S steps.

    `log_probs` (S, V), in nats; `hidden` (S, d), or None for a model without hidden states.
    """

    log_probs: Float[Tensor, "S V"]
    hidden: Float[Tensor, "S d"] | None


@torch.inference_mode()
def replay(trajectories: Trajectory | Sequence[Trajectory], model: Predictor) -> Replay:
    """Let `model` read again what it read in generation: prompts as symbols, then `inputs`.

    It reads step by step, so that a full context is renewed where it was in generation.

    Raises:
        ReplayError: where the log-probabilities differ from the recorded ones. Then another model
            wrote the trajectory, or the model read something else (a tail that was predicted
            again).
    """
    # 1) the path: token ids, or vectors where the model reads them
    trajectories = several(trajectories)
    batch, embedding = Batch(trajectories, model), model.embedding
    name, path = "token_ids", batch.ids.to(model.device)
    if embedding is not None:
        read = [torch.cat([embedding[p.to(embedding.device)], one.inputs.to(embedding)]) for p, one in zip(
            batch.prompts, trajectories)]  # fmt: skip
        name, path = "vectors", pad_sequence(read, batch_first=True)
    # 2) read the length of the shortest prompt at once, then go on step by step
    log_probs, hidden = [], []
    state = model.start(len(trajectories))
    if batch.begin:
        state = model.read(state, **{name: path[:, : batch.begin]})
    for t in range(batch.begin, path.shape[1]):
        log_probs.append(model.predict(state).log_probs)
        hidden.append(state.hidden if isinstance(state, SoftState) else None)
        if t + 1 < path.shape[1]:
            state = model.advance(state, **{name: path[:, t]})
    found = Replay(batch.flat(log_probs), None if hidden[0] is None else batch.flat(hidden))
    _check_same(found.log_probs, trajectories, batch.index)
    return found


@dataclass(frozen=True)
class Followed:
    """S steps of a path: what the model predicts there, and what the truth does.

    Attributes:
        own: the model's log p (S, V), in nats.
        hidden: its hidden states (S, d); None for a model without hidden states.
        should: the truth's log p (S, V), in nats.
        lost: an earlier symbol was impossible under the truth (S,).
        emitted: the symbols (S,).
        index: trajectory and step of each.
    """

    own: Float[Tensor, "S V"]
    hidden: Float[Tensor, "S d"] | None
    should: Float[Tensor, "S V"]
    lost: Bool[Tensor, " S"]
    emitted: Int[Tensor, " S"]
    index: pd.MultiIndex


@torch.inference_mode()
def follow(
    trajectories: Trajectory | Sequence[Trajectory], model: Predictor, truth: Predictor | None
) -> Followed:
    """Read a path as the model did, and its symbols as the truth does; see `drift.drift`."""
    trajectories = several(trajectories)
    # 1) the model's predictions on its own path
    again, batch = replay(trajectories, model), Batch(trajectories, model)
    # 2) the truth's predictions after the same symbols
    judge = AlignedPredictor(model if truth is None else truth, model.tokenizer.tokens)
    state, log_probs, lost = judge.start(len(trajectories)), [], []
    for t in range(batch.ids.shape[1]):
        if t:
            state = judge.advance(state, token_ids=batch.ids[:, t - 1])
        if t >= batch.begin:
            log_probs.append(state.log_probs)
            lost.append(state.lost)
    # 3) the real steps of both
    emitted = torch.cat([one.token_ids for one in trajectories])
    should, gone = batch.flat(log_probs), batch.flat(lost)
    return Followed(again.log_probs, again.hidden, should, gone, emitted, batch.index)


def several(trajectories: Trajectory | Sequence[Trajectory]) -> Sequence[Trajectory]:
    """One or more trajectories as a sequence; ValueError where there is none."""
    several = [trajectories] if isinstance(trajectories, Trajectory) else trajectories
    if not len(several):
        raise ValueError("no trajectory given; give at least one")
    return several


def _check_same(
    log_probs: Tensor, trajectories: Sequence[Trajectory], index: pd.MultiIndex
) -> None:
    emitted = torch.cat([one.token_ids for one in trajectories])
    again, was = (
        log_probs.gather(1, emitted[:, None])[:, 0].double(),
        torch.cat([one.log_probs for one in trajectories]),
    )
    same = torch.isclose(again, was.double(), atol=_CLOSE, rtol=_CLOSE)
    if not same.all():
        first = int((~same).nonzero()[0])
        row, step = index[first]
        raise ReplayError(
            f"trajectory {row}, step {step}: the model gives the symbol shown log p = {again[first]:.4f}, recorded is "
            f"{was[first]:.4f}; another model wrote it, or it had read something else than `inputs`"
        )
