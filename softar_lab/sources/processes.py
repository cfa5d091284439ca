"""Languages without end: Markov chains and hidden Markov models, each begun in its stationary law."""

import math
from bisect import bisect
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from numpy.typing import ArrayLike
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import entr
from torch import Tensor

from ..estimates import Estimate
from .language import Language, State, distributions, letters, pcg64

MOST_STATES = 4096  # whose stationary law is solved for densely, in seconds
_FEW = 10_000  # multiplications that cost no more than the call of one NumPy function


class Markov(Language):
    """A Markov chain of order k: the next symbol depends on the last k.

    Shapes: conditionals (V,)*k + (V,); conditionals[a, …, b, y] is the probability of y after a … b, b read last.
    The order is the number of axes less one, so (V,) is a chain without memory. Before k symbols are read the
    conditionals are those of the stationary law, so every stretch of the text has the same law. `symbols`: V
    characters in ascending order, letters by default.
    Raises ValueError where these are no probabilities, or where no or more than one stationary law exists.
    """

    def __init__(self, conditionals: ArrayLike, symbols: str | None = None):
        shape = np.shape(conditionals)
        if len(set(shape)) != 1 or 0 in shape:
            raise ValueError(f"conditionals must have shape (V, V, …), one size along every axis, not {shape}")
        conditionals = distributions("conditionals", conditionals)
        V, self.order = len(conditionals), conditionals.ndim - 1
        super().__init__(letters(V) if symbols is None else _fitting(symbols, V))
        contexts = V**self.order
        follow = (np.arange(contexts)[:, None] * V + np.arange(V)) % contexts  # (V^k, V): forget the oldest symbol
        self.stationary = stationary(conditionals.reshape(contexts, V), follow)  # (V^k,): law of k symbols in a row
        joint = [self.stationary.reshape(V**n, -1).sum(1) for n in range(self.order + 1)]  # law of n symbols, (V^n,)
        with np.errstate(invalid="ignore"):  # after what never happens: 0 / 0
            tables = [np.nan_to_num(more.reshape(-1, V) / less[:, None]) for less, more in pairwise(joint)]
        self._full = sum(map(len, tables))  # a node is a context of 0 to k symbols; the first one of k symbols
        self._table = np.concatenate([*tables, conditionals.reshape(contexts, V)])  # (nodes, V)
        short = np.arange(1, self._full * V + 1).reshape(-1, V)  # node n's children, as in any V-ary tree
        self._follow = np.concatenate([short, self._full + follow])  # (nodes, V)

    @classmethod
    def random(cls, vocab_size: int, order: int = 1, seed: int = 0, concentration: float | int = 1.0) -> "Markov":
        """A chain whose conditionals are drawn from a symmetric Dirichlet law: the smaller, the more certain."""
        alphas = np.full(vocab_size, concentration)
        return cls(pcg64(seed).dirichlet(alphas, size=(vocab_size,) * order))

    def sample(self, length: int, batch_size: int = 1, seed: int = 0) -> Int64[Tensor, "B T"]:
        """Draw token ids (B, T), each row from the stationary law; PCG64, one uniform number a symbol."""
        uniforms = pcg64(seed).random((batch_size, length))
        return torch.from_numpy(_walk(self._table, self._follow, np.zeros(batch_size, dtype=np.int64), uniforms))

    def entropy_rate(self) -> Estimate:
        """Mean entropy of the next symbol in the stationary law, nats a symbol: exact."""
        return Estimate(self.stationary @ entr(self._table[self._full :]).sum(1))

    def _begin(self, batch_size: int) -> np.ndarray:
        return np.zeros(batch_size, dtype=np.int64)  # the node of nothing

    def _probs(self, state: State) -> np.ndarray:
        return self._table[state.memory]

    def _remember(self, state: State, ids: np.ndarray) -> np.ndarray:
        return self._follow[state.memory, ids]

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        return self._table[self._nodes(ids)]

    def _scores(self, ids: np.ndarray) -> np.ndarray:
        return self._table[self._nodes(ids), ids]

    def _nodes(self, ids: np.ndarray) -> np.ndarray:
        """The node before each symbol (B, T)."""
        nodes, k = np.zeros(ids.shape, dtype=np.int64), self.order
        for t in range(1, min(k, ids.shape[1])):
            nodes[:, t] = self._follow[nodes[:, t - 1], ids[:, t - 1]]
        long = nodes[:, k:]  # a view; the last k symbols are a number in base V
        for j in range(k):
            long[:] = long * self.vocab_size + ids[:, j : j + long.shape[1]]
        long += self._full
        return nodes


