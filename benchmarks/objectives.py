"""What a whole training step of each objective costs beside the hard one's.

    python benchmarks/objectives.py

All have one body (the preset "shakespeare": 64 characters, 16 rows) and one kind of table
("random", 64 wide), and are trained by `softar_lab.training.update.update`: batch, loss, backward
pass and both optimizers. `ce` and `mse` come again with soft tokens among their inputs, which takes
a second pass through the body, without gradient; fitting the readout it speaks through again, once
in 50 steps, is not counted.

They take turns of a few steps, round after round, every other round in reverse. A ratio is that of
one round, to `ce` in the same round, so that whatever slows the machine down hits both sides of it;
the table shows the median of the rounds and the quartiles. Multiply-adds are those of matrix
products, counted in one step; they know no noise at all.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median, quantiles
from typing import Any

import torch
from peers import machine, markdown, threads, write_json

from softar_lab import CharTokenizer, Corpus, ModelConfig, SoftAR, TrainConfig, load_corpus
from softar_lab.models.objectives import OBJECTIVES
from softar_lab.training.data import TrainingRows
from softar_lab.training.update import make_optimizers, update
from softar_studies.objectives_table import multiply_adds

HARD = "ce"
CONTESTANTS = [(name, None) for name in OBJECTIVES.names()]
CONTESTANTS += [(name, how) for name in (HARD, "mse") for how in ("scheduled", "posterior-gumbel")]


def trainee(
    corpus: Corpus, objective: str, soft_inputs: str | None, steps: int
) -> tuple[Callable[[int], float], int]:
    """A new model: what trains it by one step, given its number, and the multiply-adds of that."""
    tokenizer = CharTokenizer.fit(corpus.train)
    shape = {
        "vocab_size": tokenizer.vocab_size,
        "embedding_dim": 64,
        "table": "random",
        "objective": objective,
    }
    model = SoftAR(ModelConfig.preset("shakespeare", **shape), tokenizer).train()
    recipe = TrainConfig(steps=steps, soft_inputs=soft_inputs)
    rows, optimizers = TrainingRows(model, corpus, recipe, seed=0), make_optimizers(model, recipe)
    return lambda step: update(model, rows, step, optimizers, recipe), multiply_adds(
        model, rows, recipe
    )


def contest(corpus: Corpus, rounds: int, turn: int) -> list[dict[str, Any]]:
    """Rounds in which everyone trains for a turn of steps; a row each: seconds a step, round by
    round.
    """
    results, steps = [], {}
    for objective, soft_inputs in CONTESTANTS:
        name = f"{objective}, {soft_inputs}" if soft_inputs else objective
        steps[name], count = trainee(corpus, objective, soft_inputs, (rounds + 1) * turn)
        results.append({"contestant": name, "multiply_adds": count, "seconds": []})
    for number in range(rounds + 1):
        for result in results[:: -1 if number % 2 else 1]:
            begin = time.perf_counter()
            losses = [
                steps[result["contestant"]](step)
                for step in range(number * turn, (number + 1) * turn)
            ]
            seconds = (time.perf_counter() - begin) / turn
            assert all(map(math.isfinite, losses)), f"{result['contestant']} diverged: {losses}"
            if number:  # the first round warms up
                result["seconds"].append(seconds)
    return results


def table(results: list[dict[str, Any]]) -> str:
    """The markdown table: medians over the rounds."""
    hard = next(result for result in results if result["contestant"] == HARD)
    lines = []
    for result in results:
        ratios = [own / its for own, its in zip(result["seconds"], hard["seconds"], strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive")
        count = result["multiply_adds"]
        timed = [
            f"{1e3 * median(result['seconds']):.1f}",
            f"{median(ratios):.2f}",
            f"{low:.2f} – {high:.2f}",
        ]
        lines.append(
            [
                result["contestant"],
                *timed,
                f"{count / 1e6:,.0f}",
                f"{count / hard['multiply_adds']:.2f}",
            ]
        )
    header = ["objective, soft inputs", "ms a step", f"time, × {HARD}", "quartiles"]
    return markdown([*header, "million multiply-adds", f"multiply-adds, × {HARD}"], lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rounds", type=int, default=20, help="turns of everyone, at least 2 (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=10, help="steps a turn (%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)"
    )
    parser.add_argument("--corpus", default="shakespeare", help="name or file (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="keep everything measured, every round")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few steps: does it run at all? Its figures say nothing",
    )
    options = parser.parse_args(arguments)
    corpus = load_corpus(options.corpus)
    if options.quick:
        options.rounds, options.steps, corpus = 2, 1, replace(corpus, train=corpus.train[:10_000])
    if options.rounds < 2 or options.steps < 1:
        parser.error("--rounds must be at least 2, --steps at least 1")
    with threads(options.threads):
        results = contest(corpus, options.rounds, options.steps)
        symbols, rounds = (
            len(set(corpus.train)),
            f"{options.rounds} rounds of {options.steps} steps",
        )
        print(f"\n{table(results)}\n\n{corpus.name}, {symbols} symbols; {rounds}; {machine()}")
        write_json(
            options.json, {"corpus": corpus.sha256, "steps": options.steps, "results": results}
        )


if __name__ == "__main__":
    main()
