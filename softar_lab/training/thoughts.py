"""train_thoughts(): supervised training of thinking steps on a task whose states are known (K10)."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from ..core.checks import SEEDS, whole_number
from ..data.tasks import Task
from ..models.device import pick_device
from ..models.soft_ar import SoftAR
from .config import TrainConfig
from .roll_outs import held_out_figures, pauses, step_log_probs
from .task_run import TaskResult, TaskRun, go_on, problems_of_step
from .update import make_optimizers, step_optimizers

# What each kind of training thinks with afterwards, as a feedback.
KINDS = {"soft": "mixture", "hard": "shown", "pause": "pause", "none": "mixture"}

# What in a TrainConfig is for running text, and the values that promise nothing here.
UNUSED = {
    "window": (None,),
    "precision": ("auto", "fp32"),
    "soft_inputs": (None,),
    "level_weight": (TrainConfig.level_weight,),
    "level_curriculum": (TrainConfig.level_curriculum,),
    "history": (TrainConfig.history,),
}


def train_thoughts(
    model: SoftAR,
    task: Task,
    kind: str = "soft",
    config: TrainConfig | None = None,
    *,
    thoughts: int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    resume: bool = True,
    device: str = "auto",
    progress: bool = True,
    on_step: Callable[[dict[str, Any]], Any] | None = None,
) -> TaskResult:
    """Train thinking steps and the answer with given targets.

    Args:
        model: a SoftAR over the task's symbols; it is changed.
        task: its problems, of which the first part of `task.split()` is trained on.
        kind: "soft": each thought is the mixture of the states that can hold by then, and learns to
            predict the next one (continuous chain of thought). "hard": a chain of symbols that
            leads to the right answer. "pause": thoughts that stand for nothing, and only the answer
            is learned. "none": the answer at once.
        config: the recipe; its batch is a number of problems. What is about running text alone
            (UNUSED) stays at its default. None: its defaults.
        thoughts: how many thinking steps; None: as many as the task needs. "none" has none.
        out, seed, resume, device, progress: as in `train`.
        on_step: gets step, steps, loss, seconds, and after an evaluation its figures; the run ends
            where it returns True.

    Raises:
        ValueError: for an unknown kind, a model that does not fit the task, or a setting that has
            no meaning here.
        TrainingDiverged, CheckpointError: as in `train`.

    Source: CoT2 (arXiv 2505.23648).
    """
    config = TrainConfig() if config is None else config
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    for name, allowed in UNUSED.items():
        if (value := getattr(config, name)) not in allowed:
            raise ValueError(
                f"TrainConfig.{name} has no meaning for thoughts, {value!r} no effect: leave it out"
            )
    steps = 0 if kind == "none" else check_fit(model, task, thoughts)
    check_fit(model, task, steps)
    seed = whole_number("seed", seed, *SEEDS)
    model.to(pick_device(device))
    parts = task.split()
    optimizers = make_optimizers(model, config)

    def make_step(step: int) -> tuple[float, int]:
        some, generator = problems_of_step(parts.train, config.batch_size, recipe, step)
        vectors, targets = lesson(model, task, kind, some, steps, generator)
        log_probs = step_log_probs(model, some, vectors)  # (N, T+1, V)
        loss = -(targets * log_probs).sum(-1).mean() + model.table.penalty()
        loss.backward()
        step_optimizers(optimizers, config, step)
        return loss.item(), len(some)

    recipe = {"what": "thoughts", "kind": kind, "thoughts": steps, "task": task.name, "seed": seed}
    recipe |= {"problems": len(parts.train), "config": asdict(config)}
    rates = f"muon_learning_rate ({config.muon_learning_rate}) or adam_learning_rate"
    evaluate = partial(held_out_figures, model, task, parts.held_out, steps, KINDS[kind])
    run = TaskRun(model, task, optimizers, recipe, out, make_step, evaluate, rates)
    return go_on(run, resume, progress, on_step, f"{kind} thoughts")


def check_fit(model: Any, task: Any, thoughts: int | None) -> int:
    """The number of thinking steps, where a model and a task fit each other.

    Raises:
        ValueError: where they do not; the message says why.
    """
    if not isinstance(model, SoftAR):
        raise ValueError(f"model must be a SoftAR, not {model!r:.80}")
    if not isinstance(task, Task):
        raise ValueError(f'task must be a task, such as load_task("minimum-sum"), not {task!r:.80}')
    if model.tokenizer is None or model.tokenizer.tokens != task.tokenizer.tokens:
        raise ValueError(
            f"the model's symbols are not those of {task.name}: make it as SoftAR(ModelConfig("
            f"vocab_size={task.vocab_size}, …), task.tokenizer)"
        )
    steps = task.steps if thoughts is None else whole_number("thoughts", thoughts, 0)
    if task.length + steps > model.context:
        raise ValueError(
            f"a problem of {task.length} symbols and {steps} thoughts are more than the model's "
            f"context of {model.context}"
        )
    return steps


def lesson(
    model: SoftAR,
    task: Task,
    kind: str,
    problems: Int64[Tensor, "N P"],
    steps: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "N T m"], Float[Tensor, "N steps V"]]:
    """What the model reads as thoughts (N, T, m), and what it should predict (N, T+1, V)."""
    table, V = model.table.weight, task.vocab_size
    states = (
        F.one_hot(task.chains(problems, generator, steps), V)
        if kind == "hard"
        else task.states(problems, steps)
    )
    states = states.to(table)  # (N, T, V)
    vectors = pauses(model, problems, steps) if kind == "pause" else states @ table
    wanted = torch.zeros_like(states) if kind == "pause" else states
    answers = F.one_hot(task.answers(problems), V).to(table)
    return vectors, torch.cat([wanted, answers[:, None]], 1)
