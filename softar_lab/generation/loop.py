"""generate() and stream(): every model, and every choice of collapse, schedule and feedback (K2, K16, K38)."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..evaluation import context_of, overlap_of
from ..models.soft_ar import SoftAR, pick_device
from ..models.window import LAYOUTS
from ..predictor import Predictor
from ..threads import limited
from . import collapse as collapses
from . import feedback as feedbacks
from . import schedule as schedules
from .trajectory import Trajectory
from .writing import Writing


def generate(
    model: Predictor,
    prompt: str | Sequence[str],
    steps: int = 200,
    *,
    collapse: Any = "softmax",
    schedule: Any = "always",
    feedback: Any = "mixture",
    window: Any = None,
    temperature: float | int = 1.0,
    soft_temperature: float | int | None = None,
    seed: int | Sequence[int] = 0,
    device: str = "auto",
    stop: Callable[[], bool] | None = None,
) -> Trajectory | list[Trajectory]:
    """Let `model` write `steps` symbols after `prompt`; a list of prompts gives a list of trajectories.

    `collapse` (how a soft token becomes the symbol shown), `schedule` (when the symbol is fed back) and `feedback`
    (what is fed back otherwise) are names or instances. `temperature` 0 takes the most probable symbol; above 0 it is
    a draw decided by `seed` (one for all prompts or one each), so a batch writes what its prompts write one by one.
    `soft_temperature` reads the symbol off a soft token that stays soft, by the same draw (None: as `temperature`).
    An empty prompt starts from nothing. `window`: None, the model's own; see `SoftAR.with_window` for others, such as
    "masked" or "full". Where it says how many tokens may stay soft, older ones are grounded. `device` "auto" is where
    the model is.
    `stop` is asked at every step, some steps ahead; where it says True, the steps done so far are returned.

    Raises ValueError for an unknown name, steps below 1, a negative or infinite temperature, an unknown character or
    a prompt longer than the context.
    """
    model, prompts, settings, writing = _prepare(
        model, prompt, steps, collapse, schedule, feedback, window, temperature, soft_temperature, seed, device
    )
    with torch.inference_mode(), limited(model.work * len(prompts)):
        for _ in writing.run(stop):
            pass
    trajectories = writing.record.trajectories(model, prompts, writing.first, steps, settings)
    return trajectories[0] if isinstance(prompt, str) else trajectories


def stream(
    model: Predictor,
    prompt: str | Sequence[str],
    steps: int | None = None,
    *,
    collapse: Any = "softmax",
    schedule: Any = "always",
    feedback: Any = "mixture",
    window: Any = None,
    temperature: float | int = 1.0,
    soft_temperature: float | int | None = None,
    seed: int | Sequence[int] = 0,
    device: str = "auto",
) -> Iterator[Trajectory | list[Trajectory]]:
    """What `generate` writes, handed over piece by piece (128 steps each) as it comes; `steps` None: without end.

    Joined the pieces are the whole; none of them is kept here, and each step costs as much as any other. A piece's
    settings tell at which step it begins, as "begin". Raises ValueError as `generate` does.
    """
    model, prompts, settings, writing = _prepare(
        model, prompt, sys.maxsize if steps is None else steps, collapse, schedule, feedback, window, temperature,
        soft_temperature, seed, device,
    )  # fmt: skip
    running = writing.run()

    def pieces() -> Iterator[Trajectory | list[Trajectory]]:
        while True:
            with (
                torch.inference_mode(),
                limited(model.work * len(prompts)),
            ):  # not while whoever asked has its turn
                if next(running, running) is running:
                    return
            if writing.record.blocks:
                here = {**settings, "begin": writing.record.taken}
                some = writing.record.trajectories(model, prompts, writing.first, settings["steps"], here)
                yield some[0] if isinstance(prompt, str) else some

    return pieces()


def _prepare(
    model: Predictor,
    prompt: str | Sequence[str],
    steps: int,
    collapse: Any,
    schedule: Any,
    feedback: Any,
    window: Any,
    temperature: float | int,
    soft_temperature: float | int | None,
    seed: int | Sequence[int],
    device: str,
) -> tuple[Predictor, list[str], dict[str, Any], Writing]:
    """The model with the window asked for, the prompts, what a trajectory says of its making, and the writing to be."""
    how, when, what = collapses.resolve(collapse), schedules.resolve(schedule), feedbacks.resolve(feedback)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if window is not None:
        if not isinstance(model, SoftAR):
            raise ValueError(f"only a SoftAR has a window that can be changed, not {model!r:.80}")
        model = model.with_window(window)
    _check(model, prompts, steps, temperature, soft_temperature)
    if device != "auto":
        model.to(pick_device(device))
    seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one seed, or one a prompt")
    settings = {
        "collapse": collapses.COLLAPSES.spec(how),
        "schedule": schedules.SCHEDULES.spec(when),
        "feedback": feedbacks.FEEDBACKS.spec(what),
        "temperature": temperature,
        "steps": steps,
    }
    layout = getattr(getattr(model, "config", None), "layout", None)
    if layout:
        settings["window"] = LAYOUTS.spec(layout)
        when = schedules.within(when, layout.newest(model.config.context))
    if soft_temperature is not None:
        settings["soft_temperature"] = soft_temperature
    warmth = (temperature, temperature if soft_temperature is None else soft_temperature)
    return model, prompts, settings, Writing(model, prompts, steps, seeds, (how, when, what), *warmth)


def _check(
    model: Predictor,
    prompts: list[str],
    steps: int,
    temperature: float | int,
    soft_temperature: float | int | None,
) -> None:
    if not prompts:
        raise ValueError("no prompt given; an empty string starts from nothing")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, not {steps!r}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0 (greedy) or above, not {temperature!r}")
    if soft_temperature is not None and not 0 <= soft_temperature < math.inf:
        raise ValueError(f"soft_temperature must be None, 0 (the most probable) or above, not {soft_temperature!r}")
    if getattr(model, "tokenizer", None) is None:
        raise ValueError("the model has no tokenizer, so it can neither read a prompt nor write a text")
    context = context_of(model) or math.inf
    for text in prompts:
        if (count := len(model.tokenizer.encode(text))) > context and overlap_of(model) is None:
            raise ValueError(f"the prompt has {count} tokens, the model's context holds {context}: shorten the prompt")
