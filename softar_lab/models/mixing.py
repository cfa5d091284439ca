"""A learned collapse that has mixed the window (K4): the body's last outputs, R^{q×d}, mapped to one point of R^m."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..predictor import Prediction, Predictor
from .config import ModelConfig
from .objectives import squared_distance
from .transformer import Block


class MixingCollapse(nn.Module):
    """One more block of the body over the last `window` hidden states, whose output is a point near the rows.

    p(w) = softmax(-|y - e_w|² / tau) with a learned tau, so the most probable symbol is the row nearest to the point y.
    Trained by `train_mixing`, the body left as it is. `seed` decides the first weights.
    Raises ValueError for a window below 1.
    """

    def __init__(self, config: ModelConfig, window: int = 16, seed: int = 0):
        super().__init__()
        if not isinstance(window, int) or isinstance(window, bool) or window < 1:
            raise ValueError(f"window must be a whole number of hidden states, at least 1, not {window!r}")
        self.window = window
        d_model, n_heads = config.d_model, config.n_heads
        with torch.random.fork_rng(devices=[]):
            self.block = Block(d_model, n_heads)
            self.head = nn.Linear(d_model, config.embedding_dim, bias=False)
        self.nearness = nn.Parameter(torch.zeros(n_heads, window))  # added to attention, by how far back a slot lies
        self.log_tau = nn.Parameter(torch.zeros(()))
        generator = torch.Generator().manual_seed(seed)
        for weight in (self.block.query_key_value.weight, self.block.mlp_in.weight):
            nn.init.normal_(weight, 0, d_model**-0.5, generator=generator)
        for weight in (self.block.attention_out.weight, self.block.mlp_out.weight, self.head.weight):
            nn.init.zeros_(weight)

    def vectors(self, hidden: Float[Tensor, "B S d"]) -> Float[Tensor, "B S m"]:
        """The point at each slot: it has seen that slot's hidden state and the window-1 before it, no others."""
        length = hidden.shape[1]
        bias = self.nearness[:, :length].flip(-1)
        bias = F.pad(bias, (max(0, length - self.window), length - 1), value=-math.inf)  # far to near
        mask = bias.unfold(-1, length, 1).flip(-2)  # (heads, S, S): row i sees i-window+1 … i
        return self.head(self.block(hidden, None, None, mask))

    def log_probs(self, hidden: Float[Tensor, "B S d"], table: Float[Tensor, "V m"]) -> Float[Tensor, "B S V"]:
        """log p of the symbol after each slot (B, S, V), in nats."""
        vectors = self.vectors(hidden)
        distance = squared_distance(vectors.flatten(0, 1), table).unflatten(0, vectors.shape[:2])
        return torch.log_softmax(-distance / self.log_tau.exp(), dim=-1)


class Mixed(Predictor):
    """A model as its mixing layer reads it: a predictor, which `evaluate` scores and anything else may ask.

    Raises ValueError for a model without a mixing layer.
    """

    def __init__(self, model: nn.Module):
        self.model, self.layer = model, mixing_layer(model, "Mixed(model)")
        self.vocab_size, self.tokenizer, self.config = model.vocab_size, model.tokenizer, model.config
        self.memory, self.fold, self.recall = model.memory, model.fold, model.recall

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.device

    def start(self, batch_size: int = 1) -> Any:
        """The model's own start."""
        return self.model.start(batch_size)

    def advance(self, state, token_ids=None, vectors=None) -> Any:
        """The model's own step."""
        return self.model.advance(state, token_ids=token_ids, vectors=vectors)

    @torch.no_grad()
    def predict(self, state: Any) -> Prediction:
        """What the layer says; the soft token is the point it maps the window to."""
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
    """The model's fitted layer; ValueError, naming who needs it and how to get it, where there is none."""
    layer = getattr(model, "mixing", None)
    if layer is None:
        raise ValueError(f"{who} needs a model with a fitted mixing layer: softar_lab.train_mixing(model, corpus)")
    return layer


@torch.no_grad()
def last_hidden(model: Any, state: Any, window: int) -> Float[Tensor, "B n d"]:
    """The last hidden states (B, n <= window, d) of what a state's window holds, by one pass over all of it."""
    if not state.inputs:
        return state.hidden[:, None]
    memory = model.recall(state.carry) if state.carry else None
    return model.hidden_states(vectors=torch.cat(state.inputs, 1), memory=memory)[:, -window:]
