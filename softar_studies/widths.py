"""Does a wider embedding help? (K29): python -m softar_studies.widths [--backend cores]

A mean of symbols' vectors says everything about a distribution over V symbols as soon as the table
has V - 1 dimensions. Here the language has 144 different next-symbol laws over 12 symbols, so that
no reader can get by with knowing a few of them. `perfect` asks what is left where every mean is
exactly right; `cell` trains a model by regression on a random table of one width, with one budget
and seed, and gives one row per readout.
"""

import math
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import torch

from softar_lab import Corpus, ModelConfig, SoftAR, TrainConfig, corpus_of, evaluate, train
from softar_lab.core.cells import save_results
from softar_lab.data.languages.markov import Markov
from softar_lab.models.simplex import barycentric
from softar_lab.training.data import TrainingRows

from .make_results import ROOT
from .objectives_table import readouts
from .tables import asked_for, figures

CELLS, RESULTS = ROOT / "runs" / "widths", ROOT / "data" / "results" / "widths.csv"
GRID = {"width": [3, 6, 9, 11, 12, 24], "steps": [100, 400, 1600], "seed": [0, 1, 2]}
SHAPE = {"context": 16, "n_layers": 2, "n_heads": 2, "d_model": 64, "objective": "mse"}
SYMBOLS = 12
FIXED = {"batch_size": 32, "precision": "fp32", "eval_every": 0, "save_every": 0}
FITTED = {"affine": "affine(16384)"}  # on so many letters


@cache
def language() -> Markov:
    """A chain of order 2 over 12 letters, whose 144 laws are drawn from a Dirichlet distribution."""
    return Markov.random(SYMBOLS, order=2, seed=0, concentration=0.5)


@cache
def corpus() -> Corpus:
    """400,000 letters of the language, and 10,000 to judge by."""
    return corpus_of(language(), train=400_000, val=10_000, name="chain")


def untrained(width: int, seed: int) -> SoftAR:
    """The model of a cell before its training."""
    config = ModelConfig(vocab_size=SYMBOLS, embedding_dim=width, **SHAPE)
    return SoftAR(config, language().tokenizer, seed)


def cell(width: int, steps: int, seed: int) -> list[dict[str, Any]]:
    """Train one model by regression; read it in every way that suits its objective.

    Returns:
        One row per readout: its name, `bits` per symbol, and `excess` over the language's own bits.
    """
    text, recipe = corpus(), TrainConfig(steps=steps, **FIXED)
    model = untrained(width, seed)
    train(model, text, recipe, seed=seed, progress=False, eval_tokens=1024)
    rows = TrainingRows(model, text, recipe, seed)
    found = []
    for readout in readouts(model.config):
        read = model.with_readout(FITTED.get(readout, readout))
        rows.calibrate(read)
        bits = evaluate(read, text.val) / math.log(2)
        excess = bits - text.floor_bits_per_char
        found.append({"readout": readout, "bits": bits, "excess": excess})
    return found


def perfect(width: int, seed: int) -> dict[str, float]:
    """What the weights of the closest mixture lose where every predicted mean is exactly right.

    Returns:
        `missed`: half the sum of |p - weights|, in the mean over the language's text; `worst`: the
        largest of the 144 laws.
    """
    contexts = torch.cartesian_prod(*[torch.arange(SYMBOLS)] * 2)  # (V², 2)
    behind = torch.cat([contexts, contexts[:, :1]], dim=1)  # the last symbol is in no prefix
    laws = language().next_log_probs(behind)[:, -1].exp()  # (V², V)
    table = untrained(width, seed).embedding.double()  # (V, m)
    missed = (barycentric(laws @ table, table) - laws).abs().sum(1) / 2  # (V²,)
    often = torch.from_numpy(np.asarray(language().stationary))
    return {"missed": float(often @ missed), "worst": float(missed.max())}


def recipe() -> dict[str, Any]:
    """Everything that determines a cell except its width, steps and seed."""
    fixed = {**asdict(TrainConfig(**FIXED)), "steps": None}
    text = {"corpus": corpus().name, "sha256": corpus().sha256}
    return {**text, "model": SHAPE, "train": fixed, "readouts": FITTED}


def main(arguments: list[str] | None = None) -> None:
    asked = asked_for(__doc__, arguments=arguments)
    frame = figures(cell, GRID, CELLS, recipe(), asked.backend, seconds=True)
    save_results(frame, [recipe()], RESULTS, [*GRID, "readout"])
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
