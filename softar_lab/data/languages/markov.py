"""Markov chains of any order that begin in their stationary distribution."""

from bisect import bisect
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import ArrayLike
from scipy.sparse import coo_array, csr_array
from scipy.special import entr
from torch import Tensor

from ...core.estimates import Estimate
from .language import Language, State, distributions, letters, pcg64

MOST_STATES = 4096  # the stationary distribution is solved densely; this many states take seconds


class Markov(Language):
    """A Markov chain of order k: the next symbol depends on the last k symbols.

    A row begins in the stationary distribution: before k symbols are read, the conditionals are
    those of this distribution. So every stretch of the text has the same distribution.

    Args:
        conditionals: probabilities of shape (V,)*k + (V,). conditionals[a, …, b, y] is the
            probability of y after a … b, where b was read last. The order k is the number of axes
            less one, so shape (V,) is a chain without memory.
        symbols: V characters in ascending order, letters by default.

    Raises:
        ValueError: where `conditionals` are not probabilities or have no unique stationary
            distribution, where there are more than 4096 contexts, or where `symbols` do not fit.
    """

    def __init__(self, conditionals: ArrayLike, symbols: str | None = None):
        shape = np.shape(conditionals)
        if len(set(shape)) != 1 or 0 in shape:
            raise ValueError(
                f"conditionals must have shape (V, V, …), one size along every axis, not {shape}"
            )
        conditionals = distributions("conditionals", conditionals)
        V, self.order = len(conditionals), conditionals.ndim - 1
        super().__init__(letters(V) if symbols is None else _fitting(symbols, V))
        # 1) the stationary distribution of k symbols in a row; a new symbol replaces the oldest one
        contexts = V**self.order
        follow = (np.arange(contexts)[:, None] * V + np.arange(V)) % contexts  # (V^k, V)
        self.stationary = stationary(conditionals.reshape(contexts, V), follow)  # (V^k,)
        # 2) the conditionals after fewer than k symbols, from the distributions of n symbols (V^n,)
        joint = [self.stationary.reshape(V**n, -1).sum(1) for n in range(self.order + 1)]
        with np.errstate(invalid="ignore"):  # 0 / 0 after a context that never occurs
            tables = [
                np.nan_to_num(more.reshape(-1, V) / less[:, None]) for less, more in pairwise(joint)
            ]
        # 3) tables over nodes; a node is a context of 0 to k symbols, and `_full` is the first node
        # with k symbols
        self._full = sum(map(len, tables))
        self._table = np.concatenate([*tables, conditionals.reshape(contexts, V)])  # (nodes, V)
        # the children of a short context, numbered as in any V-ary tree
        short = np.arange(1, self._full * V + 1).reshape(-1, V)
        self._follow = np.concatenate([short, self._full + follow])  # (nodes, V)

    @classmethod
    def random(
        cls, vocab_size: int, order: int = 1, seed: int = 0, concentration: float | int = 1.0
    ) -> "Markov":
        """A chain whose conditionals are drawn from a symmetric Dirichlet distribution.

        A smaller concentration makes the next symbol more certain.
        """
        alphas = np.full(vocab_size, concentration)
        return cls(pcg64(seed).dirichlet(alphas, size=(vocab_size,) * order))

    def sample(self, length: int, batch_size: int = 1, seed: int = 0) -> Int64[Tensor, "B T"]:
        """Draw token ids (B, T), each row from the stationary distribution.

        PCG64 gives one uniform number per symbol.
        """
        uniforms = pcg64(seed).random((batch_size, length))
        return torch.from_numpy(
            _walk(self._table, self._follow, np.zeros(batch_size, dtype=np.int64), uniforms)
        )

    def entropy_rate(self) -> Estimate:
        """Exact mean entropy (nats) of the next symbol in the stationary distribution."""
        return Estimate(self.stationary @ entr(self._table[self._full :]).sum(1))

    def _begin(self, batch_size: int) -> np.ndarray:
        return np.zeros(batch_size, dtype=np.int64)  # the node of the empty context

    def _probs(self, state: State) -> np.ndarray:
        return self._table[state.memory]

    def _remember(self, state: State, ids: np.ndarray) -> np.ndarray:
        return self._follow[state.memory, ids]

    def _ahead(self, state: State, k: int) -> np.ndarray:
        # the law of the node that is reached, one symbol after the other: (nodes,) per row
        nodes, laws = np.unique(state.memory, return_inverse=True)
        flow = np.eye(len(self._table))[nodes]
        for _ in range(k - 1):
            flow = flow @ self._step
        return (flow @ self._table)[laws.ravel()]

    @cached_property
    def _step(self) -> csr_array:
        """The chain over nodes as a sparse matrix (nodes, nodes)."""
        N, V = self._table.shape
        entries = (self._table.ravel(), (np.arange(N).repeat(V), self._follow.ravel()))
        return csr_array(entries, shape=(N, N))

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        return self._table[self._nodes(ids)]

    def _scores(self, ids: np.ndarray) -> np.ndarray:
        return self._table[self._nodes(ids), ids]

    def _nodes(self, ids: np.ndarray) -> np.ndarray:
        """The node in which each symbol is read, (B, T)."""
        nodes, k = np.zeros(ids.shape, dtype=np.int64), self.order
        for t in range(1, min(k, ids.shape[1])):
            nodes[:, t] = self._follow[nodes[:, t - 1], ids[:, t - 1]]
        long = nodes[:, k:]  # a view; the last k symbols, as digits in base V, give the node
        for j in range(k):
            long[:] = long * self.vocab_size + ids[:, j : j + long.shape[1]]
        long += self._full
        return nodes


