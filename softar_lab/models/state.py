"""What a SoftAR keeps of what it has read."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class SoftState:
    """What has been read: `inputs` are the slots' vectors, oldest first; `hidden` (B, d) is the last slot's output.

    Slots count from 0, the first token ever read; the context still holds `length` of them, from `begin` on. `carry` is
    what the model's memory keeps of those before.
    """

    cache: Any  # keys and values: a transformer.Cache, or what another body keeps
    length: int
    hidden: Float[Tensor, "B d"]
    inputs: tuple[Float[Tensor, "B _ m"], ...] = ()
    begin: int = 0
    carry: tuple[Tensor, ...] = ()

    @property
    def end(self) -> int:
        """How many slots were ever read."""
        return self.begin + self.length

    def select(self, rows: Int[Tensor, " n"]) -> "SoftState":
        """Fork, drop or reorder batch rows."""
        inputs = (torch.cat(self.inputs, 1)[rows],) if self.inputs else ()
        carry = tuple(one[rows] for one in self.carry)
        return SoftState(self.cache.select(rows), self.length, self.hidden[rows], inputs, self.begin, carry)
