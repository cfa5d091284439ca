"""The minimum non-negative sum: choose the signs of some digits (K10)."""

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ...core.checks import whole_number
from .task import TASKS, Task


@TASKS.register("minimum-sum")
@dataclass(frozen=True)
class MinimumSum(Task):
    """Give each of some digits a sign; the answer is the least sum that is not negative.

    The states are the sums of the first digits under every choice of signs: after t digits there
    are up to 2^t of them. One thinking step per digit but the last, which the answer reads.

    Args:
        largest: the digits are 1 … largest.
        length: how many there are.

    Raises:
        ValueError: unless largest is at least 1 and length at least 2.

    Source: CoT2 (arXiv 2505.23648).
    """

    largest: int = 9
    length: int = 4

    def __post_init__(self):
        for name, least in (("largest", 1), ("length", 2)):
            value = whole_number(f"minimum-sum({name})", getattr(self, name), least)
            object.__setattr__(self, name, value)

    @property
    def reach(self) -> int:
        """The largest sum; the symbol of a sum s has the id largest + reach + s."""
        return self.largest * self.length

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The digits, then the sums from -reach to reach, which have a sign: "+3"."""
        sums = (f"{value:+d}" for value in range(-self.reach, self.reach + 1))
        return (*map(str, range(1, self.largest + 1)), *sums)

    @property
    def revealed(self) -> tuple[int, ...]:
        """One digit more at each step."""
        return tuple(range(1, self.length + 1))

    @cached_property
    def problems(self) -> Int64[Tensor, "N P"]:
        return torch.tensor([*product(range(self.largest), repeat=self.length)])

    def paths(self, problems):
        signs = torch.tensor([*product((1, -1), repeat=self.length)])  # (C, P)
        sums = ((problems + 1)[:, None] * signs).cumsum(-1)  # (N, C, P)
        return sums + self.largest + self.reach

    def representatives(self, problems: Int64[Tensor, "N P"]) -> Int64[Tensor, "N P"]:
        """Numbers in ascending order: a sum does not depend on the order of its terms."""
        return problems.sort(1).values

    def answers(self, problems: Int64[Tensor, "N P"]) -> Int64[Tensor, " N"]:
        return self._least(self.paths(problems)[..., -1])

    def verdicts(
        self, problems: Int64[Tensor, "N P"], finals: Int64[Tensor, "N C"], known: Bool[Tensor, "C"]
    ) -> Float64[Tensor, " N"]:
        return (self._least(finals[:, known]) == self._least(finals)).double()

    def _least(self, sums: Int64[Tensor, "N C"]) -> Int64[Tensor, " N"]:
        """The least sum of each row that is not negative; an id past the symbols: there is none."""
        negative = sums < self.largest + self.reach
        return sums.masked_fill(negative, self.vocab_size).amin(1)
