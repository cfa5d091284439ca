"""How vectors are read by a network of transformers: its forward pass, cache and positions."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .kv_cache import Memory

HALF = (torch.float16, torch.bfloat16)
# How transformers calls what a network holds between steps.
_CACHES = ("cache", "past_key_values", "cache_params", "state")


@dataclass(frozen=True)
class Plan:
    """How a network is read; `checks.plan_of` finds the first plan that is exact.

    Args:
        head: its output embedding is applied to the hidden states of its body. Otherwise its own
            forward pass gives logits, which then stand for the hidden states.
        first: the number of the first position, where positions must be given; None: the network
            counts them.
        cache: it is read on behind its cache. Otherwise every step reads the whole text again.
        several: several tokens may follow a cache at once. Otherwise they follow one by one.
    """

    head: bool = True
    first: int | None = None
    cache: bool = True
    several: bool = True

    def __str__(self) -> str:
        steps = "reads its whole text again at every step"
        if self.cache:
            steps = "reads on behind its cache"
            steps += "" if self.several else ", one token at a time"
        return steps + ("" if self.first is None else ", positions given")


class Reader:
    """Reads vectors with a network, according to a plan."""

    def __init__(self, network: nn.Module, plan: Plan):
        self.plan = plan
        self.module = network.base_model if plan.head else network
        self._table = network.get_input_embeddings()
        names = inspect.signature(self.module.forward).parameters
        if "inputs_embeds" not in names:  # a body that hands on whatever it is given
            names = inspect.signature(network.forward).parameters
        self.takes_positions = "position_ids" in names
        self._takes_flag = "use_cache" in names
        self._cache = next((name for name in _CACHES if name in names), None)

    @property
    def has_cache(self) -> bool:
        """Whether the network takes what it has held between steps."""
        return self._takes_flag and self._cache is not None

    def whole(self, x: Float[Tensor, "B T m"]) -> Float[Tensor, "B T d"]:
        """The hidden states (or logits) after each vector of whole texts."""
        return self._forward(x, None, 0)

    def on(self, x: Float[Tensor, "B n m"], memory: Memory, at: int) -> Float[Tensor, "B n d"]:
        """The hidden states (or logits) after each of n more vectors; `memory` takes them in.

        Args:
            x: the vectors.
            memory: what is held of the `at` vectors before them.
        """
        if self.plan.several or memory.cache is None or x.shape[1] == 1:
            return self._forward(x, memory, at)
        steps = [self._forward(x[:, i : i + 1], memory, at + i) for i in range(x.shape[1])]
        return torch.cat(steps, 1)

    def _forward(self, x: Tensor, memory: Memory | None, at: int) -> Tensor:
        options: dict[str, Any] = {}
        if self._takes_flag:
            options["use_cache"] = memory is not None
        if memory is not None and memory.cache is not None:
            options[self._cache] = memory.cache
        if self.plan.first is not None:
            begin = at + self.plan.first
            positions = torch.arange(begin, begin + x.shape[1], device=x.device)
            options["position_ids"] = positions.expand(len(x), -1)
        # some networks write into what they are given
        x = x.to(self._table.weight.dtype, copy=True)
        output = self.module(inputs_embeds=x, **options)
        if memory is not None:
            memory.adopt(output[self._cache], len(x))
        hidden = output.last_hidden_state if self.plan.head else output.logits
        return hidden.float() if hidden.dtype in HALF else hidden
