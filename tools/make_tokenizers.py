"""Measure the table of notebook 01: python tools/make_tokenizers.py [CORPUS …] (default: all; half an hour on a core).

At equal vocabulary, how many characters a token stands for and what a small model on top needs a character; the body,
the steps and the tokens read are equal. Finished cells are kept in runs/tokenizers, so an interrupted run goes on where
it was. When all are there, data/results/tokenizers.csv and .json are written.
"""

from dataclasses import asdict
from functools import cache, partial

import pandas as pd
import torch
from make_results import ROOT, names_asked_for

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
from softar_lab.analysis.results import cell_path, kept, save_results
from softar_lab.sources.corpora import Corpus
from softar_lab.sources.tokenizers import UnitTokenizer

CELLS, RESULTS = ROOT / "runs" / "tokenizers", ROOT / "data" / "results" / "tokenizers.csv"
SEEDS = 3
SIZES = {"shakespeare": [128, 256, 512, 1024], "topics": [512]}
STRICT = {"confidence": 0.5, "least": 10, "fall": 1}
FITS = {
    "bpe": BPETokenizer.fit,
    "growing": GrowingTokenizer.fit,  # thresholds that fall where nothing is left to join
    "strict": partial(GrowingTokenizer.fit, **STRICT),  # thresholds that stay
}
SHAPE = {"context": 64, "n_layers": 2, "d_model": 96}
RECIPE = TrainConfig(steps=300, batch_size=16, eval_every=0, save_every=0)
KEYS = ["corpus", "tokenizer", "vocab_size", "seed"]


@cache
def corpus_named(name: str) -> Corpus:
    return load_corpus(name)


@cache
def fitted(name: str, kind: str, vocab_size: int) -> CharTokenizer | UnitTokenizer:
    """The tokenizer of a kind; of single characters there are as many as the text has."""
    text = corpus_named(name).train
    return CharTokenizer.fit(text, unk=True) if kind == "char" else FITS[kind](text, vocab_size)


def run(name: str, kind: str, vocab_size: int, seed: int) -> list[dict]:
    """One model on top of one tokenizer."""
    corpus, tokenizer = corpus_named(name), fitted(name, kind, vocab_size)
    model = SoftAR(ModelConfig(vocab_size=tokenizer.vocab_size, **SHAPE), tokenizer, seed)
    done = train(model, corpus, RECIPE, seed=seed, progress=False)
    return [
        {
            "corpus": name,
            "tokenizer": kind,
            "vocab_size": tokenizer.vocab_size,
            "seed": seed,
            "chars_per_token": len(corpus.val) / len(tokenizer.encode(corpus.val)),
            "bits": done.val_bits_per_char,
            "parameters": model.n_parameters(),
            "problem": "",
        }
    ]


def cells(name: str) -> list[tuple[str, int, int]]:
    """Tokenizer, vocabulary and seed of every model of a corpus."""
    return [
        (kind, size, seed)
        for seed in range(SEEDS)
        for kind, sizes in {"char": [0], **dict.fromkeys(FITS, SIZES[name])}.items()
        for size in sizes
    ]


def told(name: str) -> dict:
    """All that decides a corpus's figures but for tokenizer, vocabulary and seed."""
    return {"corpus": name, "sha256": corpus_named(name).sha256, "strict": STRICT, "model": SHAPE, **asdict(RECIPE)}


def main() -> None:
    names, rows = names_asked_for(__doc__, SIZES, "CORPUS"), []
    torch.set_num_threads(1)
    for name in names or SIZES:
        for cell in cells(name):
            rows += kept(cell_path(CELLS, name, *cell), told(name), partial(run, name, *cell))
            print(name, *cell, flush=True)
    if not names:
        save_results(pd.DataFrame(rows), [told(name) for name in SIZES], RESULTS, KEYS)
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
