"""Measure levels, exits and drafts (notebook 11): python -m softar_studies.make_horizons [CELL …]

A CELL is CORPUS/LEVELS/CURRICULUM/SEED, such as tales/bound/0/1; without one, all of `cells()` are
measured. Finished cells are saved in runs/horizons, and --table writes data/results/horizons.csv
and .json from those that are there. All cells of a corpus have the same budget: the same steps on
the same rows, the same body from the same first weights.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch

from softar_lab import (
    CharTokenizer,
    ModelConfig,
    Run,
    SoftAR,
    TrainConfig,
    generate,
    load_corpus,
    load_language,
    train,
)
from softar_lab.core.cells import cell_path, load_or_run, save_results
from softar_lab.data.corpora import Corpus, corpus_of
from softar_lab.data.languages import Language, Markov
from softar_lab.metrics.lookahead import (
    Layers,
    excess_ahead,
    exit_curve,
    oracle_curve,
    random_curve,
    saved_at,
)
from softar_lab.models.scoring import encode
from softar_lab.training.heads import rows_of, train_exits, train_levels

ROOT = Path(__file__).parent.parent
CELLS, RESULTS = ROOT / "runs" / "horizons", ROOT / "data" / "results" / "horizons.csv"
SEEDS = 3
KINDS = ("none", "ahead", "sum", "bound", "multi-token")
# Where an alphabet is large, each of the 4 or 15 maps of a model is fitted on so many tokens.
FEW = "affine(4096, 0.01)"
LEVELS = {
    "tales": {"sum": f"sum(2, {FEW!r})", "bound": f"bound(2, {FEW!r})"},
    "shakespeare": {"sum": f"sum(2, {FEW!r})", "bound": f"bound(2, {FEW!r})"},
}
CURRICULA = (0.0, 0.5)
SHAPES: dict[str, dict[str, Any]] = {
    "markov": {"context": 32, "d_model": 32, "embedding_dim": 32, "table": "orthonormal"},
    "mess3": {"context": 64, "d_model": 64, "embedding_dim": 32, "table": "orthonormal"},
    "tales": {"context": 128, "d_model": 64, "embedding_dim": 64, "table": "orthonormal"},
    "shakespeare": {"context": 64, "d_model": 64, "embedding_dim": 65, "table": "orthonormal"},
}
TRAIN = {
    "markov": TrainConfig(steps=200, batch_size=16, eval_every=0, save_every=0),
    "mess3": TrainConfig(steps=250, batch_size=16, eval_every=0, save_every=0),
    "tales": TrainConfig(steps=300, batch_size=8, eval_every=0, save_every=0),
    "shakespeare": TrainConfig(steps=300, batch_size=16, eval_every=0, save_every=0),
}
JUDGED = {
    "markov": (64, 32),
    "mess3": (64, 64),
    "tales": (8, 100),
}  # rows of the truth, and length
LOST = (0.01, 0.05)  # bits per symbol
DRAFT, TEXTS, SYMBOLS = "levels(8, 0.5)", 20, 200
SMALL_HEAD = {"steps": 350, "batch_size": 2, "learning_rate": 5e-3}  # of recurrent drafts


def language_of(name: str) -> Language | None:
    """The true language behind a corpus; None for real text."""
    if name == "markov":
        return Markov.random(6, 1, seed=1, concentration=0.5)
    return None if name == "shakespeare" else load_language(name)


def corpus_named(name: str) -> Corpus:
    return corpus_of(language_of(name), name=name) if name == "markov" else load_corpus(name)


def config_of(name: str, kind: str, vocab_size: int) -> ModelConfig:
    """The model of a cell."""
    levels = None if kind == "none" else LEVELS.get(name, {}).get(kind, kind)
    return ModelConfig(vocab_size=vocab_size, objective="ce", levels=levels, **SHAPES[name])


def trained(corpus: Corpus, kind: str, curriculum: float, seed: int) -> Run:
    """The model of a cell, trained."""
    tokenizer = CharTokenizer.fit(corpus.train)
    model = SoftAR(config_of(corpus.name, kind, tokenizer.vocab_size), tokenizer, seed)
    config = replace(TRAIN[corpus.name], level_curriculum=curriculum)
    return train(model, corpus, config, seed=seed, progress=False, eval_tokens=20_000)


def run(name: str, kind: str, curriculum: float, seed: int) -> list[dict]:
    """One cell: train, then one row per figure."""
    # 1) the model
    corpus = corpus_named(name)
    done = trained(corpus, kind, curriculum, seed)
    model = done.model
    cell = {"corpus": name, "levels": kind, "curriculum": curriculum, "seed": seed}
    rows = []
    if name != "tales":  # stories outlast this context, and windows of validation begin in them
        rows.append({**cell, "figure": "bits", "value": done.val_bits_per_char})
    # 2) what each reading loses against the truth, on rows that are drawn anew
    if name in JUDGED:
        language, (count, length) = language_of(name), JUDGED[name]
        drawn = language.sample(length, count, seed=1000 + seed)
        for one in excess_ahead(model, language, drawn).to_dict("records"):
            place = {key: one[key] for key in ("layer", "first", "last")}
            figure = "excess" if one["of"] == "objective" else "excess_level"
            rows.append({**cell, "figure": figure, "value": one["excess"], **place})
            rows.append({**cell, "figure": "floor", "value": one["floor"], **place})
    # 3) leaving early, with heads and thresholds fitted elsewhere
    if curriculum == 0 and (name == "mess3" or (kind == "none" and name in LEVELS)):
        rows += [{**cell, **row} for row in exits(model, corpus, seed)]
    # 4) drafts: by its own heads, or by a small one that is fitted to it as it is
    if kind == "none" and curriculum == 0 and name in LEVELS:
        model = train_levels(model, corpus, "recurrent(8)", seed=seed, **SMALL_HEAD)
    if model.levels is not None and kind not in ("ahead", "sum"):
        rows += [{**cell, **row} for row in drafts(model)]
    return rows


def drafts(model: SoftAR) -> list[dict]:
    """Symbols per pass, texts that are not the plain ones, and processor time beside plain."""
    took: dict[str | None, list[float]] = {None: [], DRAFT: []}
    passes, unlike = 0, 0
    for seed in range(TEXTS):
        texts = []
        for draft, times in took.items():  # by turns
            begin = time.thread_time()
            texts.append(generate(model, "", SYMBOLS, seed=seed, draft=draft))
            times.append(time.thread_time() - begin)
        passes += int(texts[1].passes.sum())
        unlike += texts[0].text != texts[1].text
    speed = median(plain / drafted for plain, drafted in zip(*took.values(), strict=True))
    return [
        {"figure": "symbols per pass", "value": TEXTS * SYMBOLS / passes},
        {"figure": "texts unlike the plain ones", "value": unlike},
        {"figure": "speed of drafts beside plain", "value": speed},
    ]


def exits(model: SoftAR, corpus: Corpus, seed: int) -> list[dict]:
    """The share of layers saved at some bits lost: thresholds from val, figures from test."""
    train_exits(model, corpus, steps=200, seed=seed)
    second_half = corpus.val[len(corpus.val) // 2 :]
    if corpus.separator:
        second_half = second_half[second_half.index(corpus.separator) + 1 :]
    fitted, judged = (
        Layers.of(model, rows_of(model, corpus, encode(model, text, "held-out"), 8_000))
        for text in (second_half, corpus.test)
    )
    found = []
    for rule, confidence in CONFIDENCES.items():
        curve = exit_curve(confidence(fitted.log_probs[:-1]), fitted.losses)
        for lost in LOST:
            fits = curve[curve["lost"] <= lost + 1e-9]
            threshold = fits.loc[fits["saved"].idxmax(), "threshold"]
            at = leave(confidence(judged.log_probs[:-1]), threshold)
            taken = judged.losses.gather(0, at[None])[0]
            figure = f"{rule} at {lost}"
            real = (taken - judged.losses[-1]).mean().item()
            share = 1 - (at.double() + 1).mean().item() / len(judged.losses)
            found.append({"figure": f"threshold, {figure}", "value": threshold})
            found.append({"figure": f"saved, {figure}", "value": share})
            found.append({"figure": f"lost, {figure}", "value": real})
            control = random_curve(judged.losses)
            found.append(
                {"figure": f"saved, random beside {figure}", "value": saved_at(control, real)}
            )
    for lost in LOST:
        best = saved_at(oracle_curve(judged.losses), lost)
        found.append({"figure": f"saved, oracle at {lost}", "value": best})
        by_regret = saved_at(oracle_curve(judged.regret), lost)
        found.append({"figure": f"saved, oracle by regret at {lost}", "value": by_regret})
    return found


def leave(confidence: torch.Tensor, threshold: float) -> torch.Tensor:
    """The layer (N,), from 0, at which each position leaves."""
    leaves = confidence >= threshold
    return torch.where(leaves.any(0), leaves.float().argmax(0), len(confidence))


CONFIDENCES = {
    "entropy": lambda log_probs: -torch.special.entr(log_probs.exp()).sum(-1),
    "margin": lambda log_probs: -log_probs.exp().topk(2, -1).values.diff(dim=-1)[..., 0],
    "norm": lambda log_probs: log_probs.exp().square().sum(-1).sqrt(),
}


def recipe_of(name: str) -> dict[str, Any]:
    """Everything that determines a cell of a corpus except its levels, curriculum and seed."""
    about = {"corpus": name, "model": SHAPES[name], "train": asdict(TRAIN[name])}
    about |= {"levels": LEVELS.get(name, {}), "judged": JUDGED.get(name), "lost": LOST}
    about["draft"] = {"draft": DRAFT, "texts": TEXTS, "symbols": SYMBOLS, "head": SMALL_HEAD}
    return json.loads(json.dumps(about))


def cells() -> list[tuple[str, str, float, int]]:
    """All cells, the most telling first."""
    names, seeds = tuple(SHAPES), range(SEEDS)
    plain = [(name, kind, 0.0, seed) for name in names for seed in seeds for kind in KINDS]
    curriculum = [
        (name, kind, 0.5, seed) for seed in seeds for name in names[1:] for kind in KINDS[1:]
    ]
    return plain + curriculum


def parsed(cell: str) -> tuple[str, str, float, int]:
    name, kind, curriculum, seed = cell.split("/")
    return name, kind, float(curriculum), int(seed)


def path_of(cell: tuple[str, str, float, int]) -> Path:
    return cell_path(CELLS, *cell)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cells", nargs="*", metavar="CELL")
    parser.add_argument("--table", action="store_true", help="write the table of what is there")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no cell after them")
    asked = parser.parse_args(arguments)
    wanted = [parsed(one) for one in asked.cells] or cells()
    if asked.table:
        wanted = [cell for cell in wanted if path_of(cell).exists()]
    begin, rows = time.monotonic(), []
    for cell in wanted:
        if time.monotonic() - begin > asked.seconds:
            print("time is over; the same command goes on")
            return
        rows += load_or_run(path_of(cell), recipe_of(cell[0]), partial(run, *cell))
        print(*cell, round(time.monotonic() - begin), flush=True)
    if asked.table:
        names = sorted({cell[0] for cell in wanted})
        keys = ["corpus", "levels", "curriculum", "seed", "figure", "layer", "first", "last"]
        save_results(pd.DataFrame(rows), [recipe_of(name) for name in names], RESULTS, keys)
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
