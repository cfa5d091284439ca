"""Measure the table of notebook 09: python tools/make_window.py [CORPUS …] (default: all; three hours on one core).

How the slots of a context are best shared between tokens and a memory of what came before: every layout has as many
slots in all, but for "full", from which nothing is hidden. Models are trained alike and scored as they would read on;
then once more with their memory masked, and with that of another text. Finished cells are kept in runs/window, so an
interrupted run goes on where it was; one process a corpus may run at the same time (OMP_NUM_THREADS=1). When all are
there, data/results/window.csv and .json are written.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache

import pandas as pd
import torch
from make_results import ROOT, names_asked_for

from softar_lab import ModelConfig, SoftAR, TrainConfig, Window, corpus_of, load_corpus, load_language, train
from softar_lab.analysis.memory import AGES, answers_by_age, facts, rows_of
from softar_lab.analysis.results import cell_path, kept, save_results
from softar_lab.evaluation import char_log_probs
from softar_lab.predictor import Predictor
from softar_lab.sources.corpora import Corpus
from softar_lab.sources.languages import Recall, Urn
from softar_lab.sources.tokenizers import CharTokenizer

RUNS, RESULTS = ROOT / "runs" / "window", ROOT / "data" / "results" / "window.csv"
URN, RECALL = Urn([0.5] * 8, length=63), Recall(n_keys=8, n_values=4, n_pairs=8, n_queries=8)
TRUTHS = {"urn": URN, "recall": RECALL, "tales": load_language("tales")}
KEYS = ["corpus", "layout", "control", "measure", "age", "seed"]
LN2 = 0.6931471805599453


@dataclass(frozen=True)
class Task:
    """A text, the shape of its models, how they are trained, and the layouts compared; `slots` of a context in all.

    `full`: the context from which nothing is hidden; `late`: characters into a document from where "late bits" count.
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
    """A window whose memory is aggregates alone; the rest is tokens, all of which may be soft."""
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
    """The shape of a model: `full` is a plain window so long that whole documents fit."""
    task, full = TASKS[name], layout == "full"
    window = PLAIN if full else task.layouts[layout]
    context = task.full if full else task.slots
    return ModelConfig(vocab_size=tokenizer.vocab_size, context=context, window=window, **task.model)


def measure(name: str, layout: str, seed: int) -> list[dict]:
    """The rows of one model: what it makes of the validation text, with its own memory and without.

    "truth" is no model but the language itself, which remembers all and errs in nothing.
    """
    task, corpus = TASKS[name], text_of(name)
    if layout == "truth":
        return rows_of(values(name, TRUTHS[name]), corpus=name, layout=layout, control="own", seed=seed)
    tokenizer = CharTokenizer.fit(corpus.train)
    recipe = TrainConfig(**{**asdict(task.train), "batch_size": task.full_batch}) if layout == "full" else task.train
    model = SoftAR(config_of(name, layout, tokenizer), tokenizer, seed)
    train(model, corpus, recipe, seed=seed, progress=False)
    rows = []
    for control in ("own", "masked", "other") if model.memory is not None else ("own",):
        seen = model.with_window(None if control == "own" else control)
        rows += rows_of(values(name, seen), corpus=name, layout=layout, control=control, seed=seed)
    return rows


def values(name: str, model: Predictor) -> dict:
    """What is measured, each (value, how many it is the mean of)."""
    task, corpus = TASKS[name], text_of(name)
    documents = [*corpus.documents("val"), *(corpus.documents("test") if name == "tales" else ())]
    bits = -char_log_probs(model, "".join(documents), corpus.separator).double() / LN2
    found = {"bits": (bits.mean(), len(bits))}
    if corpus.separator:
        place = torch.cat([torch.arange(len(document)) for document in documents])
        if task.late:
            late = bits[place >= task.late]
            found["late bits"] = (late.mean(), len(late))
    if name == "recall":
        asked = bits[(place > 2 * RECALL.n_pairs) & (place % 2 == 0) & (place < RECALL.document_length - 1)]
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
    """All that decides a corpus' rows, of so many seeds or as many as it has."""
    task = TASKS[name]
    windows = {layout: str(window) for layout, window in task.layouts.items()}
    return {
        "corpus": name, "sha256": text_of(name).sha256, "slots": task.slots, "full": task.full, "late": task.late,
        "train": asdict(task.train), "full_batch": task.full_batch, "model": task.model, "layouts": windows,
        "seeds": min(seeds, task.seeds),
    }  # fmt: skip


def rows(name: str, seed: int) -> list[dict]:
    """All layouts of one corpus and seed."""
    about = {key: value for key, value in recipe(name, 1).items() if key not in ("layouts", "seeds")}
    found = []
    for layout in (*(["truth"] if name in TRUTHS else []), "full", *TASKS[name].layouts):
        here = {**about, "window": str(TASKS[name].layouts.get(layout, PLAIN))}
        found += kept(cell_path(RUNS, name, layout, seed), here, lambda: measure(name, layout, seed))  # noqa: B023
        print(name, layout, seed, flush=True)
    return found


def main() -> None:
    names = names_asked_for(__doc__, TASKS, "CORPUS")
    torch.set_num_threads(1)
    every = []
    for seed in range(max(task.seeds for task in TASKS.values())):  # a whole table of one seed first, then of two, …
        every += [row for name in names or TASKS if seed < TASKS[name].seeds for row in rows(name, seed)]
        if not names:
            frame = pd.DataFrame(every).assign(problem="")
            save_results(frame, [recipe(name, seed + 1) for name in TASKS], RESULTS, KEYS)
            print(f"written: {RESULTS}, {seed + 1} seeds", flush=True)


if __name__ == "__main__":
    main()
