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
from .tables import asked_for, figures

ROOT = Path(__file__).parents[1]
CELLS, RESULTS = ROOT / "runs" / "compression", ROOT / "data" / "results" / "compression.csv"
SEEDS, NAME = 3, "tales-words"
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


def run(seed: int) -> list[dict]:
    """Train one model; its rows: columns part, `way`, at, what and value."""
    corpus = load_corpus(NAME)
    tokenizer = CharTokenizer.fit(corpus.train)
    model = SoftAR(model_config(RECIPES[NAME], tokenizer), tokenizer, seed)
    train(model, corpus, RECIPES[NAME]["train"], out=CELLS / str(seed), seed=seed)
    found = tales_analogies(model, load_corpus("tales").documents("train")[:STORIES]).assign(
        part="analogies", at=0.0
    )
    more = tales_enrichment(model, held_facts(tales_words(), FACTS)).assign(part="enrichment")
    return pd.concat([found, more]).to_dict("records")


def main(arguments: list[str] | None = None) -> None:
    asked = asked_for(__doc__, arguments=arguments)
    frame = figures(run, {"seed": range(SEEDS)}, CELLS, recipe(), asked.backend)
    keys = ["part", "way", "at", "what", "seed"]
    save_results(frame.assign(problem=""), [recipe()], RESULTS, keys)
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
