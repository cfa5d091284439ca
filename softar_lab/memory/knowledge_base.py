"""A knowledge base that reads a text and adds only what it does not know yet (K27)."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import real_number
from .vector_memory import VectorMemory

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Judgement:
    """What became of a passage.

    Args:
        passage: the passage.
        topic: what it is about; "" where no topic is in it.
        novelty: the distance to the closest passage of its topic; infinite without one.
        added: whether it was new.
        nearest: the closest passage; "" without one.
    """

    passage: str
    topic: str
    novelty: float
    added: bool
    nearest: str


@dataclass(frozen=True)
class Answer:
    """An answer and the passage it rests on; both "" where nothing is known."""

    text: str
    source: str


class Passages:
    """Vectors of passages: the sum of their words' rows, rare words more, of length 1.

    A word counts log(N / n)², where n of N passages hold it.

    Args:
        passages: passages to count words in.
        row: from a word to its vector (m,).
    """

    def __init__(self, passages: Sequence[str], row: Callable[[str], Float[Tensor, " m"]]):
        counts = Counter(word for one in passages for word in set(words(one)))
        self.row, self._total = row, len(passages)
        self.weight = {word: math.log(len(passages) / n) ** 2 for word, n in counts.items()}

    def weight_of(self, word: str) -> float:
        """What a word counts; one that was never seen counts most."""
        return self.weight.get(word, math.log(self._total) ** 2)

    def __call__(self, passage: str) -> Float[Tensor, " m"]:
        rows = [self.weight_of(word) * self.row(word) for word in words(passage)]
        if not rows:
            raise ValueError(f"{passage!r} has no word")
        total = torch.stack(rows).sum(0)
        return total / total.norm().clamp(min=1e-9)


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [word.lower() for word in WORD.findall(text)]


class KnowledgeBase:
    """Passages by topic, each of which was new when it was read.

    Args:
        encode: from a passage to its vector (m,); a question is a passage, too.
        topics: what passages may be about; the topic of a passage is the first of them in it.
        threshold: a passage is new where the squared distance to all passages of its topic is
            greater.

    Raises:
        ValueError: for a threshold below 0.
    """

    def __init__(self, encode: Passages, topics: Sequence[str], threshold: float = 0.5):
        self.encode, self.topics = encode, frozenset(topics)
        self.threshold = real_number("threshold", threshold, "at least 0", lambda x: x >= 0)
        self.memories: dict[str, VectorMemory] = {}

    def __len__(self) -> int:
        return sum(map(len, self.memories.values()))

    def topic(self, passage: str) -> str:
        """What a passage is about; "" where no topic is in it."""
        return next((word for word in words(passage) if word in self.topics), "")

    def novelty(self, passage: str) -> tuple[float, str]:
        """The squared distance to the closest passage of its topic, and that passage."""
        memory = self.memories.get(self.topic(passage))
        if memory is None:
            return math.inf, ""
        found = memory.search(self.encode(passage), 1)
        return float(found.scores[0]), found.payloads[0]

    def read(self, passage: str) -> Judgement:
        """Add a passage if it is new."""
        novelty, nearest = self.novelty(passage)
        topic, new = self.topic(passage), novelty > self.threshold
        if new:
            vector = self.encode(passage)
            memory = self.memories.setdefault(topic, VectorMemory(len(vector)))
            memory.add(vector, [passage])
        return Judgement(passage, topic, novelty, new, nearest)

    def fit_threshold(self, known: Sequence[tuple[str, str]], false_alarms: float = 0.05) -> float:
        """Set the threshold so that few known passages are taken for new ones.

        Args:
            known: pairs of passages that say the same in other words.
            false_alarms: the share of them that may be taken for new.

        Returns:
            The threshold: the smallest that is exceeded by no more than this share of the pairs.
        """
        apart = [float((self.encode(a) - self.encode(b)).square().sum()) for a, b in known]
        self.threshold = float(np.quantile(apart, 1 - false_alarms, method="higher"))
        return self.threshold

    def answer(self, question: str, among: Sequence[str]) -> Answer:
        """The word of the closest passage that is among the possible answers, and the passage.

        Args:
            question: names a topic.
            among: words that may be an answer; those of the question are none.
        """
        memory = self.memories.get(self.topic(question))
        if memory is None:
            return Answer("", "")
        asked, possible = set(words(question)), set(among)
        for passage in memory.search(self.encode(question), len(memory)).payloads:
            for word in words(passage):
                if word in possible and word not in asked:
                    return Answer(word, passage)
        return Answer("", "")
