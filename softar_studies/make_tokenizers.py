"""Measure the table of notebook 01: python -m softar_studies.make_tokenizers [CORPUS …]

Without a CORPUS, all are measured (half an hour on one core). At equal vocabulary size: how many
characters does a token stand for, and how many bits per character does a small model on top need?
The body, the steps and the number of tokens read are equal. Finished cells are saved in
runs/tokenizers, so an interrupted run resumes where it stopped. A run without a CORPUS writes
data/results/tokenizers.csv and .json at the end.
"""

from dataclasses import asdict
from functools import cache, partial

import pandas as pd

from softar_lab import (
    BPETokenizer,
    CharTokenizer,
    GrowingTokenizer,
    ModelConfig,
    SoftAR,
    TrainConfig,
    load_corpus,
    train,
)
from softar_lab.core.cells import save_results
from softar_lab.data.corpora import Corpus
from softar_lab.data.tokenizers.subword import UnitTokenizer

from .make_results import ROOT
from .tables import asked_for, figures

CELLS, RESULTS = ROOT / "runs" / "tokenizers", ROOT / "data" / "results" / "tokenizers.csv"
SEEDS = 3
SIZES = {"shakespeare": [128, 256, 512, 1024], "topics": [512]}
STRICT = {"confidence": 0.5, "least": 10, "fall": 1}
FITS = {
    "bpe": BPETokenizer.fit,
    "growing": GrowingTokenizer.fit,  # thresholds that fall where nothing is left to join
    "strict": partial(GrowingTokenizer.fit, **STRICT),  # fixed thresholds
}
SHAPE = {"context": 64, "n_layers": 2, "d_model": 96}
RECIPE = TrainConfig(steps=300, batch_size=16, eval_every=0, save_every=0)
KEYS = ["corpus", "tokenizer", "vocab_size", "seed"]


@cache
def corpus_named(name: str) -> Corpus:
    return load_corpus(name)


@cache
def fitted(name: str, kind: str, vocab_size: int) -> CharTokenizer | UnitTokenizer:
    """The tokenizer of a kind; "char" takes its vocabulary size from the text."""
    text = corpus_named(name).train
    return CharTokenizer.fit(text, unk=True) if kind == "char" else FITS[kind](text, vocab_size)


def run(corpus: str, tokenizer: str, size: int, seed: int) -> dict:
    """Train one model on one tokenizer of this vocabulary size, or its own where it is 0."""
    text, units = corpus_named(corpus), fitted(corpus, tokenizer, size)
    model = SoftAR(ModelConfig(vocab_size=units.vocab_size, **SHAPE), units, seed)
    done = train(model, text, RECIPE, seed=seed, progress=False)
    return {
        "vocab_size": units.vocab_size,
        "chars_per_token": len(text.val) / len(units.encode(text.val)),
        "bits": done.val_bits_per_char,
        "parameters": model.n_parameters(),
    }


def cells(name: str) -> list[tuple[str, int, int]]:
    """Tokenizer, vocabulary size and seed of every model of a corpus."""
    return [
        (kind, size, seed)
        for seed in range(SEEDS)
        for kind, sizes in {"char": [0], **dict.fromkeys(FITS, SIZES[name])}.items()
        for size in sizes
    ]


def recipe(name: str) -> dict:
    """Everything that determines a corpus's figures except tokenizer, vocabulary size and seed."""
    return {
        "corpus": name,
        "sha256": corpus_named(name).sha256,
        "strict": STRICT,
        "model": SHAPE,
        **asdict(RECIPE),
    }


def main(arguments: list[str] | None = None) -> None:
    asked = asked_for(__doc__, SIZES, "CORPUS", arguments)
    frames = []
    for name in asked.names or SIZES:
        about = ("tokenizer", "size", "seed")
        grid = [{"corpus": name, **dict(zip(about, cell, strict=True))} for cell in cells(name)]
        frames.append(figures(run, grid, CELLS, recipe(name), asked.backend))
    if not asked.names:
        frame = pd.concat(frames).drop(columns="size").assign(problem="")
        save_results(frame, [recipe(name) for name in SIZES], RESULTS, KEYS)
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
