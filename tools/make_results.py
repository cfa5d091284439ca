"""Measure the fair table of notebook 05: python tools/make_results.py [CORPUS …] (default: all; hours on two cores).

Finished cells are kept in runs/objectives, so an interrupted run goes on where it was; one process a corpus may run at
the same time (OMP_NUM_THREADS=1). When all cells are there, data/results/objectives.csv and .json are written.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from softar_lab import TrainConfig, load_corpus, load_language
from softar_lab.analysis.comparison import RUN, Budget, fair_table, recipe
from softar_lab.analysis.results import save_results
from softar_lab.models.objectives import OBJECTIVES

ROOT = Path(__file__).parent.parent
CELLS, RESULTS = ROOT / "runs" / "objectives", ROOT / "data" / "results" / "objectives.csv"
SEEDS = 3
STEPS = {"steps": 350, "eval_every": 0, "save_every": 0}  # of 1,024 characters each
BUDGETS = {
    "shakespeare": Budget(model={"context": 64, "embedding_dim": 64}, train=TrainConfig(batch_size=16, **STEPS)),
    "tales": Budget(model={"context": 256, "embedding_dim": 64}, train=TrainConfig(batch_size=4, **STEPS)),
}
PARTS = [  # objectives, tables
    (OBJECTIVES.names(), ["orthonormal", "random", "pca-anchor"]),
    (["ce", "metric"], ["joint"]),  # which these two can train
    (["mse"], ["joint", "regularised(10)", "random(sphere=False)"]),  # and this one cannot; a guard; hubs
]


def measure(name: str) -> pd.DataFrame:
    """Every cell of one corpus, seed after seed."""
    corpus, truth = load_corpus(name), load_language(name) if name != "shakespeare" else None
    frames = [
        fair_table(objectives, tables, corpus, [seed], BUDGETS[name], truth=truth, out=CELLS)
        for seed in range(SEEDS)
        for objectives, tables in PARTS
    ]
    return pd.concat(frames)


def names_asked_for(description: str, known: Iterable[str], what: str) -> list[str]:
    """The names on the command line, each one of `known`; none means all of them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar=what, help=", ".join(known))
    names = parser.parse_args().names
    if unknown := set(names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return names


def main() -> None:
    names = names_asked_for(__doc__, BUDGETS, "CORPUS")
    frames = [measure(name) for name in names or BUDGETS]
    if not names:
        save_results(pd.concat(frames), [recipe(load_corpus(name), BUDGETS[name]) for name in BUDGETS], RESULTS, RUN)
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