class HiddenMarkov(Language):
    """A hidden Markov model: what is known of the past is a belief, a distribution over the hidden states.

    Shapes: transitions (V, S, S); transitions[x, i, j] is the probability to emit x and go to j, from i. A row begins
    in the stationary law of the states. `symbols`: V characters in ascending order, letters by default.
    A state less likely than 1e-308 counts as impossible.
    Raises ValueError where these are no probabilities, or where no or more than one stationary law exists.
    """

    def __init__(self, transitions: ArrayLike, symbols: str | None = None):
        transitions = np.array(transitions, dtype=np.float64)
        if transitions.ndim != 3 or transitions.shape[1] != transitions.shape[2] or not transitions.size:
            raise ValueError(f"transitions must have shape (V, S, S), not {transitions.shape}")
        self.transitions = distributions("transitions", transitions, axis=(0, 2))
        V, S, _ = transitions.shape
        super().__init__(letters(V) if symbols is None else _fitting(symbols, V))
        self.emissions = self.transitions.sum(2).T  # (S, V)
        self.stationary = stationary(self.transitions.sum(0), np.tile(np.arange(S), (S, 1)))  # (S,)

    def sample(self, length: int, batch_size: int = 1, seed: int = 0) -> Int64[Tensor, "B T"]:
        """Draw token ids (B, T), each row from the stationary law; PCG64, one uniform number a symbol."""
        rng, S = pcg64(seed), len(self.stationary)
        states = rng.choice(S, size=batch_size, p=self.stationary)
        ways = self.transitions.transpose(1, 0, 2).reshape(S, -1)  # (S, V*S): symbol and next state are one choice
        follow = np.tile(np.arange(S), (S, self.vocab_size))
        return torch.from_numpy(_walk(ways, follow, states, rng.random((batch_size, length))) // S)

    def beliefs(self, token_ids: Int[Tensor, "B T"]) -> Float64[Tensor, "B T+1 S"]:
        """The exact filter: the distribution over hidden states after 0, 1, … T symbols, (B, T+1, S).

        Raises ValueError at a symbol that cannot stand there, naming row, position and what could.
        """
        ids = self._checked(token_ids)
        beliefs, scores = self._filtered(ids)
        self._refuse_zeros(ids, scores)
        return torch.from_numpy(beliefs)

    def entropy_rate(self, rows: int = 500, length: int = 2000, seed: int = 0) -> Estimate:
        """Nats a symbol: mean entropy of the exact next-symbol distributions in the second half of sampled rows.

        The standard error is that of the mean over independent rows. The first half is only read: what knowing the
        hidden state at its start would still tell after length / 2 symbols is the bias, always upwards.
        """
        probs = self._rows(self.sample(length, rows, seed).numpy())[:, length // 2 :]  # (rows, length / 2, V)
        return Estimate.mean(entr(probs).sum(-1).mean(-1))

    def _begin(self, batch_size: int) -> np.ndarray:
        return np.tile(self.stationary, (batch_size, 1))

    def _probs(self, state: State) -> np.ndarray:
        return state.memory @ self.emissions

    def _remember(self, state: State, ids: np.ndarray) -> np.ndarray:
        return next(self._filter(state.memory[:, None], ids[:, None]))[0][:, 0]

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        return self._filtered(ids)[0][:, :-1] @ self.emissions

    def _scores(self, ids: np.ndarray) -> np.ndarray:
        return self._filtered(ids)[1]

    def _filter(self, beliefs: np.ndarray, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Filter R beliefs a row (N, R, S) along ids (N, L); yields beliefs and the symbol's probability (N, R)."""
        for symbols in ids.T:
            beliefs = beliefs @ self.transitions[symbols]  # (N, R, S) @ (N, S, S)
            probs = beliefs.sum(-1)
            beliefs = beliefs / np.where(probs > 0, probs, 1)[..., None]
            yield beliefs, probs

    def _filtered(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Beliefs (B, T+1, S) and probabilities (B, T) of the symbols, all blocks of a row side by side.

        A block is first filtered from every state at once, which tells what it makes of any belief: so the beliefs
        at the borders are had one after the other, and then all blocks are filtered in parallel.
        """
        (B, T), S = ids.shape, len(self.stationary)
        n = math.ceil(math.sqrt(2 * T)) if B * S**3 < _FEW and T else 1  # otherwise the detour costs more than it saves
        L = math.ceil(T / n)
        blocks = np.pad(ids, ((0, 0), (0, n * L - T))).reshape(B * n, L)
        begins = np.empty((B, n, S))
        begins[:, 0] = self.stationary
        if n > 1:
            every_state, log_probs = np.broadcast_to(np.eye(S), (B * n, S, S)), np.zeros((B, n, S))
            for ends, probs in self._filter(every_state, blocks):  # noqa: B007 - the last ends are what counts
                with np.errstate(divide="ignore"):
                    log_probs += np.log(probs).reshape(B, n, S)
            ends = ends.reshape(B, n, S, S)
            for i in range(1, n):
                with np.errstate(divide="ignore"):
                    weights = np.log(begins[:, i - 1]) + log_probs[:, i - 1]  # (B, S)
                top = weights.max(-1, keepdims=True)
                weights = np.exp(weights - np.where(np.isfinite(top), top, 0))
                belief = np.einsum("bs,bsj->bj", weights, ends[:, i - 1])
                total = belief.sum(-1, keepdims=True)
                begins[:, i] = belief / np.where(total > 0, total, 1)
        beliefs, scores = np.empty((B * n, L, S)), np.empty((B * n, L))
        for t, (belief, probs) in enumerate(self._filter(begins.reshape(B * n, 1, S), blocks)):
            beliefs[:, t], scores[:, t] = belief[:, 0], probs[:, 0]
        start = np.broadcast_to(self.stationary, (B, 1, S))
        beliefs = np.concatenate([start, beliefs.reshape(B, n * L, S)[:, :T]], axis=1)
        return beliefs, scores.reshape(B, n * L)[:, :T]


def mess3(x: float | int = 0.05, alpha: float | int = 0.85) -> HiddenMarkov:
    """Mess3, the process whose beliefs fill a fractal in the triangle (Shai et al., arXiv 2405.15943, appendix).

    Three hidden states, each of which is left for each other one with probability x; the symbol tells the state
    arrived at with probability alpha, each other state with (1 - alpha) / 2. The defaults are the paper's.
    Raises ValueError for x outside (0, 1/2] or alpha outside [0, 1].
    """
    if not 0 < x <= 0.5:
        raise ValueError(f"x must be above 0 and at most 1/2, not {x!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], not {alpha!r}")
    same = np.eye(3, dtype=bool)
    move, emit = np.where(same, 1 - 2 * x, x), np.where(same, alpha, (1 - alpha) / 2)  # (i, j), (x, j)
    return HiddenMarkov(move * emit[:, None], symbols="ABC")


def stationary(probs: np.ndarray, follow: np.ndarray) -> np.ndarray:
    """The one law (N,) that a chain keeps: from state i to follow[i, c] with probability probs[i, c], both (N, C).

    Raises ValueError where several classes of states are never left, each with a law of its own; or above 4096 states.
    """
    N, C = probs.shape
    if N > MOST_STATES:
        raise ValueError(f"{N} states are too many to solve for their stationary law; at most {MOST_STATES}")
    edges = probs.ravel() > 0
    source, target = np.repeat(np.arange(N), C)[edges], follow.ravel()[edges]
    step = coo_array((probs.ravel()[edges], (source, target)), shape=(N, N))  # parallel edges add up
    n_classes, of = connected_components(step, connection="strong")
    closed = np.setdiff1d(np.arange(n_classes), of[source][of[source] != of[target]])
    if len(closed) > 1:
        one, other = (int((of == c).argmax()) for c in closed[:2])
        raise ValueError(
            f"no unique stationary law: {len(closed)} classes of states are never left, such as those of state {one} "
            f"and state {other}"
        )
    inside = np.flatnonzero(of == closed[0])
    flow = step.toarray()[np.ix_(inside, inside)]
    np.fill_diagonal(flow, 0)
    balance = flow.T - np.diag(flow.sum(1))  # what comes in less what goes out; 1 - p would drown a rare departure
    balance[-1] = 1  # one equation says nothing new; instead: the law sums to 1
    law = np.zeros(N)
    law[inside] = np.linalg.solve(balance, np.eye(len(inside))[-1]).clip(min=0)
    return law / law.sum()


def _walk(probs: np.ndarray, follow: np.ndarray, states: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """The choices (B, T) of walks from `states` (B,), one uniform number (B, T) each; tables (N, C).

    Plain Python: half a second for a million steps, however many rows they are in.
    """
    cumulative = probs.cumsum(1)
    ends = cumulative[:, -1:]
    cumulative = (cumulative / np.where(ends > 0, ends, 1)).tolist()  # ends exactly at 1
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
