"""A run on a task: its steps, its evaluations, and how it is saved and goes on to the bit.

`train_thoughts` and `reinforce` share it. A step depends on the weights, the optimizers' moments
and its own number alone, so a run that was killed goes on exactly.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..core.cells import differences
from ..core.store import CheckpointError, held, vectors_from_bytes, vectors_to_bytes
from ..data.tasks import Task
from ..models.soft_ar import MANIFEST, SoftAR
from .checkpoint import MOMENTS, PROGRESS, flat_state, load_moments
from .interruption import interruption
from .trainer import TrainingDiverged

RECIPE = "thoughts"  # on a model's card: what decides its latest run on a task


@dataclass(repr=False)
class TaskResult:
    """What a run on a task gave.

    Attributes:
        model: the trained model.
        history: one row per evaluation: step, loss, accuracy and reward on held-out problems,
            roll_outs and seconds so far.
        interrupted: whether it was stopped early.
    """

    model: SoftAR
    history: pd.DataFrame
    interrupted: bool = False

    @property
    def accuracy(self) -> float:
        """The share of held-out problems answered right, at the last evaluation."""
        return float(self.history["accuracy"].iloc[-1])

    def __repr__(self) -> str:
        ended = ", interrupted" if self.interrupted else ""
        step = int(self.history["step"].iloc[-1])
        return f"TaskResult({self.accuracy:.1%} of held-out problems right, step {step}{ended})"


class TaskRun:
    """A run in progress.

    Args:
        model: the model to train.
        task: its problems.
        optimizers: change its weights.
        recipe: what decides the run, JSON-able; under "config" the steps and how often it is
            evaluated and saved.
        out: the folder it is saved in; None: it is not saved.
        make_step: computes the gradients of a step, changes the weights, and returns the loss and
            how many roll-outs it took.
        evaluate: returns the figures of an evaluation.
        rates: the names of the learning rates, for a message.
    """

    def __init__(
        self,
        model: SoftAR,
        task: Task,
        optimizers: list[torch.optim.Optimizer],
        recipe: dict[str, Any],
        out: str | Path | None,
        make_step: Callable[[int], tuple[float, int]],
        evaluate: Callable[[], dict[str, float]],
        rates: str,
    ):
        self.model, self.task, self.optimizers, self.out = model, task, optimizers, out
        self.recipe, self.config = recipe, recipe["config"]
        self.compute, self.figures, self.rates = make_step, evaluate, rates
        self.step, self.loss, self.roll_outs, self.seconds = 0, math.nan, 0, 0.0
        self.history: list[dict[str, Any]] = []

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.step >= self.config["steps"]

    def at(self, every: int) -> bool:
        """Whether the number of steps done is a multiple of `every`; 0: never."""
        return bool(every) and self.step % every == 0

    def make_step(self) -> None:
        """Change the weights once.

        Raises:
            TrainingDiverged: where the loss or a weight is not finite; the message names the step.
        """
        begin = time.perf_counter()
        try:
            self.loss, count = self.compute(self.step)
        except (RuntimeError, ValueError) as error:
            if self._finite:
                raise
            raise self._diverged(f"step broke off ({error})") from error
        self.seconds += time.perf_counter() - begin
        if not math.isfinite(self.loss):
            raise self._diverged(f"loss is {self.loss}")
        self.step, self.roll_outs = self.step + 1, self.roll_outs + count
        if not self._finite:
            raise self._diverged("weights hold NaN or infinity")

    @property
    def _finite(self) -> bool:
        return all(one.isfinite().all() for one in self.model.parameters())

    def _diverged(self, what: str) -> TrainingDiverged:
        return TrainingDiverged(f"the {what} at step {self.step}: lower {self.rates}")

    def evaluate(self) -> dict[str, Any]:
        """Add a row of figures to the history, and return it."""
        self.model.eval()
        row = {"step": self.step, "loss": self.loss, **self.figures()}
        row |= {"roll_outs": self.roll_outs, "seconds": round(self.seconds, 3)}
        self.history.append(row)
        return row

    def save(self) -> None:
        """Write the recipe on the model's card, and save the run in `out`, if any."""
        self.model.card[RECIPE] = {**self.recipe, "steps_done": self.step}
        if self.out is None:
            return
        state = {name: getattr(self, name) for name in _PROGRESS}
        moments = {
            f"{i}.{name}": tensor
            for i, optimizer in enumerate(self.optimizers)
            for name, tensor in flat_state(optimizer).items()
        }
        files = {PROGRESS: json.dumps(state).encode(), MOMENTS: vectors_to_bytes(moments)}
        self.model.save(self.out, **files)

    def resume(self) -> None:
        """Continue the run that is saved in `out`, if any.

        Raises:
            CheckpointError: where it is another run, or its files are damaged.
        """
        if self.out is None or not (Path(self.out) / MANIFEST).exists():
            return
        # 1) the saved run must be the same one
        saved, files = SoftAR.load_with_files(self.out, "cpu")
        if PROGRESS not in files or MOMENTS not in files or RECIPE not in saved.card:
            raise CheckpointError(
                f"{self.out} holds a model but no run on a task: resume=False begins anew"
            )
        here = {**_deciding(self.recipe), "model": self.model.config.to_dict()}
        stored = {**_deciding(saved.card[RECIPE]), "model": saved.config.to_dict()}
        stored.pop("steps_done")
        if different := differences(json.loads(json.dumps(here)), stored):
            raise CheckpointError(
                f"{self.out} holds another run ({different}): choose another folder or resume=False"
            )
        # 2) its weights, moments and progress
        moments, _ = vectors_from_bytes(files[MOMENTS], Path(self.out) / MOMENTS)
        self.model.load_state_dict(saved.state_dict())
        load_moments(self.optimizers, moments)
        for name, value in json.loads(files[PROGRESS]).items():
            setattr(self, name, value)


