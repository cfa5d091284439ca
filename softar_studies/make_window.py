"""Measure the table of notebook 09: python -m softar_studies.make_window [CORPUS …]

Without a CORPUS, all are measured (three hours on one core). How are the slots of a context best
divided between tokens and a memory of earlier text? Every layout has the same number of slots in
all, except "full", from which nothing is hidden. All models of a corpus are trained alike and
scored as they read in generation. Then they are scored with their memory masked, and with the
memory of another text. Finished cells are saved in runs/window, so an interrupted run resumes where
it stopped. One process per corpus may run at the same time (OMP_NUM_THREADS=1). A run without a
CORPUS writes data/results/window.csv and .json after each seed.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache

import pandas as pd
import torch

from softar_lab import (
    ModelConfig,
    SoftAR,
    TrainConfig,
    Window,
    corpus_of,
    load_corpus,
    load_language,
    train,
)
from softar_lab.core.cells import save_results
from softar_lab.core.predictor import Predictor
from softar_lab.data.corpora import Corpus
from softar_lab.data.languages import Recall, Urn
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.models.scoring import char_log_probs
from softar_studies.recall import AGES, answers_by_age, facts, rows_of

from .make_results import ROOT
from .tables import asked_for, figures

RUNS, RESULTS = ROOT / "runs" / "window", ROOT / "data" / "results" / "window.csv"
URN, RECALL = Urn([0.5] * 8, length=63), Recall(n_keys=8, n_values=4, n_pairs=8, n_queries=8)
TRUTHS = {"urn": URN, "recall": RECALL, "tales": load_language("tales")}
# Not in the table: of the rotated sums this one had a coordinate that was not divided by √n, before
# that was mended. (Those of seeds 0 and 1 had none.) A run without a CORPUS measures it again.
MISSING = {("tales", "rotated"): 1}
KEYS = ["corpus", "layout", "control", "measure", "age", "seed"]
LN2 = 0.6931471805599453


@dataclass(frozen=True)
class Task:
    """One corpus, the shape and training of its models, and the layouts compared.

    `slots`: the slots of a context in all. `full`: the context from which nothing is hidden;
    `full_batch`: the batch size with it. `late`: "late bits" count from this many characters into a
    document.
    """

    corpus: Callable[[], Corpus]
    slots: int
    full: int | None
    train: TrainConfig
    full_batch: int
    late: int | None
    layouts: dict[str, Window]
    seeds: int
    model: dict


def one(kind: str, aggregate: int = 1, **changes: int) -> Window:
    """A window whose memory holds only aggregates; the rest is tokens, all of which may be soft."""
    return Window(aggregate, 0, hard=0, kind=kind, **changes)


PLAIN = Window(0, 0, hard=0)
STRUCTURED = {  # of 64 slots
    "plain": PLAIN,
    "sum": one("sum"),
    "ema": one("ema(0.95)"),
    "sum + 2 segments": Window(1, 2, hard=0, stretch=32),
    "bound": one("bound(256)"),
    "rotated": one("rotated"),
    "4 gists": one("gist(4)", 4),
}
SMALL = {"n_layers": 2, "d_model": 64, "n_heads": 4, "table": "orthonormal"}
TASKS = {
    "urn": Task(
        corpus=lambda: corpus_of(URN, 400_000, 26_000, 10_000),
        slots=17, full=64, train=TrainConfig(steps=1000, batch_size=64, eval_every=0, save_every=0), full_batch=16,
        late=17, seeds=3, model=SMALL,
        layouts={k: STRUCTURED[k] for k in ("plain", "sum", "ema", "bound")} | {"1 gist": one("gist(4)")},
    ),
    "recall": Task(
        corpus=lambda: corpus_of(RECALL, 1_000_000, 34_000, 10_000),
        slots=7, full=34, train=TrainConfig(steps=800, batch_size=256, eval_every=0, save_every=0), full_batch=48,
        late=None, seeds=3, model=SMALL,
        layouts={k: STRUCTURED[k] for k in ("plain", "sum", "ema", "rotated", "bound")} | {"1 gist": one("gist(4)")},
    ),
    "tales": Task(
        corpus=lambda: load_corpus("tales"),
        slots=64, full=400, train=TrainConfig(steps=1500, batch_size=48, eval_every=0, save_every=0), full_batch=8,
        late=64, seeds=3, model={"n_layers": 4, "d_model": 128, "n_heads": 4},
        layouts=STRUCTURED,
    ),
    "shakespeare": Task(
        corpus=lambda: load_corpus("shakespeare"),
        slots=64, full=256, train=TrainConfig(steps=500, batch_size=16, eval_every=0, save_every=0), full_batch=4,
        late=None, seeds=3, model={"n_layers": 3, "d_model": 96, "n_heads": 4},
        layouts={k: v for k, v in STRUCTURED.items() if k not in ("rotated", "bound")},
    ),
}  # fmt: skip


@cache
def text_of(name: str) -> Corpus:
    return TASKS[name].corpus()


def config_of(name: str, layout: str, tokenizer: CharTokenizer) -> ModelConfig:
    """The config of a layout: "full" is a plain window so long that whole documents fit."""
    task, full = TASKS[name], layout == "full"
    window = PLAIN if full else task.layouts[layout]
    context = task.full if full else task.slots
    return ModelConfig(
        vocab_size=tokenizer.vocab_size, context=context, window=window, **task.model
    )


def measure(corpus: str, layout: str, seed: int) -> list[dict]:
    """The rows of one model: its scores on validation text, with its own memory and without.

    "truth" is no model but the language itself, which remembers everything and makes no errors.
    """
    task, text, about = TASKS[corpus], text_of(corpus), {"corpus": corpus, "layout": layout}
    about["seed"] = seed
    if layout == "truth":
        return rows_of(values(corpus, TRUTHS[corpus]), control="own", **about)
    tokenizer = CharTokenizer.fit(text.train)
    recipe = (
        TrainConfig(**{**asdict(task.train), "batch_size": task.full_batch})
        if layout == "full"
        else task.train
    )
    model = SoftAR(config_of(corpus, layout, tokenizer), tokenizer, seed)
    train(model, text, recipe, seed=seed, progress=False)
    # score with the model's own memory, with no memory, and with that of another text
    rows = []
    for control in ("own", "masked", "other") if model.memory is not None else ("own",):
        seen = model.with_window(None if control == "own" else control)
        rows += rows_of(values(corpus, seen), control=control, **about)
    return rows


def values(name: str, model: Predictor) -> dict:
    """The figures measured, each as (value, number of items it is the mean of)."""
    task, corpus = TASKS[name], text_of(name)
    documents = [*corpus.documents("val"), *(corpus.documents("test") if name == "tales" else ())]
    bits = -char_log_probs(model, "".join(documents), corpus.separator).double() / LN2
    found = {"bits": (bits.mean(), len(bits))}
    if corpus.separator:
        # the position of each character in its document
        place = torch.cat([torch.arange(len(document)) for document in documents])
        if task.late:
            late = bits[place >= task.late]
            found["late bits"] = (late.mean(), len(late))
    if name == "recall":
        asked = bits[
            (place > 2 * RECALL.n_pairs) & (place % 2 == 0) & (place < RECALL.document_length - 1)
        ]
        found["answer bits"] = (asked.mean(), len(asked))
    if name == "tales":
        answers = answers_by_age(bits, known_facts())
        found["answer bits"] = (answers["bits"].mean(), len(answers))
        ages = pd.cut(answers["age"], [*AGES, 10_000], right=False, labels=AGES)
        for age, some in answers.groupby(ages, observed=True):
            found["answer bits", int(age)] = (some["bits"].mean(), len(some))
    return found


@cache
def known_facts() -> pd.DataFrame:
    return facts([*text_of("tales").documents("val"), *text_of("tales").documents("test")])


def recipe(name: str, seeds: int) -> dict:
    """Everything that determines a corpus's rows, for this many seeds or as many as it has."""
    task = TASKS[name]
    windows = {layout: str(window) for layout, window in task.layouts.items()}
    return {
        "corpus": name, "sha256": text_of(name).sha256, "slots": task.slots, "full": task.full, "late": task.late,
        "train": asdict(task.train), "full_batch": task.full_batch, "model": task.model, "layouts": windows,
        "seeds": min(seeds, task.seeds),
    }  # fmt: skip


def rows(name: str, seed: int, backend: str) -> pd.DataFrame:
    """All layouts of one corpus and seed."""
    layouts = [*(["truth"] if name in TRUTHS else []), "full", *TASKS[name].layouts]
    about = {key: value for key, value in recipe(name, 1).items() if key != "seeds"}
    grid = {"corpus": [name], "layout": layouts, "seed": [seed]}
    return figures(measure, grid, RUNS, about, backend)


def main(arguments: list[str] | None = None) -> None:
    asked, every = asked_for(__doc__, TASKS, "CORPUS", arguments), []
    # first the whole table of one seed, then of two, …
    for seed in range(max(task.seeds for task in TASKS.values())):
        names = [name for name in asked.names or TASKS if seed < TASKS[name].seeds]
        every += [rows(name, seed, asked.backend) for name in names]
        if not asked.names:
            frame = pd.concat(every).assign(problem="")
            save_results(frame, [recipe(name, seed + 1) for name in TASKS], RESULTS, KEYS)
            print(f"written: {RESULTS}, {seed + 1} seeds", flush=True)


if __name__ == "__main__":
    main()
