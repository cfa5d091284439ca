"""Reachability: which of two nodes of a small directed graph can be reached (K10)."""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ...core.checks import sequence, whole_number
from .task import TASKS, Task


@TASKS.register("reachability")
@dataclass(frozen=True)
class Reachability(Task):
    """A root, then layers of nodes; each node has edges to two different nodes of the next layer.

    The prompt lists both edges of the root, of each node of the first layer, and so on, then two
    nodes of the last layer, one of which can be reached from the root. The answer is that one. The
    states are the nodes reached so far in each layer but the last.

    Args:
        layers: the number of nodes in each layer below the root.

    Raises:
        ValueError: for fewer than two layers, or a layer of fewer than 2 nodes.
    """

    layers: tuple[int, ...] = (3, 3, 4)

    def __post_init__(self):
        sizes = sequence("reachability(layers)", self.layers, "whole numbers")
        if len(sizes) < 2:
            raise ValueError(f"reachability(layers) needs at least two layers, not {sizes}")
        sizes = tuple(whole_number("a layer of reachability", one, 2) for one in sizes)
        object.__setattr__(self, "layers", sizes)

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The nodes layer by layer: A1, A2, …, B1, …"""
        return tuple(
            f"{chr(ord('A') + layer)}{i + 1}"
            for layer, size in enumerate(self.layers)
            for i in range(size)
        )

    @property
    def _begins(self) -> list[int]:
        """The id of the first node of each layer."""
        return [sum(self.layers[:i]) for i in range(len(self.layers))]

    @cached_property
    def revealed(self) -> tuple[int, ...]:
        """The edges into one more layer at each step; at the end also the two nodes in question."""
        edges = [2 * sum((1, *self.layers[:i])) for i in range(len(self.layers))]
        return (*edges[:-1], edges[-1] + 2)

    @cached_property
    def problems(self) -> Int64[Tensor, "N P"]:
        # 1) every graph: the edges of the root, then those of each layer but the last
        pairs = [torch.tensor([*combinations(range(n), 2)]) for n in self.layers]
        pairs = [pair + begin for pair, begin in zip(pairs, self._begins, strict=True)]
        nodes = [pairs[0], *(pair for n, pair in zip(self.layers, pairs[1:]) for _ in range(n))]
        chosen = torch.tensor([*product(*(range(len(one)) for one in nodes))])
        graphs = torch.cat([one[chosen[:, i]] for i, one in enumerate(nodes)], 1)  # (G, P-2)
        # 2) both orders of each pair of a node that is reached and one that is not
        last = torch.arange(self.layers[-1]) + self._begins[-1]
        reached = (self._walks(graphs)[..., -1:] == last).any(1)  # (G, nodes)
        graph, yes, no = (reached[:, :, None] & ~reached[:, None]).nonzero(as_tuple=True)
        question = torch.stack([last[yes], last[no]], 1)
        both = torch.cat([question, question.flip(1)])
        return torch.cat([graphs[graph].repeat(2, 1), both], 1)

    def paths(self, problems):
        return self._walks(problems)

    def _walks(self, problems: Tensor) -> Int64[Tensor, "N C steps"]:
        """The nodes on every walk from the root: first or second edge at each node."""
        rows = torch.arange(len(problems))[:, None]
        turns = torch.tensor([*product((0, 1), repeat=len(self.layers))])  # (C, layers)
        walk = [problems[rows, turns[:, 0]]]
        for layer in range(1, len(self.layers)):
            # the root has the first pair of edges, so node i has the pair i + 1
            walk.append(problems[rows, 2 * (walk[-1] + 1) + turns[:, layer]])
        return torch.stack(walk, -1)

    def representatives(self, problems: Int64[Tensor, "N P"]) -> Int64[Tensor, "N P"]:
        """The two nodes in question in ascending order: the answer does not depend on theirs."""
        return torch.cat([problems[:, :-2], problems[:, -2:].sort(1).values], 1)

    def answers(self, problems: Int64[Tensor, "N P"]) -> Int64[Tensor, " N"]:
        question = problems[:, -2:]
        reached = (self.paths(problems)[..., -1, None] == question[:, None]).any(1)  # (N, 2)
        return question.gather(1, reached.long().argmax(1, keepdim=True)).squeeze(1)

    def verdicts(
        self, problems: Int64[Tensor, "N P"], finals: Int64[Tensor, "N C"], known: Bool[Tensor, "C"]
    ) -> Float64[Tensor, " N"]:
        """A reader who knows neither of the two nodes to be reached takes one of them at random."""
        seen = (finals[:, known] == self.answers(problems)[:, None]).any(1)
        return torch.where(seen, 1.0, 0.5).double()

    def floor(self, problems: Int64[Tensor, "N P"]) -> float:
        """One of the two nodes at random, or the commonest answer, whichever is right more often."""
        return max(0.5, super().floor(problems))
