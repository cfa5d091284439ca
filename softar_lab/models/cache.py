"""The key-value cache of a transformer, whose states share what they have read in common (K11)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FORK = 16  # how many slots of its own a fork can hold; for more, the beginning is copied, too


@dataclass(frozen=True)
class Beginning:
    """The first `length` slots of a fork. They lie in the `keys` and `values` of another cache.

    Row b of the fork reads row `rows[b]` of that cache. These slots are never written again.
    """

    keys: Tensor
    values: Tensor
    rows: Tensor
    length: int


@dataclass
class Cache:
    """The keys and values of all slots read so far, in all layers.

    `keys` and `values` have the shape (layers, B, heads, capacity, width). In memory, the keys are
    stored with the slots last, so that one component of all slots' keys is contiguous.

    States share a cache. A state that reads on from the end writes behind it. A state that branches
    off earlier, or that selects rows, gets a copy or a fork. A fork is a cache that holds only its
    latest slots; the slots before them, its `beginning`, lie in another cache. `filled` counts the
    slots in use. The first `shared` slots are the same in all rows.
    """

    keys: Tensor
    values: Tensor
    filled: int = 0
    shared: int = 0
    # made when first needed, from the weights at that moment
    decoder: Any = None
    beginning: Beginning | None = None  # only a CompiledDecoder can read it

    @classmethod
    def empty(
        cls, like: Tensor, layers: int, batch_size: int, heads: int, capacity: int, width: int
    ) -> "Cache":
        """A cache with no slot read yet, on the device and in the precision of `like`."""
        keys = like.new_empty((layers, batch_size, heads, width, capacity)).mT
        return cls(keys, like.new_empty((layers, batch_size, heads, capacity, width)))

    @property
    def offset(self) -> int:
        """How many slots lie in the beginning, that is, in another cache."""
        return self.beginning.length if self.beginning else 0

    @property
    def capacity(self) -> int:
        """How many slots fit into the cache, the beginning included."""
        return self.offset + self.keys.shape[3]

    def reserve(self, length: int, new: int) -> "Cache":
        """A cache in which slots length … length+new-1 can be written; no other state uses them."""
        # 1) the slots after the end are free: use this cache
        fits = length + new <= self.capacity
        if length == self.filled and fits:
            return self
        # 2) a state branches off, for a few slots: fork, and copy only the slots that a fork owns
        layers, rows, heads, _, width = self.keys.shape
        begin = self._as_beginning(torch.arange(rows), length)
        if begin and length < self.filled and length - begin.length + new <= FORK:
            own = Cache.empty(self.keys, layers, rows, heads, FORK, width)
            self._copy(own, begin.length, length)
            return self._fork(begin, own, length)
        # 3) otherwise copy; twice the capacity, so that growing stays cheap
        capacity = max(64, self.capacity if fits else 2 * (length + new))
        other = Cache.empty(self.keys, layers, rows, heads, capacity, width)
        self._copy(other, 0, length)
        other.filled, other.shared, other.decoder = length, min(self.shared, length), self.decoder
        return other

    def _copy(self, other: "Cache", begin: int, end: int) -> None:
        """Copy slots begin … end-1 of all rows to the first slots of another cache."""
        seam = min(max(begin, self.offset), end)  # slots before it lie in the beginning
        for name in ("keys", "values"):
            theirs = getattr(other, name)
            if begin < seam:
                theirs[..., : seam - begin, :] = getattr(self.beginning, name)[
                    :, self.beginning.rows, :, begin:seam
                ]
            own = slice(seam - self.offset, end - self.offset)
            theirs[..., seam - begin : end - begin, :] = getattr(self, name)[..., own, :]

    def _as_beginning(self, rows: Tensor, length: int) -> Beginning | None:
        """The first `length` slots of some rows, or fewer, as the beginning of a fork.

        Fewer, if this cache is a fork itself and its own beginning is shorter. None where the
        decoder cannot read forks.
        """
        if self.decoder is None or not self.decoder.reads_forks:
            return None
        if self.beginning is None:
            return Beginning(
                self.keys,
                self.values,
                torch.zeros_like(rows) if length <= self.shared else rows,
                length,
            )
        own = self.beginning
        return Beginning(own.keys, own.values, own.rows[rows], min(own.length, length))

    def _fork(self, begin: Beginning, own: "Cache", length: int) -> "Cache":
        """A cache of `length` slots: those of `begin`, then those of `own`."""
        return Cache(own.keys, own.values, length, min(self.shared, length), self.decoder, begin)

    def release(self, length: int) -> None:
        """Free the slots from `length` on: no state uses them, so they may be overwritten."""
        self.filled, self.shared = length, min(self.shared, length)

    def repeat(self, begin: int) -> None:
        """Copy the slots of row 0, from slot `begin` on, to all other rows."""
        new = slice(begin - self.offset, self.filled - self.offset)
        for one in (self.keys, self.values):
            one[:, 1:, :, new] = one[:, :1, :, new]
        self.shared = self.filled

    def select(self, rows: Tensor) -> "Cache":
        """The cache of some of the rows, in any order; a row may occur more than once."""
        if (begin := self._as_beginning(rows, self.filled)) is None or self.beginning:
            keys, values = self.keys.mT.index_select(1, rows).mT, self.values.index_select(1, rows)
            return Cache(keys, values, self.filled, self.shared, self.decoder, begin)
        layers, _, heads, _, width = self.keys.shape
        return self._fork(
            begin, Cache.empty(self.keys, layers, len(rows), heads, FORK, width), self.filled
        )

    def of_layer(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `end` slots in one layer, (B, heads, end, width) each.

        The cache must not be a fork.
        """
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
