"""The one interface of every model in the lab (K14): counts, true generators, hard and soft transformers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """What a predictor says about the next token, for a batch of B prefixes.

    Shapes: log_probs (B, V) in nats; vector (B, m), the soft token, or None for predictors without vectors.
    """

    log_probs: Float[Tensor, "B V"]
    vector: Float[Tensor, "B m"] | None = None
    sampler: Callable[[int, torch.Generator | Sequence[torch.Generator]], Tensor] | None = None
    probs: Float[Tensor, "B V"] | None = None  # p(w | prefix); every row sums to 1; from log_probs where not given

    def __post_init__(self):
        if self.probs is None:
            object.__setattr__(self, "probs", self.log_probs.exp())

    @cached_property
    def entropy(self) -> Float[Tensor, " B"]:
        """Entropy of each row of `probs` (B,), in nats."""
        return torch.special.entr(self.probs).sum(-1)

    def sample_vectors(self, n: int, generator: torch.Generator | Sequence[torch.Generator]) -> Float[Tensor, "n B m"]:
        """Draw n soft tokens a prefix, (n, B, m), from objectives that hold a distribution over vectors.

        One generator for all prefixes, or one each: then a prefix's draws do not depend on its neighbours.
        Raises TypeError where the model predicts a single vector.
        """
        if self.sampler is None:
            raise TypeError("this model predicts one vector a step, not a distribution over vectors")
        return self.sampler(n, generator)


class MixturePrediction(Prediction):
    """The prediction of a model that says p over the rows of a table: its soft token pE is computed when asked for.

    With tens of thousands of rows that is a good part of a step, and ordinary generation needs none.
    Shapes: log_probs (B, V), table (V, m).
    """

    def __init__(self, log_probs: Float[Tensor, "B V"], table: Float[Tensor, "V m"]):
        super().__init__(log_probs)
        self.__dict__["table"] = table
        del self.__dict__["vector"]  # which the property below fills in

    @property
    def has_vector(self) -> bool:
        """Whether the soft token has been computed."""
        return "vector" in self.__dict__

    @cached_property
    def vector(self) -> Float[Tensor, "B m"]:
        """The mixture pE (B, m)."""
        return self.probs @ self.table


class Predictor(ABC):
    """A model is: a start, a prediction, a step. States are never changed in place: one may be advanced twice."""

    vocab_size: int
    work: int = 0  # the multiply-adds of a token, about: they decide how many threads a step gets

    @abstractmethod
    def start(self, batch_size: int = 1) -> Any:
        """The state in which nothing has been read yet."""

    @abstractmethod
    def predict(self, state: Any) -> Prediction:
        """The prediction for the next token."""

    @abstractmethod
    def advance(
        self,
        state: Any,
        token_ids: Int[Tensor, " B"] | None = None,
        vectors: Float[Tensor, "B m"] | None = None,
    ) -> Any:
        """The state after one more token a row: hard (`token_ids`) or, where the model takes them, soft (`vectors`)."""

    def read(self, state: Any, token_ids: Int[Tensor, "B T"]) -> Any:
        """The state after T more hard tokens a row; models that can, read them in one pass."""
        for t in range(token_ids.shape[1]):
            state = self.advance(state, token_ids=token_ids[:, t])
        return state

    def next_log_probs(self, token_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """log p(w | the tokens before t in its row) of every symbol at every t, (B, T, V), in nats."""
        state, steps = self.start(len(token_ids)), []
        for t in range(token_ids.shape[1]):
            if t:
                state = self.advance(state, token_ids=token_ids[:, t - 1])
            steps.append(self.predict(state).log_probs)
        return torch.stack(steps, 1)

    def log_probs(self, token_ids: Int[Tensor, "B T"], *memory: Tensor) -> Float[Tensor, "B T"]:
        """log p(token t | the tokens before it in its row), (B, T), in nats; `memory` as `next_log_probs` takes it."""
        return self.next_log_probs(token_ids, *memory).gather(-1, token_ids[..., None]).squeeze(-1)

    def probs(self, state: Any) -> Float[Tensor, "B V"]:
        """p(w | prefix), (B, V)."""
        return self.predict(state).probs

    def next_state(self, state: Any, token_ids: Int[Tensor, " B"]) -> Any:
        """The state after one more hard token a row."""
        return self.advance(state, token_ids=token_ids)


def check_finite(vectors: Float[Tensor, "N m"]) -> None:
    """Raise ValueError where soft tokens hold NaN or infinity, naming the first bad row."""
    finite = torch.isfinite(vectors).all(-1)
    if not finite.all():
        raise ValueError(f"soft token {int((~finite).nonzero()[0])} holds NaN or infinity")
