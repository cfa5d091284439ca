"""A model that also asks its memory (kNN-LM): what followed the closest hidden states it has seen."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..core.checks import real_number, whole_number
from ..core.predictor import Prediction, Predictor
from .vector_memory import Found, VectorMemory


class NeighbourPredictor(Predictor):
    """Mixes a model's probabilities with those of what followed its nearest hidden states.

    p = share · p_memory + (1 - share) · p_model. A neighbour at squared distance s counts
    exp(-s / temperature) for the symbol that followed it.

    Args:
        model: a model with hidden states that predict (SoftAR, or a pretrained one).
        neighbours: how many are asked.
        share: the share of the memory, from 0 to below 1.
        temperature: in squared units of hidden states.

    Source:
        Khandelwal et al., arXiv 1911.00172.

    Raises:
        ValueError: where an argument is out of range, or the model has no hidden states.
    """

    def __init__(
        self,
        model: Predictor,
        neighbours: int = 8,
        share: float = 0.25,
        temperature: float = 10.0,
    ):
        if model.embedding is None:
            raise ValueError(f"{type(model).__name__} has no hidden states to remember")
        self.model, self.neighbours = model, whole_number("neighbours", neighbours)
        self.share = real_number("share", share, "from 0 to below 1", lambda x: 0 <= x < 1)
        self.temperature = real_number("temperature", temperature, "above 0", lambda x: x > 0)
        self.vocab_size, self.tokenizer = model.vocab_size, model.tokenizer
        self.context, self.overlap = model.context, model.overlap
        self.memory: VectorMemory | None = None
        self.symbols = torch.empty(0, dtype=torch.int64)  # what followed, by id

    @torch.inference_mode()
    def remember(self, texts: Sequence[str]) -> None:
        """Take in texts: each hidden state with the symbol that followed it."""
        for text in texts:
            ids = self.tokenizer.encode(text)
            for some in ids.split(self.context or len(ids)):
                hidden = self.model.hidden_states(some[None, :-1])[0].float()
                if self.memory is None:
                    self.memory = VectorMemory(hidden.shape[1])
                self.memory.add(hidden.clone())
                self.symbols = torch.cat([self.symbols, some])

    def mixed(
        self, hidden: Float[Tensor, "N d"], log_probs: Float[Tensor, "N V"]
    ) -> Float[Tensor, "N V"]:
        """log p of the mixture (N, V), nats, at hidden states where the model says log_probs."""
        if self.memory is None or self.share == 0:
            return log_probs
        return self.mixture(self.memory.search(hidden.float(), self.neighbours), log_probs)

    def mixture(self, found: Found, log_probs: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """`mixed` (N, V) with the neighbours that were found (N, k)."""
        weights = torch.softmax(-found.scores / self.temperature, -1).float()  # (N, k)
        seen = torch.zeros_like(log_probs)
        seen.scatter_add_(1, self.symbols[found.ids], weights.to(log_probs.dtype))
        own = log_probs + math.log1p(-self.share)
        return torch.logaddexp(own, seen.log() + math.log(self.share))

    def start(self, batch_size: int = 1):
        """The state of the model."""
        return self.model.start(batch_size)

    def predict(self, state) -> Prediction:
        """The mixture for the next symbol."""
        return Prediction(self.mixed(state.hidden, self.model.predict(state).log_probs))

    def advance(self, state, token_ids=None, vectors=None):
        """The state after one more token per row."""
        return self.model.advance(state, token_ids=token_ids, vectors=vectors)

    @torch.inference_mode()
    def next_log_probs(self, token_ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """log p of every symbol at every place (B, T, V), in one pass."""
        hidden = self.model.hidden_states(token_ids[:, :-1]).flatten(0, 1)
        own = self.model.next_log_probs(token_ids)
        return self.mixed(hidden.clone(), own.flatten(0, 1).clone()).view_as(own)
