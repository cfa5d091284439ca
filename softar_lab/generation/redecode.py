"""Reads a stored path again with another collapse (K3): other symbols, the same soft tokens.

The body reads the slots of the path again, in one pass per window. So every collapse finds
what it found in generation: predictions, draws, states and the symbols emitted before.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.checks import SEEDS, real_number, whole_number
from ..core.predictor import Prediction, Predictor
from ..core.threads import limited
from ..core.trajectory import Trajectory
from ..models.cache import Cache
from ..models.mixing import mixing_layer
from ..models.soft_ar import SoftAR
from ..models.state import SoftState
from ..models.window_memory.memories import MemoryState
from . import collapse as collapses
from . import feedback as feedbacks
from . import schedule as schedules
from .recorder import candidates
from .run_context import RunContext
from .step_context import StepContext


def path_is_free(schedule: Any, feedback: Any, collapse: Any = "softmax") -> bool:
    """Whether a path does not depend on the symbols read off it.

    Then `redecode` gives what generate() would. This is true for schedule "never" with a feedback
    that looks at the prediction alone: collapse, temperature and seed then change the text only. A
    feedback from outside the package counts as one that looks at the symbol. A collapse that
    revises symbols ("deferred") counts as one that only generate() can ask.
    """
    how, when, what = (
        collapses.resolve(collapse),
        schedules.resolve(schedule),
        feedbacks.resolve(feedback),
    )
    return not how.look and isinstance(when, schedules.Never) and not what.needs_symbol


def can_redecode(model: Predictor, collapse: Any = "softmax") -> bool:
    """Whether `redecode` serves a model with this collapse.

    A SoftAR is served with every collapse that decides each slot by itself. Another model that
    reads a whole path in one pass, such as a pretrained one, is served with those that look at the
    prediction alone.
    """
    how = collapses.resolve(collapse)
    one_pass = model.reads_at_once and not how.needs_context
    return not how.look and (isinstance(model, SoftAR) or one_pass)


def redecode(
    model: Predictor,
    trajectory: Trajectory,
    collapse: Any,
    temperature: float | int | None = None,
    seed: int | None = None,
    soft_temperature: float | int | None = None,
) -> Trajectory:
    """The trajectory with the symbols that `collapse` reads off its path.

    `token_ids`, `text`, `log_probs` and the candidates change, and the collapse and temperatures in
    its settings. Where `path_is_free` (no symbol was fed back, and the feedback looked at none),
    this is what generate() writes with that collapse. Elsewhere the slots still hold the symbols of
    the first text.

    Args:
        model: the model that wrote the trajectory.
        trajectory: what is read again; it is not changed.
        collapse: a name or an instance.
        temperature: None: the temperatures in the trajectory's settings.
        seed: None: the one in the trajectory's settings, else 0, as in generate(). One that is
            given is recorded there.
        soft_temperature: of soft tokens. None: as `temperature`, or, where that is None, too, the
            one in the settings.

    Raises:
        ValueError: for an unknown collapse, one that revises symbols ("deferred"), a path that this
            model did not write, a negative or infinite temperature.
    """
    # 1) the choices; the settings of the trajectory are their defaults
    how, stored = collapses.resolve(collapse), trajectory.settings
    if how.look:
        raise ValueError(
            f"collapse {collapse!r} decides several slots at once, which only generate() asks it to"
        )
    if temperature is None:
        temperature = stored.get("temperature", 1.0)
        if soft_temperature is None:
            soft_temperature = stored.get("soft_temperature")
    for value in (temperature, 0 if soft_temperature is None else soft_temperature):
        real_number("temperature", value, "0 (greedy) or above", lambda one: 0 <= one < math.inf)
    seed = stored.get("seed", 0) if seed is None else whole_number("seed", seed, *SEEDS)
    if not seed:
        stored = {name: value for name, value in stored.items() if name != "seed"}
    _check(model, trajectory, how)
    draws = _draws_as_generated(trajectory, seed, temperature, soft_temperature, model.device)
    with torch.inference_mode(), limited(1):
        # 2) read the path again, and check that it is this model's
        prompt_ids = model.tokenizer.encode(trajectory.prompt).to(model.device)
        inputs = trajectory.inputs[:-1].to(model.device)
        slots = torch.cat([model.embedding[prompt_ids], inputs])[None]  # (1, N, m)
        prediction, windows = _read_path(model, slots, len(prompt_ids))
        _check_path(prediction.vector, trajectory.vectors.to(model.device))
        # 3) collapse every step
        token_ids = _collapse_all(model, how, trajectory, prompt_ids, windows, prediction, draws)
        log_probs = prediction.log_probs.gather(1, token_ids[:, None]).squeeze(1)
        top_ids, top_probs = candidates(prediction.probs, token_ids)
    # 4) the same trajectory with other symbols
    settings = {**stored, "collapse": collapses.COLLAPSES.spec(how), "temperature": temperature}
    settings |= {"seed": seed} if seed else {}
    settings.pop("soft_temperature", None)
    if soft_temperature is not None:
        settings["soft_temperature"] = soft_temperature
    return replace(
        trajectory,
        text=model.tokenizer.after(trajectory.prompt).decode(token_ids.cpu()),
        token_ids=token_ids.cpu().clone(),
        log_probs=log_probs.cpu().clone(),
        top_ids=top_ids.cpu().clone(),
        top_probs=top_probs.cpu().clone(),
        settings=settings,
    )


@dataclass(frozen=True)
class Window:
    """The slots of one window, and what the body made of them.

    Attributes:
        hidden: hidden states (1, slots, d); entry t follows t slots of the window.
        first: the entries before this one belong to the window before.
        begin: the number of the first slot.
        parts: the vectors of the slots, (1, 1, m) each.
        cache: the body's cache, which holds all slots.
        memory_state: what the model's memory holds of older slots.
    """

    hidden: Float[Tensor, "1 slots d"]
    first: int
    begin: int
    parts: tuple[Tensor, ...]
    cache: Cache
    memory_state: MemoryState

    def states(self) -> list[SoftState]:
        """The state after each entry from `first` on; one can read on from any of them."""
        lengths = range(self.first, self.hidden.shape[1])
        return [
            SoftState(
                self.cache, n, self.hidden[:, n], self.parts[:n], self.begin, self.memory_state
            )
            for n in lengths
        ]


def read_again(model: SoftAR, slots: Float[Tensor, "1 N m"]) -> list[Window]:
    """The windows that N slots fill when they are read one by one; each is read in one pass here.

    When a window is full, the next one begins with the latest slots, as in `SoftAR.read`.
    """
    total, context, memory_state = slots.shape[1], model.config.tokens, model.update_memory(1)
    parts, windows, begin, done = slots.split(1, 1), [], 0, 0
    while done <= total:
        # 1) read the slots that fit
        end = min(begin + context, total)
        cache = model.body.new_cache(1).reserve(0, model.n_front + end - begin)
        hidden = model.body(
            torch.cat([model.front(1, memory_state), model.input(slots[:, begin:end])], 1), cache
        )
        hidden = hidden[:, model.n_front - 1 :]  # (1, end-begin+1, d)
        windows.append(Window(hidden, done - begin, begin, parts[begin:end], cache, memory_state))
        # 2) the next window begins with the latest slots; the memory takes the older ones
        following = begin + context + 1 - model.config.overlap
        memory_state = model.update_memory(memory_state, vectors=slots[:, begin:following])
        begin, done = following, end + 1
    return windows


@dataclass(frozen=True)
class _Draws:
    """How the symbols of T steps are drawn, as in generation.

    Attributes:
        seed: of the trajectory.
        heat: the temperature of each step (T,).
        uniform: the random number of each step (T,), in [0, 1).
    """

    seed: int
    heat: Float[Tensor, " T"]
    uniform: Float[Tensor, " T"]


def _draws_as_generated(
    trajectory: Trajectory,
    seed: int,
    temperature: float | int,
    soft_temperature: float | int | None,
    device: torch.device,
) -> _Draws:
    """The draws of a trajectory's steps; `soft_temperature` is that of its soft tokens, if any."""
    steps, generator = len(trajectory), torch.Generator().manual_seed(seed)
    uniform = torch.rand(steps, generator=generator, dtype=torch.float64).to(device)
    heat = torch.full((steps,), float(temperature))
    if soft_temperature is not None:
        heat[~trajectory.collapsed] = soft_temperature
    return _Draws(seed, heat, uniform)


