"""What a network of transformers holds between steps; states that branch never disturb each other.

Keys and values of plain attention layers lie in buffers that branches share; whatever else a
network keeps (windows, convolutions, recurrent and compressed states) is copied for each branch.
"""

from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.configuration_utils import PreTrainedConfig


class _Growing(DynamicLayer):
    """Keys and values in buffers whose capacity doubles.

    Copies share the buffers. A copy that continues from their end writes there; any other copies
    them first.
    """

    _layer_type = None  # transformers must not take it for its usual layer
    buffer: "_Buffer | None" = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        begin = self.get_seq_length()
        end = begin + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        # new buffers where there are none, another copy has written to them, or they are full
        if self.buffer is None or self.buffer.filled != begin or end > self.buffer.keys.shape[2]:
            self.buffer = _Buffer(_buffer(key_states, end), _buffer(value_states, end), begin)
            if begin:
                self.buffer.keys[:, :, :begin] = self.keys
                self.buffer.values[:, :, :begin] = self.values
        buffer = self.buffer
        buffer.keys[:, :, begin:end], buffer.values[:, :, begin:end] = key_states, value_states
        buffer.filled = end
        self.keys, self.values = buffer.keys[:, :, :end], buffer.values[:, :, :end]
        return self.keys, self.values

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Growing":
        return copy(self)


@dataclass
class _Buffer:
    """The buffers of a layer, (B, heads, capacity, width); `filled` positions are in use."""

    keys: Tensor
    values: Tensor
    filled: int


def _buffer(states: Tensor, length: int) -> Tensor:
    batch, heads, _, width = states.shape
    return states.new_empty(batch, heads, max(64, 2 * length), width)


class Memory:
    """What a network holds of the tokens of one state; `cache` is what transformers reads and writes.

    It begins empty (`cache` is None): the network itself makes the cache that suits it.
    """

    cache: Any = None
    plain = False  # whether every layer holds keys and values, all or a window of them
    batch = 0

    def adopt(self, cache: Any, batch: int) -> None:
        """Hold the cache that a network has made, or gone on writing, for so many rows."""
        if cache is self.cache:
            return
        self.batch = batch
        self.cache = _with_growing_layers(cache)
        self.plain = type(cache) is DynamicCache and all(
            type(layer) in (_Growing, DynamicSlidingWindowLayer) for layer in cache.layers
        )

    def branch(self) -> "Memory":
        """A memory that may be written to; this one does not change."""
        other = copy(self)
        if self.plain:
            other.cache = copy(self.cache)
            other.cache.layers = [copy(layer) for layer in self.cache.layers]
        else:
            other.cache = deepcopy(self.cache)
        return other

    def release(self, other: "Memory") -> None:
        """Allow what the branch `other` has written to be overwritten: no state depends on it."""
        if not self.plain:
            return
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            if (
                isinstance(mine, _Growing)
                and mine.buffer is theirs.buffer
                and mine.buffer is not None
            ):
                mine.buffer.filled = mine.get_seq_length()

    def first(self, length: int) -> "Memory | None":
        """The memory as it was after the first `length` slots.

        None where a layer holds anything but all keys and values: what it has dropped is lost.
        """
        if not length:
            return Memory()
        if not self.plain or any(type(layer) is not _Growing for layer in self.cache.layers):
            return None
        other = self.branch()
        for layer in other.cache.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        return other

    def select(self, rows: Tensor) -> "Memory":
        """The memory of some batch rows, in any order, with repetitions."""
        other = self.branch()
        if self.cache is not None:
            other.cache = _rows_of(other.cache, rows, self.batch, {})
            other.batch = len(rows)
        return other


def _with_growing_layers(cache: Any) -> Any:
    """The cache itself, its plain layers (also those of the caches in it) replaced by growing ones."""
    for inner in (cache, *vars(cache).values()) if hasattr(cache, "__dict__") else ():
        layers = getattr(inner, "layers", None)
        for i, layer in enumerate(layers if isinstance(layers, list) else ()):
            if type(layer) is DynamicLayer:
                layers[i] = _Growing()
                vars(layers[i]).update(vars(layer))
    return cache


def _rows_of(held: Any, rows: Tensor, batch: int, seen: dict[int, Any]) -> Any:
    """Some batch rows of everything that a cache holds; its objects are changed in place.

    Args:
        held: a tensor, a container or an object of the cache.
        rows: the rows.
        batch: the number of rows before.
        seen: what has been changed, by id.
    """
    if id(held) in seen:
        return seen[id(held)]
    found = held
    if isinstance(held, Tensor):
        found = held[rows] if held.ndim and held.shape[0] == batch else held
    elif isinstance(held, list | tuple):
        found = type(held)(_rows_of(one, rows, batch, seen) for one in held)
    elif isinstance(held, dict):
        found = {key: _rows_of(one, rows, batch, seen) for key, one in held.items()}
    elif isinstance(held, _Buffer):
        found = None  # it gets buffers of its own when it writes
    elif hasattr(held, "__dict__") and not isinstance(held, PreTrainedConfig | type):
        seen[id(held)] = held
        for name, one in list(vars(held).items()):
            setattr(held, name, _rows_of(one, rows, batch, seen))
    seen[id(held)] = found
    return found
