"""Draft and verify: several symbols per pass, and exactly the text of plain generation (K25).

Heads of the model (levels or multi-token heads, models/horizons.py) propose the next symbols; the
whole network reads them in one pass and decides each of them with the same draws as ever. What it
decides otherwise ends the pass. In compiled code a slot read among others is the slot read alone,
to the bit, so the text is the same; where there is no compiled code, each symbol gets a pass of its
own, and the text is the same all the more.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..core.threads import for_each
from ..models.by_row import as_array
from ..models.compiled_decoder import PIECE
from ..models.soft_ar import SoftAR
from ..models.state import SoftState
from . import fast_path
from .drafts import Draft
from .engine_state import EngineState
from .recorder import FLUSH

PATIENCE = 32  # at most so many steps ahead is `stop` asked


def suits(engine: EngineState, state: Any) -> bool:
    """Whether `write` can serve these choices: they are drafted, and there is compiled code."""
    return engine.config.draft is not None and fast_path.suits(engine, state)


def write(engine: EngineState, state: SoftState, stop: Callable[[], bool] | None) -> Iterator[None]:
    """Serve `Engine.generate` from the state after the tokens that all prompts have."""
    model, recorder, total, begin = engine.model, engine.recorder, engine.total, 0
    proposals = _proposals(model, engine.config.draft)
    while begin < total:
        # 1) as many steps as fit the context; the model itself reads the last one, and renews it
        count = min(FLUSH, total - begin, model.config.tokens - state.length + 1)
        if stop is not None:
            if stop():
                return
            count = min(count, PATIENCE)
        state, (token_ids, states, passes) = _write(engine, state, begin, count, proposals)
        # 2) record them, and hand over
        prediction = model.objective.predict(states.flatten(0, 1), model.embedding)
        log_probs = prediction.log_probs.view(*token_ids.shape, -1)  # (S, B, V)
        vectors = prediction.vector.view(*token_ids.shape, -1)  # (S, B, m)
        recorder.reduce(log_probs, vectors, token_ids, passes=passes)
        hard = torch.ones_like(token_ids, dtype=torch.bool)
        recorder.settle(token_ids, hard, model.embedding[token_ids])
        begin += count
        yield


def _proposals(model: SoftAR, draft: Draft) -> tuple[Any, ...]:
    """What `kernels.draft` needs of the heads: most, above, proposals, recurrent."""
    d, vocab_size = model.config.d_model, model.vocab_size
    level, empty = model.levels.recurrent, torch.zeros(0)
    if level is not None:
        weights = (level.enter, level.step, level.rows, level.leave, level.bias)
        far, most = (torch.zeros(d, 0), empty), level.reach
    else:
        maps = model.levels.proposals(model.embedding)[: draft.most - 1]
        far = torch.cat([one for one, _ in maps], 1), torch.cat([one for _, one in maps])
        weights = (torch.zeros(d, 0), torch.zeros(0, 0), torch.zeros(vocab_size, 0),
                   torch.zeros(0, vocab_size), torch.zeros(vocab_size))  # fmt: skip
        most = len(maps) + 1
    arrays = (tuple(as_array(one.float()) for one in some) for some in (far, weights))
    return min(draft.most, most), float(draft.above), *arrays


def _write(
    engine: EngineState,
    state: SoftState,
    begin: int,
    count: int,
    proposals: tuple[Any, ...],
) -> tuple[SoftState, tuple[Tensor, Tensor, Tensor]]:
    """Write `count` steps in one call.

    Returns:
        The state after them, and (symbols (S, B), hidden states (S, B, d) they were predicted from,
        whether each needed a pass of its own (S, B)).
    """
    model, rows = engine.model, len(state.hidden)
    # 1) memory for what is read
    slot = state.length + model.n_front
    cache = state.cache.reserve(slot, count - 1)
    decoder = cache.decoder
    # 2) what is known beforehand: the draws and the rest of the prompts
    uniform = torch.stack([engine.uniform[begin + i] for i in range(count)])
    forced = torch.full((count, rows), -1)
    prompts = engine.forced[begin : begin + count]
    forced[: len(prompts)] = prompts
    # 3) write, the rows in pieces side by side
    token_ids = torch.empty(count, rows, dtype=torch.long)
    states, passes = torch.empty(count, *state.hidden.shape), torch.zeros_like(token_ids)
    matrix, bias = fast_path.logits(model)
    head = as_array(model.objective.head.weight.T)
    arguments = (
        as_array(state.hidden), slot, *decoder.body, decoder.arrays(cache),
        head, as_array(matrix), as_array(bias), decoder.input, as_array(model.embedding),
        uniform.numpy(), forced.numpy(), float(engine.temperature), *proposals,
        token_ids.numpy(), states.numpy(), passes.numpy(),
    )  # fmt: skip
    work = (decoder.work + head.size) * count * rows
    for_each(lambda first, end: decoder.kernels.draft(first, end, *arguments), rows, PIECE, work)
    # 4) the state behind them
    cache.filled += count - 1
    if rows == 1:
        cache.shared = cache.filled
    inputs = model.embedding[token_ids].transpose(0, 1)  # (B, S, m)
    if count > 1:
        read = (*state.inputs, inputs[:, :-1])
        length = state.length + count - 1
        state = SoftState(cache, length, states[-1], read, state.begin, state.memory_state)
    if begin + count < engine.total:
        state = model.advance(state, vectors=inputs[:, -1])
    return state, (token_ids, states, passes)
