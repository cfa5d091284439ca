"""Exit heads (K25): what each layer below the top already says of the next symbol."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .by_row import log_softmax, product, single


class ExitHeads(nn.Module):
    """One linear head on each layer but the last: softmax(head(norm(layer state)) / temperature).

    `train_exits` fits the heads to a trained model, whose body stays as it is, and
    `fit_temperatures` the temperatures. Heads begin at zero: they say nothing.

    Args:
        depth: the number of layers.
        d_model: the width of their states.
        vocab_size: V.
    """

    def __init__(self, depth: int, d_model: int, vocab_size: int):
        super().__init__()
        self.depth = depth
        with torch.random.fork_rng(devices=[]):
            self.heads = nn.ModuleList(
                nn.Linear(d_model, vocab_size) for _ in range(max(0, depth - 1))
            )
        for head in self.heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.register_buffer("log_temperature", torch.zeros(len(self.heads)))

    def logits(self, layer: int, state: Float[Tensor, "*n d"]) -> Float[Tensor, "*n V"]:
        """log p of the next symbol up to a constant (*n, V), from layer 1 … depth - 1."""
        head = self.heads[layer - 1]
        normed = single(F.layer_norm(state, state.shape[-1:]))
        scores = product(normed, head.weight.T) + head.bias
        return scores / self.log_temperature[layer - 1].exp()

    def log_probs(self, layer: int, state: Float[Tensor, "*n d"]) -> Float[Tensor, "*n V"]:
        """log p of the next symbol (*n, V), in nats, from layer 1 … depth - 1."""
        return log_softmax(self.logits(layer, state))[0]

    def fit_temperatures(
        self, states: Sequence[Float[Tensor, "N d"]], target_ids: Int[Tensor, " N"]
    ) -> None:
        """One temperature per layer, by the cross-entropy of N symbols that no head was fitted to.

        Args:
            states: of every layer (N, d), the last one included.
            target_ids: the symbols (N,).
        """
        from scipy.optimize import minimize_scalar  # it takes long to load

        self.log_temperature.zero_()
        for i, state in enumerate(states[: self.depth - 1]):
            logits = self.logits(i + 1, state).double()

            def nats(log_t: float, logits: Tensor = logits) -> float:
                return F.cross_entropy(logits * math.exp(-log_t), target_ids).item()

            self.log_temperature[i] = minimize_scalar(nats, bounds=(-3, 3), method="bounded").x


def exit_heads_of(model: Any) -> ExitHeads:
    """The exit heads of a model.

    Raises:
        ValueError: where it has none.
    """
    if model.exits is None:
        raise ValueError(
            "this model has no exit heads: train_exits(model, corpus) fits them to the model as it is"
        )
    return model.exits
