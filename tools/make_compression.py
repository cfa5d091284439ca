"""Measure what sums of vectors keep: python tools/make_compression.py

Trains the checkpoint tales-words with three seeds (kept in runs/compression), asks each model's word vectors for the
gendered analogies of `tales`, and each model for facts that were erased and put into another slot. Writes
data/results/compression.csv and .json.
"""

from pathlib import Path

import pandas as pd
from make_checkpoints import RECIPES, model_config

from softar_lab import CharTokenizer, SoftAR, load_corpus, train
from softar_lab.analysis.analogies import tales_analogies
from softar_lab.analysis.enrichment import held_facts, tales_enrichment
from softar_lab.analysis.results import save_results
from softar_lab.sources.corpora import tales_words

ROOT = Path(__file__).parents[1]
RESULTS, SEEDS, NAME = ROOT / "data" / "results" / "compression.csv", 3, "tales-words"
STORIES, FACTS = 400, 300


def told() -> dict:
    """All that decides a row but its seed."""
    recipe, corpus = RECIPES[NAME], load_corpus(NAME)
    return {
        **recipe,
        "train": vars(recipe["train"]),
        "sha256": corpus.sha256,
        "seeds": SEEDS,
        "stories": STORIES,
        "facts": FACTS,
    }


def rows(model: SoftAR, seed: int) -> list[dict]:
    """What is measured of one model: columns part, way, at, what, value."""
    found = tales_analogies(model, load_corpus("tales").documents("train")[:STORIES]).assign(part="analogies", at=0.0)
    more = tales_enrichment(model, held_facts(tales_words(), FACTS)).assign(part="enrichment")
    return pd.concat([found, more]).assign(seed=seed, problem="").to_dict("records")


def main() -> None:
    corpus = load_corpus(NAME)
    tokenizer, found = CharTokenizer.fit(corpus.train), []
    for seed in range(SEEDS):
        model = SoftAR(model_config(RECIPES[NAME], tokenizer), tokenizer, seed)
        train(model, corpus, RECIPES[NAME]["train"], out=ROOT / "runs" / "compression" / str(seed), seed=seed)
        found += rows(model, seed)
    save_results(pd.DataFrame(found), [told()], RESULTS, ["part", "way", "at", "what", "seed"])
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
