"""The interface of a language with known probabilities: it samples, predicts and has an entropy."""

import string
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from numpy.typing import ArrayLike
from torch import Tensor

from ...core.checks import whole_number
from ...core.estimates import Estimate
from ...core.predictor import Prediction, Predictor
from ..tokenizers.char import CharTokenizer


@dataclass(frozen=True)
class State:
    """The state of B rows after `position` symbols each.

    `memory` (first axis B) contains all that a row's past determines about its future.
    """

    position: int
    memory: np.ndarray

    def select(self, rows: Int[Tensor, " n"] | Sequence[int]) -> "State":
        """Fork, drop or reorder batch rows."""
        return State(self.position, self.memory[np.asarray(rows, dtype=np.int64)])


class Language(Predictor):
    """A predictor that is the truth (K14): its probabilities are exact, up to float64 rounding.

    `tokenizer` encodes its symbols. `separator` is the symbol that ends every document; it is None
    where a text is one piece. A row begins where the language begins. A stream of documents begins
    anew after each separator.
    """

    separator: str | None = None

    def __init__(self, symbols: Sequence[str]):
        self.tokenizer = CharTokenizer(tuple(symbols))
        self.vocab_size = self.tokenizer.vocab_size

    @abstractmethod
    def sample(self, length: int, batch_size: int = 1, seed: int = 0) -> Int64[Tensor, "B T"]:
        """Draw token ids (B, T): `batch_size` independent rows of `length` symbols.

        The seed alone determines the result.
        """

    @abstractmethod
    def entropy_rate(self) -> Estimate:
        """The least cost of any predictor, in nats per symbol.

        The standard error is 0 where a formula gives the rate exactly.
        """

    # Each language defines these methods, in NumPy. After an impossible symbol they may return any
    # numbers, because the public methods refuse such a row.

    @abstractmethod
    def _begin(self, batch_size: int) -> np.ndarray:
        """The memory before any symbol is read."""

    @abstractmethod
    def _probs(self, state: State) -> np.ndarray:
        """Probabilities (B, V) of the next symbol."""

    @abstractmethod
    def _remember(self, state: State, ids: np.ndarray) -> np.ndarray:
        """The memory after one more symbol per row, ids (B,)."""

    @abstractmethod
    def _rows(self, ids: np.ndarray) -> np.ndarray:
        """Probabilities (B, T, V) of every symbol at every position of ids (B, T)."""

    @abstractmethod
    def _scores(self, ids: np.ndarray) -> np.ndarray:
        """Probability (B, T) of each symbol of ids (B, T), given the symbols before it.

        It is 0 at the first impossible symbol of a row.
        """

    def _ahead(self, state: State, k: int) -> np.ndarray:
        """Probabilities (B, V) of the symbol k >= 2 steps on; those between are unknown."""
        raise NotImplementedError(f"{type(self).__name__} does not define `_ahead`")

    # The interface of a predictor.

    def ahead(self, state: State, k: int) -> Float64[Tensor, "B V"]:
        """The exact distribution (B, V) of the symbol k steps on (K24).

        The symbols between are summed out. k = 1 is the next symbol, as `probs` gives it.

        Raises:
            ValueError: where k is not a whole number of at least 1.
        """
        return torch.from_numpy(self._looked_ahead(state, whole_number("k", k, 1)))

    def _looked_ahead(self, state: State, k: int) -> np.ndarray:
        return self._probs(state) if k == 1 else self._ahead(state, k)

    def ahead_probs(
        self, token_ids: Int[Tensor, "B T"], horizons: Sequence[int]
    ) -> Float64[Tensor, "H B T V"]:
        """`ahead` at every position, for several horizons.

        Args:
            token_ids: the text (B, T).
            horizons: how many steps on, (H,).

        Returns:
            Probabilities (H, B, T, V): entry (h, b, t) is about the symbol at position
            t + horizons[h] - 1, given the tokens before t.

        Raises:
            ValueError: at an impossible symbol, or for a horizon below 1.
        """
        steps = [whole_number("a horizon", k, 1) for k in horizons]
        ids = self._checked(token_ids)
        self._refuse_zeros(ids, self._scores(ids))
        state, found = self.start(len(ids)), []
        for symbols in ids.T:
            found.append([self._looked_ahead(state, k) for k in steps])
            state = State(state.position + 1, self._remember(state, symbols))
        shape = (ids.shape[1], len(steps), len(ids), self.vocab_size)
        return torch.from_numpy(np.array(found).reshape(shape).transpose(1, 2, 0, 3).copy())

    def start(self, batch_size: int = 1) -> State:
        """The state before any symbol is read."""
        return State(0, self._begin(batch_size))

    def predict(self, state: State) -> Prediction:
        """The exact distribution of the next symbol, float64."""
        probs = self._probs(state)
        return Prediction(_log(probs), probs=torch.from_numpy(probs))

    def advance(
        self,
        state: State,
        token_ids: Int[Tensor, " B"] | None = None,
        vectors: Tensor | None = None,
    ) -> State:
        """The state after one more symbol per row.

        Raises:
            TypeError: where vectors are given; a language reads symbols only.
            ValueError: where there is not one symbol per row, or a symbol is outside the vocabulary
                or impossible in this state.
        """
        if vectors is not None or token_ids is None:
            raise TypeError(f"{type(self).__name__} reads no vectors, only token_ids")
        if len(token_ids) != len(state.memory):
            raise ValueError(f"{len(token_ids)} token_ids for a state of {len(state.memory)} rows")
        ids = self._checked(token_ids[:, None])[:, 0]
        probs = self._probs(state)
        impossible = probs[np.arange(len(ids)), ids] == 0
        if impossible.any():
            row = int(impossible.argmax())
            raise self._impossible(row, state.position, probs[row], ids[row])
        return State(state.position + 1, self._remember(state, ids))

    def next_log_probs(self, token_ids: Int[Tensor, "B T"]) -> Float64[Tensor, "B T V"]:
        """Exact log p(w | the tokens before t in its row) for all symbols w and positions t (nats).

        Returns:
            Log-probabilities (B, T, V). A row's last token is in no prefix, so they do not depend
            on it.

        Raises:
            ValueError: where a prefix is impossible; the message names the row, the position and
                the possible symbols.
        """
        ids = self._checked(token_ids)
        rows = self._rows(ids)
        read = np.take_along_axis(rows, ids[..., None], 2)[:, :-1, 0]
        for row, t in _first_zero(read):
            raise self._impossible(row, t, rows[row, t], ids[row, t], ids[row, :t])
        return _log(rows)

    def log_probs(self, token_ids: Int[Tensor, "B T"]) -> Float64[Tensor, "B T"]:
        """Exact log p(token t | the tokens before it in its row), (B, T), in nats.

        Raises:
            ValueError: at an impossible symbol; the message names the row, the position and the
                possible symbols.
        """
        ids = self._checked(token_ids)
        scores = self._scores(ids)
        self._refuse_zeros(ids, scores)
        return _log(scores)

    def _refuse_zeros(self, ids: np.ndarray, scores: np.ndarray) -> None:
        for row, t in _first_zero(scores):
            probs = self._rows(ids[row : row + 1, : t + 1])[0, t]
            raise self._impossible(row, t, probs, ids[row, t], ids[row, :t])

    def _checked(self, token_ids: Tensor) -> np.ndarray:
        ids = token_ids.detach().cpu().numpy().astype(np.int64, casting="same_kind", copy=False)
        for row, t in _first_zero((ids >= 0) & (ids < self.vocab_size)):
            raise ValueError(
                f"row {row}, position {t}: id {ids[row, t]} is not in 0..{self.vocab_size - 1}"
            )
        return ids

    def _impossible(
        self,
        row: int,
        position: int,
        probs: np.ndarray,
        found: np.int64,
        before: np.ndarray | None = None,
    ) -> ValueError:
        symbols = self.tokenizer.tokens
        possible = [repr(symbol) for symbol, p in zip(symbols, probs, strict=True) if p > 0]
        after = "" if before is None else f" after {self.tokenizer.decode(before[-20:])!r}"
        return ValueError(
            f"row {row}, position {position}: expected {'one of ' if len(possible) > 1 else ''}{', '.join(possible)}"
            f"{after}, found {symbols[found]!r}"
        )


