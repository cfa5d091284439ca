"""What a Hugging Face model keeps of what it has read, such that states that branch off never disturb each other."""

from copy import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


class _Growing(DynamicLayer):
    """Keys and values in room that doubles. Copies share it: who reads on from its end writes there, others copy it."""

    _layer_type = None  # transformers shall not take it for the usual one
    room: "_Room | None" = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        begin = self.get_seq_length()
        end = begin + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.room is None or self.room.filled != begin or end > self.room.data.shape[3]:
            data = key_states.new_empty(2, *key_states.shape[:2], max(64, 2 * end), key_states.shape[3])
            if begin:
                data[0, :, :, :begin], data[1, :, :, :begin] = self.keys, self.values
            self.room = _Room(data, begin)
        data = self.room.data
        data[0, :, :, begin:end], data[1, :, :, begin:end] = key_states, value_states
        self.room.filled = end
        self.keys, self.values = data[0, :, :, :end], data[1, :, :, :end]
        return self.keys, self.values


@dataclass
class _Room:
    """Where layers write: (2, B, heads, capacity, width), so much of it `filled`."""

    data: Tensor
    filled: int


class Memory:
    """The cache of one state. Raises ValueError for a model whose layers remember something else than keys and values.

    `cache` is what transformers reads and writes.
    """

    def __init__(self, config: Any):
        self.cache = DynamicCache(config=config)
        self.cache.layers = [_Growing() if type(layer) is DynamicLayer else layer for layer in self.cache.layers]
        strange = [layer for layer in self.cache.layers if type(layer) not in (_Growing, DynamicSlidingWindowLayer)]
        if strange:
            raise ValueError(
                f"{config.model_type}: a layer keeps a {type(strange[0]).__name__}; only models whose layers remember "
                "keys and values, all or a window of them, can be read here"
            )

    def branch(self) -> "Memory":
        """A memory to be written to; this one stays as it is."""
        other = copy(self)
        other.cache = copy(self.cache)
        other.cache.layers = [copy(layer) for layer in self.cache.layers]
        return other

    def give_back(self, other: "Memory") -> None:
        """Let what the branch `other` has written be written over: no state stands on it."""
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            if isinstance(mine, _Growing) and mine.room is theirs.room and mine.room is not None:
                mine.room.filled = mine.get_seq_length()

    def first(self, length: int) -> "Memory | None":
        """The memory there was after the first `length` slots; None where a sliding window has forgotten it."""
        other = self.branch()
        for layer in other.cache.layers:
            if not isinstance(layer, _Growing):
                return None
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        return other

    def select(self, rows: Tensor) -> "Memory":
        """The memory of some of the rows, in any order, also repeated."""
        other = self.branch()
        for layer in other.cache.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
                if isinstance(layer, _Growing):
                    layer.room = None  # its own, as soon as it writes
        return other
