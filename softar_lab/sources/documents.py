"""Languages of documents of one length: the urn, which is exchangeable, and recall, which asks for what it told."""

import math
import string
from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike
from scipy.special import digamma, entr
from scipy.stats import betabinom
from torch import Tensor

from ..estimates import Estimate
from .language import Language, State, letters, pcg64

SEPARATOR = "\n"


class Documents(Language):
    """A stream of independent documents of `document_length` symbols, the last of which is always the separator, id 0.

    What may come next depends on the place in the document and on a memory (N, …) of what it holds so far.
    """

    separator = SEPARATOR

    def __init__(self, symbols: str, document_length: int):
        if min(symbols) <= SEPARATOR:
            raise ValueError(f"symbols must come after the separator {SEPARATOR!r}, not {min(symbols)!r}")
        super().__init__(SEPARATOR + symbols)
        self.document_length = document_length

    @abstractmethod
    def document_entropy(self) -> float:
        """Exact entropy of a whole document, in nats."""

    @abstractmethod
    def _at(self, place: int, memory: np.ndarray) -> np.ndarray:
        """Probabilities (N, V) of the symbol at a place before the separator."""

    @abstractmethod
    def _take(self, place: int, memory: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """A new memory, with the symbols ids (N,) at a place."""

    def sample(self, length: int, batch_size: int = 1, seed: int = 0) -> Int64[Tensor, "B T"]:
        """Draw token ids (B, T): rows of independent documents, the last one cut where the row is full; PCG64."""
        rng, D = pcg64(seed), self.document_length
        n = math.ceil(length / D)
        state, documents = self.start(batch_size * n), np.empty((batch_size * n, D), dtype=np.int64)
        for place in range(D):
            cumulative = self._probs(state).cumsum(1)
            uniforms = rng.random((len(documents), 1))
            documents[:, place] = (cumulative / cumulative[:, -1:] <= uniforms).sum(1)
            state = State(place + 1, self._remember(state, documents[:, place]))
        return torch.from_numpy(documents.reshape(batch_size, n * D)[:, :length].copy())

    def entropy_rate(self) -> Estimate:
        """Nats a symbol of the stream, separators counted: exact."""
        return Estimate(self.document_entropy() / self.document_length)

    def _probs(self, state: State) -> np.ndarray:
        place = state.position % self.document_length
        if place < self.document_length - 1:
            return self._at(place, state.memory)
        return np.eye(1, self.vocab_size).repeat(len(state.memory), axis=0)  # the separator

    def _remember(self, state: State, ids: np.ndarray) -> np.ndarray:
        place = state.position % self.document_length
        return self._take(place, state.memory, ids) if place < self.document_length - 1 else self._begin(len(ids))

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        return self._unfold(ids, [probs for probs, _ in self._places(ids)])

    def _scores(self, ids: np.ndarray) -> np.ndarray:
        scores = (np.take_along_axis(probs, symbols[:, None], 1)[:, 0] for probs, symbols in self._places(ids))
        return self._unfold(ids, list(scores))

    def _places(self, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Place by place in all documents of all rows at once: probabilities (B*n, V) and symbols (B*n,)."""
        B, T = ids.shape
        D = self.document_length
        n = math.ceil(T / D)
        documents = np.pad(ids, ((0, 0), (0, n * D - T))).reshape(B * n, D)
        state = self.start(B * n)
        for symbols in documents.T:
            yield self._probs(state), symbols
            state = State(state.position + 1, self._remember(state, symbols))

    def _unfold(self, ids: np.ndarray, places: list[np.ndarray]) -> np.ndarray:
        """From D arrays (B*n, …), one a place, to the rows they are of, (B, T, …)."""
        folded = np.stack(places, axis=1)
        B, T = ids.shape
        return folded.reshape(B, math.ceil(T / self.document_length) * self.document_length, *folded.shape[2:])[:, :T]


class Urn(Documents):
    """Pólya's urn: each draw puts back its colour and `reinforcement` more of it; `length` draws are a document.

    Shapes: initial (V,), how much of each colour the urn holds at first: document after document. The order of draws
    does not matter (they are exchangeable), only the counts do: the draws are as from one unknown distribution, itself
    drawn from the Dirichlet law of initial / reinforcement. Colours are letters by default; with the separator there
    are V + 1 symbols, colour i being id i + 1.
    Raises ValueError where a number is not positive.
    """

    def __init__(
        self, initial: ArrayLike, reinforcement: float | int = 1.0, length: int = 64, symbols: str | None = None
    ):
        self.initial = np.array(initial, dtype=np.float64)
        if self.initial.ndim != 1 or len(self.initial) < 2:
            raise ValueError(f"initial must be a row of at least two numbers, not of shape {self.initial.shape}")
        for name, values in (("initial", self.initial), ("reinforcement", np.array(reinforcement))):
            if not ((values > 0) & np.isfinite(values)).all():
                raise ValueError(f"{name} must be positive, not {values.tolist()}")
        self.reinforcement, self.length = float(reinforcement), _whole("length", length, 1)
        symbols = letters(len(self.initial)) if symbols is None else symbols
        if len(symbols) != len(self.initial):
            raise ValueError(f"symbols must be {len(self.initial)} characters, one a colour, not {symbols!r}")
        super().__init__(symbols, self.length + 1)

    def draw_entropies(self) -> Float64[np.ndarray, " T"]:
        """Exact mean entropy (nats) of each draw of a document, given those before it, (length,)."""
        alpha, before = self.initial / self.reinforcement, np.arange(self.length)[:, None]
        drawn, total = before.T, alpha.sum()  # how often a colour came before, of (T, 1) draws: beta-binomial
        costs = (betabinom.pmf(drawn, before, a, total - a) * entr((a + drawn) / (total + before)) for a in alpha)
        return sum(costs).sum(1)

    def document_entropy(self) -> float:
        """Exact entropy of a whole document, in nats."""
        return float(self.draw_entropies().sum())

    def limit_entropy(self) -> float:
        """What a draw costs once the urn is known, nats: the mean entropy of a Dirichlet law's distributions."""
        alpha = self.initial / self.reinforcement
        return float(digamma(alpha.sum() + 1) - alpha / alpha.sum() @ digamma(alpha + 1))

    def _begin(self, batch_size: int) -> np.ndarray:
        return np.tile(self.initial, (batch_size, 1))  # what the urn holds

    def _at(self, place: int, memory: np.ndarray) -> np.ndarray:
        return np.pad(memory / memory.sum(1, keepdims=True), ((0, 0), (1, 0)))

    def _take(self, place: int, memory: np.ndarray, ids: np.ndarray) -> np.ndarray:
        memory = memory.copy()
        memory[np.arange(len(ids)), ids - 1] += self.reinforcement
        return memory


class Recall(Documents):
    """Key-value pairs, then a query: documents such as ``a3b7c1?b7`` and the separator.

    `n_pairs` distinct keys of `n_keys` letters, in random order, each with one of `n_values` digits; after the
    question mark one of the shown keys, and its value, which costs nothing to who remembers; so `n_queries` times. All
    choices are uniform.
    Raises ValueError for more than 26 keys, 10 values or n_keys pairs.
    """

    def __init__(self, n_keys: int = 8, n_values: int = 8, n_pairs: int = 4, n_queries: int = 1):
        self.n_keys = _whole("n_keys", n_keys, 1, 26)
        self.n_values = _whole("n_values", n_values, 1, 10)
        self.n_pairs = _whole("n_pairs", n_pairs, 1, n_keys)
        self.n_queries = _whole("n_queries", n_queries, 1)
        super().__init__(string.digits[:n_values] + "?" + letters(n_keys), 2 * (n_pairs + n_queries) + 2)
        self._values, self._query = slice(1, 1 + n_values), 1 + n_values
        self._keys = slice(2 + n_values, None)

    def document_entropy(self) -> float:
        """Exact entropy of a whole document, in nats."""
        keys = sum(math.log(self.n_keys - j) for j in range(self.n_pairs))
        return keys + self.n_pairs * math.log(self.n_values) + self.n_queries * math.log(self.n_pairs)

    def _begin(self, batch_size: int) -> np.ndarray:
        return np.zeros((batch_size, 1 + self.n_keys), dtype=np.int64)  # the last key; the value of each key, 0: none

    def _at(self, place: int, memory: np.ndarray) -> np.ndarray:
        probs, shown, last = np.zeros((len(memory), self.vocab_size)), memory[:, 1:] > 0, 2 * self.n_pairs
        if place < last and place % 2 == 0:
            probs[:, self._keys] = ~shown / (self.n_keys - place // 2)
        elif place < last:
            probs[:, self._values] = 1 / self.n_values
        elif place == last:
            probs[:, self._query] = 1
        elif (place - last) % 2:
            probs[:, self._keys] = shown / self.n_pairs
        else:
            rows = np.arange(len(memory))
            probs[rows, memory[rows, 1 + memory[:, 0]]] = 1
        return probs

    def _take(self, place: int, memory: np.ndarray, ids: np.ndarray) -> np.ndarray:
        memory, rows = memory.copy(), np.arange(len(ids))
        if place < 2 * self.n_pairs and place % 2:
            memory[rows, 1 + memory[:, 0]] = ids
        else:
            memory[:, 0] = (ids - self._keys.start).clip(min=0)  # a foreign symbol is refused elsewhere
        return memory


def _whole(name: str, value: int, least: int, most: int | None = None) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        upto = "" if most is None else f" and at most {most}"
        raise ValueError(f"{name} must be a whole number of at least {least}{upto}, not {value!r}")
    return value
