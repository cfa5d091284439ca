"""Exit: the first layer whose reading is confident enough speaks, and the text may change (K25).

`ExitingModel` is a predictor like any other, so every collapse, schedule and feedback works with
it. Where a slot leaves early, its keys and values in the layers above are made from the state it
left with; so later slots find something there, and what that costs can be measured. A prompt, and
what a full context reads again, is read at full depth, in one pass.

Do not mistake it for drafting.py: an exit saves layers and may change the text; a draft saves
passes and changes nothing.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ..core.checks import real_number, whole_number
from ..core.predictor import Prediction
from ..core.registry import Registry
from ..models.by_row import product
from ..models.cache import Cache
from ..models.exit_heads import exit_heads_of
from ..models.soft_ar import SoftAR
from ..models.state import SoftState
from ..models.vector_predictor import VectorPredictor, without_gradients

EXITS = Registry("exit")


class Exit:
    """Base of the rules that say where a slot leaves."""

    @abstractmethod
    def __call__(self, log_probs: Float[Tensor, "N V"], layer: int) -> Bool[Tensor, " N"]:
        """Whether each of N readings of a layer (counted from 1) is good enough to speak."""


@EXITS.register("entropy")
@dataclass(frozen=True)
class EntropyExit(Exit):
    """Where the entropy is below `below` nats."""

    below: float | int = 0.1

    def __post_init__(self):
        real_number("entropy(below)", self.below, "at least 0", lambda one: one >= 0)

    def __call__(self, log_probs, layer):
        return torch.special.entr(log_probs.exp()).sum(-1) < self.below


@EXITS.register("margin")
@dataclass(frozen=True)
class MarginExit(Exit):
    """Where the most probable symbol leads by more than `above` before the second."""

    above: float | int = 0.9

    def __post_init__(self):
        real_number("margin(above)", self.above, "in [0, 1]", lambda one: 0 <= one <= 1)

    def __call__(self, log_probs, layer):
        first, second = log_probs.exp().topk(2, -1).values.unbind(-1)
        return first - second > self.above


@EXITS.register("norm")
@dataclass(frozen=True)
class NormExit(Exit):
    """Where √Σp² is above `above`: with orthonormal rows, the norm of the soft token."""

    above: float | int = 0.95

    def __post_init__(self):
        real_number("norm(above)", self.above, "in [0, 1]", lambda one: 0 <= one <= 1)

    def __call__(self, log_probs, layer):
        return log_probs.exp().square().sum(-1).sqrt() > self.above


@EXITS.register("layer")
@dataclass(frozen=True)
class LayerExit(Exit):
    """Always at one layer: the control, which asks for no confidence."""

    layer: int = 1

    def __post_init__(self):
        object.__setattr__(self, "layer", whole_number("layer(layer)", self.layer, 1))

    def __call__(self, log_probs, layer):
        return torch.full((len(log_probs),), layer >= self.layer)


class ExitingModel(VectorPredictor):
    """A SoftAR with exit heads, whose slots leave where a rule lets them.

    In a state, `hidden` has one more column: the layer whose state it is.

    Args:
        model: has exit heads (`train_exits`).
        rule: a member of EXITS.

    Raises:
        ValueError: where the model has no exit heads, or a structured window.
    """

    can_replace = can_look_ahead = False  # slots read again would be read at full depth

    def __init__(self, model: SoftAR, rule: Exit):
        if not isinstance(model, SoftAR):
            raise ValueError(f"exit needs a SoftAR with exit heads, not {model!r:.80}")
        if model.layout is not None:
            raise ValueError("exit is for plain windows; this model has a structured one")
        self.heads = exit_heads_of(model)
        self.model, self.rule, self.config = model, rule, model.config
        self.vocab_size, self.tokenizer = model.vocab_size, model.tokenizer
        self.embedding, self.work, self.depth = model.embedding, model.work, model.config.n_layers

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.device

    @property
    def context(self) -> int:
        """How many tokens a window holds."""
        return self.model.context

    def to(self, device: torch.device) -> "ExitingModel":
        """The model on another device."""
        self.model.to(device)
        self.embedding = self.model.embedding
        return self

    def start(self, batch_size: int = 1) -> SoftState:
        """The state in which nothing has been read yet."""
        return self._at_full_depth(self.model.start(batch_size))

    @without_gradients
    def predict(self, state: SoftState) -> Prediction:
        """What each row's layer says of the next symbol; `layers` of it says which layer that is."""
        hidden, layers = state.hidden[:, :-1], state.hidden[:, -1].long()
        table = self.model.table.weight
        whole = self.model.objective.predict(hidden, table)
        log_probs, vector = whole.log_probs.clone(), whole.vector.clone()
        for layer in layers.unique().tolist():
            if layer < self.depth:
                rows = layers == layer
                log_probs[rows] = self.heads.log_probs(layer, hidden[rows])
                vector[rows] = product(log_probs[rows].exp(), table)
        return Prediction(log_probs, vector, layers=layers)

    def _lookup(self, token_ids: Tensor) -> Tensor:
        return self.model._lookup(token_ids)

    def _continue(self, state: SoftState, new: Tensor, at: int) -> tuple[Cache, Tensor]:
        if new.shape[1] != 1:
            cache, hidden = self.model._continue(state, new, at)
            return cache, F.pad(hidden, (0, 1), value=self.depth)
        cache = state.cache.reserve(at + self.model.n_front, 1)
        if cache.beginning is not None:  # a fork: its first slots lie elsewhere
            cache = _whole(cache)
        rows = [self._read_slot(row, new[row : row + 1], cache) for row in range(len(new))]
        cache.filled += 1
        return cache, torch.stack(rows)

    def _read_slot(
        self, row: int, new: Float[Tensor, "1 1 m"], cache: Cache
    ) -> Float[Tensor, "1 d"]:
        """The state (1, d+1) with which one slot of one row leaves, and its layer."""
        body, end = self.model.body, cache.filled + 1
        x, rotation, mask = body._enter(self.model.input(new), cache.filled)
        spoken = None
        for i, block in enumerate(body.blocks):
            keys, values = (one[row : row + 1] for one in cache.of_layer(i, end))
            if spoken is not None:  # it has left: the layers above get keys and values of its state
                _, key, value = block.project(x, rotation)
                keys[:, :, -1:], values[:, :, -1:] = key, value
                continue
            x = block(x, rotation, (keys, values), mask)
            layer = i + 1
            if layer == self.depth:
                spoken = layer, body.norm(x)
            elif bool(self.rule(self.heads.log_probs(layer, x[0]), layer)[0]):
                spoken = layer, x
        layer, hidden = spoken
        return F.pad(hidden[0], (0, 1), value=layer)

    def _restart(self, state: SoftState, old: Tensor) -> SoftState:
        return self._at_full_depth(self.model._restart(state, old))

    def _release(self, state: SoftState, cache: Cache) -> None:
        self.model._release(state, cache)

    def _at_full_depth(self, state: SoftState) -> SoftState:
        return replace(state, hidden=F.pad(state.hidden, (0, 1), value=self.depth))


def _whole(cache: Cache) -> Cache:
    """A cache that holds all its slots itself."""
    layers, rows, heads, _, width = cache.keys.shape
    other = Cache.empty(cache.keys, layers, rows, heads, cache.capacity, width)
    cache._copy(other, 0, cache.filled)
    other.filled = cache.filled
    return other


def check(model: Any, prompts: list[int]) -> None:
    """Raise ValueError for prompts of unequal lengths: the longer ones would be read with exits."""
    if len(set(prompts)) > 1:
        raise ValueError(
            f"exit reads prompts at full depth, in one pass, so they must be equally long, not "
            f"{min(prompts)} to {max(prompts)} tokens: call it once for each"
        )


def share_saved(trajectory: Any, depth: int) -> float:
    """The share of layers that a trajectory's symbols did not take; 0 where all took all."""
    if trajectory.layers is None:
        return 0.0
    mean = trajectory.layers.double().mean().item()
    return 1 - mean / depth if math.isfinite(mean) else 0.0
