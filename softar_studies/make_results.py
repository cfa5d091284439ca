"""Measure the fair table of notebook 05b: python -m softar_studies.make_results [CORPUS …]

Without a CORPUS, all are measured (hours on two cores). Finished cells are saved in
runs/objectives, so an interrupted run resumes where it stopped. One process per corpus may run at
the same time (OMP_NUM_THREADS=1). A run without a CORPUS writes data/results/objectives.csv and
.json at the end.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from softar_lab import TrainConfig, load_corpus, load_language
from softar_lab.core.cells import save_results
from softar_studies.objectives_table import RUN, Budget, fair_table, recipe

ROOT = Path(__file__).parent.parent
CELLS, RESULTS = ROOT / "runs" / "objectives", ROOT / "data" / "results" / "objectives.csv"
SEEDS = 3
STEPS = {"steps": 350, "eval_every": 0, "save_every": 0}  # of 1,024 characters each
BUDGETS = {
    "shakespeare": Budget(
        model={"context": 64, "embedding_dim": 64}, train=TrainConfig(batch_size=16, **STEPS)
    ),
    "tales": Budget(
        model={"context": 256, "embedding_dim": 64}, train=TrainConfig(batch_size=4, **STEPS)
    ),
}
TEN = (
    *("ce", "metric", "anchored", "mse", "cosine", "successor"),
    *("vmf", "mixture", "energy", "flow"),
)
PARTS = [  # objectives, tables
    (TEN, ["orthonormal", "random", "pca-anchor"]),
    (["ce", "metric"], ["joint"]),  # these two can train the table
    # mse cannot train it; "regularised" is a guard against that; the last table has hubs
    (["mse"], ["joint", "regularised(10)", "random(sphere=False)"]),
]


def measure(name: str) -> pd.DataFrame:
    """Every cell of one corpus, one seed after the other."""
    corpus, truth = load_corpus(name), load_language(name) if name != "shakespeare" else None
    frames = [
        fair_table(objectives, tables, corpus, [seed], BUDGETS[name], truth=truth, out=CELLS)
        for seed in range(SEEDS)
        for objectives, tables in PARTS
    ]
    return pd.concat(frames)


def names_asked_for(description: str, known: Iterable[str], what: str) -> list[str]:
    """The names on the command line, each one of `known`; an empty list means all of them."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar=what, help=", ".join(known))
    names = parser.parse_args().names
    if unknown := set(names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return names


def main() -> None:
    names = names_asked_for(__doc__, BUDGETS, "CORPUS")
    frames = [measure(name) for name in names or BUDGETS]
    if not names:
        save_results(
            pd.concat(frames),
            [recipe(load_corpus(name), BUDGETS[name]) for name in BUDGETS],
            RESULTS,
            RUN,
        )
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
