"""The state of a SoftAR: what it saves of the slots it has read."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class SoftState:
    """The state after some slots have been read.

    Slots count from 0, the first token ever read.

    Args:
        cache: the keys and values.
        length: how many slots the context still holds.
        hidden: the output of the last slot (B, d).
        inputs: the vectors of the slots in the context, oldest first.
        begin: the number of the first slot that the context still holds.
        memory_state: what the model's memory saves of the slots before `begin`.
    """

    cache: Any  # a transformer.Cache, or what another body saves
    length: int
    hidden: Float[Tensor, "B d"]
    inputs: tuple[Float[Tensor, "B _ m"], ...] = ()
    begin: int = 0
    memory_state: tuple[Tensor, ...] = ()

    @property
    def end(self) -> int:
        """How many slots were ever read."""
        return self.begin + self.length

    def select(self, rows: Int[Tensor, " n"]) -> "SoftState":
        """Fork, drop or reorder batch rows."""
        inputs = (torch.cat(self.inputs, 1)[rows],) if self.inputs else ()
        memory_state = tuple(one[rows] for one in self.memory_state)
        return SoftState(
            self.cache.select(rows),
            self.length,
            self.hidden[rows],
            inputs,
            self.begin,
            memory_state,
        )
