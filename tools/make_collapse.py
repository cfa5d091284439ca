"""Measure the tables of notebook 06: python tools/make_collapse.py [MODEL …] (default: all; hours on two cores).

Every collapse × schedule × feedback writes the same prompts with the same seeds. On tales the judge is the checkpoint
tales-hard and the language itself says how far a text holds; on Shakespeare it is a hard model of the same shape.
Finished ways are kept in runs/collapse, so an interrupted run goes on where it was; one process a model may run at the
same time (OMP_NUM_THREADS=1). When all are there, data/results/collapse.csv and .json are written.
"""

import re
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import pandas as pd
import torch
from make_results import ROOT, names_asked_for

from softar_lab import CharTokenizer, ModelConfig, SoftAR, TrainConfig, generate, load_corpus, load_language, train
from softar_lab.analysis.coherence import detectors
from softar_lab.analysis.results import save_results
from softar_lab.analysis.ways import CONTROLS, WAY, write_all
from softar_lab.fitting import train_mixing
from softar_lab.generation.schedule import Oracle
from softar_lab.predictor import Predictor
from softar_lab.sources.corpora import Corpus

RUNS, RESULTS = ROOT / "runs" / "collapse", ROOT / "data" / "results" / "collapse.csv"
PROMPTS, CHARS, SEEDS, STEPS = 32, 32, 3, 256
RATE = 0.25  # the share of tokens that schedules with a threshold would collapse on the model's own hard text
COLLAPSES = ["nearest", "barycentric", "mixing", "vote", "deferred(4, None, 2)"]  # and "softmax"
FEEDBACKS = ["mixture", "raw", "norm-restored", "sampled", "gumbel", "hidden"]
KEYS = ["corpus", "model", *WAY, "soft_temperature", "seed"]
SHAPE, RECIPE = {"context": 320}, TrainConfig(steps=600, batch_size=8, eval_every=0, save_every=0)


@dataclass(frozen=True)
class Subject:
    """One model of the table: what it is trained on and how it is shaped, or which checkpoint it is."""

    corpus: str
    model: dict | str

    @property
    def samples(self) -> bool:
        """Whether it predicts a distribution over vectors, which alone can vote."""
        return isinstance(self.model, dict) and self.model["objective"] == "energy"


SUBJECTS = {
    "tales-orthonormal": Subject("tales", "tales-orthonormal"),
    "shakespeare-orthonormal": Subject("shakespeare", {"objective": "mse", "table": "orthonormal"}),
    "tales-energy": Subject("tales", {"objective": "energy", "table": "orthonormal"}),
    "shakespeare-energy": Subject("shakespeare", {"objective": "energy", "table": "orthonormal"}),
}
JUDGES = {"tales": Subject("tales", "tales-hard"), "shakespeare": Subject("shakespeare", {"objective": "ce"})}


@cache
def corpus_named(name: str) -> Corpus:
    return load_corpus(name)


def load(name: str, subject: Subject) -> SoftAR:
    """A checkpoint, or a model trained once and kept in RUNS; without a mixing layer yet."""
    if isinstance(subject.model, str):
        return SoftAR.load(ROOT / "data" / "checkpoints" / subject.model)
    folder, corpus = RUNS / "models" / name, corpus_named(subject.corpus)
    tokenizer = CharTokenizer.fit(corpus.train)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **SHAPE, **subject.model)
    return train(SoftAR(config, tokenizer), corpus, RECIPE, out=folder, progress=False).model


def prompts_of(corpus: Corpus) -> list[str]:
    """The beginnings of PROMPTS documents of validation text, or of as many stretches of a text in one piece."""
    if corpus.separator:
        return [one[:CHARS] for one in corpus.val.split(corpus.separator) if len(one) > CHARS][:PROMPTS]
    begins = np.linspace(0, len(corpus.val) - CHARS, PROMPTS).astype(int)
    return [corpus.val[begin : begin + CHARS] for begin in begins]


def schedules_of(model: SoftAR, prompts: list[str], oracle: Predictor) -> list:
    """The schedules compared; those with a threshold collapse a share RATE of the model's own hard texts."""
    written = detectors(generate(model, prompts, STEPS, seed=range(1000, 1000 + len(prompts))), model)
    above = {name: round(float(written[name].quantile(1 - RATE)), 4) for name in ("entropy", "distance", "off_hull")}
    return [
        *("always", "never", "every(4)", f"random({RATE})"),
        *(f"entropy({above['entropy']})", f"distance({above['distance']})", f"off-hull({above['off_hull']})"),
        Oracle(0.1, truth=oracle),
        *("retro(4)", "liquid(4)"),
    ]


def measure(name: str) -> pd.DataFrame:
    """All ways of one model."""
    subject = SUBJECTS[name]
    corpus, judge = corpus_named(subject.corpus), load(f"{subject.corpus}-judge", JUDGES[subject.corpus])
    model, prompts = load(name, subject), prompts_of(corpus)
    if not subject.samples:
        train_mixing(model, corpus)
    truth = load_language("tales") if subject.corpus == "tales" else None
    schedules = schedules_of(model, prompts, truth or judge)
    words = set(re.findall(r"\w+", corpus.train))
    frames = []
    for heat in (0, None):
        for collapses, feedbacks, count in parts(subject, heat):
            frame = write_all(
                model, prompts, collapses, schedules[:count], feedbacks, judge, SEEDS, truth=truth, words=words,
                separator=corpus.separator, steps=STEPS, soft_temperature=heat, out=RUNS / name / f"soft-{heat}",
            )  # fmt: skip
            frames.append(frame.assign(soft_temperature=1 if heat is None else heat))
    return pd.concat(frames).assign(corpus=subject.corpus, model=name)


def parts(subject: Subject, heat: int | None) -> list[tuple[list, list, int | None]]:
    """Collapses, feedbacks and how many schedules: at a soft temperature of 0 only the model's own reading is asked.

    The last four schedules, of which two read their slots many times over, are tried with that reading alone as well.
    Models that sample are there for the vote.
    """
    if subject.samples:
        vote, own = (["vote"], [*FEEDBACKS, "shown"], 6), (["softmax"], ["mixture", "shown"], 2)
        return [] if heat == 0 else [vote, own]
    own = [(["softmax"], [*FEEDBACKS, *CONTROLS], None)]
    return own if heat == 0 else [*own, (COLLAPSES, [*FEEDBACKS, "shown"], 6)]


def recipe(name: str) -> dict:
    """All that decides a model's rows."""
    subject = SUBJECTS[name]
    return {
        "model": name,
        "corpus": subject.corpus,
        "sha256": corpus_named(subject.corpus).sha256,
        "prompts": PROMPTS,
        "chars": CHARS,
        "seeds": SEEDS,
        "steps": STEPS,
        "rate": RATE,
        "temperature": 1.0,
        "trained": subject.model if isinstance(subject.model, str) else {**SHAPE, **subject.model, **asdict(RECIPE)},
    }


def main() -> None:
    names = names_asked_for(__doc__, SUBJECTS, "MODEL")
    torch.set_num_threads(1)
    frames = [measure(name) for name in names or SUBJECTS]
    if not names:
        save_results(pd.concat(frames), [recipe(name) for name in SUBJECTS], RESULTS, KEYS)
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