_PROGRESS = ("step", "loss", "roll_outs", "seconds", "history")


def _deciding(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without what decides nothing."""
    config = {name: value for name, value in recipe["config"].items() if name != "save_every"}
    return {**recipe, "config": config}


def go_on(
    run: TaskRun,
    resume: bool,
    progress: bool,
    on_step: Callable[[dict[str, Any]], Any] | None,
    title: str,
) -> TaskResult:
    """Make the steps that remain; evaluate and save now and then. Ctrl-C saves and returns."""
    config = run.config
    with held(run.out) if run.out is not None else nullcontext():
        if resume:
            run.resume()
        bar = tqdm(
            total=config["steps"], initial=run.step, disable=not progress, unit="step", desc=title
        )
        with interruption() as stop, bar:
            while not run.finished and not stop.is_set():
                # 1) one step
                run.make_step()
                bar.update()
                bar.set_postfix_str(f"loss {run.loss:.3f}", refresh=False)
                event = {"step": run.step, "steps": config["steps"], "loss": run.loss}
                event |= {"seconds": run.seconds, "roll_outs": run.roll_outs}
                # 2) evaluate now and then, and at the end
                if run.finished or run.at(config["eval_every"]):
                    event |= run.evaluate()
                # 3) ask whether to go on, and save
                if on_step is not None and on_step(event) is True:
                    stop.set()
                if run.finished or stop.is_set() or run.at(config["save_every"]):
                    run.save()
    interrupted = not run.finished
    history = [*run.history]
    if not history or history[-1]["step"] != run.step:
        run.evaluate()  # for the caller only; the saved run goes on without it
        history, run.history = run.history, history
    run.model.eval()
    return TaskResult(run.model, pd.DataFrame(history), interrupted)


STREAMS = {"thoughts": 0, "reinforcement": 2**29}  # where each kind of run begins to draw


def problems_of_step(
    problems: Tensor, count: int, recipe: dict[str, Any], step: int
) -> tuple[Tensor, torch.Generator]:
    """Some problems drawn for a step, and the generator that drew them, for what else it draws.

    Runs of the same seed but of different kinds ("what" in the recipe) draw other problems.
    """
    begin = STREAMS[recipe["what"]] + recipe["seed"] * 1_000_003
    generator = torch.Generator().manual_seed((begin + step) % 2**32)
    return problems[torch.randint(len(problems), (count,), generator=generator)], generator
