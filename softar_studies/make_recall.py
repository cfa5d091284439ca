"""Measure what longer training and width buy on recall: python -m softar_studies.make_recall

data/results/window.csv compares layouts after 800 steps, which are moments of training. Here the
same models train longer, and bound sums get fewer numbers. Finished cells are saved in runs/recall,
so an interrupted run resumes where it stopped. A complete run writes data/results/recall.csv and
.json.
"""

from dataclasses import asdict, replace

from softar_lab import SoftAR, train
from softar_lab.core.cells import save_results
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.models.config import ModelConfig

from .make_results import ROOT
from .make_window import PLAIN, TASKS, one, text_of, values
from .tables import asked_for, figures

RUNS, RESULTS = ROOT / "runs" / "recall", ROOT / "data" / "results" / "recall.csv"
TASK = TASKS["recall"]
KEYS = ["layout", "steps", "seed"]
LAYOUTS = {"full": PLAIN, "plain": PLAIN, "sum": one("sum")} | {
    f"bound({width})": one(f"bound({width})") for width in (16, 32, 64)
}
CELLS = [
    *(("full", 1600, seed) for seed in range(3)),
    *((f"bound({width})", 800, seed) for seed in range(2) for width in (16, 64, 32)),
    *(("sum", 2400, seed) for seed in range(2)),
    ("plain", 2400, 0),
]


def run(layout: str, steps: int, seed: int) -> dict:
    """Train one model; its bits an answer on validation text."""
    corpus, full = text_of("recall"), layout == "full"
    tokenizer = CharTokenizer.fit(corpus.train)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        context=TASK.full if full else TASK.slots,
        window=LAYOUTS[layout],
        **TASK.model,
    )
    batch = TASK.full_batch if full else TASK.train.batch_size
    model = SoftAR(config, tokenizer, seed)
    recipe = replace(TASK.train, steps=steps, batch_size=batch)
    train(model, corpus, recipe, seed=seed, progress=False)
    found, n = values("recall", model)["answer bits"]
    return {"bits": float(found), "n": n}


def recipe() -> dict:
    """Everything that determines a cell but its layout, steps and seed."""
    return {
        "corpus": "recall",
        "sha256": text_of("recall").sha256,
        "slots": TASK.slots,
        "full": TASK.full,
        "train": {**asdict(TASK.train), "steps": None},
        "full_batch": TASK.full_batch,
        "model": TASK.model,
        "layouts": {name: str(window) for name, window in LAYOUTS.items()},
    }


def main(arguments: list[str] | None = None) -> None:
    asked = asked_for(__doc__, arguments=arguments)
    grid = [dict(zip(KEYS, cell, strict=True)) for cell in CELLS]
    frame = figures(run, grid, RUNS, recipe(), asked.backend)
    save_results(frame.assign(problem=""), [recipe()], RESULTS, KEYS)
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
