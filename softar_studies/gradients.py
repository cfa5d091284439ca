"""Estimators beside the exact gradient on a task small enough to enumerate (K10)."""

from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from softar_lab.core.cells import Rows
from softar_lab.data.tasks import Task, load_task
from softar_lab.models.config import ModelConfig
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.config import TrainConfig
from softar_lab.training.estimators import ESTIMATORS
from softar_lab.training.reinforcement import ascend, gradient
from softar_lab.training.thoughts import train_thoughts

TASK = "minimum-sum(3, 3)"  # 27 problems of 22 symbols, two thinking steps
GROUP, BATCHES = 4, 48  # one batch: 27 problems, 4 roll-outs of each
LESSON = TrainConfig(steps=60, batch_size=27, eval_every=0, save_every=0)


def half_trained(seed: int, width: int = 16) -> tuple[SoftAR, Task]:
    """A small model that has learned a part of the small task, and the task."""
    task = load_task(TASK)
    shape = {"context": 6, "n_layers": 1, "n_heads": 2, "d_model": 16, "embedding_dim": width}
    model = SoftAR(ModelConfig(vocab_size=task.vocab_size, **shape), task.tokenizer, seed)
    train_thoughts(model, task, "soft", LESSON, seed=seed, progress=False)
    return model, task


def exact(model: SoftAR, task: Task, name: str = "exact") -> Float[Tensor, " parameters"]:
    """The exact gradient over all problems of the task: of symbols, or of the noiseless mixture."""
    ascend(model, task, ESTIMATORS.make(name), task.problems, task.steps, 1, 0)
    return gradient(model)


def estimates(
    model: SoftAR,
    task: Task,
    name: str,
    batches: int,
    first_seed: int = 0,
    expected: bool = False,
) -> Float[Tensor, "batches parameters"]:
    """The gradients that an estimator gives from some batches of roll-outs of all problems."""
    estimator, found = ESTIMATORS.make(name), []
    for batch in range(batches):
        seed = first_seed + batch * 10_000
        ascend(model, task, estimator, task.problems, task.steps, GROUP, seed, expected)
        found.append(gradient(model))
    return torch.stack(found)


def compared(
    found: Float[Tensor, "batches parameters"], true: Float[Tensor, " parameters"]
) -> dict[str, float]:
    """An estimator's gradients beside an exact one, in units of the exact one's length.

    Returns:
        along: the mean estimate's length along the exact gradient; 1 without bias. along_error: its
        standard error. noise: the root of the summed variances of one batch. cosine: of one batch
        with the exact gradient, in the mean. cosine_of_mean: of the mean of all batches.
    """
    length = true.norm()
    along = found @ true / length**2  # (batches,)
    return {
        "along": along.mean().item(),
        "along_error": (along.std() / len(found) ** 0.5).item(),
        "noise": (found.var(0).sum().sqrt() / length).item(),
        "cosine": cosine_similarity(found, true[None]).mean().item(),
        "cosine_of_mean": cosine_similarity(found.mean(0), true, dim=0).item(),
    }


def measure_gradients(seed: int) -> Rows:
    """Every estimator beside exact gradients; one row each.

    `answers` says whether they were drawn, or count by their probability.
    `thinking` says which gradient it is compared with: that of drawn symbols ("hard"), or that of
    the noiseless mixture ("mixture"). An estimator whose rewards are those of other thoughts has a
    gradient of its own, so its mean differs from both.
    """
    model, task = half_trained(seed)
    true = {"hard": exact(model, task), "mixture": exact(model, task, "mixture")}
    rows = []
    for name, expected in product(ESTIMATORS.names(), (False, True)):
        estimator = ESTIMATORS.make(name)
        if name == "exact" or not (estimator.has_density or expected):
            continue
        found = estimates(model, task, name, BATCHES if estimator.has_noise else 2, 0, expected)
        count = len(task.problems) * (GROUP if estimator.has_noise else 1)
        about = {"estimator": ESTIMATORS.spec(estimator), "roll_outs": count}
        about["answers"] = "expected" if expected else "drawn"
        for of, one in true.items():
            rows.append({**about, "thinking": of, **compared(found, one)})
    return rows
