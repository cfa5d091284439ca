"""Measure what soft inputs teach (K7): python -m softar_studies.make_dial

A chain of six letters, whose pairs are known. Small models are trained on hard or soft inputs, then
write with the feedback that matches their inputs, never collapsed. How wrong are the pairs and the
letters of what they write, and how much does a soft token tell about its symbol? Finished cells are
saved in runs/dial, and the same command goes on. A complete run writes data/results/dial.csv and
.json.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from softar_lab import CharTokenizer, ModelConfig, SoftAR, TrainConfig, corpus_of, generate, train
from softar_lab.core.cells import save_results
from softar_lab.data.languages import Markov
from softar_lab.metrics.distributions import excess_bits
from softar_lab.models.scoring import calibrate
from softar_lab.models.simplex import posterior_dirichlet
from softar_lab.training.soft_inputs import SOFT_INPUTS, SoftInputs

from .make_results import ROOT
from .tables import asked_for, figures

CELLS, RESULTS = ROOT / "runs" / "dial", ROOT / "data" / "results" / "dial.csv"
KEYS = ["objective", "inputs", "steps", "seed"]
CHAIN = Markov.random(6, seed=3, concentration=0.5)
BODY = {"context": 16, "n_layers": 1, "n_heads": 2, "d_model": 32, "table": "orthonormal"}
TRAIN = {"batch_size": 64, "eval_every": 0, "save_every": 0, "precision": "fp32"}
READOUTS = {"ce": "softmax", "mse": "barycentric(0.01)", "energy": "affine"}
TEXTS, LENGTH = 64, 200
HARD, MEAN, GUMBEL = "hard", "scheduled(1.0)", "posterior-gumbel(1.0)"


@SOFT_INPUTS.register("loose-dirichlet")
@dataclass(frozen=True)
class LooseDirichlet(SoftInputs):
    """The control of `posterior-dirichlet`: the same noise about a symbol drawn anew from p."""

    concentration: float | int = 1.0

    def __call__(self, prediction, token_ids, table, done, generator):
        probs = prediction.log_probs.exp()
        other = torch.multinomial(probs, 1, generator=generator).flatten()
        uniform = torch.rand(probs.shape, generator=generator, dtype=torch.float64)
        return posterior_dirichlet(prediction.log_probs, other, uniform, self.concentration) @ table


CORE = [HARD, MEAN, GUMBEL, *(f"posterior-dirichlet({c})" for c in (0.25, 4.0, 64.0))]
MORE = [
    *("posterior-dirichlet(1.0)", "posterior-dirichlet(16.0)"),
    *("posterior-gumbel(0.5)", "posterior-gumbel(2.0)"),
    *("loose-dirichlet(0.25)", "loose-dirichlet(4.0)"),
]
WORK = [  # objective, inputs, steps, seeds
    *(("ce", inputs, 400, 2) for inputs in CORE),
    *(("ce", inputs, 400, 1) for inputs in MORE),
    *((o, inputs, 400, 1) for o in ("mse", "energy") for inputs in (HARD, MEAN, GUMBEL)),
    ("ce", HARD, 533, 2),  # as many operations as 400 steps with soft inputs
    *(("ce", inputs, 1600, 1) for inputs in (HARD, GUMBEL)),
]


@cache
def world() -> tuple:
    """The corpus, its tokenizer, and the true shares of pairs (V, V)."""
    corpus = corpus_of(CHAIN, 1_000_000, seed=0, name="letters")
    corpus = replace(corpus, val=corpus.val[:2000])
    begins = torch.stack([torch.arange(6), torch.zeros(6, dtype=torch.long)], 1)
    follow = CHAIN.next_log_probs(begins)[:, 1].exp().numpy()  # (V, V)
    return corpus, CharTokenizer.fit(corpus.train), CHAIN.stationary[:, None] * follow


def matching(inputs: str) -> tuple[str, str]:
    """The schedule and the feedback of a chain that reads what the model read in training."""
    name, _, rest = inputs.partition("(")
    feedback = {"posterior-gumbel": "gumbel", "scheduled": "mixture"}.get(name, "dirichlet")
    if name == HARD:
        return "always", "mixture"
    return "never", feedback if feedback == "mixture" else f"{feedback}({rest}"


def told_bits(inputs: str, draws: int = 20_000) -> float:
    """What a soft token tells about its symbol beyond p, in bits, mean over the true chain."""
    name, _, rest = inputs.partition("(")
    law = CHAIN.sample(2, draws, seed=4)
    log_probs = CHAIN.next_log_probs(law)[:, 1]
    entropy = -(log_probs.exp() * log_probs).sum(1)
    if name in ("scheduled", "loose-dirichlet"):
        return 0.0
    if name != "posterior-dirichlet":  # the symbol itself, or the largest weight, which is its own
        return float(entropy.mean()) / math.log(2)
    uniform = torch.rand(draws, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = posterior_dirichlet(log_probs, law[:, 1], uniform, float(rest.rstrip(")")))
    left = torch.special.entr(weights).sum(1)  # a symbol is as likely as its weight
    return float((entropy - left).mean()) / math.log(2)


def run(objective: str, inputs: str, steps: int, seed: int) -> list[dict]:
    """One model: its excess on hard text, and how wrong its own text is."""
    corpus, tokenizer, true = world()
    config = ModelConfig(vocab_size=6, objective=objective, **BODY)
    soft = None if inputs == HARD else inputs
    recipe = TrainConfig(steps=steps, soft_inputs=soft, **TRAIN)
    model = train(
        SoftAR(config, tokenizer, seed), corpus, recipe, seed=seed, progress=False
    ).model.with_readout(READOUTS[objective])
    calibrate(model, CHAIN.sample(17, batch_size=500, seed=5))
    schedule, feedback = matching(inputs)
    chosen = {"hard": ("always", "mixture"), "matched": (schedule, feedback)}
    chosen |= {"gumbel": ("never", "gumbel(1.0)"), "mixture": ("never", "mixture")}
    found = {"excess": float(excess_bits(model, CHAIN, CHAIN.sample(17, 128, 9)))}
    for name, (when, what) in chosen.items():
        error = _pairs(model, when, what, seed) - true
        found[f"{name}_pairs"] = float(abs(error).sum() / 2)
        found[f"{name}_letters"] = float(abs(error.sum(0)).sum() / 2)
    return [{"told": told_bits(inputs), **found}]


def _pairs(model: SoftAR, schedule: str, feedback: str, seed: int) -> np.ndarray:
    """The shares of pairs (V, V) in texts that the model writes."""
    seeds = range(seed * TEXTS, (seed + 1) * TEXTS)
    texts = generate(
        model, [""] * TEXTS, steps=LENGTH, seed=seeds, schedule=schedule, feedback=feedback
    )
    ids = np.stack([text.token_ids.numpy() for text in texts])
    found = np.zeros((6, 6))
    np.add.at(found, (ids[:, :-1], ids[:, 1:]), 1)
    return found / found.sum()


def recipe() -> dict:
    """Everything that determines a cell but its keys."""
    return {
        "corpus": "Markov.random(6, seed=3, concentration=0.5)",
        "body": BODY,
        "train": TRAIN,
        "readouts": READOUTS,
        "texts": TEXTS,
        "length": LENGTH,
    }


def main(arguments: list[str] | None = None) -> None:
    asked = asked_for(__doc__, arguments=arguments)
    cells = [(*what, seed) for *what, seeds in WORK for seed in range(seeds)]
    cells.sort(key=lambda cell: cell[-1])  # first the whole table of one seed
    grid = [dict(zip(KEYS, cell, strict=True)) for cell in cells]
    frame = figures(run, grid, CELLS, recipe(), asked.backend)
    save_results(frame.assign(problem=""), [recipe()], RESULTS, KEYS)
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
