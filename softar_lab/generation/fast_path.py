"""Many steps in one call of compiled code, for the choices whose every step is known beforehand.

`writing.py` says what generation is; this is a shorter way to the same symbols, to the bit (a test holds both
together): Python's and PyTorch's cost per call is a large part of a small model's step. It serves a SoftAR on a CPU
whose symbols are drawn from p(w | prefix) ("softmax"), under a schedule that looks at the step alone, with a feedback
that is one product away from the prediction.
"""

from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from ..models.by_row import as_array
from ..models.compiled_decoder import PIECE, CompiledDecoder
from ..models.soft_ar import SoftAR
from ..models.state import SoftState
from ..threads import for_each
from . import feedback as feedbacks
from .collapse import softmax
from .record import FLUSH
from .thought import Thought

if TYPE_CHECKING:
    from .writing import Writing

_STEPS = ("predict", "advance", "read")
PATIENCE = 8  # steps at most for which `stop` is asked in advance


def suits(writing: "Writing", state: Any) -> bool:
    """Whether `write` can do it, from a state of the model's."""
    model = writing.model
    if not isinstance(model, SoftAR) or not isinstance(state.cache.decoder, CompiledDecoder):
        return False
    own = (getattr(getattr(model, name), "__func__", None) is getattr(SoftAR, name) for name in _STEPS)
    known = writing.collapse is softmax and getattr(writing.schedule, "by_step", False)
    return known and all(own) and _logits(model) is not None and (writing.ordinary or _mode(writing) is not None)


def write(writing: "Writing", state: SoftState, stop: Callable[[], bool] | None) -> Iterator[None]:
    """What `Writing.run` promises, from the state after the part of the prompts that all rows share in length."""
    model, record, total, begin = writing.model, writing.record, writing.total, 0
    while begin < total:
        steps, wanted = [], min(FLUSH, total - begin)
        while wanted:
            count = min(wanted, model.config.tokens - state.length + 1)  # the last is fed back by the model itself
            if stop:
                count = sum(1 for _ in takewhile(lambda _: not stop(), range(min(count, PATIENCE))))
            if not count:
                break
            state, found = _write(writing, state, begin, count)
            steps.append(found)
            begin, wanted = begin + count, wanted - count
        if steps:
            token_ids, states, inputs, hard = (torch.cat(parts) for parts in zip(*steps, strict=True))
            prediction = model.objective.predict(states.flatten(0, 1), model.embedding)
            shape = token_ids.shape
            log_probs, vectors = prediction.log_probs.view(*shape, -1), prediction.vector.view(*shape, -1)
            record.reduce(log_probs, vectors, token_ids)
            record.settle(token_ids, hard, inputs)
            yield
        if wanted:
            return


def _write(writing: "Writing", state: SoftState, begin: int, count: int) -> tuple[SoftState, tuple[torch.Tensor, ...]]:
    """`count` steps in one call: the state after them; symbols, hidden states, what was fed back, and where hard."""
    model, rows, (matrix, bias) = writing.model, len(state.hidden), _logits(writing.model)
    slot = state.length + model.n_front
    cache = state.cache.room_for(slot, count - 1)
    decoder = cache.decoder
    uniform = torch.stack([writing.uniform[begin + i] for i in range(count)])
    forced, hard = torch.full((count, rows), -1), torch.ones(count, rows, dtype=torch.bool)
    prompts = writing.forced[begin : begin + count]
    forced[: len(prompts)] = prompts
    if not writing.ordinary:
        for i in range(count):
            thought = Thought(writing.steps[begin + i], None, None, None, model.embedding, writing.seeds)
            hard[i] = writing.schedule(thought)
        hard |= forced >= 0
    token_ids = torch.empty(count, rows, dtype=torch.long)
    states, inputs = torch.empty(count, *state.hidden.shape), torch.empty(count, rows, model.config.embedding_dim)
    mode = decoder.kernels.SHOWN if writing.ordinary else getattr(decoder.kernels, _mode(writing))
    warmth = (float(writing.temperature), float(writing.soft_temperature))
    head = as_array(model.objective.head.weight.T)
    arguments = (
        as_array(state.hidden), slot, *decoder.body, decoder.arrays(cache),
        head, as_array(matrix), as_array(bias), decoder.input, as_array(model.embedding),
        uniform.numpy(), forced.numpy(), hard.numpy(), mode, warmth,
        token_ids.numpy(), states.numpy(), inputs.numpy(),
    )  # fmt: skip
    work = (decoder.work + head.size) * count * rows
    for_each(lambda first, end: decoder.kernels.write(first, end, *arguments), rows, PIECE, work)
    cache.filled += count - 1
    if rows == 1:
        cache.shared = cache.filled
    if count > 1:
        read = (*state.inputs, inputs[:-1].transpose(0, 1))
        state = SoftState(cache, state.length + count - 1, states[-1], read, state.begin, state.carry)
    if begin + count < writing.total:
        state = model.advance(state, vectors=inputs[-1])
    return state, (token_ids, states, inputs, hard)


def _mode(writing: "Writing") -> str | None:
    """Which of the kernels' ways to feed back this feedback is."""
    linear = writing.model.objective.linear
    if writing.feedback == feedbacks.Mixture() or (writing.feedback == feedbacks.Raw() and _is_mixture(writing.model)):
        return "MIXTURE"
    if writing.feedback == feedbacks.Raw() and linear:
        return "OUTPUT"
    return "SHOWN" if writing.feedback == feedbacks.Shown() else None


def _is_mixture(model: SoftAR) -> bool:
    """Whether the model's soft token is pE."""
    return model.objective.readouts == ("softmax",)


def _logits(model: SoftAR) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(matrix, bias) where p is softmax(output @ matrix + bias)."""
    return model.objective.readout.affine(model.objective, model.embedding)
