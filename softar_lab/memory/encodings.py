"""Three encodings of the same texts (K28): one vector, weights of terms, one vector per token."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..core.predictor import Predictor
from ..models import by_row
from .reading import mean_vectors, read
from .vector_memory import VectorMemory

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Hit:
    """A text that was found: its number, its score, and which tokens of it matched which."""

    number: int
    score: float
    matches: tuple[tuple[str, str, float], ...] = ()  # token of the query, of the text, share


class TextIndex(ABC):
    """Texts that are found by their encoding; equal scores in the order of the texts."""

    texts: list[str]

    @abstractmethod
    def scores(self, query: str) -> Float64[np.ndarray, " N"]:
        """The score of each text (N,), the greater the better."""

    def search(self, query: str, k: int = 10) -> list[Hit]:
        """The k best texts and why they were found."""
        scores = self.scores(query)
        order = np.lexsort((np.arange(len(scores)), -scores))[:k]
        return [Hit(int(i), float(scores[i]), self.matches(query, int(i))) for i in order]

    def matches(self, query: str, number: int) -> tuple[tuple[str, str, float], ...]:
        """What of the query met what of the text, and its share of the score; () if unknown."""
        return ()


class DenseIndex(TextIndex):
    """One vector per text, compared by cosine.

    Args:
        texts: the texts.
        encode: from texts (N) to vectors (N, m).
    """

    def __init__(self, texts: Sequence[str], encode: Callable[[Sequence[str]], Tensor]):
        self.texts, self.encode = list(texts), encode
        vectors = encode(self.texts)
        self.memory = VectorMemory(vectors.shape[1], "cosine")
        self.memory.add(vectors)

    @classmethod
    def of_model(cls, texts: Sequence[str], model: Predictor, layer: int = -1) -> "DenseIndex":
        """The mean of a model's hidden states, less the mean over all texts.

        Hidden states share most of their direction; what they share is taken off.
        """
        mean = mean_vectors(model, texts, layer).mean(0)
        return cls(texts, lambda some: mean_vectors(model, some, layer) - mean)

    def scores(self, query: str) -> Float64[np.ndarray, " N"]:
        """The cosine with each text."""
        found = self.memory.search(self.encode([query])[0], len(self.texts))
        scores = np.empty(len(self.texts))
        scores[found.ids.numpy()] = found.scores.numpy()
        return scores


class WordIndex(TextIndex):
    """BM25 of the library bm25s over words in lower case, without stop words or stems.

    The library orders equal scores in a way of its own; here the first text comes first.

    Args:
        texts: the texts.
        variant: of BM25, as the library names it.
        k1, b: its parameters.
        tokenize: from a text to its terms.
    """

    def __init__(
        self,
        texts: Sequence[str],
        variant: str = "lucene",
        k1: float = 1.5,
        b: float = 0.75,
        tokenize: Callable[[str], list[str]] = lambda text: WORD.findall(text.lower()),
    ):
        try:
            import bm25s
        except ImportError as error:
            raise ImportError('bm25s is missing: pip install "softar-lab[memory]"') from error
        self.texts, self.tokenize = list(texts), tokenize
        self.terms = [tokenize(text) for text in self.texts]
        if not any(self.terms):
            raise ValueError("none of the texts has a term: there is nothing to be found")
        self._engine = bm25s.BM25(method=variant, k1=k1, b=b)
        self._engine.index(self.terms, show_progress=False)

    def scores(self, query: str) -> Float64[np.ndarray, " N"]:
        """BM25; a term counts as often as it stands in the query."""
        return self._scores(self.tokenize(query))

    def _scores(self, terms: list[str]) -> Float64[np.ndarray, " N"]:
        known = [term for term in terms if term in self._engine.vocab_dict]
        if not known:
            return np.zeros(len(self.texts))
        return np.asarray(self._engine.get_scores(known), dtype=np.float64)

    def matches(self, query: str, number: int) -> tuple[tuple[str, str, float], ...]:
        """Each term of the query that stands in the text, with its share of the score."""
        here, terms = set(self.terms[number]), Counter(self.tokenize(query))
        return tuple(
            (term, term, float(self._scores([term] * n)[number]))
            for term, n in terms.items()
            if term in here
        )


class ActivationIndex(TextIndex):
    """One weight per symbol of a model: how much it expects the symbol somewhere in the text.

    The weight is the mean over the text of log(1 + max(0, log p(w) - log p0(w))), where p0 is the
    model's mean prediction over all texts: what it expects here more than elsewhere. Of a text that
    is longer than the model's context, the beginning counts. The score is the cosine of the weights.
    """

    def __init__(self, texts: Sequence[str], model: Predictor):
        self.texts, self.model = list(texts), model
        found = [self._log_probs(text) for text in self.texts]
        self._usual = torch.stack([one.exp().mean(0) for one in found]).mean(0).log()
        self.weights = torch.stack([self._weights(one) for one in found]).double()  # (N, V)

    def _log_probs(self, text: str) -> Float[Tensor, "T V"]:
        """log p of what follows each token of a text."""
        ids = self.model.tokenizer.encode(text)[: self.model.context]
        return self.model.next_log_probs(ids[None])[0].detach()

    def _weights(self, log_probs: Float[Tensor, "T V"]) -> Float[Tensor, " V"]:
        weights = (log_probs - self._usual).clamp(min=0).log1p().mean(0)
        return weights / weights.norm().clamp(min=1e-9)

    def scores(self, query: str) -> Float64[np.ndarray, " N"]:
        """The cosine of the weights with those of each text."""
        weights = self._weights(self._log_probs(query)).double()
        return by_row.product(self.weights, weights[:, None])[:, 0].numpy()

    def matches(self, query: str, number: int) -> tuple[tuple[str, str, float], ...]:
        """The five symbols with the greatest share of the score."""
        share = self._weights(self._log_probs(query)) * self.weights[number]
        tokens = self.model.tokenizer.tokens
        return tuple((tokens[i], tokens[i], float(share[i])) for i in share.topk(5).indices)


class TokenIndex(TextIndex):
    """One vector per token, compared by MaxSim.

    The score is the mean over the tokens of the query of the greatest cosine with a token of the
    text; engines differ in what they call MaxSim. A text without tokens has the score 0.

    Args:
        texts: the texts.
        encode: from a text to the vectors of its tokens (t, m) and their names.
    """

    def __init__(self, texts: Sequence[str], encode: Callable[[str], tuple[Tensor, list[str]]]):
        self.texts, self.encode = list(texts), encode
        found = [encode(text) for text in self.texts]
        self.names = [names for _, names in found]
        self.vectors = torch.cat([_normal(vectors) for vectors, _ in found])  # (all tokens, m)
        counts = torch.tensor([len(vectors) for vectors, _ in found])
        self.ends = counts.cumsum(0)
        self.owner = torch.arange(len(counts)).repeat_interleave(counts)

    @classmethod
    def of_model(
        cls, texts: Sequence[str], model: Predictor, layer: int = -1, every: str | int = "word"
    ) -> "TokenIndex":
        """The hidden states after each word, less their mean over all texts."""
        mean = torch.cat([read(model, text, layer, every)[0] for text in texts]).mean(0)

        def encode(text: str) -> tuple[Tensor, list[str]]:
            vectors, pieces = read(model, text, layer, every)
            return vectors - mean, [piece["text"].strip() for piece in pieces]

        return cls(texts, encode)

    def _best(self, query: str) -> tuple[Tensor, list[str]]:
        """The greatest cosine of each token of the query with each text (q, N), and its tokens."""
        vectors, names = self.encode(query)
        # equal tokens have equal cosines, so that equal texts have equal scores
        cosines = by_row.product(self.vectors, _normal(vectors).T.contiguous()).T
        best = torch.full((len(names), len(self.texts)), -torch.inf)
        best = best.scatter_reduce(1, self.owner.expand(len(names), -1), cosines, "amax")
        return torch.where(best.isfinite(), best, 0).double(), names

    def scores(self, query: str) -> Float64[np.ndarray, " N"]:
        """MaxSim with each text."""
        return self._best(query)[0].mean(0).numpy()

    def matches(self, query: str, number: int) -> tuple[tuple[str, str, float], ...]:
        """For each token of the query the token of the text that is closest to it."""
        end = int(self.ends[number])
        begin = end - len(self.names[number])
        vectors, names = self.encode(query)
        if begin == end:
            return ()
        best = (_normal(vectors) @ self.vectors[begin:end].T).max(1)
        there = self.names[number]
        return tuple(
            (name, there[i], float(score) / len(names))
            for name, i, score in zip(names, best.indices.tolist(), best.values)
        )


def _normal(vectors: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def ranks(index: TextIndex, queries: Sequence[str], targets: Sequence[int]) -> np.ndarray:
    """The rank of the right text for each query, from 1; of equal scores it is the last.

    So a ranking that knows nothing, where all scores are equal, is not taken for a good one.
    """
    found = []
    for query, target in zip(queries, targets, strict=True):
        scores = index.scores(query)
        found.append(int((scores >= scores[target]).sum()))
    return np.array(found)


def retrieval_figures(found: np.ndarray) -> dict[str, np.ndarray]:
    """What each query counts, from the rank of its one right text (N,); means are the figures.

    Returns:
        recall@1, recall@10, MRR (1/rank), and nDCG@10 (1/log2(1 + rank) within the first ten).
    """
    return {
        "recall@1": (found <= 1).astype(float),
        "recall@10": (found <= 10).astype(float),
        "MRR": 1.0 / found,
        "nDCG@10": np.where(found <= 10, 1 / np.log2(1.0 + found), 0.0),
    }


def nearest_label(found: Any, labels: Sequence[Any], skip: int, k: int = 5) -> Any:
    """The most frequent label among the k best hits but `skip`; of equal ones the best hit's."""
    names = [labels[hit.number] for hit in found if hit.number != skip][:k]
    counts = Counter(names)
    return max(names, key=lambda name: (counts[name], -names.index(name)))
