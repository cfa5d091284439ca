"""Ordinary generation of one row in NumPy: each token is drawn from p(w | prefix) and fed back.

`engine.py` defines generation. This file computes the same text (a test compares both) without
PyTorch's cost per call, which is a large part of a step at this size.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..models.numpy_decoder import RowDecoder
from ..models.soft_ar import SoftAR
from ..models.state import SoftState
from .collapse import pick_row, softmax
from .engine_state import EngineState
from .recorder import FLUSH


def suits(engine: EngineState, state: Any) -> bool:
    """Whether `write` can serve it: ordinary generation of one row by a SoftAR on a CPU.

    All tokens must fit the context, so that the window does not slide.
    """
    model = engine.model
    return (
        engine.always
        and not len(engine.forced)
        and engine.collapse is softmax
        and isinstance(model, SoftAR)
        and model.steps_are_its_own
        and RowDecoder.suits(model.body)
        and model.device.type == "cpu"
        and len(state.hidden) == 1
        and state.length + engine.total - 1 <= model.config.tokens
        and model.objective.affine_logits(model.table.weight) is not None
    )


def write(engine: EngineState, state: SoftState, stop: Callable[[], bool] | None) -> Iterator[None]:
    """Serve `Engine.generate` from the state after the prompt."""
    model, recorder = engine.model, engine.recorder
    token_ids, hidden = _write(engine, state, stop or (lambda: False))
    for ids, states in zip(token_ids.split(FLUSH), hidden.split(FLUSH), strict=True):
        prediction = model.objective.predict(states, model.embedding)
        ids = ids[:, None]  # (S, 1)
        recorder.reduce(prediction.log_probs[:, None], prediction.vector[:, None], ids)
        recorder.settle(ids, torch.ones_like(ids, dtype=torch.bool), model.embedding[ids])
    yield


def _write(
    engine: EngineState, state: SoftState, stop: Callable[[], bool]
) -> tuple[Tensor, Float[Tensor, "S d"]]:
    """Write up to `total` symbols, fewer where `stop` returns True.

    Returns:
        Their ids (S,), and the hidden states (S, d) they were predicted from.
    """
    # 1) the draws, the readout, the decoder, and slots in the cache
    model, temperature, uniform = (
        engine.model,
        engine.temperature,
        engine.uniform.of_row(engine.total),
    )
    weight, bias = (tensor.numpy() for tensor in model.objective.affine_logits(model.table.weight))
    decoder = RowDecoder(model.input, model.body)
    rows = decoder.embed(model.embedding.numpy())  # (V, d)
    begin = state.length + model.n_front
    slots = state.cache.reserve(begin, len(uniform) - 1)
    keys, values, hidden = (
        slots.keys.numpy()[:, 0],
        slots.values.numpy()[:, 0],
        state.hidden.numpy()[0],
    )
    slots.filled += len(uniform) - 1  # what is written here belongs to no other state
    # 2) read the symbol before, and pick the next one
    token_ids, states = [], []
    for slot, draw in enumerate(uniform.tolist(), start=begin - 1):
        if stop():
            break
        if token_ids:
            hidden = decoder(rows[token_ids[-1]], keys, values, slot)
        logits = hidden.dot(weight)
        logits += bias
        token_ids.append(
            int(logits.argmax())
            if temperature == 0
            else pick_row(_weights(logits, temperature), draw)
        )
        states.append(hidden)
    return torch.tensor(token_ids, dtype=torch.long), torch.from_numpy(
        np.array(states).reshape(-1, hidden.size)
    )


def _weights(logits: np.ndarray, temperature: float | int) -> np.ndarray:
    """exp(logits / temperature), scaled so that the largest is 1; `logits` is changed, too."""
    logits -= logits.max()
    if temperature != 1:
        logits = logits.astype(np.float64) / temperature
    return np.exp(logits)
