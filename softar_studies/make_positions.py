"""Measure positions beyond the trained length: python -m softar_studies.make_positions [SEED …]

Without a SEED, all are measured. In training, each model reads 64 characters of Tiny Shakespeare at
a time. Then it scores rows of 256 characters of the validation text: once with attention to all
earlier characters, once with attention to the latest 64 slots only (a model with its own window:
only with that). Finished cells are saved in runs/positions. A run without a SEED writes
data/results/positions.csv and .json at the end.
"""

import math
from dataclasses import asdict, replace

import torch

from softar_lab import CharTokenizer, Corpus, ModelConfig, SoftAR, TrainConfig, load_corpus, train
from softar_lab.core.cells import save_results
from softar_lab.models.scoring import encode

from .make_results import ROOT
from .tables import asked_for, figures

CELLS, RESULTS = ROOT / "runs" / "positions", ROOT / "data" / "results" / "positions.csv"
SEEDS, TRAINED, SCORED, BIN = 3, 64, 256, 16
MODELS = {  # how each differs from the lab's own body
    "learned": {"positions": "learned"},
    "sinusoidal": {"positions": "sinusoidal"},
    "rotary": {"positions": "rotary"},
    "none": {"positions": "none"},
    "rotary, window 32": {"positions": "rotary", "attention_window": 32},  # in training as well
}
TRAIN = TrainConfig(steps=400, window=TRAINED, eval_every=0, save_every=0)


def run(positions: str, seed: int) -> list[dict]:
    """Train one model and score it in each attention window: bits per character by position."""
    corpus = load_corpus("shakespeare")
    tokenizer = CharTokenizer.fit(corpus.train)
    model = SoftAR(
        ModelConfig(vocab_size=tokenizer.vocab_size, context=SCORED, **MODELS[positions]),
        tokenizer,
        seed,
    )
    short = replace(corpus, val=corpus.val[: 4 * TRAINED])  # `score` does the real scoring below
    train(model, short, TRAIN, seed=seed, progress=False)
    own = model.config.attention_window
    return [
        row
        for window in ([None, TRAINED] if own is None else [own])
        for row in score(model, corpus, window)
    ]


@torch.inference_mode()
def score(model: SoftAR, corpus: Corpus, window: int | None) -> list[dict]:
    """Score rows of SCORED characters; each BIN of positions gives one row of the table."""
    seeing = SoftAR(replace(model.config, attention_window=window), model.tokenizer)
    seeing.load_state_dict(model.state_dict())
    ids = encode(model, corpus.val, "validation")
    rows = ids[: len(ids) // SCORED * SCORED].view(-1, SCORED)
    log_probs = torch.cat([seeing.eval().log_probs(part) for part in rows.split(64)])  # (N, SCORED)
    bits = -log_probs.double().mean(0).view(-1, BIN).mean(-1) / math.log(2)
    return [
        {"window": window or 0, "begin": i * BIN, "end": (i + 1) * BIN, "bits": b}
        for i, b in enumerate(bits.tolist())
    ]


def recipe(sha256: str) -> dict:
    """Everything that determines a cell except its model and seed."""
    scored = {"trained": TRAINED, "scored": SCORED, "bin": BIN}
    return {
        "corpus": "shakespeare",
        "sha256": sha256,
        "models": MODELS,
        **scored,
        "train": asdict(TRAIN),
    }


def main(arguments: list[str] | None = None) -> None:
    asked = asked_for(__doc__, range(SEEDS), "SEED", arguments)
    settings = recipe(load_corpus("shakespeare").sha256)
    grid = {"seed": asked.names or range(SEEDS), "positions": list(MODELS)}
    frame = figures(run, grid, CELLS, settings, asked.backend)
    if not asked.names:
        keys = ["positions", "window", "seed", "begin"]
        save_results(frame.assign(problem=""), [settings], RESULTS, keys)
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
