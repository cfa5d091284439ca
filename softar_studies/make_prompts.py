"""Measure what learned prompts say: python -m softar_studies.make_prompts [PART …]

Without a PART, all are measured (ten minutes on one core, most of them for "bullets").
Eight soft tokens are learned before a task, from random rows, several times; then they are
collapsed and changed in every way, and each is scored on pairs with other words. Finished cells are
saved in runs/prompts; the table goes to data/results/prompts.csv and .json. The prompt of one start
is saved in data/prompts.
"""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch

from softar_lab import SoftAR, load_language, load_pretrained
from softar_lab.core.cells import save_results
from softar_lab.core.predictor import Predictor
from softar_lab.external.pretrained.prompt_reading import survival, words_of
from softar_lab.external.pretrained.prompts import LearnedPrompt, Pair, score, tune_prompt
from softar_studies.prompt_tasks import (
    WRITTEN,
    every_text,
    pairs,
    texts_from,
    true_nats,
)

from .make_results import ROOT
from .tables import asked_for, figures

RUNS, RESULTS = ROOT / "runs" / "prompts", ROOT / "data" / "results" / "prompts.csv"
SAVED = ROOT / "data" / "prompts"
SMOLLM2 = {"tokens": 8, "steps": 25, "batch_size": 4}
MESS3 = {"tokens": 4, "steps": 80, "batch_size": 64, "learning_rate": 0.1}
LENGTH = 6  # symbols of an answer of mess3
PAIRS = {False: [48, 16], True: [2000, 500]}  # of lists and of mess3: to train on, and for the test
# part: its settings and its starts; "bullets" is the one that the verdict is about
PARTS = {"bullets": (SMOLLM2, 5)}
PARTS |= {f"mess3 in state {state}": (MESS3, 6) for state in range(3)}


def recipe(part: str, seed: int) -> dict[str, Any]:
    """Everything that determines a cell's rows."""
    own = part.startswith("mess3")
    model = "mess3-hard" if own else "SmolLM2-135M-Instruct.Q4_1, bfloat16"
    task = {"pairs": PAIRS[own], **({"length": LENGTH} if own else {})}
    return {"part": part, "seed": seed, "model": model, **task, **PARTS[part][0]}


def cell(model: Predictor, part: str, seed: int) -> list[dict[str, Any]]:
    """Learn one prompt and read it: one row per variant, and one for each control."""
    train, test = data_of(part)
    prompt = tune_prompt(model, train, seed=seed, **PARTS[part][0])
    if seed == 0 and part in ("bullets", "mess3 in state 0"):
        prompt.save(SAVED / part.replace(" ", "-"))
    rows = survival(model, prompt, test).to_dict("records")
    if seed == 0:  # they do not depend on the start
        rows += [{"variant": name, **row} for name, row in controls(model, part, test).items()]
    return [{**row, **words(model, prompt)} for row in rows]


def data_of(part: str) -> tuple[list[Pair], list[Pair]]:
    """Training pairs and test pairs."""
    if not part.startswith("mess3"):
        train, test = PAIRS[False]
        return pairs(part, train, seed=0), pairs(part, test, seed=1, test=True)
    language, state = load_language("mess3"), int(part[-1])
    return tuple(texts_from(language, state, n, LENGTH, seed) for seed, n in enumerate(PAIRS[True]))


def controls(model: Predictor, part: str, test: list[Pair]) -> dict[str, dict[str, float]]:
    """What stands beside a learned prompt: nothing, words, and where it is known the truth."""
    found = {"nothing": score(model, test)}
    if not part.startswith("mess3"):
        written = model.embedding[model.tokenizer.encode(WRITTEN[part])]
        return found | {"written": score(model, test, written)}
    language, state = load_language("mess3"), int(part[-1])
    texts = every_text(model.vocab_size, MESS3["tokens"])
    best = [score(model, test, model.embedding[ids], batch_size=500) for ids in texts]
    found["best of all texts"] = min(best, key=lambda row: row["nats"])
    belief = np.eye(len(language.stationary))[state]
    return found | {"truth": {"nats": true_nats(language, test, belief), "right": float("nan")}}


def words(model: Predictor, prompt: LearnedPrompt) -> dict[str, float]:
    """The means over a prompt's soft tokens of what the instruments read."""
    found = words_of(model, prompt)
    numbers = found[["at_start", "cosine", "distance", "off_hull", "length", "weight", "entropy"]]
    return numbers.astype(float).mean().to_dict()


@cache
def load(own: bool) -> Predictor:
    """The lab's model of mess3, or SmolLM2."""
    if own:
        return SoftAR.load(ROOT / "data" / "checkpoints" / "mess3-hard", "cpu")
    return load_pretrained(device="cpu", dtype=torch.bfloat16)


def run(part: str, seed: int) -> list[dict[str, Any]]:
    """The rows of one part and seed."""
    return cell(load(part.startswith("mess3")), part, seed)


def main(arguments: list[str] | None = None) -> None:
    asked, frames = asked_for(__doc__, PARTS, "PART", arguments), []
    for part in asked.names or PARTS:
        settings = {key: value for key, value in recipe(part, 0).items() if key != "seed"}
        grid = {"part": [part], "seed": range(PARTS[part][1])}
        frames.append(figures(run, grid, RUNS, settings, asked.backend))
    if not asked.names:
        recipes = [recipe(part, 0) for part in PARTS]
        save_results(pd.concat(frames), recipes, RESULTS, ["part", "variant", "seed"])
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
