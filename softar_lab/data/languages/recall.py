"""Recall: documents that end with a question about a value they contain."""

import math
import string

import numpy as np

from ...core.checks import whole_number
from .documents import Documents
from .language import letters


class Recall(Documents):
    """Key-value pairs, then a query: documents such as ``a3b7c1?b7`` and the separator.

    A document has `n_pairs` distinct keys in random order, each with a value. After the question
    mark come `n_queries` queries: one of the document's keys and its value. A predictor that
    remembers the pairs predicts that value with certainty. All choices are uniform.

    Args:
        n_keys: number of letters that can be keys, at most 26.
        n_values: number of digits that can be values, at most 10.
        n_pairs: number of pairs in a document, at most `n_keys`.
        n_queries: number of queries in a document.

    Raises:
        ValueError: where a number is not whole or out of range.
    """

    def __init__(self, n_keys: int = 8, n_values: int = 8, n_pairs: int = 4, n_queries: int = 1):
        self.n_keys = whole_number("n_keys", n_keys, 1, 26)
        self.n_values = whole_number("n_values", n_values, 1, 10)
        self.n_pairs = whole_number("n_pairs", n_pairs, 1, n_keys)
        self.n_queries = whole_number("n_queries", n_queries, 1)
        super().__init__(
            string.digits[: self.n_values] + "?" + letters(self.n_keys),
            2 * (self.n_pairs + self.n_queries) + 2,
        )
        self._values, self._query = slice(1, 1 + n_values), 1 + n_values
        self._keys = slice(2 + n_values, None)

    def document_entropy(self) -> float:
        """Exact entropy of a whole document, in nats."""
        keys = sum(math.log(self.n_keys - j) for j in range(self.n_pairs))
        return (
            keys + self.n_pairs * math.log(self.n_values) + self.n_queries * math.log(self.n_pairs)
        )

    def _begin(self, batch_size: int) -> np.ndarray:
        # column 0: index of the last key; then the id of each key's value, 0 where it has none
        return np.zeros((batch_size, 1 + self.n_keys), dtype=np.int64)

    def _at(self, place: int, memory: np.ndarray) -> np.ndarray:
        probs, seen, last = (
            np.zeros((len(memory), self.vocab_size)),
            memory[:, 1:] > 0,
            2 * self.n_pairs,
        )
        if place < last and place % 2 == 0:  # a key that the document does not have yet
            probs[:, self._keys] = ~seen / (self.n_keys - place // 2)
        elif place < last:  # its value
            probs[:, self._values] = 1 / self.n_values
        elif place == last:  # the question mark
            probs[:, self._query] = 1
        elif (place - last) % 2:  # the key of a query
            probs[:, self._keys] = seen / self.n_pairs
        else:  # the value of that key, from memory
            rows = np.arange(len(memory))
            probs[rows, memory[rows, 1 + memory[:, 0]]] = 1
        return probs

    def _later(self, place: int, memory: np.ndarray, now: int) -> np.ndarray:
        N, last = len(memory), 2 * self.n_pairs
        probs = np.zeros((N, self.vocab_size))
        # which keys the document has already; the last one may still wait for its value
        known = memory[:, 1:] > 0
        taken = known.copy()
        if now < last and now % 2:
            taken[np.arange(N), memory[:, 0]] = True
        count = min(now + 1, last) // 2  # taken keys, the same number in all rows
        if place == last:
            probs[:, self._query] = 1
        elif place < last and place % 2 == 0:  # one of the keys that are left
            probs[:, self._keys] = ~taken / (self.n_keys - count)
        elif place < last:
            probs[:, self._values] = 1 / self.n_values
        elif (place - last) % 2:  # the key of a query: any of the document's keys, known or not yet
            share = (self.n_pairs - count) / self.n_pairs / max(1, self.n_keys - count)
            probs[:, self._keys] = np.where(taken, 1 / self.n_pairs, share)
        else:  # the value of some key of the document
            values = np.eye(self.vocab_size)[memory[:, 1:]] * known[..., None]
            probs = values.sum(1) / self.n_pairs
            rest = 1 - known.sum(1, keepdims=True) / self.n_pairs
            probs[:, self._values] += rest / self.n_values
        return probs

    def _take(self, place: int, memory: np.ndarray, ids: np.ndarray) -> np.ndarray:
        memory, rows = memory.copy(), np.arange(len(ids))
        if place < 2 * self.n_pairs and place % 2:
            memory[rows, 1 + memory[:, 0]] = ids
        else:
            # clipped, because "?" and values are no keys; impossible symbols are refused elsewhere
            memory[:, 0] = (ids - self._keys.start).clip(min=0)
        return memory
