"""reinforce(): policy gradient on soft reasoning steps that end in a hard answer (K10)."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..core.checks import SEEDS, plain_fields, real_number, whole_number
from ..data.tasks import Task
from ..models.device import pick_device
from ..models.soft_ar import SoftAR
from .enumeration import exact_reward, reward_through, surrogate
from .estimators import ESTIMATORS, Draw, Estimator, Exact
from .roll_outs import held_out_figures, roll_out
from .task_run import TaskResult, TaskRun, go_on, problems_of_step
from .thoughts import check_fit


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig:
    """The recipe of a run of `reinforce`.

    Args:
        steps: how many steps the run has.
        problems: problems per step.
        group: roll-outs per problem; the reward of each is compared with that of the others. Where
            nothing is drawn ("mixture", "exact") there is one.
        thoughts: thinking steps before the answer; None: as many as the task needs.
        expected_answers: whether the reward of a roll-out is the probability of the right answer
            after its thoughts; False: an answer is drawn, and right or wrong. Estimators whose
            gradient flows through the thoughts always take the probability.
        learning_rate: of Adam, the same at every step.
        eval_every, save_every: in steps; 0: only at the end.

    Raises:
        ValueError: for a value out of range; the message names the field.
    """

    steps: int = 200
    problems: int = 16
    group: int = 8
    thoughts: int | None = None
    expected_answers: bool = False
    learning_rate: float | int = 1e-4
    eval_every: int = 50
    save_every: int = 50

    def __post_init__(self):
        plain_fields(self)
        least = {"steps": 1, "problems": 1, "group": 1, "eval_every": 0, "save_every": 0}
        if self.thoughts is not None:
            least["thoughts"] = 0
        for name, smallest in least.items():
            value = whole_number(f"ReinforceConfig.{name}", getattr(self, name), smallest)
            object.__setattr__(self, name, value)
        if not isinstance(self.expected_answers, bool):
            raise ValueError(
                "ReinforceConfig.expected_answers must be True or False, not "
                f"{self.expected_answers!r:.80}"
            )
        real_number(
            "ReinforceConfig.learning_rate",
            self.learning_rate,
            "above 0",
            lambda one: 0 < one < math.inf,
        )


def reinforce(
    model: SoftAR,
    task: Task,
    estimator: str | Estimator = "gaussian",
    config: ReinforceConfig | None = None,
    *,
    out: str | Path | None = None,
    seed: int = 0,
    resume: bool = True,
    device: str = "auto",
    progress: bool = True,
    on_step: Callable[[dict[str, Any]], Any] | None = None,
) -> TaskResult:
    """Train a model to think, by the rewards of its answers alone.

    At each step some problems are thought through and answered several times over. What was drawn
    becomes likelier where the answer was right more often than in the other roll-outs of the same
    problem (leave-one-out baseline). Nothing is dropped out, and the noise is that of the
    roll-outs.

    Args:
        model: a SoftAR over the task's symbols, usually from `train_thoughts`; it is changed.
        task: its problems, of which the first part of `task.split()` is trained on.
        estimator: how thoughts are drawn, and the gradient estimated: see estimators.py.
        config: the recipe; None: its defaults.
        out, seed, resume, device, progress: as in `train`.
        on_step: gets step, steps, loss (the mean reward, negative), roll_outs, seconds, and after
            an evaluation its figures; the run ends where it returns True.

    Raises:
        ValueError: for an unknown estimator, a model that does not fit the task, or the estimator
            "exact" where there is too much to enumerate.
        TrainingDiverged, CheckpointError: as in `train`.
    """
    config = ReinforceConfig() if config is None else config
    estimator = ESTIMATORS.make(estimator) if isinstance(estimator, str) else estimator
    steps = check_fit(model, task, config.thoughts)
    seed = whole_number("seed", seed, *SEEDS)
    model.to(pick_device(device))
    parts = task.split()
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=config.learning_rate)

    def make_step(step: int) -> tuple[float, int]:
        some, generator = problems_of_step(parts.train, config.problems, recipe, step)
        first = int(torch.randint(2**31, (1,), generator=generator))
        expected = config.expected_answers
        reward, count = ascend(model, task, estimator, some, steps, config.group, first, expected)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return -reward, count

    recipe = {"what": "reinforcement", "estimator": ESTIMATORS.spec(estimator), "seed": seed}
    recipe |= {"task": task.name, "problems": len(parts.train)}
    recipe["config"] = {**asdict(config), "thoughts": steps}
    rates = f"learning_rate ({config.learning_rate})"
    evaluate = partial(held_out_figures, model, task, parts.held_out, steps, estimator.follows)
    run = TaskRun(model, task, [optimizer], recipe, out, make_step, evaluate, rates)
    return go_on(run, resume, progress, on_step, f"reinforce {recipe['estimator']}")


def ascend(
    model: SoftAR,
    task: Task,
    estimator: Estimator,
    problems: Int64[Tensor, "N P"],
    steps: int,
    group: int,
    first_seed: int,
    expected: bool = False,
) -> tuple[float, int]:
    """Estimate the gradient of the expected reward and put its negative into `.grad`.

    Args:
        model, task, estimator: as in `reinforce`.
        problems: (N, P); the reward is the mean over them.
        steps: how many thoughts there are.
        group: roll-outs per problem.
        first_seed: that of the first roll-out; the others have the following ones.
        expected: see `ReinforceConfig.expected_answers`.

    Returns:
        The mean reward, and how many roll-outs it took. An exact reward takes none. NaN: a
        probability is not finite.
    """
    # 1) without draws
    if isinstance(estimator, Exact):
        reward = exact_reward(model, task, problems, steps, estimator.inner)
        (-reward).backward()
        return reward.item(), 0
    if not estimator.has_noise:
        reward = reward_through(model, task, estimator, problems, [Draw()] * steps)
        (-reward).backward()
        return reward.item(), len(problems)
    # 2) roll out, each row with a seed of its own
    rows = problems.repeat_interleave(group, 0)
    seeds = range(first_seed, first_seed + len(rows))
    made = roll_out(model, rows, steps, estimator, seed=tuple(seeds))
    # 3) the gradient: through the thoughts, or by how likely the draws were
    if not estimator.has_density:
        reward = reward_through(model, task, estimator, rows, made.draws)
        (-reward).backward()
        return reward.item(), len(rows)
    value, rewards = surrogate(model, task, estimator, made, group, expected)
    (-value).backward()
    reward = rewards.mean().item() if value.isfinite() else math.nan  # drawn answers hide a NaN
    return reward, len(rows)


def gradient(model: SoftAR) -> Float[Tensor, " parameters"]:
    """The gradient of all trained parameters, as one vector, of what `ascend` makes larger.

    The gradients are cleared.
    """
    trained = [one for one in model.parameters() if one.requires_grad]
    parts = [torch.zeros_like(one) if one.grad is None else -one.grad for one in trained]
    for one in trained:
        one.grad = None
    return torch.cat([part.flatten() for part in parts])
