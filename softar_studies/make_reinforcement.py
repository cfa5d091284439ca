"""Measure the table of notebook 12: python -m softar_studies.make_reinforcement [PART …]

Parts: "supervised" (kinds of training × thinking steps × widths), "rates" (learning rates of each
estimator, by the problems for validation), "reinforced" (estimators on models that are half
trained, at the best of these rates), "gradients" (bias and variance of each estimator beside the
exact gradient) and "optimum" (what a thinker of some width can reach). Without a PART, all are
measured (about 20 minutes on one core). Finished cells are saved in runs/reinforcement, so an
interrupted run goes on where it stopped. A run without a PART writes
data/results/reinforcement.csv and .json at the end.

The stored table is not yet such a run: its recipes name the cells that are missing, and that the
parts "reinforced" and "gradients" are those of an earlier split of the problems.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any

import pandas as pd
import torch

from softar_lab.core.cells import Rows, cell_path, load_or_run, save_results
from softar_lab.data.tasks import load_task
from softar_lab.models.config import ModelConfig
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.config import TrainConfig
from softar_lab.training.estimators import ESTIMATORS
from softar_lab.training.reinforcement import ReinforceConfig, reinforce
from softar_lab.training.roll_outs import replaced, roll_out, score_thoughts
from softar_lab.training.thoughts import KINDS, train_thoughts

from .gradients import measure_gradients
from .make_results import ROOT, names_asked_for

CELLS = ROOT / "runs" / "reinforcement"
RESULTS = ROOT / "data" / "results" / "reinforcement.csv"
THINKERS = ROOT / "data" / "thinkers"  # the models of seed 0 that notebook 12 loads
KEYS = ["part", "training", "estimator", "answers", "thoughts", "width", "learning_rate", "seed"]
KEYS += ["thinking", "roll_outs"]
TASK = "minimum-sum(largest=9, length=4)"
SEEDS, TUNING_SEEDS = (0, 1, 2), (3, 4)  # learning rates are chosen with models of their own
SHAPE = {"context": 8, "n_layers": 2, "d_model": 64}
LESSON = TrainConfig(steps=600, batch_size=96, weight_decay=0.1, eval_every=0, save_every=0)
HALF = replace(LESSON, steps=120)  # where rewards go on
REINFORCED = ReinforceConfig(steps=80, problems=8, group=8, eval_every=20, save_every=0)
SHIPPED = {("soft", 3, 32, 0): "sum-soft", ("hard", 3, 32, 0): "sum-hard"}
SUPERVISED = [  # kind, thinking steps, width of the embedding
    [("soft", 3, 32), ("hard", 3, 32)],
    [("pause", 3, 32), ("none", 0, 32)],
    [(kind, steps, 32) for steps in (1, 2, 4) for kind in ("soft", "hard")],
    [("soft", 3, width) for width in (4, 8, 16)],
]
NOISY = ("hard", "sampled", "gaussian", "gumbel", "dirichlet")
THROUGH = ("straight-through", "mixture")  # the gradient flows through the thoughts
RATES = (1e-4, 3e-4, 1e-3)
FEW = ("hard", "gaussian", *THROUGH)
STARTS = [  # kind of training, estimator, answers, thinking steps, width
    *(("soft", name, "drawn", 3, 32) for name in NOISY),
    *(("soft", name, "expected", 3, 32) for name in (*THROUGH, "hard", "gaussian")),
    *(("hard", name, "drawn", 3, 32) for name in NOISY),
    *(("hard", name, "expected", 3, 32) for name in THROUGH),
    ("none", "hard", "drawn", 0, 32),
    *(("soft", name, "", steps, 32) for steps in (1, 2, 4) for name in FEW),
    *(("soft", name, "", 3, width) for width in (4, 8, 16) for name in FEW),
]


def fresh(width: int, seed: int) -> SoftAR:
    """A new model whose soft tokens are `width` numbers."""
    task = load_task(TASK)
    config = ModelConfig(vocab_size=task.vocab_size, embedding_dim=width, **SHAPE)
    return SoftAR(config, task.tokenizer, seed)


def scores(
    model: SoftAR, steps: int, feedback: str, controls: bool, part: str = "held_out"
) -> Rows:
    """How well a model answers a part of the problems, after its own thoughts and after others."""
    task = load_task(TASK)
    problems = task.split()._asdict()[part]
    own = roll_out(model, problems, steps, feedback, temperature=0).vectors
    thoughts = {"own": own}
    if controls and steps:
        thoughts |= replaced(model, task, problems, own)
    return [
        {"thinking": name, **asdict(score_thoughts(model, task, problems, vectors))}
        for name, vectors in thoughts.items()
    ]


def supervised(kind: str, steps: int, width: int, seed: int) -> Rows:
    """One kind of training, with its controls."""
    model, task = fresh(width, seed), load_task(TASK)
    run = train_thoughts(model, task, kind, LESSON, thoughts=steps, seed=seed, progress=False)
    if name := SHIPPED.get((kind, steps, width, seed)):
        model.save(THINKERS / name)
    last = run.history.iloc[-1]
    cost = {"roll_outs": int(last["roll_outs"]), "seconds": last["seconds"]}
    (seen,) = scores(model, steps, KINDS[kind], False, "train")
    cost["accuracy_in_training"] = seen["accuracy"]
    return [{**row, **cost} for row in scores(model, steps, KINDS[kind], controls=True)]


def half_taught(kind: str, steps: int, width: int, seed: int) -> SoftAR:
    """A model that has learned a part of the task; trained once for all estimators."""
    model, task = fresh(width, seed), load_task(TASK)
    out = CELLS / "starts" / f"{kind}-{steps}-{width}-{seed}"
    train_thoughts(model, task, kind, HALF, thoughts=steps, out=out, seed=seed, progress=False)
    return model


def recipe_of(estimator: str, answers: str, steps: int, rate: float) -> ReinforceConfig:
    """A run's recipe. Where no baseline is needed, each roll-out has a problem of its own."""
    rows = REINFORCED.problems * REINFORCED.group
    options: dict[str, Any] = {"thoughts": steps, "learning_rate": rate}
    if not ESTIMATORS.make(estimator).has_density:
        options |= {"problems": rows, "group": 1}
    return replace(REINFORCED, expected_answers=answers == "expected", **options)


