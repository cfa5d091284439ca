"""Hidden Markov models: endless languages that begin in their stationary distribution."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from numpy.typing import ArrayLike
from scipy.special import entr
from torch import Tensor

from ...core.estimates import Estimate
from .language import Language, State, distributions, letters, pcg64
from .markov import _fitting, _walk, stationary

_FEW = 10_000  # so many multiplications cost no more than one call of a NumPy function


class HiddenMarkov(Language):
    """A hidden Markov model. Its memory is a belief: a distribution over the hidden states.

    A row begins in the stationary distribution of the states. A state with a probability below
    1e-308 counts as impossible.

    Args:
        transitions: probabilities of shape (V, S, S). transitions[x, i, j] is the probability to
            emit x and go to j, from i.
        symbols: V characters in ascending order, letters by default.

    Raises:
        ValueError: where `transitions` are not probabilities or have no unique stationary
            distribution, where there are more than 4096 states, or where `symbols` do not fit.
    """

    def __init__(self, transitions: ArrayLike, symbols: str | None = None):
        transitions = np.array(transitions, dtype=np.float64)
        if (
            transitions.ndim != 3
            or transitions.shape[1] != transitions.shape[2]
            or not transitions.size
        ):
            raise ValueError(f"transitions must have shape (V, S, S), not {transitions.shape}")
        self.transitions = distributions("transitions", transitions, axis=(0, 2))
        V, S, _ = transitions.shape
        super().__init__(letters(V) if symbols is None else _fitting(symbols, V))
        self.emissions = self.transitions.sum(2).T  # (S, V)
        self.stationary = stationary(self.transitions.sum(0), np.tile(np.arange(S), (S, 1)))  # (S,)

    def sample(self, length: int, batch_size: int = 1, seed: int = 0) -> Int64[Tensor, "B T"]:
        """Draw token ids (B, T), each row from the stationary distribution.

        PCG64 gives one uniform number per symbol.
        """
        rng, S = pcg64(seed), len(self.stationary)
        states = rng.choice(S, size=batch_size, p=self.stationary)
        # symbol and next state are one choice
        outcomes = self.transitions.transpose(1, 0, 2).reshape(S, -1)  # (S, V*S)
        follow = np.tile(np.arange(S), (S, self.vocab_size))
        return torch.from_numpy(
            _walk(outcomes, follow, states, rng.random((batch_size, length))) // S
        )

    def beliefs(self, token_ids: Int[Tensor, "B T"]) -> Float64[Tensor, "B T+1 S"]:
        """The exact filter: the distribution over hidden states after 0, 1, … T symbols.

        Returns:
            Beliefs (B, T+1, S).

        Raises:
            ValueError: at an impossible symbol; the message names the row, the position and the
                possible symbols.
        """
        ids = self._checked(token_ids)
        beliefs, scores = self._filtered(ids)
        self._refuse_zeros(ids, scores)
        return torch.from_numpy(beliefs)

    def entropy_rate(self, rows: int = 500, length: int = 2000, seed: int = 0) -> Estimate:
        """Entropy rate in nats per symbol, estimated from sampled rows.

        It is the mean entropy of the exact next-symbol distributions in the second half of the
        rows. The first half is only read. The standard error is that of the mean over independent
        rows. The bias is always upwards: it is at most what the hidden state at the start of a row
        would still tell about the next symbol after length / 2 symbols.
        """
        # (rows, length / 2, V)
        probs = self._rows(self.sample(length, rows, seed).numpy())[:, length // 2 :]
        return Estimate.mean(entr(probs).sum(-1).mean(-1))

    def _begin(self, batch_size: int) -> np.ndarray:
        return np.tile(self.stationary, (batch_size, 1))

    def _probs(self, state: State) -> np.ndarray:
        return state.memory @ self.emissions

    def _remember(self, state: State, ids: np.ndarray) -> np.ndarray:
        return next(self._filter(state.memory[:, None], ids[:, None]))[0][:, 0]

    def _ahead(self, state: State, k: int) -> np.ndarray:
        step = np.linalg.matrix_power(self.transitions.sum(0), k - 1)
        return state.memory @ step @ self.emissions

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        return self._filtered(ids)[0][:, :-1] @ self.emissions

    def _scores(self, ids: np.ndarray) -> np.ndarray:
        return self._filtered(ids)[1]

    def _filter(
        self, beliefs: np.ndarray, ids: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Filter R beliefs per row (N, R, S) along ids (N, L).

        Yields, for each symbol, the new beliefs and the probability (N, R) of the symbol.
        """
        for symbols in ids.T:
            beliefs = beliefs @ self.transitions[symbols]  # (N, R, S) @ (N, S, S)
            probs = beliefs.sum(-1)
            beliefs = beliefs / np.where(probs > 0, probs, 1)[..., None]
            yield beliefs, probs

    def _filtered(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Beliefs (B, T+1, S) and probabilities (B, T) of the symbols; each row is cut into blocks.

        First, each block is filtered from every hidden state at once. This gives its effect on any
        belief. Then the beliefs at the borders of the blocks follow one after the other. Finally,
        all blocks are filtered in parallel.
        """
        # 1) cut each row into n blocks of L symbols; n is 1 where blocks cost more than they save
        (B, T), S = ids.shape, len(self.stationary)
        n = math.ceil(math.sqrt(2 * T)) if B * S**3 < _FEW and T else 1
        L = math.ceil(T / n)
        blocks = np.pad(ids, ((0, 0), (0, n * L - T))).reshape(B * n, L)
        begins = np.empty((B, n, S))
        begins[:, 0] = self.stationary
        if n > 1:
            # 2) filter each block from every state: its last beliefs and its log-probabilities
            every_state, log_probs = np.broadcast_to(np.eye(S), (B * n, S, S)), np.zeros((B, n, S))
            for ends, probs in self._filter(every_state, blocks):  # noqa: B007 - last counts
                with np.errstate(divide="ignore"):
                    log_probs += np.log(probs).reshape(B, n, S)
            ends = ends.reshape(B, n, S, S)
            # 3) the belief at the start of each block, from that of the block before
            for i in range(1, n):
                with np.errstate(divide="ignore"):
                    weights = np.log(begins[:, i - 1]) + log_probs[:, i - 1]  # (B, S)
                top = weights.max(-1, keepdims=True)
                weights = np.exp(weights - np.where(np.isfinite(top), top, 0))
                belief = np.einsum("bs,bsj->bj", weights, ends[:, i - 1])
                total = belief.sum(-1, keepdims=True)
                begins[:, i] = belief / np.where(total > 0, total, 1)
        # 4) filter all blocks in parallel
        beliefs, scores = np.empty((B * n, L, S)), np.empty((B * n, L))
        for t, (belief, probs) in enumerate(self._filter(begins.reshape(B * n, 1, S), blocks)):
            beliefs[:, t], scores[:, t] = belief[:, 0], probs[:, 0]
        start = np.broadcast_to(self.stationary, (B, 1, S))
        beliefs = np.concatenate([start, beliefs.reshape(B, n * L, S)[:, :T]], axis=1)
        return beliefs, scores.reshape(B, n * L)[:, :T]


def mess3(x: float | int = 0.05, alpha: float | int = 0.85) -> HiddenMarkov:
    """Mess3, the process whose beliefs fill a fractal in the triangle.

    It has three hidden states. From each state it moves to each of the two others with probability
    x. The symbol is that of the new state with probability alpha, and that of each other state with
    (1 - alpha) / 2. The defaults are the paper's.

    Raises:
        ValueError: where x is outside (0, 1/2] or alpha is outside [0, 1].

    Source: Shai et al., arXiv 2405.15943, appendix.
    """
    if not 0 < x <= 0.5:
        raise ValueError(f"x must be above 0 and at most 1/2, not {x!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], not {alpha!r}")
    same = np.eye(3, dtype=bool)
    move, emit = (
        np.where(same, 1 - 2 * x, x),
        np.where(same, alpha, (1 - alpha) / 2),
    )  # (i, j), (x, j)
    return HiddenMarkov(move * emit[:, None], symbols="ABC")
