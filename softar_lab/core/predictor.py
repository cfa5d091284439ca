"""The one interface of all models in the lab (K14): counts, true languages, transformers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """What a predictor predicts for the next token, for a batch of B prefixes.

    Args:
        log_probs: log p(w | prefix) (B, V), in nats.
        vector: the soft token (B, m); None for predictors without vectors.
        sampler: draws n soft tokens per prefix; None where a single vector is predicted.
        probs: p(w | prefix) (B, V); every row sums to 1. None: from log_probs.
        layers: from which layer of the network each row was read (B,); None: from the last one.
    """

    log_probs: Float[Tensor, "B V"]
    vector: Float[Tensor, "B m"] | None = None
    sampler: Callable[[int, torch.Generator | Sequence[torch.Generator]], Tensor] | None = None
    probs: Float[Tensor, "B V"] | None = None
    layers: Int[Tensor, " B"] | None = None

    def __post_init__(self):
        if self.probs is None:
            object.__setattr__(self, "probs", self.log_probs.exp())

    @cached_property
    def entropy(self) -> Float[Tensor, " B"]:
        """Entropy of each row of `probs` (B,), in nats."""
        return torch.special.entr(self.probs).sum(-1)

    def sample_vectors(
        self, n: int, generator: torch.Generator | Sequence[torch.Generator]
    ) -> Float[Tensor, "n B m"]:
        """Draw n soft tokens per prefix, (n, B, m).

        Args:
            n: how many.
            generator: one for all prefixes, or one per prefix. With one per prefix the draws of a
                prefix do not depend on its neighbours.

        Raises:
            TypeError: where the model predicts a single vector, not a distribution over vectors.
        """
        if self.sampler is None:
            raise TypeError(
                "this model predicts one vector a step, not a distribution over vectors"
            )
        return self.sampler(n, generator)


class MixturePrediction(Prediction):
    """A prediction whose soft token is the mixture pE of a table's rows, computed when asked for.

    With tens of thousands of rows the mixture is a good part of a step's cost, and ordinary
    generation does not need it.

    Args:
        log_probs: log p over the rows (B, V), in nats.
        table: the rows E (V, m).
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
    """A model: a start, a prediction and a step.

    States are never changed in place, so a state may be advanced twice. What a model can do is
    declared here, and read off these attributes only.
    """

    vocab_size: int
    # What its ids mean; a model without one neither reads a prompt nor writes a text.
    tokenizer: Any = None
    device: torch.device = torch.device("cpu")  # where it computes
    # How many tokens it holds at most when it predicts one; None: all.
    context: int | None = None
    # How many tokens are read again where a text goes on in a new window; None: none.
    overlap: int | None = None
    predicts_first: bool = True  # it predicts the first token, where nothing has been read
    work: int = 0  # about the multiply-adds per token: they decide how many threads a step gets
    embedding: Tensor | None = None  # the table E (V, m) of a model that reads vectors
    layout: Any = None  # of its structured window, which follows a memory
    has_memory: bool = False  # `update_memory` and `read_memory` hold something of older tokens
    can_replace: bool = False  # `replace(state, slot, vectors)` changes slots that were read
    can_look_ahead: bool = False  # `lookahead(state, vectors)` reads slots and changes no state
    draws_vectors: bool = False  # it predicts a distribution over vectors, which can be drawn from
    reads_hidden_states: bool = False  # a hidden state is as wide as a soft token, and may be one
    reads_at_once: bool = False  # `predict_after(hidden_states(vectors=…))`: a path in one pass

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
        """The state after one more token per row.

        Args:
            state: the state before.
            token_ids: hard tokens (B,).
            vectors: soft tokens (B, m), if the model takes them; one of the two is given.
        """

    def to(self, device: torch.device) -> "Predictor":
        """The model on another device; most predictors compute on one only.

        Raises:
            ValueError: where it cannot go there.
        """
        if device.type != self.device.type:
            raise ValueError(
                f"{type(self).__name__} computes on the {self.device}, not on {device}"
            )
        return self

    def read(self, state: Any, token_ids: Int[Tensor, "B T"]) -> Any:
        """The state after T more hard tokens per row; models that can, read them in one pass."""
        for t in range(token_ids.shape[1]):
            state = self.advance(state, token_ids=token_ids[:, t])
        return state

    def next_log_probs(self, token_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """log p(w | the tokens before t in its row) of every symbol at every t (B, T, V), nats."""
        state, steps = self.start(len(token_ids)), []
        for t in range(token_ids.shape[1]):
            if t:
                state = self.advance(state, token_ids=token_ids[:, t - 1])
            steps.append(self.predict(state).log_probs)
        return torch.stack(steps, 1)

    def log_probs(self, token_ids: Int[Tensor, "B T"], *memory: Tensor) -> Float[Tensor, "B T"]:
        """log p(token t | the tokens before it in its row), (B, T), in nats.

        `memory` is handed to `next_log_probs`.
        """
        return self.next_log_probs(token_ids, *memory).gather(-1, token_ids[..., None]).squeeze(-1)

    def probs(self, state: Any) -> Float[Tensor, "B V"]:
        """p(w | prefix), (B, V)."""
        return self.predict(state).probs

    def next_state(self, state: Any, token_ids: Int[Tensor, " B"]) -> Any:
        """The state after one more hard token per row."""
        return self.advance(state, token_ids=token_ids)


def divergence(log_q: Float[Tensor, "*n V"], log_p: Float[Tensor, "*n V"]) -> Float64[Tensor, "*n"]:
    """KL(q || p) of each row (*n,), in nats, in float64.

    A symbol with q = 0 adds nothing; p = 0 where q > 0 gives infinity.
    """
    log_q, log_p = log_q.double(), log_p.double()
    q = log_q.exp()
    return torch.where(q > 0, q * (log_q - log_p), 0).sum(-1)


def check_finite(vectors: Float[Tensor, "N m"]) -> None:
    """Raise ValueError where soft tokens hold NaN or infinity, naming the first bad row."""
    if math.isfinite(float(vectors.sum())):
        return  # no sum that holds NaN or infinity is finite
    finite = torch.isfinite(vectors).all(-1)
    if not finite.all():  # else the numbers are too large for their sum
        raise ValueError(f"soft token {int((~finite).nonzero()[0])} holds NaN or infinity")
