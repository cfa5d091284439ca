"""Probabilistic grammars, and the exact predictor of the texts they generate."""

import math
from bisect import bisect
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ...core.estimates import Estimate
from .grammar_branch import BranchPoint, Choice, branch_point, check_possible, listed
from .language import Language, State


class Reading(NamedTuple):
    """How far a text has been read: all that its past determines about its future.

    Args:
        state: the grammar's state.
        read: the characters already read of the current choice in that state.
    """

    state: Hashable
    read: str = ""


class Grammar:
    """An unambiguous probabilistic grammar: an endless stream of documents, each one derivation.

    A derivation walks from the state `start`; `expand(state)` lists the choices in a state. A
    choice that leads to None ends the document, and the next document begins. In each state the
    texts are non-empty and none is a prefix of another. So a string has at most one derivation, and
    its probability is the product of the choices' probabilities.

    Args:
        start: the first state of each document, hashable like all states.
        expand: gives the choices of a state.
        cache_size: number of states whose choices stay in the cache.

    Raises:
        ValueError: where `start` is None or, when a state is first reached, where its choices break
            these rules.
    """

    def __init__(
        self,
        start: Hashable,
        expand: Callable[[Hashable], tuple[Choice, ...]],
        cache_size: int = 1024,
    ):
        if start is None:
            raise ValueError("start must be a state; None means that a document is over")
        self.start = Reading(start)
        self.expand = expand
        self._expand = lru_cache(maxsize=cache_size)(self._expand_checked)

    def sample(self, rng: Random) -> str:
        """Draw one document.

        It depends on rng.random() alone, so a seed gives the same text in every version of Python.
        """
        state, texts = self.start.state, []
        while state is not None:
            point, states = self._expand(state)
            last = len(states) - 1  # the cumulative sum may round to less than 1
            chosen = bisect(point.cumulative, rng.random(), hi=last)
            texts.append(point.texts[chosen])
            state = states[chosen]
        return "".join(texts)

    def log_prob(self, document: str) -> float:
        """Log-probability (nats) of one whole document.

        Raises:
            ValueError: where the text is not one document; the message names the position and what
                was expected.
        """
        state, position, total = self.start.state, 0, 0.0
        while state is not None:
            point, states = self._expand(state)
            chosen = point.match(document, position)
            if chosen is None:
                check_possible(point, document, position, origin=0)
                expected = listed(point.next_chars(document[position:]))
                raise ValueError(
                    f"position {len(document)}: the document stops, expected {expected}"
                )
            total += math.log(point.probabilities[chosen])
            position += len(point.texts[chosen])
            state = states[chosen]
        if position < len(document):
            raise ValueError(
                f"position {position}: expected the document's end, found {document[position]!r}"
            )
        return total

    def char_log_probs(self, text: str) -> Float64[np.ndarray, " T"]:
        """Log-probability (nats) of each of T characters of a stream of documents: (T,).

        Each is given all characters before it. Those of whole documents add up to the sum of their
        `log_prob`. The last document may be unfinished.

        Raises:
            ValueError: at a character that is impossible; the message names its position.
        """
        log_probs: list[float] = []
        for position, _, point, chosen in self._choices(self.start, text):
            log_probs += (
                point.log_probs(text[position:]) if chosen is None else point.log_probs_of(chosen)
            )
        return np.array(log_probs, dtype=np.float64)

    def next_char_probs(self, prefix: str) -> dict[str, float]:
        """Exact distribution of the character that follows a prefix of a stream of documents.

        Raises:
            ValueError: where the prefix is impossible; the message names the position.
        """
        return self.probs(self.advance(self.start, prefix))

    def probs(self, reading: Reading) -> dict[str, float]:
        """Exact distribution of the next character, given a reading."""
        point, _ = self._expand(reading.state)
        return point.next_chars(reading.read)

    def advance(self, reading: Reading, text: str) -> Reading:
        """The reading after some more text.

        Raises:
            ValueError: at a character that is impossible; the message names its position in `text`.
        """
        for position, state, _, _ in self._choices(reading, text):  # noqa: B007 - last counts
            pass
        return Reading(state, (reading.read + text)[position:])

    def ahead(self, reading: Reading, k: int) -> dict[str, float]:
        """Exact distribution of the character k steps on, given a reading.

        All continuations up to there are followed, and those that meet in one state are joined. So
        the cost grows with their number, in `tales` tenfold with every ten characters.
        """
        # by how many characters come before the wanted one: where the stream may stand, with masses
        waiting: list[dict[Reading, float]] = [{} for _ in range(k)]
        waiting[k - 1][reading] = 1.0
        found: dict[str, list[float]] = {}
        for left in reversed(range(k)):
            for place, mass in waiting[left].items():
                for text, share, after in self._goes_on(place):
                    if left < len(text):
                        found.setdefault(text[left], []).append(mass * share)
                    else:
                        next_places = waiting[left - len(text)]
                        next_places[after] = next_places.get(after, 0.0) + mass * share
        return {char: math.fsum(found[char]) for char in sorted(found)}

    def _goes_on(self, reading: Reading) -> Iterator[tuple[str, float, Reading]]:
        """How the current choice may end: the rest of its text, its probability, what follows."""
        point, states = self._expand(reading.state)
        alive = [i for i, text in enumerate(point.texts) if text.startswith(reading.read)]
        total = math.fsum(point.probabilities[i] for i in alive)
        for i in alive:
            after = self.start if states[i] is None else Reading(states[i])
            yield point.texts[i][len(reading.read) :], point.probabilities[i] / total, after

    def _choices(
        self, reading: Reading, text: str
    ) -> Iterator[tuple[int, Hashable, BranchPoint, int | None]]:
        """Yield each choice in `reading.read + text`: its position, state, point and alternative.

        The last one is always the unfinished choice, whose alternative is None.
        """
        state, text, position, chosen = reading.state, reading.read + text, 0, -1
        while chosen is not None:
            point, states = self._expand(state)
            chosen = point.match(text, position)
            if chosen is None:
                check_possible(point, text, position, origin=len(reading.read))
            yield position, state, point, chosen
            if chosen is not None:
                position += len(point.texts[chosen])
                state = self.start.state if states[chosen] is None else states[chosen]

    def _expand_checked(self, state: Hashable) -> tuple[BranchPoint, tuple[Hashable | None, ...]]:
        choices = self.expand(state)
        if not choices:
            raise ValueError(
                f"expand({state!r}) offers no choice; a document ends by a choice that leads to None"
            )
        texts, probabilities, states = zip(*choices, strict=True)
        try:
            return branch_point(texts, probabilities), states
        except ValueError as error:
            raise ValueError(f"expand({state!r}): {error}") from None


