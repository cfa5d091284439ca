"""Measure the table of notebook 12: python -m softar_studies.make_reinforcement [PART …]

Parts: "supervised" (kinds of training × thinking steps × widths), "reinforced" (estimators on
models that are half trained), "gradients" (bias and variance of each estimator beside the exact
gradient) and "optimum" (what a thinker of some width can reach). Without a PART, all are measured
(about 15 minutes on one core). Finished cells are saved in runs/reinforcement, so an interrupted run
goes on where it stopped. A run without a PART writes data/results/reinforcement.csv and .json at
the end.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
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
KEYS = ["part", "training", "estimator", "thoughts", "width", "seed", "thinking", "roll_outs"]
TASK = "minimum-sum(largest=9, length=4)"
SEEDS = 3
SHAPE = {"context": 8, "n_layers": 2, "d_model": 64}
LESSON = TrainConfig(steps=360, batch_size=96, eval_every=0, save_every=0)
HALF = TrainConfig(steps=120, batch_size=96, eval_every=0, save_every=0)  # where rewards go on
REINFORCED = ReinforceConfig(steps=80, problems=8, group=8, eval_every=20, save_every=0)
SHIPPED = {("soft", 3, 32, 0): "sum-soft", ("hard", 3, 32, 0): "sum-hard"}
SUPERVISED = [  # kind, thinking steps, width of the embedding
    [("soft", 3, 32), ("hard", 3, 32), ("none", 0, 32), ("pause", 3, 32)],
    [("soft", 3, width) for width in (4, 8, 16)],
    [(kind, steps, 32) for steps in (1, 2, 4) for kind in ("soft", "hard")],
]
STARTS = [  # kind of training, estimator, seeds
    *(("soft", name, SEEDS) for name in ("hard", "gaussian", "straight-through", "mixture")),
    *(("soft", name, 1) for name in ("sampled", "gumbel", "dirichlet")),
    *(("hard", "hard", 1), ("none", "hard", 1)),
]


def fresh(width: int, seed: int) -> SoftAR:
    """A new model whose soft tokens are `width` numbers."""
    task = load_task(TASK)
    config = ModelConfig(vocab_size=task.vocab_size, embedding_dim=width, **SHAPE)
    return SoftAR(config, task.tokenizer, seed)


def scores(model: SoftAR, steps: int, feedback: str, controls: bool) -> Rows:
    """How well a model answers held-out problems, after its own thoughts and after others."""
    task = load_task(TASK)
    problems = task.split()[1]
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
    return [{**row, **cost} for row in scores(model, steps, KINDS[kind], controls=True)]


def reinforced(kind: str, estimator: str, seed: int) -> Rows:
    """Rewards alone, from a model that is half trained; each evaluation is a row."""
    model, task = fresh(32, seed), load_task(TASK)
    steps = 0 if kind == "none" else task.steps
    start = CELLS / "starts" / f"{kind}-{seed}"  # trained once for all estimators
    options = {"out": start, "seed": seed, "progress": False}
    train_thoughts(model, task, kind, HALF, thoughts=steps, **options)
    # the same rule before and after: what the estimator's thoughts are without noise
    feedback = ESTIMATORS.make(estimator).follows
    rows = [
        {**row, "roll_outs": 0, "seconds": 0.0} for row in scores(model, steps, feedback, False)
    ]
    config = ReinforceConfig(**{**asdict(REINFORCED), "thoughts": steps})
    run = reinforce(model, task, estimator, config, seed=seed, progress=False)
    for _, at in run.history.iloc[:-1].iterrows():
        figures = {name: at[name] for name in ("accuracy", "reward", "seconds")}
        rows.append({"thinking": "own", "roll_outs": int(at["roll_outs"]), **figures})
    last = run.history.iloc[-1]
    cost = {"roll_outs": int(last["roll_outs"]), "seconds": last["seconds"]}
    return [*rows, *({**row, **cost} for row in scores(model, steps, feedback, True))]


def optimum(width: int) -> Rows:
    """The best reward of a thinker that holds at most `width` states."""
    task = load_task(TASK)
    return [{"thinking": "best", "reward": task.optimum(width)}]


def cells(part: str) -> list[tuple[dict[str, Any], Callable[[], Rows]]]:
    """The keys of each cell of a part, and what computes it; seed by seed."""
    if part == "optimum":
        return [({"width": width}, partial(optimum, width)) for width in (1, 2, 3, 4, 8)]
    if part == "gradients":
        return [({"seed": seed}, partial(measure_gradients, seed)) for seed in range(SEEDS)]
    if part == "supervised":
        return [
            (
                {"training": kind, "thoughts": steps, "width": width, "seed": seed},
                partial(supervised, kind, steps, width, seed),
            )
            for some in SUPERVISED  # what matters most first, in every seed
            for seed in range(SEEDS)
            for kind, steps, width in some
        ]
    found = []
    for kind, estimator, seeds in STARTS:
        for seed in range(seeds):
            spec = ESTIMATORS.spec(ESTIMATORS.make(estimator))
            keys = {"training": kind, "estimator": spec, "width": 32, "seed": seed}
            keys["thoughts"] = 0 if kind == "none" else 3
            found.append((keys, partial(reinforced, kind, estimator, seed)))
    return found


def recipe(part: str) -> dict[str, Any]:
    """All that decides the rows of a part."""
    about = {"part": part, "task": TASK, "shape": SHAPE, "seeds": SEEDS}
    if part == "supervised":
        about["train"] = asdict(LESSON)
    if part == "reinforced":
        about |= {"train": asdict(HALF), "reinforce": asdict(REINFORCED)}
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


PARTS = ("supervised", "reinforced", "gradients", "optimum")


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
