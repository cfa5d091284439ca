"""Modular counting: a task whose state is always known, so that one state is enough (K10)."""

from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ...core.checks import whole_number
from .task import TASKS, Task


@TASKS.register("counting")
@dataclass(frozen=True)
class Counting(Task):
    """Add some numbers modulo a number; the answer is the remainder.

    There is one path and one state at each step. So a hard chain is already the optimum, and a
    thought that holds several states gains nothing: the control of the other tasks.

    Args:
        modulus: numbers and remainders are 0 … modulus-1.
        length: how many numbers there are.

    Raises:
        ValueError: unless both are at least 2.
    """

    modulus: int = 7
    length: int = 4

    def __post_init__(self):
        for name in ("modulus", "length"):
            value = whole_number(f"counting({name})", getattr(self, name), 2)
            object.__setattr__(self, name, value)

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The numbers, then the remainders, which are written "=3"."""
        numbers = range(self.modulus)
        return (*map(str, numbers), *(f"={value}" for value in numbers))

    @property
    def revealed(self) -> tuple[int, ...]:
        """One number more at each step."""
        return tuple(range(1, self.length + 1))

    @cached_property
    def problems(self) -> Int64[Tensor, "N P"]:
        return torch.tensor([*product(range(self.modulus), repeat=self.length)])

    def paths(self, problems):
        return (problems.cumsum(-1) % self.modulus + self.modulus)[:, None]

    def representatives(self, problems: Int64[Tensor, "N P"]) -> Int64[Tensor, "N P"]:
        """Numbers in ascending order: a sum does not depend on the order of its terms."""
        return problems.sort(1).values

    def answers(self, problems: Int64[Tensor, "N P"]) -> Int64[Tensor, " N"]:
        return self.paths(problems)[:, 0, -1]

    def verdicts(
        self, problems: Int64[Tensor, "N P"], finals: Int64[Tensor, "N C"], known: Bool[Tensor, "C"]
    ) -> Float64[Tensor, " N"]:
        return torch.full((len(problems),), float(known.any()), dtype=torch.float64)