class GrammarLanguage(Language):
    """The exact predictor of a grammar's characters; a row is a stream of documents.

    Args:
        grammar: the grammar.
        symbols: every character the grammar can write, in ascending order.
        separator: the character that ends each document and stands nowhere else; None where there
            is none.

    Raises:
        ValueError: where `separator` is not one of the symbols.
    """

    def __init__(self, grammar: Grammar, symbols: Sequence[str], separator: str | None = None):
        super().__init__(symbols)
        if separator is not None and separator not in self.tokenizer.tokens:
            raise ValueError(f"separator must be one of the symbols or None, not {separator!r}")
        self.grammar, self.separator = grammar, separator
        self._ids = {symbol: i for i, symbol in enumerate(self.tokenizer.tokens)}
        self._row = lru_cache(maxsize=2**16)(self._row_of)
        self._ahead_of = lru_cache(maxsize=2**14)(self._ahead_row)

    def sample(self, length: int, batch_size: int = 1, seed: int = 0) -> Int64[Tensor, "B T"]:
        """Draw token ids (B, T) with Python's own Random: each row is a stream of documents.

        The last document is cut where the row is full.
        """
        rng, rows = Random(str(seed)), torch.zeros(batch_size, length, dtype=torch.int64)
        for row in rows:
            texts, missing = [], length
            while missing > 0:
                texts.append(self.grammar.sample(rng))
                missing -= len(texts[-1])
            row[:] = self.tokenizer.encode("".join(texts)[:length])
        return rows

    def entropy_rate(self, documents: int = 2000, seed: int = 0) -> Estimate:
        """Entropy rate in nats per character, estimated from sampled documents.

        It is the sum of the exact entropies of the choices made, divided by the number of
        characters. The standard error is that of a ratio of two means over independent documents.
        The bias of the ratio is of the order of 1 / documents, far below the standard error.
        """
        rng, (nats, chars) = Random(str(seed)), np.zeros((2, documents))
        for i in range(documents):
            text = self.grammar.sample(rng)
            choices = self.grammar._choices(self.grammar.start, text)
            nats[i] = math.fsum(
                point.entropy for _, _, point, chosen in choices if chosen is not None
            )
            chars[i] = len(text)
        rate = nats.sum() / chars.sum()
        return Estimate(rate, Estimate.mean(nats - rate * chars).standard_error / chars.mean())

    def _begin(self, batch_size: int) -> np.ndarray:
        return np.fromiter([self.grammar.start] * batch_size, dtype=object)

    def _probs(self, state: State) -> np.ndarray:
        points = [self.grammar._expand(reading.state)[0] for reading in state.memory]
        rows = [self._row(point, reading.read) for point, reading in zip(points, state.memory)]
        return np.array(rows).reshape(-1, self.vocab_size)

    def _remember(self, state: State, ids: np.ndarray) -> np.ndarray:
        chars = self.tokenizer.decode(ids)
        readings = [
            self.grammar.advance(reading, char) for reading, char in zip(state.memory, chars)
        ]
        return np.fromiter(readings, dtype=object)

    def _ahead(self, state: State, k: int) -> np.ndarray:
        return np.array([self._ahead_of(reading, k) for reading in state.memory])

    def _ahead_row(self, reading: Reading, k: int) -> np.ndarray:
        return self._as_row(self.grammar.ahead(reading, k))

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        rows = np.empty((*ids.shape, self.vocab_size))
        for b in range(len(ids) if rows.size else 0):
            for t, place in enumerate(self._read(b, ids[b, :-1], self._places)):
                rows[b, t] = self._row(*place)
        return rows

    def _scores(self, ids: np.ndarray) -> np.ndarray:
        scores = [self._read(b, row, self.grammar.char_log_probs) for b, row in enumerate(ids)]
        return np.exp(np.array(scores).reshape(ids.shape))

    def _read(self, row: int, ids: np.ndarray, ask: Callable) -> Any:
        """Apply `ask` to the text of a row; an error names the row."""
        try:
            return ask(self.tokenizer.decode(ids))
        except ValueError as error:
            raise ValueError(f"row {row}, {error}") from None

    def _places(self, text: str) -> list[tuple[BranchPoint, str]]:
        """The current choice, and what is read of it, at each of T + 1 places.

        The places are those before each of T characters and the one after the last.
        """
        places = []
        for position, _, point, chosen in self.grammar._choices(self.grammar.start, text):
            read, last = (text[position:], 1) if chosen is None else (point.texts[chosen], 0)
            places += [(point, read[:i]) for i in range(len(read) + last)]
        return places

    def _row_of(self, point: BranchPoint, read: str) -> np.ndarray:
        return self._as_row(point.next_chars(read))

    def _as_row(self, probs: dict[str, float]) -> np.ndarray:
        row = np.zeros(self.vocab_size)
        for char, p in probs.items():
            if char not in self._ids:
                raise ValueError(f"the grammar writes {char!r}, which is not among the symbols")
            row[self._ids[char]] = p
        return row
