"""Does a wider embedding help? (K29): how many dimensions a mean needs to tell what comes next.

A mean of symbols' vectors says everything about a distribution over V symbols as soon as the table
has V - 1 dimensions. Here the language has 144 different next-symbol laws over 12 symbols, so that
no reader can get by with knowing a few of them. One cell trains one model by regression on a random
table of one width, with one budget and seed, and gives one row per readout.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any

from softar_lab import Corpus, ModelConfig, SoftAR, TrainConfig, corpus_of, evaluate, sweep, train
from softar_lab.core.cells import load_results, save_results
from softar_lab.data.languages.markov import Markov
from softar_lab.training.data import TrainingRows

from .make_results import ROOT
from .objectives_table import readouts

CELLS, RESULTS = ROOT / "runs" / "widths", ROOT / "data" / "results" / "widths.csv"
GRID = {"width": [3, 6, 9, 11, 12, 24], "steps": [150, 600, 2400], "seed": [0, 1, 2]}
SHAPE = {"context": 64, "n_layers": 2, "n_heads": 2, "d_model": 64}
SYMBOLS = 12


@cache
def language() -> Markov:
    """A chain of order 2 over 12 letters, whose 144 laws are drawn from a Dirichlet distribution."""
    return Markov.random(SYMBOLS, order=2, seed=0, concentration=0.5)


@cache
def corpus() -> Corpus:
    """400,000 letters of the language, and 20,000 to judge by."""
    return corpus_of(language(), train=400_000, name="chain")


def cell(width: int, steps: int, seed: int) -> list[dict[str, Any]]:
    """Train one model by regression; read it in every way that suits its objective.

    Returns:
        One row per readout: its name, `bits` per symbol, and `excess` over the language's own bits.
    """
    text = corpus()
    config = ModelConfig(vocab_size=SYMBOLS, objective="mse", embedding_dim=width, **SHAPE)
    model = SoftAR(config, language().tokenizer, seed)
    recipe = TrainConfig(steps=steps, precision="fp32", eval_every=0, save_every=0)
    train(model, text, recipe, seed=seed, progress=False)
    rows = TrainingRows(model, text, recipe, seed)
    found = []
    for readout in readouts(config):
        read = model.with_readout(readout)
        rows.calibrate(read)
        bits = evaluate(read, text.val) / math.log(2)
        excess = bits - text.floor_bits_per_char
        found.append({"readout": readout, "bits": bits, "excess": excess})
    return found


def main() -> None:
    """Measure the whole table, on all cores: python -m softar_studies.widths"""
    frame = sweep(cell, GRID, out=CELLS, backend="cores")
    _, recipes = load_results(Path(CELLS, "table.csv"))
    save_results(frame.drop(columns="seconds"), recipes, RESULTS, [*GRID, "readout"])
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