def _log(probs: np.ndarray) -> Tensor:
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(probs))


def _first_zero(values: np.ndarray) -> list[tuple[int, int]]:
    """(row, position) of the first zero in the first row of values (B, T) that has one.

    The list is empty where no row has a zero.
    """
    rows = np.flatnonzero((values == 0).any(1))[:1]
    return [(int(row), int((values[row] == 0).argmax())) for row in rows]


def pcg64(seed: int) -> np.random.Generator:
    """NumPy's PCG64 generator: the same stream of random numbers on every machine."""
    return np.random.Generator(np.random.PCG64(seed))


def letters(count: int) -> str:
    """The default symbols: a, b, c, …

    Raises:
        ValueError: where `count` is not in 1 … 26.
    """
    if not 1 <= count <= 26:
        raise ValueError(f"there are letters for 1 to 26 symbols, not {count}: give symbols=")
    return string.ascii_lowercase[:count]


def distributions(name: str, values: ArrayLike, axis: int | tuple[int, ...] = -1) -> np.ndarray:
    """`values` as float64 probabilities, normalised so that they sum to 1 over `axis`.

    Raises:
        ValueError: where a value is negative or not finite, or a sum differs from 1 by more than
            1e-9; the message names the field and the place.
    """
    values = np.array(values, dtype=np.float64)
    wrong = np.argwhere(~(np.isfinite(values) & (values >= 0)))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(
            f"{name}{list(place)} is {values[place]:g}; a probability is a number of at least 0"
        )
    sums = values.sum(axis, keepdims=True)
    wrong = np.argwhere(abs(sums - 1) > 1e-9)
    if len(wrong):
        place = tuple(wrong[0].tolist())
        index = ", ".join(
            str(i) if size > 1 else ":" for i, size in zip(place, sums.shape, strict=True)
        )
        raise ValueError(f"{name}[{index}] sums to {sums[place]:g}; probabilities sum to 1")
    return values / sums