def stationary(probs: np.ndarray, follow: np.ndarray) -> np.ndarray:
    """The only stationary distribution (N,) of a chain.

    Args:
        probs: probability of each choice c in state i, (N, C).
        follow: the state after each choice, (N, C).

    Raises:
        ValueError: where several classes of states are never left, each with a distribution of its
            own, or where there are more than 4096 states.
    """
    N, C = probs.shape
    if N > MOST_STATES:
        raise ValueError(
            f"{N} states are too many to solve for their stationary law; at most {MOST_STATES}"
        )
    from scipy.sparse.csgraph import connected_components  # it takes long to load

    # 1) the transition matrix as a graph
    edges = probs.ravel() > 0
    source, target = np.repeat(np.arange(N), C)[edges], follow.ravel()[edges]
    # parallel edges add up
    step = coo_array((probs.ravel()[edges], (source, target)), shape=(N, N))
    # 2) the class of states that is never left; there must be only one
    n_classes, of = connected_components(step, connection="strong")
    closed = np.setdiff1d(np.arange(n_classes), of[source][of[source] != of[target]])
    if len(closed) > 1:
        one, other = (int((of == c).argmax()) for c in closed[:2])
        raise ValueError(
            f"no unique stationary law: {len(closed)} classes of states are never left, such as those of state {one} "
            f"and state {other}"
        )
    # 3) solve within this class; other states have probability 0
    inside = np.flatnonzero(of == closed[0])
    law = np.zeros(N)
    law[inside] = _balanced(step.toarray()[np.ix_(inside, inside)])
    return law


def _balanced(flow: np.ndarray) -> np.ndarray:
    """The stationary distribution (n,) of an irreducible chain with transition matrix (n, n).

    States are taken out of the chain one by one, the last first, and their flow is led on to the
    others. Nothing is subtracted, so every entry is exact to rounding, however small (a difference
    1 - p would lose a rare departure).

    Source: Grassmann, Taksar and Heyman (1985), Operations Research 33(5).
    """
    n, size = len(flow), 64  # states whose flow into the rest is added in one matrix product
    for end in range(n, 1, -size):
        begin = max(1, end - size)
        for k in range(end - 1, begin - 1, -1):
            flow[:k, k] /= flow[k, :k].sum()
            flow[begin:k, :k] += np.outer(flow[begin:k, k], flow[k, :k])
            flow[:begin, begin:k] += np.outer(flow[:begin, k], flow[k, begin:k])
        flow[:begin, :begin] += flow[:begin, begin:end] @ flow[begin:end, :begin]
    law = np.ones(n)
    for k in range(1, n):
        law[k] = law[:k] @ flow[:k, k]
        law[: k + 1] /= law[: k + 1].max()  # else a rare first state would overflow
    return law / law.sum()


def _walk(
    probs: np.ndarray, follow: np.ndarray, states: np.ndarray, uniforms: np.ndarray
) -> np.ndarray:
    """The choices (B, T) of random walks from `states` (B,).

    The loop is plain Python: a million steps take half a second, in any number of rows.

    Args:
        probs: probability of each choice in each state, (N, C).
        follow: the state after each choice, (N, C).
        states: the first state of each walk, (B,).
        uniforms: one uniform number per step, (B, T).
    """
    cumulative = probs.cumsum(1)
    ends = cumulative[:, -1:]
    cumulative = (cumulative / np.where(ends > 0, ends, 1)).tolist()  # the last entry is exactly 1
    follow, chosen = follow.tolist(), []
    for state, row in zip(states.tolist(), uniforms.tolist()):
        for uniform in row:
            choice = bisect(cumulative[state], uniform)
            chosen.append(choice)
            state = follow[state][choice]
    return np.array(chosen, dtype=np.int64).reshape(uniforms.shape)


def _fitting(symbols: str, vocab_size: int) -> str:
    if len(symbols) != vocab_size:
        raise ValueError(f"symbols must be {vocab_size} characters, one a symbol, not {symbols!r}")
    return symbols


def slow_chain(stay: float = 0.85) -> Markov:
    """A first-order chain of six letters that forgets slowly: stay · 1 + (1 - stay) · P.

    P is that of `Markov.random(6, seed=3, concentration=0.5)`, which forgets its start within six
    steps or so. Here the second largest eigenvalue is 0.90: after eight steps the law is still far
    from the stationary one, so a forecast of it must know where the chain began.
    """
    fast = Markov.random(6, seed=3, concentration=0.5)
    law = fast.next_log_probs(torch.arange(6)[:, None].expand(-1, 2))[:, 1].exp().numpy()
    return Markov(stay * np.eye(6) + (1 - stay) * law)