def _read_path(
    model: Predictor, slots: Float[Tensor, "1 N m"], first: int
) -> tuple[Prediction, list[Window]]:
    """The predictions of the T steps that follow the first slots, and the windows of a SoftAR.

    Another model is read in one pass, without windows.
    """
    if not isinstance(model, SoftAR):
        return model.predict_after(model.hidden_states(vectors=slots)[0, first:]), []
    windows = read_again(model, slots)
    hidden = torch.cat([window.hidden[0, window.first :] for window in windows])  # (N+1, d)
    return model.objective.predict(hidden[first:], model.embedding), windows


def _collapse_all(
    model: Predictor,
    how: Callable,
    trajectory: Trajectory,
    prompt_ids: Tensor,
    windows: list[Window],
    prediction: Prediction,
    draws: _Draws,
) -> Tensor:
    """The symbols of all T steps (T,)."""
    steps, first = len(trajectory), len(prompt_ids)
    # 1) the mixing layer reads each window in one call
    if how is collapses.mixing:
        layer = mixing_layer(model, 'collapse "mixing"')
        log_probs = [
            layer.log_probs(window.hidden, model.embedding)[0, window.first :] for window in windows
        ]
        return _pick_all(torch.cat(log_probs)[first:].exp(), draws)
    # 2) no step depends on another one: all in one call
    if isinstance(how, collapses.Vote) or not how.needs_context:
        seeds = (draws.seed,) * steps
        context = StepContext(torch.arange(steps), prediction, None, None, model.embedding, seeds)
        return _pick_all(collapses.ask(how, prediction, model.embedding, context), draws)
    # 3) other collapses need the context of each step
    states = [state for window in windows for state in window.states()][first:]
    return _step_by_step(model, how, trajectory, prompt_ids, states, prediction, draws)


