"""Grounding: slots that were read softly hold, from now on, the row of the symbol shown for them
(K5).
"""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from .engine_state import EngineState


def split(hard: Bool[Tensor, "B *n"]) -> tuple[Bool[Tensor, "B late"], Bool[Tensor, " B"]]:
    """A schedule's decision for the slots already read, the latest last, and for the next one."""
    return (hard[:, :-1], hard[:, -1]) if hard.ndim == 2 else (hard[:, None][:, :0], hard)


def ground(engine: EngineState, state: Any, t: int, late: Bool[Tensor, "B n"]) -> Any:
    """The state in which soft slots among the latest n hold the rows of their emitted symbols.

    Args:
        engine: the running generation, before step t is recorded.
        state: the model's.
        t: the position to be written next.
        late: which of the latest n slots the schedule makes hard, the newest last.

    Raises:
        ValueError: for a model that cannot replace slots.
    """
    model, recorder = engine.model, engine.recorder
    if not model.can_replace:
        raise ValueError(
            "this schedule grounds slots that were read: it needs a model that reads vectors, a SoftAR"
        )
    # 1) of these slots, the ones that this call wrote and that are still soft; a row that has all
    # its steps does not change any more
    writes = (engine.steps[t] < engine.config.steps)[:, None]
    late = late[:, max(0, late.shape[1] - t) :] & writes
    n = min(late.shape[1], state.length)
    if n:
        late = late[:, -n:] & recorder.soft(n)
    if not n or not late.any():
        return state
    # 2) what they hold from now on; slots before the first of them stay what they are
    rows = engine.embedding[torch.stack(engine.run.tokens[-n:], 1)]  # (B, n, m)
    skip = int(late.any(0).int().argmax())
    vectors = torch.where(late[..., None], rows, torch.cat(state.inputs, 1)[:, -n:])
    # 3) record, and read these slots again
    for i in range(skip, n):
        recorder.ground(n - i, late[:, i])
    return model.replace(state, state.end - n + skip, vectors[:, skip:])
