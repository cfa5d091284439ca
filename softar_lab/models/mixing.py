"""A learned collapse that mixes the window (K4): hidden states R^{q×d} become a point of R^m."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.checks import whole_number
from ..core.predictor import Prediction, Predictor
from .config import ModelConfig
from .objectives import squared_distance
from .transformer import Block


class MixingCollapse(nn.Module):
    """One more block like the body's, over the last `window` hidden states.

    Its output is a point y near the rows of the table: p(w) = softmax(-|y - e_w|² / tau) with a
    learned tau, so the most probable symbol is the row nearest to y. `train_mixing` trains it and
    leaves the body unchanged. `seed` decides the first weights.

    Raises:
        ValueError: where `window` is not a whole number of at least 1.
    """

    def __init__(self, config: ModelConfig, window: int = 16, seed: int = 0):
        super().__init__()
        self.window = window = whole_number("window", window)
        d_model, n_heads = config.d_model, config.n_heads
        with torch.random.fork_rng(devices=[]):
            self.block = Block(config)
            self.head = nn.Linear(d_model, config.embedding_dim, bias=False)
        # added to the attention scores, one number per head and distance
        self.nearness = nn.Parameter(torch.zeros(n_heads, window))
        self.log_tau = nn.Parameter(torch.zeros(()))
        generator = torch.Generator().manual_seed(seed)
        for weight in (self.block.query_key_value.weight, self.block.mlp_in.weight):
            nn.init.normal_(weight, 0, d_model**-0.5, generator=generator)
        for weight in (
            self.block.attention_out.weight,
            self.block.mlp_out.weight,
            self.head.weight,
        ):
            nn.init.zeros_(weight)

    def vectors(self, hidden: Float[Tensor, "B S d"]) -> Float[Tensor, "B S m"]:
        """The point at each slot (B, S, m).

        It depends on the hidden states of that slot and of the window-1 slots before it, no others.
        """
        length = hidden.shape[1]
        bias = self.nearness[:, :length].flip(-1)
        # far to near, and -inf for slots outside the window or later
        bias = F.pad(bias, (max(0, length - self.window), length - 1), value=-math.inf)
        mask = bias.unfold(-1, length, 1).flip(-2)  # (heads, S, S): row i sees i-window+1 … i
        return self.head(self.block(hidden, None, None, mask))

    def log_probs(
        self, hidden: Float[Tensor, "B S d"], table: Float[Tensor, "V m"]
    ) -> Float[Tensor, "B S V"]:
        """log p of the symbol after each slot (B, S, V), in nats."""
        vectors = self.vectors(hidden)
        distance = squared_distance(vectors.flatten(0, 1), table).unflatten(0, vectors.shape[:2])
        return torch.log_softmax(-distance / self.log_tau.exp(), dim=-1)


class Mixed(Predictor):
    """A model as read by its mixing layer: a predictor, for `evaluate` or any other use.

    Raises:
        ValueError: for a model without a mixing layer.
    """

    def __init__(self, model: nn.Module):
        self.model, self.layer = model, mixing_layer(model, "Mixed(model)")
        self.vocab_size, self.tokenizer, self.config = (
            model.vocab_size,
            model.tokenizer,
            model.config,
        )
        self.context, self.overlap, self.has_memory = model.context, model.overlap, model.has_memory
        self.update_memory, self.read_memory = model.update_memory, model.read_memory

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.device

    def with_window(self, window: Any) -> "Mixed":
        """The same layer on the model with another window; see `SoftAR.with_window`."""
        return Mixed(self.model.with_window(window))

    def start(self, batch_size: int = 1) -> Any:
        """The start state of the model itself."""
        return self.model.start(batch_size)

    def advance(self, state, token_ids=None, vectors=None) -> Any:
        """The step of the model itself."""
        return self.model.advance(state, token_ids=token_ids, vectors=vectors)

    @torch.no_grad()
    def predict(self, state: Any) -> Prediction:
        """The prediction of the layer; its soft token is the point that the window is mapped to."""
        hidden = last_hidden(self.model, state, self.layer.window)
        log_probs = self.layer.log_probs(hidden, self.model.embedding)[:, -1]
        return Prediction(log_probs, self.layer.vectors(hidden)[:, -1])

    @torch.no_grad()
    def next_log_probs(
        self, token_ids: Int[Tensor, "B T"], memory: Float[Tensor, "B M d"] | None = None
    ) -> Float[Tensor, "B T V"]:
        """log p(w | the tokens before t in its row) at every t, (B, T, V), in one pass."""
        hidden = self.model.hidden_states(token_ids[:, :-1], memory=memory)
        return self.layer.log_probs(hidden, self.model.embedding)


def mixing_layer(model: Any, who: str) -> MixingCollapse:
    """The model's fitted mixing layer.

    Raises:
        ValueError: where it has none, naming who needs it and how to get it.
    """
    layer = getattr(model, "mixing", None)
    if layer is None:
        raise ValueError(
            f"{who} needs a model with a fitted mixing layer: softar_lab.train_mixing(model, corpus)"
        )
    return layer


@torch.no_grad()
def last_hidden(model: Any, state: Any, window: int) -> Float[Tensor, "B n d"]:
    """The last hidden states (B, n <= window, d) of a state, by one pass over its whole context."""
    if not state.inputs:
        return state.hidden[:, None]
    memory = model.read_memory(state.memory_state) if state.memory_state else None
    return model.hidden_states(vectors=torch.cat(state.inputs, 1), memory=memory)[:, -window:]
