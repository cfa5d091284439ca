"""generate(): every model, and every choice of collapse, schedule and feedback (K2, K16, K38)."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

from ..models.soft_ar import pick_device
from ..predictor import Predictor
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
    An empty prompt starts from nothing. `window`: only the plain one (None). `device` "auto" is where the model is.
    `stop` is asked at every step; where it says True, the steps done so far are returned.

    Raises ValueError for an unknown name, steps below 1, a negative or infinite temperature, an unknown character or
    a prompt longer than the context.
    """
    how, when, what = collapses.resolve(collapse), schedules.resolve(schedule), feedbacks.resolve(feedback)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    _check(model, prompts, steps, window, temperature, soft_temperature)
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
    if soft_temperature is not None:
        settings["soft_temperature"] = soft_temperature
    warmth = (temperature, temperature if soft_temperature is None else soft_temperature)
    with torch.inference_mode(), few_threads(len(prompts)):
        writing = Writing(model, prompts, steps, seeds, (how, when, what), *warmth)
        writing.run(stop or (lambda: False))
    trajectories = writing.record.trajectories(model, prompts, writing.first, steps, settings)
    return trajectories[0] if isinstance(prompt, str) else trajectories


def _check(
    model: Predictor,
    prompts: list[str],
    steps: int,
    window: Any,
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
    if window is not None:
        raise ValueError(f"unknown window {window!r}; known: None, the plain one")
    if getattr(model, "tokenizer", None) is None:
        raise ValueError("the model has no tokenizer, so it can neither read a prompt nor write a text")
    context = getattr(getattr(model, "config", None), "context", math.inf)
    for text in prompts:
        if len(text) > context and (count := len(model.tokenizer.encode(text))) > context:
            what = "characters" if count == len(text) else "tokens"
            raise ValueError(
                f"the prompt has {count} {what}, the model's context holds {context}: shorten the prompt"
            )


@contextmanager
def few_threads(batch_size: int) -> Iterator[None]:
    """One processor thread for small batches: handing such small products round costs more than it gains."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if batch_size <= 8 else before)
    try:
        with _numpy_threads().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@cache
def _numpy_threads() -> ThreadpoolController:
    """The thread pools behind NumPy, which decodes single rows; looking for them takes milliseconds."""
    return ThreadpoolController()
