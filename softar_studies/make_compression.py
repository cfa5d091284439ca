"""Measure what sums of vectors retain: python -m softar_studies.make_compression

It trains the checkpoint tales-words with three seeds (saved in runs/compression). It tests each
model's word vectors on the gendered analogies of `tales`, and each model on facts that were erased
and put into another slot. It writes data/results/compression.csv and .json.
"""

from pathlib import Path

import pandas as pd

from softar_lab import CharTokenizer, SoftAR, load_corpus, train
from softar_lab.core.cells import save_results
from softar_lab.data.corpora import tales_words
from softar_studies.analogies import tales_analogies
from softar_studies.slot_editing import held_facts, tales_enrichment

from .make_checkpoints import RECIPES, model_config

ROOT = Path(__file__).parents[1]
RESULTS, SEEDS, NAME = ROOT / "data" / "results" / "compression.csv", 3, "tales-words"
STORIES, FACTS = 400, 300


def recipe() -> dict:
    """Everything that determines a row except its seed."""
    checkpoint, corpus = RECIPES[NAME], load_corpus(NAME)
    return {
        **checkpoint,
        "train": vars(checkpoint["train"]),
        "sha256": corpus.sha256,
        "seeds": SEEDS,
        "stories": STORIES,
        "facts": FACTS,
    }


def rows(model: SoftAR, seed: int) -> list[dict]:
    """The rows of one model: columns part, `way`, at, what, value, seed and problem."""
    found = tales_analogies(model, load_corpus("tales").documents("train")[:STORIES]).assign(
        part="analogies", at=0.0
    )
    more = tales_enrichment(model, held_facts(tales_words(), FACTS)).assign(part="enrichment")
    return pd.concat([found, more]).assign(seed=seed, problem="").to_dict("records")


def main() -> None:
    corpus = load_corpus(NAME)
    tokenizer, found = CharTokenizer.fit(corpus.train), []
    for seed in range(SEEDS):
        model = SoftAR(model_config(RECIPES[NAME], tokenizer), tokenizer, seed)
        train(
            model,
            corpus,
            RECIPES[NAME]["train"],
            out=ROOT / "runs" / "compression" / str(seed),
            seed=seed,
        )
        found += rows(model, seed)
    save_results(pd.DataFrame(found), [recipe()], RESULTS, ["part", "way", "at", "what", "seed"])
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
