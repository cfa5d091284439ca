"""What every task has: problems, the paths through their states, and what follows from them (K10).

A problem is a row of P symbols. It is solved in T thinking steps and one answer. Each step moves
from a state to one of its successors, so C paths lead through a problem. A thought should hold all
states that the paths have reached by then, each weighted by the number of paths through it.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from itertools import combinations
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from torch.nn import functional as F

from ...core.checks import whole_number
from ...core.registry import Registry
from ..languages.language import pcg64
from ..tokenizers.char import CharTokenizer
from ..tokenizers.word_level import FIRST

TASKS = Registry("task")


def load_task(name: str) -> "Task":
    """The task that `name` says, such as "minimum-sum", "reachability" or "counting(5, 4)".

    Raises:
        ValueError: for an unknown name (the message lists the known ones), or wrong arguments.
    """
    return TASKS.make(name)


class Split(NamedTuple):
    """The problems of a task in three parts; no part holds a rearrangement of another's problem.

    Attributes:
        train: to train on.
        validation: to choose settings by, such as a learning rate.
        held_out: to report; nothing is chosen by them.
    """

    train: Int64[Tensor, "N P"]
    validation: Int64[Tensor, "N2 P"]
    held_out: Int64[Tensor, "N3 P"]


class Task(ABC):
    """Problems that are solved in steps.

    Attributes:
        symbols: the names of the V symbols, by id.
        revealed: how many symbols of the prompt decide the states of each thinking step, and of
            the final one (T+1 numbers).
    """

    symbols: tuple[str, ...]
    revealed: tuple[int, ...]

    # -- what a task defines ---------------------------------------------------------------------

    @cached_property
    @abstractmethod
    def problems(self) -> Int64[Tensor, "N P"]:
        """Every problem, once; all are equally likely."""

    @abstractmethod
    def paths(self, problems: Int64[Tensor, "N P"]) -> Int64[Tensor, "N C steps"]:
        """The state after each of the T thinking steps and at the end, along each of C paths."""

    @abstractmethod
    def verdicts(
        self, problems: Int64[Tensor, "N P"], finals: Int64[Tensor, "N C"], known: Bool[Tensor, "C"]
    ) -> Float64[Tensor, " N"]:
        """The expected reward of a reader who knows only some of the final states."""

    @abstractmethod
    def answers(self, problems: Int64[Tensor, "N P"]) -> Int64[Tensor, " N"]:
        """The right answer to each problem (N,), a symbol."""

    def representatives(self, problems: Int64[Tensor, "N P"]) -> Int64[Tensor, "N P"]:
        """The same row for all problems that are rearrangements of each other.

        Such problems have the same answer, so `split` puts them into the same part.
        """
        return problems

    # -- what follows ----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name with all arguments, which `load_task` understands."""
        return TASKS.spec(self)

    @property
    def vocab_size(self) -> int:
        """V, the number of symbols."""
        return len(self.symbols)

    @property
    def length(self) -> int:
        """P, the number of symbols of a problem."""
        return self.revealed[-1]

    @property
    def steps(self) -> int:
        """T, how many thinking steps the task needs."""
        return len(self.revealed) - 1

    @cached_property
    def tokenizer(self) -> CharTokenizer:
        """One private letter per symbol; `write` gives their names."""
        return CharTokenizer(tuple(chr(FIRST + i) for i in range(self.vocab_size)))

    def write(self, token_ids: Int64[Tensor, " n"]) -> str:
        """The names of some symbols, with spaces between them."""
        return " ".join(self.symbols[i] for i in token_ids.tolist())

    def split(self, held_out: float = 0.2, validation: float = 0.1, seed: int = 0) -> Split:
        """All problems in three parts, each shuffled.

        Rearrangements of a problem are in the part of that problem. So the shares of all problems,
        `held_out` and `validation`, are reached and passed by less than one set of rearrangements.

        Raises:
            ValueError: for shares that are not above 0 or leave no problem to train on.
        """
        # 1) the sets of rearrangements, in random order, and how many problems each ends at
        chance = pcg64(seed)
        same = self.representatives(self.problems).unique(dim=0, return_inverse=True)[1]
        place = torch.from_numpy(chance.permutation(int(same.max()) + 1))[same]  # (N,)
        begins = place.bincount().cumsum(0) - place.bincount()
        # 2) the first sets are held out, the next ones are for validation
        least = [share * len(place) for share in (held_out, held_out + validation)]
        first = int((begins < least[0]).sum())
        second = first + max(1, int((begins[first:] < least[1]).sum()))
        if held_out <= 0 or validation <= 0 or second >= len(begins):
            raise ValueError(
                f"{self.name} has {len(begins)} sets of rearranged problems; with the shares "
                f"{held_out!r} (held out) and {validation!r} (validation), both above 0, none of "
                "them is left to train on: give smaller shares, or take a larger task"
            )
        # 3) each part shuffled
        order = torch.from_numpy(chance.permutation(len(place)))
        part = (place >= first).long() + (place >= second)
        held, chosen, rest = (self.problems[order[part[order] == i]] for i in range(3))
        return Split(train=rest, validation=chosen, held_out=held)

    def states(
        self, problems: Int64[Tensor, "N P"], steps: int | None = None
    ) -> Float64[Tensor, "N steps V"]:
        """The exact distribution over states at each thinking step: the targets of the thoughts.

        Args:
            problems: the problems.
            steps: how many steps there are; None: T. With fewer, the first states are left out;
                with more, the last ones are held for longer.
        """
        found = F.one_hot(self._thinking(problems, steps), self.vocab_size)  # (N, C, steps, V)
        return found.double().mean(1)

    def chains(
        self, problems: Int64[Tensor, "N P"], generator: torch.Generator, steps: int | None = None
    ) -> Int64[Tensor, "N steps"]:
        """The states along one path to the right answer, drawn from all such paths."""
        right = self.paths(problems)[..., -1] == self.answers(problems)[:, None]  # (N, C)
        path = torch.multinomial(right.double(), 1, generator=generator)  # (N, 1)
        chosen = path[..., None].expand(-1, -1, self.steps if steps is None else steps)
        return self._thinking(problems, steps).gather(1, chosen).squeeze(1)

    def _thinking(self, problems: Tensor, steps: int | None) -> Int64[Tensor, "N C steps"]:
        """The states of the thinking steps along each path."""
        steps = self.steps if steps is None else whole_number("steps", steps, 0)
        states = self.paths(problems)[..., :-1]  # (N, C, T)
        last = states[..., -1:].expand(-1, -1, max(0, steps - self.steps))
        return torch.cat([states[..., max(0, self.steps - steps) :], last], -1)

    @final
    def rewards(
        self, problems: Int64[Tensor, "N P"], token_ids: Int64[Tensor, " N"]
    ) -> Float64[Tensor, " N"]:
        """1 for each right answer, else 0."""
        return (token_ids == self.answers(problems)).double()

    def floor(self, problems: Int64[Tensor, "N P"]) -> float:
        """The majority floor: the accuracy of whoever always gives the commonest answer."""
        return (self.answers(problems).bincount().max() / len(problems)).item()

    def optimum(self, width: int) -> float:
        """The best expected reward of a thinker that holds at most `width` states at each step.

        It chooses them knowing what is `revealed` by then, so it does not look ahead, and it
        answers from the successors of those that it holds. Width 1 is a hard chain. All problems
        and all choices are enumerated.

        Raises:
            ValueError: for a width below 1.
        """
        width = whole_number("width", width)
        paths = self.paths(self.problems)
        everything = torch.ones(paths.shape[1], dtype=torch.bool)
        total = self._best(paths, torch.arange(len(paths)), 0, everything, width)
        return total / len(paths)

    def _best(
        self, paths: Tensor, rows: Int64[Tensor, " n"], step: int, held: Tensor, width: int
    ) -> float:
        """The largest summed reward of some problems, given the paths held before `step`."""
        if step == self.steps:
            return self.verdicts(self.problems[rows], paths[rows, :, -1], held).sum().item()
        total = 0.0
        prefixes = self.problems[rows, : self.revealed[step]]
        _, which, counts = prefixes.unique(dim=0, return_inverse=True, return_counts=True)
        for group in rows[which.argsort(stable=True)].split(counts.tolist()):
            states = paths[group[0], :, step]
            choices = states[held].unique().tolist()
            values = []
            for some in combinations(choices, min(width, len(choices))):
                still = held & torch.isin(states, torch.tensor(some))
                values.append(self._best(paths, group, step + 1, still, width))
            total += max(values)
        return total
