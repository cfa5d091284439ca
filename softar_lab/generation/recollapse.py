"""What would the same path say under another collapse (K3)? A stored trajectory read again, its soft tokens as before.

The body reads the slots that were fed once more, in one pass a window, so that every collapse finds what it found in
generation: predictions, draws, states and what was shown before.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..adapters.pretrained import Pretrained
from ..models.memory import Carry
from ..models.mixing import mixing_layer
from ..models.soft_ar import SoftAR
from ..models.state import SoftState
from ..models.transformer import Cache
from ..predictor import Prediction, Predictor
from ..threads import limited
from . import collapse as collapses
from . import feedback as feedbacks
from . import schedule as schedules
from .session import Session
from .thought import Thought
from .trajectory import Trajectory

# Feedbacks that look at the prediction alone, never at the symbol shown.
_BLIND = (feedbacks.Mixture, feedbacks.Raw, feedbacks.NormRestored, feedbacks.Hidden, feedbacks.Mean,
          feedbacks.Nearest, feedbacks.Pause)  # fmt: skip


def path_is_free(schedule: Any, feedback: Any, collapse: Any = "softmax") -> bool:
    """Whether a path does not depend on the symbols read off it, so that `recollapse` says what generate() would.

    True for schedule "never" with a feedback that looks at the prediction alone; collapse, temperature and seed then
    change the text only. A feedback that is not the lab's own counts as one that looks at the symbol, and a collapse
    that revises what was shown ("deferred") as one that generate() alone can ask.
    """
    if hasattr(collapses.resolve(collapse), "revise"):
        return False
    return isinstance(schedules.resolve(schedule), schedules.Never) and isinstance(feedbacks.resolve(feedback), _BLIND)


def can_recollapse(model: Predictor, collapse: Any = "softmax") -> bool:
    """Whether `recollapse` can ask a model: a SoftAR anything, a pretrained one what looks at the prediction alone."""
    how = collapses.resolve(collapse)
    one_pass = isinstance(model, Pretrained) and not collapses.takes_thought(how)
    return not hasattr(how, "revise") and (isinstance(model, SoftAR) or one_pass)


def recollapse(
    model: SoftAR | Pretrained,
    trajectory: Trajectory,
    collapse: Any,
    temperature: float | int | None = None,
    seed: int | None = None,
) -> Trajectory:
    """The trajectory with the symbols that `collapse` reads off its path: other `token_ids`, `text` and `log_probs`.

    Where `path_is_free` (no symbol was fed back or looked at by the feedback), it is what generate() writes with that
    collapse; elsewhere the slots still hold the first text's symbols. `temperature` None: those of the trajectory;
    `seed` None is the one in its settings, else 0, as in generate().

    Raises ValueError for an unknown collapse, one that revises what was shown ("deferred"), a path that this model did
    not make, a negative temperature.
    """
    how = collapses.resolve(collapse)
    if hasattr(how, "revise"):
        raise ValueError(f"collapse {collapse!r} decides several slots at once, which only generate() asks it to")
    soft_temperature = trajectory.settings.get("soft_temperature") if temperature is None else None
    temperature = trajectory.settings.get("temperature", 1.0) if temperature is None else temperature
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (greedy) or above, not {temperature!r}")
    seed = trajectory.settings.get("seed", 0) if seed is None else seed
    _check(model, trajectory, how)
    steps = len(trajectory)
    uniform = torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(model.device)
    heat = torch.full((steps,), float(temperature))
    if soft_temperature is not None:
        heat[~trajectory.collapsed] = soft_temperature
    with torch.inference_mode(), limited(1):
        prompt_ids = model.tokenizer.encode(trajectory.prompt).to(model.device)
        slots = torch.cat([model.embedding[prompt_ids], trajectory.inputs[:-1].to(model.device)])[None]  # (1, N, m)
        first = len(prompt_ids)
        if isinstance(model, SoftAR):
            windows = read_again(model, slots)
            hidden = torch.cat([window.hidden[0, window.first :] for window in windows])[first:]  # (T, d)
            prediction = model.objective.predict(hidden, model.embedding)
        else:
            prediction = model.predict_after(model.hidden_states(vectors=slots)[0, first:])
        _check_path(prediction.vector, trajectory.vectors.to(model.device))
        if how is collapses.mixing:
            layer = mixing_layer(model, 'collapse "mixing"')
            said = [layer.log_probs(window.hidden, model.embedding)[0, window.first :] for window in windows]
            token_ids = _pick_all(torch.cat(said)[first:].exp(), heat, uniform)
        elif isinstance(how, collapses.Vote) or not collapses.takes_thought(how):  # each step by itself: all at once
            thought = Thought(torch.arange(steps), prediction, None, None, model.embedding, (seed,) * steps)
            seen = {"thought": thought} if collapses.takes_thought(how) else {}
            token_ids = _pick_all(how(prediction, model.embedding, **seen), heat, uniform)
        else:
            states = [state for window in windows for state in window.states()][first:]
            token_ids = _step_by_step(model, how, trajectory, prompt_ids, states, prediction, heat, uniform, seed)
        log_probs = prediction.log_probs.gather(1, token_ids[:, None]).squeeze(1)
    settings = {**trajectory.settings, "collapse": collapses.COLLAPSES.spec(how), "temperature": temperature}
    read = {"token_ids": token_ids.cpu().clone(), "log_probs": log_probs.cpu().clone(), "settings": settings}
    return replace(trajectory, text=model.tokenizer.decode(token_ids), **read)


@dataclass(frozen=True)
class Window:
    """What the body made of the slots of one window, `parts` (1, 1, m) each: entry t of `hidden` follows t of them.

    The entries before `first` belong to the window before; `begin` is the first slot's number.
    """

    hidden: Float[Tensor, "1 slots d"]
    first: int
    begin: int
    parts: tuple[Tensor, ...]
    cache: Cache
    carry: Carry

    def states(self) -> list[SoftState]:
        """The state after each entry, any of which may be read on from."""
        lengths = range(self.first, self.hidden.shape[1])
        return [SoftState(self.cache, n, self.hidden[:, n], self.parts[:n], self.begin, self.carry) for n in lengths]


def read_again(model: SoftAR, slots: Float[Tensor, "1 N m"]) -> list[Window]:
    """The windows that N slots fill when they are read one by one, each in one pass.

    When one is full the next begins with the latest of the slots, as `SoftAR.read` has it.
    """
    total, context, carry = slots.shape[1], model.config.tokens, model.fold(1)
    parts, windows, begin, done = slots.split(1, 1), [], 0, 0
    while done <= total:
        end = min(begin + context, total)
        cache = model.body.new_cache(1).room_for(0, model.n_front + end - begin)
        hidden = model.body(torch.cat([model.front(1, carry), model.input(slots[:, begin:end])], 1), cache)
        hidden = hidden[:, model.n_front - 1 :]  # (1, end-begin+1, d)
        windows.append(Window(hidden, done - begin, begin, parts[begin:end], cache, carry))
        following = begin + context + 1 - model.config.kept
        carry = model.fold(carry, vectors=slots[:, begin:following])
        begin, done = following, end + 1
    return windows


def _pick_all(probs: Float[Tensor, "T V"], heat: Float[Tensor, " T"], uniform: Tensor) -> Tensor:
    """`pick`, each step at its own temperature."""
    token_ids = torch.zeros(len(probs), dtype=torch.long, device=probs.device)
    for temperature in heat.unique().tolist():
        steps = (heat == temperature).to(probs.device)
        token_ids[steps] = collapses.pick(probs[steps], temperature, uniform[steps])
    return token_ids


def _step_by_step(
    model: SoftAR,
    collapse: Callable,
    trajectory: Trajectory,
    prompt_ids: Tensor,
    states: list[SoftState],
    prediction: Prediction,
    heat: Float[Tensor, " T"],
    uniform: Tensor,
    seed: int,
) -> Tensor:
    """For a collapse that takes the thought: asked as in generation, so that it may remember and look at the text."""
    session, embedding = Session(model, 1), model.embedding
    session.shown += list(prompt_ids[:, None])
    hard = trajectory.collapsed.to(model.device)
    for t, state in enumerate(states):
        step = torch.tensor([t], device=model.device)
        one = _row(model, prediction, state, t)
        was_hard = hard[t - 1 : t] if t else torch.zeros_like(hard[:1])
        thought = Thought(step, one, None, None, embedding, (seed,), was_hard, state, session)
        probs = collapse(one, embedding, thought=thought)
        session.shown.append(collapses.pick(probs, heat[t].item(), uniform[t : t + 1]))
    return torch.cat(session.shown[len(prompt_ids) :])


def _row(model: SoftAR, prediction: Prediction, state: SoftState, t: int) -> Prediction:
    """The prediction of one step, whose draws are made when asked for."""
    sample = lambda n, generator: model.predict(state).sample_vectors(n, generator)  # noqa: E731
    return Prediction(
        prediction.log_probs[t : t + 1],
        prediction.vector[t : t + 1],
        sample if prediction.sampler else None,
        prediction.probs[t : t + 1],
    )


def _check(model: Predictor, trajectory: Trajectory, collapse: Callable) -> None:
    if not can_recollapse(model, collapse):
        of = "this collapse's" if isinstance(model, Pretrained) else "the"
        raise ValueError(f"recollapse reads {of} soft tokens of a SoftAR, not of {model!r:.80}")
    if not len(trajectory):
        raise ValueError("the trajectory has no step to be read again")
    tokens = None if model.tokenizer is None else tuple(model.tokenizer.tokens)
    if tokens != trajectory.tokens or trajectory.inputs.shape[1] != model.config.embedding_dim:
        raise ValueError("the trajectory is of another model: its symbols or the width of its soft tokens differ")


def _check_path(found: Tensor, stored: Tensor) -> None:
    """ValueError at the first soft token that the model would not have predicted; rounding is far below a hundredth."""
    apart = (found - stored).norm(dim=-1) / (1 + stored.norm(dim=-1))
    if (apart > 0.01).any():
        t = int((apart > 0.01).nonzero()[0])
        raise ValueError(
            f"the path is not this model's: at step {t} it predicts another soft token ({apart[t]:.2g} away)"
        )
