"""A branch of a grammar: the texts it chooses from, with exact character probabilities."""

import math
from collections.abc import Hashable
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import NamedTuple


class Choice(NamedTuple):
    """One alternative: its text, its probability, and the state after it.

    The state None ends the document.
    """

    text: str
    probability: float
    state: Hashable | None


class BranchPoint:
    """The texts and probabilities of a choice, without the states they lead to.

    Many states share one.
    """

    def __init__(self, texts: tuple[str, ...], probabilities: tuple[float, ...]):
        ordered = sorted(texts)  # a prefix sorts directly before a text that it begins
        if not ordered[0] or any(map(str.startswith, ordered[1:], ordered)):
            raise ValueError(f"texts must be non-empty and none a prefix of another, not {ordered}")
        if not (min(probabilities) > 0 and abs(math.fsum(probabilities) - 1) <= 1e-9):
            raise ValueError(f"probabilities must be positive and sum to 1, not {probabilities}")
        self.texts = texts
        self.probabilities = probabilities
        self.cumulative = tuple(accumulate(probabilities))
        self._log_probs: dict[int, list[float]] = {}

    @cached_property
    def entropy(self) -> float:
        """Entropy of the choice, in nats."""
        return -math.fsum(p * math.log(p) for p in self.probabilities)

    def match(self, text: str, position: int) -> int | None:
        """Index of the alternative that stands complete in text at position, or None."""
        for index, alternative in enumerate(self.texts):
            if text.startswith(alternative, position):
                return index
        return None

    def log_probs(self, read: str) -> list[float]:
        """Log-probability (nats) of each character of `read`, given those before it.

        `read` must be the beginning of an alternative.
        """
        alive, log_probs = list(zip(self.texts, self.probabilities)), []
        before = math.fsum(self.probabilities)
        for k, char in enumerate(read):
            if len(alive) == 1:  # one alternative is left: the rest is certain
                return log_probs + [0.0] * (len(read) - k)
            alive = [pair for pair in alive if pair[0][k] == char]
            mass = math.fsum(p for _, p in alive)
            log_probs.append(math.log(mass / before))
            before = mass
        return log_probs

    def log_probs_of(self, index: int) -> list[float]:
        """The `log_probs` of a whole alternative, computed once and then saved."""
        if index not in self._log_probs:
            self._log_probs[index] = self.log_probs(self.texts[index])
        return self._log_probs[index]

    def next_chars(self, read: str) -> dict[str, float]:
        """Distribution of the character after `read`; empty where no alternative begins with it."""
        alive: dict[str, list[float]] = {}
        for text, probability in zip(self.texts, self.probabilities):
            if text.startswith(read):
                alive.setdefault(text[len(read)], []).append(probability)
        mass = {char: math.fsum(alive[char]) for char in sorted(alive)}
        total = math.fsum(mass.values())
        return {char: p / total for char, p in mass.items()}


branch_point = lru_cache(maxsize=4096)(BranchPoint)


def check_possible(point: BranchPoint, text: str, position: int, origin: int) -> None:
    """Raise ValueError unless the rest of the text begins an alternative.

    The message counts positions from `origin`.
    """
    for end in range(position, len(text)):
        chars = point.next_chars(text[position:end])
        if text[end] not in chars:
            context = text[max(0, end - 20) : end]
            raise ValueError(
                f"position {end - origin}: expected {listed(chars)} after {context!r}, found {text[end]!r}"
            )


def listed(chars: dict[str, float]) -> str:
    """Characters as text for a message: "'a'", or "one of 'a', 'b'"."""
    return ("one of " if len(chars) > 1 else "") + ", ".join(map(repr, chars))
