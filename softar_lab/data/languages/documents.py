"""Base class of languages whose documents all have the same length, such as the urn and recall."""

import math
from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from ...core.estimates import Estimate
from .language import Language, State, pcg64

SEPARATOR = "\n"


class Documents(Language):
    """A stream of independent documents of `document_length` symbols.

    The last symbol of a document is always the separator, id 0. What may come next depends on the
    place in the document and on a memory (N, …) of what the document contains so far.

    Raises:
        ValueError: where a symbol does not come after the separator.
    """

    separator = SEPARATOR

    def __init__(self, symbols: str, document_length: int):
        if min(symbols) <= SEPARATOR:
            raise ValueError(
                f"symbols must come after the separator {SEPARATOR!r}, not {min(symbols)!r}"
            )
        super().__init__(SEPARATOR + symbols)
        self.document_length = document_length

    @abstractmethod
    def document_entropy(self) -> float:
        """Exact entropy of a whole document, in nats."""

    @abstractmethod
    def _at(self, place: int, memory: np.ndarray) -> np.ndarray:
        """Probabilities (N, V) of the symbol at a place before the separator."""

    @abstractmethod
    def _later(self, place: int, memory: np.ndarray, now: int) -> np.ndarray:
        """Probabilities (N, V) of the symbol at a place that comes after the place `now`.

        `memory` contains the document before `now`; what comes between is not known.
        """

    @abstractmethod
    def _take(self, place: int, memory: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """A new memory that includes the symbols ids (N,) at a place."""

    def sample(self, length: int, batch_size: int = 1, seed: int = 0) -> Int64[Tensor, "B T"]:
        """Draw token ids (B, T) with PCG64: each row is a stream of independent documents.

        The last document is cut where the row is full.
        """
        rng, D = pcg64(seed), self.document_length
        n = math.ceil(length / D)
        state, documents = self.start(batch_size * n), np.empty((batch_size * n, D), dtype=np.int64)
        # all documents are drawn side by side, place by place
        for place in range(D):
            cumulative = self._probs(state).cumsum(1)
            uniforms = rng.random((len(documents), 1))
            documents[:, place] = (cumulative / cumulative[:, -1:] <= uniforms).sum(1)
            state = State(place + 1, self._remember(state, documents[:, place]))
        return torch.from_numpy(documents.reshape(batch_size, n * D)[:, :length].copy())

    def entropy_rate(self) -> Estimate:
        """Exact entropy rate of the stream in nats per symbol; separators count as symbols."""
        return Estimate(self.document_entropy() / self.document_length)

    def _probs(self, state: State) -> np.ndarray:
        place = state.position % self.document_length
        if place < self.document_length - 1:
            return self._at(place, state.memory)
        return np.eye(1, self.vocab_size).repeat(len(state.memory), axis=0)  # the separator

    def _remember(self, state: State, ids: np.ndarray) -> np.ndarray:
        place = state.position % self.document_length
        return (
            self._take(place, state.memory, ids)
            if place < self.document_length - 1
            else self._begin(len(ids))
        )

    def _ahead(self, state: State, k: int) -> np.ndarray:
        N, D, now = len(state.memory), self.document_length, state.position % self.document_length
        place, memory = now + k - 1, state.memory
        if place >= D:  # in a later document, of which nothing is known
            place, memory, now = place % D, self._begin(N), 0
        if place == D - 1:
            return np.eye(1, self.vocab_size).repeat(N, axis=0)  # the separator
        return self._at(place, memory) if place == now else self._later(place, memory, now)

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        return self._unfold(ids, [probs for probs, _ in self._places(ids)])

    def _scores(self, ids: np.ndarray) -> np.ndarray:
        scores = (
            np.take_along_axis(probs, symbols[:, None], 1)[:, 0]
            for probs, symbols in self._places(ids)
        )
        return self._unfold(ids, list(scores))

    def _places(self, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Go through the places of all documents of all rows at once.

        Yields:
            Probabilities (B*n, V) at the place and the documents' symbols there (B*n,).
        """
        B, T = ids.shape
        D = self.document_length
        n = math.ceil(T / D)
        documents = np.pad(ids, ((0, 0), (0, n * D - T))).reshape(B * n, D)
        state = self.start(B * n)
        for symbols in documents.T:
            yield self._probs(state), symbols
            state = State(state.position + 1, self._remember(state, symbols))

    def _unfold(self, ids: np.ndarray, places: list[np.ndarray]) -> np.ndarray:
        """Arrange D arrays (B*n, …), one per place of a document, as rows (B, T, …)."""
        folded = np.stack(places, axis=1)
        B, T = ids.shape
        return folded.reshape(
            B, math.ceil(T / self.document_length) * self.document_length, *folded.shape[2:]
        )[:, :T]
