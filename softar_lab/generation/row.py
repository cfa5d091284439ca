"""The ordinary case in NumPy from end to end: one row, every token drawn from the model's p(w | prefix) and fed back.

`writing.py` says what generation is; this is a shorter way to the same text (a test holds both together), because at
this size PyTorch's cost per call is a large part of a step.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..models.decoding import RowDecoder
from ..models.soft_ar import SoftAR
from ..models.state import SoftState
from .collapse import pick_row, softmax

_STEPS = ("predict", "advance", "read")


def suits(model: Any, state: Any, collapse: Callable, steps: int) -> bool:
    """Whether `write` can do it: a SoftAR on a CPU whose steps are its own, one row, no slide of the window."""
    own = (getattr(getattr(model, name), "__func__", None) is getattr(SoftAR, name) for name in _STEPS)
    return (
        isinstance(model, SoftAR)
        and all(own)
        and RowDecoder.suits(model.body)
        and collapse is softmax
        and model.device.type == "cpu"
        and len(state.hidden) == 1
        and state.length + steps - 1 <= model.config.tokens
        and model.objective.affine_logits(model.table.weight) is not None
    )


def write(
    model: SoftAR, state: SoftState, uniform: Float[Tensor, " T"], temperature: float | int, stop: Callable[[], bool]
) -> tuple[Tensor, Float[Tensor, "S d"]]:
    """Up to T symbols (fewer where `stop` says so): their ids (S,) and the hidden states (S, d) behind them."""
    weight, bias = (tensor.numpy() for tensor in model.objective.affine_logits(model.table.weight))
    decoder = RowDecoder(model.input, model.body)
    rows = decoder.embed(model.embedding.numpy())  # (V, d)
    begin = state.length + model.n_front
    slots = state.cache.room_for(begin, len(uniform) - 1)
    keys, values, hidden = slots.keys.numpy()[:, 0], slots.values.numpy()[:, 0], state.hidden.numpy()[0]
    slots.filled += len(uniform) - 1  # what is written here belongs to no other state
    token_ids, states = [], []
    for slot, draw in enumerate(uniform.tolist(), start=begin - 1):
        if stop():
            break
        if token_ids:
            hidden = decoder(rows[token_ids[-1]], keys, values, slot)
        logits = hidden.dot(weight)
        logits += bias
        token_ids.append(int(logits.argmax()) if temperature == 0 else pick_row(_weights(logits, temperature), draw))
        states.append(hidden)
    return torch.tensor(token_ids, dtype=torch.long), torch.from_numpy(np.array(states).reshape(-1, hidden.size))


def _weights(logits: np.ndarray, temperature: float | int) -> np.ndarray:
    """exp(logits / temperature), the largest 1."""
    logits -= logits.max()
    if temperature != 1:
        logits = logits.astype(np.float64) / temperature
    return np.exp(logits)