def _pick_all(probs: Float[Tensor, "T V"], draws: _Draws) -> Tensor:
    """`pick` for T steps, each at its own temperature."""
    token_ids = torch.zeros(len(probs), dtype=torch.long, device=probs.device)
    for temperature in draws.heat.unique().tolist():
        steps = (draws.heat == temperature).to(probs.device)
        token_ids[steps] = collapses.pick(probs[steps], temperature, draws.uniform[steps])
    return token_ids


def _step_by_step(
    model: SoftAR,
    collapse: Callable,
    trajectory: Trajectory,
    prompt_ids: Tensor,
    states: list[SoftState],
    prediction: Prediction,
    draws: _Draws,
) -> Tensor:
    """Ask a collapse that takes the step's context, step by step as in generation.

    So it can save values from step to step, and look at the symbols before.
    """
    run, embedding = RunContext(model, 1), model.embedding
    run.tokens += list(prompt_ids[:, None])
    hard = trajectory.collapsed.to(model.device)
    for t, state in enumerate(states):
        step = torch.tensor([t], device=model.device)
        one = _row(model, prediction, state, t)
        was_hard = hard[t - 1 : t] if t else torch.zeros_like(hard[:1])
        context = StepContext(step, one, None, None, embedding, (draws.seed,), was_hard, state, run)
        probs = collapse(one, embedding, context)
        uniform = draws.uniform[t : t + 1]
        run.tokens.append(collapses.pick(probs, draws.heat[t].item(), uniform))
    return torch.cat(run.tokens[len(prompt_ids) :])


def _row(model: SoftAR, prediction: Prediction, state: SoftState, t: int) -> Prediction:
    """The prediction of one step; its soft tokens are drawn only when asked for."""
    sample = lambda n, generator: model.predict(state).sample_vectors(n, generator)  # noqa: E731
    return Prediction(
        prediction.log_probs[t : t + 1],
        prediction.vector[t : t + 1],
        sample if prediction.sampler else None,
        prediction.probs[t : t + 1],
    )


def _check(model: Predictor, trajectory: Trajectory, collapse: Callable) -> None:
    if not can_redecode(model, collapse):
        of = "this collapse's" if model.reads_at_once else "the"
        raise ValueError(f"recollapse reads {of} soft tokens of a SoftAR, not of {model!r:.80}")
    if not len(trajectory):
        raise ValueError("the trajectory has no step to be read again")
    tokens = None if model.tokenizer is None else tuple(model.tokenizer.tokens)
    if tokens != trajectory.tokens or trajectory.inputs.shape[1] != model.config.embedding_dim:
        raise ValueError(
            "the trajectory is of another model: its symbols or the width of its soft tokens differ"
        )


def _check_path(found: Tensor, stored: Tensor) -> None:
    """Raise ValueError at the first soft token that the model would not have predicted.

    The bound of a hundredth is far above rounding.
    """
    apart = (found - stored).norm(dim=-1) / (1 + stored.norm(dim=-1))
    if (apart > 0.01).any():
        t = int((apart > 0.01).nonzero()[0])
        raise ValueError(
            f"the path is not this model's: at step {t} it predicts another soft token ({apart[t]:.2g} away)"
        )