def rates(estimator: str, rate: float, seed: int) -> Rows:
    """Rewards alone at one learning rate, judged by the problems for validation."""
    model, task = half_taught("soft", 3, 32, seed), load_task(TASK)
    answers = "drawn" if estimator in NOISY else "expected"
    config = replace(recipe_of(estimator, answers, 3, rate), eval_every=0)
    reinforce(model, task, estimator, config, seed=seed, progress=False)
    return scores(model, 3, ESTIMATORS.make(estimator).follows, False, "validation")


@cache
def best_rates() -> dict[str, float]:
    """The learning rate of each estimator with the highest mean reward in validation."""
    table = measure("rates")
    means = table.groupby(["estimator", "learning_rate"])["reward"].mean().unstack()
    return means.idxmax(axis=1).to_dict()


def reinforced(
    kind: str, estimator: str, answers: str, steps: int, width: int, rate: float, seed: int
) -> Rows:
    """Rewards alone, from a model that is half trained; each evaluation is a row."""
    model, task = half_taught(kind, steps, width, seed), load_task(TASK)
    # the same rule before and after: what the estimator's thoughts are without noise
    feedback = ESTIMATORS.make(estimator).follows
    rows = [
        {**row, "roll_outs": 0, "seconds": 0.0} for row in scores(model, steps, feedback, False)
    ]
    config = recipe_of(estimator, answers, steps, rate)
    run = reinforce(model, task, estimator, config, seed=seed, progress=False)
    for _, at in run.history.iloc[:-1].iterrows():
        figures = {name: at[name] for name in ("accuracy", "reward", "seconds")}
        rows.append({"thinking": "own", "roll_outs": int(at["roll_outs"]), **figures})
    last = run.history.iloc[-1]
    cost = {"roll_outs": int(last["roll_outs"]), "seconds": last["seconds"]}
    rows += [{**row, **cost} for row in scores(model, steps, feedback, True)]
    passes = ESTIMATORS.make(estimator).passes(steps)
    return [{**row, "passes": row["roll_outs"] * passes} for row in rows]


