"""The cache of a Hugging Face model, in which states that branch off never disturb each other."""

from copy import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


class _Growing(DynamicLayer):
    """Keys and values in a buffer whose capacity doubles.

    Copies share the buffer. A copy that continues from its end writes there; any other copies it
    first.
    """

    _layer_type = None  # transformers must not take it for its usual layer
    room: "_Room | None" = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        begin = self.get_seq_length()
        end = begin + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        # a new buffer where there is none, another copy has written to it, or it is full
        if self.room is None or self.room.filled != begin or end > self.room.data.shape[3]:
            data = key_states.new_empty(
                2, *key_states.shape[:2], max(64, 2 * end), key_states.shape[3]
            )
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
    """The buffer of a layer, (2, B, heads, capacity, width); `filled` positions are in use."""

    data: Tensor
    filled: int


class Memory:
    """The cache of one state; `cache` is the object that transformers reads and writes.

    Raises:
        ValueError: where a layer of the model stores something other than keys and values.
    """

    def __init__(self, config: Any):
        self.cache = DynamicCache(config=config)
        self.cache.layers = [
            _Growing() if type(layer) is DynamicLayer else layer for layer in self.cache.layers
        ]
        strange = [
            layer
            for layer in self.cache.layers
            if type(layer) not in (_Growing, DynamicSlidingWindowLayer)
        ]
        if strange:
            raise ValueError(
                f"{config.model_type}: a layer keeps a {type(strange[0]).__name__}; only models whose layers remember "
                "keys and values, all or a window of them, can be read here"
            )

    def branch(self) -> "Memory":
        """A cache that may be written to; this one does not change."""
        other = copy(self)
        other.cache = copy(self.cache)
        other.cache.layers = [copy(layer) for layer in self.cache.layers]
        return other

    def release(self, other: "Memory") -> None:
        """Allow what the branch `other` has written to be overwritten: no state depends on it."""
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            if isinstance(mine, _Growing) and mine.room is theirs.room and mine.room is not None:
                mine.room.filled = mine.get_seq_length()

    def first(self, length: int) -> "Memory | None":
        """The cache as it was after the first `length` slots.

        None where a layer has a sliding window, which may have dropped some of them.
        """
        other = self.branch()
        for layer in other.cache.layers:
            if not isinstance(layer, _Growing):
                return None
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        return other

    def select(self, rows: Tensor) -> "Memory":
        """The cache of some batch rows, in any order, with repetitions."""
        other = self.branch()
        for layer in other.cache.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
                if isinstance(layer, _Growing):
                    layer.room = None  # it gets a buffer of its own when it writes
        return other
