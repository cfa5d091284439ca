"""The urn: each draw adds more of the drawn colour; the result is an exchangeable language."""

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from scipy.special import digamma, entr, gammaln

from ...core.checks import whole_number
from .documents import Documents
from .language import letters


class Urn(Documents):
    """Pólya's urn: each draw puts its colour back and adds `reinforcement` more of it.

    The order of draws does not matter, only the counts do (the draws are exchangeable). The draws
    are like draws from one unknown distribution, which itself comes from the Dirichlet
    distribution of initial / reinforcement. With the separator there are V + 1 symbols; colour i
    has the id i + 1.

    Args:
        initial: how much of each colour the urn holds at the start of each document, (V,).
        reinforcement: how much of the drawn colour is added.
        length: number of draws in a document.
        symbols: one character per colour, letters by default.

    Raises:
        ValueError: where a number is not positive, `initial` is not one row of at least two
            numbers, or `symbols` do not fit.
    """

    def __init__(
        self,
        initial: ArrayLike,
        reinforcement: float | int = 1.0,
        length: int = 64,
        symbols: str | None = None,
    ):
        self.initial = np.array(initial, dtype=np.float64)
        if self.initial.ndim != 1 or len(self.initial) < 2:
            raise ValueError(
                f"initial must be a row of at least two numbers, not of shape {self.initial.shape}"
            )
        for name, values in (("initial", self.initial), ("reinforcement", np.array(reinforcement))):
            if not ((values > 0) & np.isfinite(values)).all():
                raise ValueError(f"{name} must be positive, not {values.tolist()}")
        self.reinforcement, self.length = float(reinforcement), whole_number("length", length, 1)
        symbols = letters(len(self.initial)) if symbols is None else symbols
        if len(symbols) != len(self.initial):
            raise ValueError(
                f"symbols must be {len(self.initial)} characters, one a colour, not {symbols!r}"
            )
        super().__init__(symbols, self.length + 1)

    def draw_entropies(self) -> Float64[np.ndarray, " T"]:
        """Exact mean entropy (nats) of each draw in a document, given earlier draws: (length,)."""
        total = self.initial.sum()
        added, before = self.reinforcement / total, np.arange(self.length)[:, None]
        # drawn (1, T): how often a colour was drawn in `before` (T, 1) draws
        drawn = before.T
        costs = (
            _drawn(self.length, share, added) * entr((share + drawn * added) / (1 + before * added))
            for share in self.initial / total
        )
        return sum(costs).sum(1)

    def document_entropy(self) -> float:
        """Exact entropy of a whole document, in nats."""
        return float(self.draw_entropies().sum())

    def limit_entropy(self) -> float:
        """Entropy (nats) of one draw once the unknown distribution of the urn is known.

        It is the mean over the Dirichlet distribution from which that distribution comes.
        """
        alpha = self.initial / self.reinforcement
        return float(digamma(alpha.sum() + 1) - alpha / alpha.sum() @ digamma(alpha + 1))

    def _begin(self, batch_size: int) -> np.ndarray:
        return np.tile(self.initial, (batch_size, 1))  # the content of the urn

    def _at(self, place: int, memory: np.ndarray) -> np.ndarray:
        return np.pad(memory / memory.sum(1, keepdims=True), ((0, 0), (1, 0)))

    def _later(self, place: int, memory: np.ndarray, now: int) -> np.ndarray:
        return self._at(place, memory)  # the draws are exchangeable, so a later one is as the next

    def _take(self, place: int, memory: np.ndarray, ids: np.ndarray) -> np.ndarray:
        memory = memory.copy()
        memory[np.arange(len(ids)), ids - 1] += self.reinforcement
        return memory


def _drawn(length: int, share: float, added: float) -> Float64[np.ndarray, "T T"]:
    """The probability of k draws of a colour among n, at [n, k], for n and k below `length`.

    It is beta-binomial. Shares of the urn stand for its content, so no large numbers are subtracted
    however little each draw adds.

    Args:
        length: the number of rows and columns.
        share: of the colour, before the first draw.
        added: what one draw adds, as a share of the urn's first content.
    """
    steps = np.arange(length - 1)
    mine, others, urn = (
        np.append(0.0, np.log(first + steps * added).cumsum()) for first in (share, 1 - share, 1.0)
    )
    n, k = np.arange(length)[:, None], np.arange(length)
    left = np.maximum(n - k, 0)
    orders = gammaln(n + 1) - gammaln(k + 1) - gammaln(left + 1)
    return np.where(k <= n, np.exp(orders + mine[k] + others[left] - urn[n]), 0.0)