def optimum(width: int) -> Rows:
    """The best reward of a thinker that holds at most `width` states."""
    task = load_task(TASK)
    return [{"thinking": "best", "reward": task.optimum(width)}]


def cells(part: str) -> list[tuple[dict[str, Any], Callable[[], Rows]]]:
    """The keys of each cell of a part, and what computes it; seed by seed."""
    if part == "optimum":
        return [({"width": width}, partial(optimum, width)) for width in (1, 2, 3, 4, 8)]
    if part == "gradients":
        return [({"seed": seed}, partial(measure_gradients, seed)) for seed in SEEDS]
    if part == "rates":
        names = ("estimator", "learning_rate", "seed")
        some = [
            (ESTIMATORS.spec(ESTIMATORS.make(name)), rate, seed)
            for seed in TUNING_SEEDS
            for name in (*NOISY, *THROUGH)
            for rate in RATES
        ]
        about = {"training": "soft", "thoughts": 3, "width": 32}
        return [({**about, **dict(zip(names, one))}, partial(rates, *one)) for one in some]
    if part == "supervised":
        names = ("training", "thoughts", "width", "seed")
        some = [(*one, seed) for few in SUPERVISED for seed in SEEDS for one in few]
        return [(dict(zip(names, one)), partial(supervised, *one)) for one in some]
    names, some = ("training", "estimator", "answers", "thoughts", "width"), []
    for kind, name, answers, steps, width in STARTS:
        answers = answers or ("drawn" if name in NOISY else "expected")
        spec = ESTIMATORS.spec(ESTIMATORS.make(name))
        for seed in SEEDS:
            one = (kind, spec, answers, steps, width, best_rates()[spec], seed)
            keys = dict(zip((*names, "learning_rate", "seed"), one))
            some.append((keys, partial(reinforced, *one)))
    return some


def recipe(part: str) -> dict[str, Any]:
    """All that decides the rows of a part."""
    about = {"part": part, "task": TASK, "shape": SHAPE, "seeds": list(SEEDS)}
    if part == "supervised":
        about["train"] = asdict(LESSON)
    if part in ("rates", "reinforced"):
        about |= {"train": asdict(HALF), "reinforce": asdict(REINFORCED)}
    if part == "rates":
        about |= {"seeds": list(TUNING_SEEDS), "rates": list(RATES)}
    return about


def measure(part: str) -> pd.DataFrame:
    """Every cell of a part, those that are saved already from their files."""
    rows = []
    for keys, run in cells(part):
        path = cell_path(CELLS / part, *keys.values())
        found = load_or_run(path, recipe(part), run)
        rows += [{"part": part, **keys, **row} for row in found]
        print(part, *keys.values(), flush=True)
    return pd.DataFrame(rows)


PARTS = ("supervised", "rates", "reinforced", "gradients", "optimum")


def main() -> None:
    names = names_asked_for(__doc__, PARTS, "PART")
    torch.set_num_threads(1)
    frames = [measure(part) for part in names or PARTS]
    if not names:
        whole = pd.concat(frames, ignore_index=True)
        for name in KEYS:
            if name not in whole:
                whole[name] = ""
        save_results(whole, [recipe(part) for part in PARTS], RESULTS, KEYS)
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
