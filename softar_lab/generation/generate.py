"""generate() and stream(): every model, every collapse, schedule and feedback (K2, K16, K38)."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.checks import sequence, whole_number
from ..core.predictor import Predictor
from ..core.threads import limited
from ..core.trajectory import Trajectory
from ..models.device import pick_device
from ..models.soft_ar import SoftAR
from ..models.window_memory.layout import LAYOUTS
from . import drafts, exiting
from .config import NO_PROMPT, GenerationConfig
from .engine import Engine
from .engine_state import token_ids
from .recorder import FLUSH
from .schedule import within

Prompt = str | Tensor  # a text, or its token ids (T,)


def generate(
    model: Predictor,
    prompt: Prompt | Sequence[Prompt],
    steps: int = 200,
    *,
    stop: Callable[[], bool] | None = None,
    **choices: Any,
) -> Trajectory | list[Trajectory]:
    """Let `model` write `steps` symbols after `prompt`.

    A batch writes, row by row, what its prompts write one by one.

    Args:
        model: any predictor with a tokenizer.
        prompt: a text or its token ids (T,), or a list of them; an empty one starts from nothing.
        steps: how many symbols each row emits.
        stop: asked at every step, some steps ahead; where it is True, the steps so far are returned.
        choices: collapse="softmax", schedule="always", feedback="mixture", window=None,
            temperature=1.0, soft_temperature=None, seed=0, exit=None, draft=None,
            device="auto": see `GenerationConfig`.

    Returns:
        A trajectory; of a list of prompts, a list of trajectories.

    Raises:
        ValueError: as `GenerationConfig` does; for an unknown character or a prompt longer than the
        context.
    """
    engine, settings = prepare(model, prompt, GenerationConfig(steps=steps, **choices))
    with torch.inference_mode(), limited(engine.model.work * len(engine.seeds)):
        for _ in engine.generate(stop):
            pass
    trajectories = engine.recorder.trajectories(
        engine.model, engine.prompts, engine.first, steps, settings, engine.seeds
    )
    return trajectories[0] if isinstance(prompt, Prompt) else trajectories


def stream(
    model: Predictor,
    prompt: Prompt | Sequence[Prompt],
    steps: int | None = None,
    *,
    stop: Callable[[], bool] | None = None,
    piece: int = FLUSH,
    **choices: Any,
) -> Iterator[Trajectory | list[Trajectory]]:
    """What `generate` writes, handed over piece by piece as it comes.

    `joined` pieces are the whole; none of them is kept here, and each step costs as much as any
    other. A piece's settings tell at which step it begins, as "begin".

    Args:
        model, prompt, stop, choices: as in `generate`.
        steps: how many symbols each row emits; None: without end.
        piece: how many steps are handed over together.

    Raises:
        ValueError: as `generate` does.
    """
    config = GenerationConfig(steps=sys.maxsize if steps is None else steps, **choices)
    engine, settings = prepare(model, prompt, config)
    engine.recorder.piece = whole_number("piece", piece)
    return _pieces(engine, settings, isinstance(prompt, Prompt), stop)


def joined(model: Predictor, pieces: Sequence[Trajectory]) -> Trajectory:
    """The trajectory that `generate` returns, from the pieces of one `stream` of this model."""
    first = pieces[0]
    arrays = {
        name: torch.cat([getattr(piece, name) for piece in pieces]) for name in Trajectory.ARRAYS
    }
    text = model.tokenizer.after(first.prompt).decode(arrays["token_ids"])
    settings = {name: value for name, value in first.settings.items() if name != "begin"}
    return replace(first, text=text, settings=settings, **arrays)


def _pieces(
    engine: Engine,
    settings: dict[str, Any],
    single: bool,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Trajectory | list[Trajectory]]:
    running, recorder = engine.generate(stop), engine.recorder
    while True:
        # Limits and inference mode hold while it writes, not while whoever asked has its turn.
        with torch.inference_mode(), limited(engine.model.work * len(engine.seeds)):
            if next(running, running) is running:
                return
        if recorder.blocks:
            here = {**settings, "begin": recorder.taken}
            some = recorder.trajectories(
                engine.model, engine.prompts, engine.first, settings["steps"], here, engine.seeds
            )
            yield some[0] if single else some


def prepare(
    model: Predictor, prompt: Prompt | Sequence[Prompt], config: GenerationConfig
) -> tuple[Engine, dict[str, Any]]:
    """The engine, by the window asked for, and what a trajectory says of its making.

    Raises:
        ValueError: as `generate` does.
    """
    single = isinstance(prompt, Prompt)
    prompts = [prompt] if single else sequence("prompt", prompt, "texts", NO_PROMPT)
    if config.window is not None:
        if not isinstance(model, SoftAR):
            raise ValueError(f"only a SoftAR has a window that can be changed, not {model!r:.80}")
        model = model.with_window(config.window)
    _check(model, prompts)
    if config.device != "auto":
        model.to(pick_device(config.device))
    settings = config.recorded()
    if model.layout:
        settings["window"] = LAYOUTS.spec(model.layout)
        config = replace(
            config, schedule=within(config.schedule, model.layout.newest(model.config.context))
        )
    if config.draft is not None:
        drafts.check(model, config.draft, config.schedule, config.collapse)
    if config.exit is not None:
        exiting.check(model, [len(token_ids(model, one)) for one in prompts])
        model = exiting.ExitingModel(model, config.exit)
    return Engine(model, prompts, config), settings


def _check(model: Predictor, prompts: list[Prompt]) -> None:
    if not isinstance(model, Predictor):
        raise ValueError(f"the model must be a predictor, such as a SoftAR, not {model!r:.80}")
    if wrong := [text for text in prompts if not isinstance(text, Prompt)]:
        raise ValueError(f"a prompt must be a text, not {wrong[0]!r:.80}")
    if model.tokenizer is None:
        raise ValueError(
            "the model has no tokenizer, so it can neither read a prompt nor write a text"
        )
    context = model.context or math.inf
    for one in prompts:
        if isinstance(one, Tensor):
            _check_ids(one, model.tokenizer.vocab_size)
        count = len(token_ids(model, one))
        if count > context and model.overlap is None:
            raise ValueError(
                f"the prompt has {count} tokens, the model's context holds {context}: shorten the prompt"
            )


def _check_ids(ids: Tensor, vocab_size: int) -> None:
    """Refuse a prompt of token ids that is none.

    Raises:
        ValueError: where it has another shape or type, or an id outside the vocabulary.
    """
    if ids.ndim != 1 or ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            "a prompt of token ids must be whole numbers of shape (T,), "
            f"not {ids.dtype} of shape {tuple(ids.shape)}"
        )
    if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < vocab_size):
        raise ValueError(
            f"token ids of a prompt lie from 0 to {vocab_size - 1}, "
            f"not from {int(ids.min())} to {int(ids.max())}"
        )
