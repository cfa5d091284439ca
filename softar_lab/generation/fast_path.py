"""Many steps in one call of compiled code, where every decision is known beforehand.

`engine.py` defines generation. This file computes the same symbols, equal to the bit (a test
compares both), without Python's and PyTorch's cost per call, which is a large part of a small
model's step. It serves a SoftAR on a CPU with collapse "softmax", a schedule that looks at the step
alone, and a feedback that is at most one matrix product away from the prediction.
"""

from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

import torch

from ..core.threads import for_each
from ..models import compiled
from ..models.by_row import as_array
from ..models.compiled_decoder import PIECE, CompiledDecoder
from ..models.soft_ar import SoftAR
from ..models.state import SoftState
from . import feedback as feedbacks
from .collapse import softmax
from .engine_state import EngineState
from .step_context import StepContext

PATIENCE = 8  # at most so many steps ahead is `stop` asked


def suits(engine: EngineState, state: Any) -> bool:
    """Whether `write` can serve these choices, from a state of the model."""
    model = engine.model
    if not isinstance(model, SoftAR) or not isinstance(state.cache.decoder, CompiledDecoder):
        return False
    known = engine.collapse is softmax and engine.schedule.by_step and model.steps_are_its_own
    return known and logits(model) is not None and (engine.always or _mode(engine) is not None)


def write(engine: EngineState, state: SoftState, stop: Callable[[], bool] | None) -> Iterator[None]:
    """Serve `Engine.generate` from the state after the tokens that all prompts have."""
    model, recorder, total, begin = engine.model, engine.recorder, engine.total, 0
    while begin < total:
        steps, wanted = [], min(recorder.piece, total - begin)
        while wanted:
            # 1) how many steps fit the context; the model itself reads the last one, and renews it
            count = min(wanted, model.config.tokens - state.length + 1)
            if stop:
                count = sum(1 for _ in takewhile(lambda _: not stop(), range(min(count, PATIENCE))))
            if not count:
                break
            # 2) write them
            state, found = _write(engine, state, begin, count)
            steps.append(found)
            begin, wanted = begin + count, wanted - count
        # 3) record them, and hand over
        if steps:
            columns = (torch.cat(parts) for parts in zip(*steps, strict=True))
            token_ids, states, inputs, hard = columns  # (S, B), (S, B, d), (S, B, m), (S, B)
            prediction = model.objective.predict(states.flatten(0, 1), model.embedding)
            log_probs = prediction.log_probs.view(*token_ids.shape, -1)  # (S, B, V)
            vectors = prediction.vector.view(*token_ids.shape, -1)  # (S, B, m)
            recorder.reduce(log_probs, vectors, token_ids)
            recorder.settle(token_ids, hard, inputs)
            yield
        if wanted:
            return


def _write(
    engine: EngineState, state: SoftState, begin: int, count: int
) -> tuple[SoftState, tuple[torch.Tensor, ...]]:
    """Write `count` steps in one call.

    Returns:
        The state after them, and (symbols (S, B), hidden states (S, B, d) they were predicted from,
        what was fed back (S, B, m), whether that is a hard token (S, B)).
    """
    model, rows, (matrix, bias) = engine.model, len(state.hidden), logits(engine.model)
    # 1) memory for what is read
    slot = state.length + model.n_front
    cache = state.cache.reserve(slot, count - 1)
    decoder = cache.decoder
    # 2) what is known beforehand: the draws, the rest of the prompts, the schedule
    uniform = torch.stack([engine.uniform[begin + i] for i in range(count)])
    forced, hard = torch.full((count, rows), -1), torch.ones(count, rows, dtype=torch.bool)
    prompts = engine.forced[begin : begin + count]
    forced[: len(prompts)] = prompts
    if not engine.always:
        for i in range(count):
            context = StepContext(
                engine.steps[begin + i], None, None, None, model.embedding, engine.seeds
            )
            hard[i] = engine.schedule(context)
        hard |= forced >= 0
    # 3) write, the rows in pieces side by side
    token_ids = torch.empty(count, rows, dtype=torch.long)
    states = torch.empty(count, *state.hidden.shape)
    inputs = torch.empty(count, rows, model.config.embedding_dim)
    mode = decoder.kernels.SHOWN if engine.always else _mode(engine)
    warmth = (float(engine.temperature), float(engine.soft_temperature))
    head = as_array(model.objective.head.weight.T)
    arguments = (
        as_array(state.hidden), slot, *decoder.body, decoder.arrays(cache),
        head, as_array(matrix), as_array(bias), decoder.input, as_array(model.embedding),
        uniform.numpy(), forced.numpy(), hard.numpy(), mode, warmth,
        token_ids.numpy(), states.numpy(), inputs.numpy(),
    )  # fmt: skip
    work = (decoder.work + head.size) * count * rows
    for_each(lambda first, end: decoder.kernels.write(first, end, *arguments), rows, PIECE, work)
    # 4) the state behind them
    cache.filled += count - 1
    if rows == 1:
        cache.shared = cache.filled
    if count > 1:
        read = (*state.inputs, inputs[:-1].transpose(0, 1))
        state = SoftState(
            cache, state.length + count - 1, states[-1], read, state.begin, state.memory_state
        )
    if begin + count < engine.total:
        state = model.advance(state, vectors=inputs[-1])
    return state, (token_ids, states, inputs, hard)


def _mode(engine: EngineState) -> int | None:
    """The kernels' number for this feedback; None where they do not know it."""
    model, feedback, kernels = engine.model, engine.feedback, compiled.kernels()
    if feedback == feedbacks.Mixture() or (feedback == feedbacks.Raw() and _is_mixture(model)):
        return kernels.MIXTURE
    if feedback == feedbacks.Raw() and model.objective.linear:
        return kernels.OUTPUT
    return kernels.SHOWN if feedback == feedbacks.Shown() else None


def _is_mixture(model: SoftAR) -> bool:
    """Whether the model's soft token is pE."""
    return model.objective.readouts == ("softmax",)


def logits(model: SoftAR) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(matrix, bias) where p is softmax(output @ matrix + bias)."""
    return model.objective.readout.affine(model.objective, model.embedding)
