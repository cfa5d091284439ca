"""Measure the tables of notebook 06: python -m softar_studies.make_collapse [MODEL …]

Without a MODEL, all are measured (hours on two cores). Every collapse × schedule × feedback
continues the same prompts with the same seeds. On tales the judge is the checkpoint tales-hard, and
the language itself decides how far a text is valid. On Shakespeare the judge is a hard model of the
same shape. Finished conditions are saved in runs/collapse, so an interrupted run resumes where it
stopped. One process per model may run at the same time (OMP_NUM_THREADS=1). A run without a MODEL
writes data/results/collapse.csv and .json at the end.
"""

import re
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import pandas as pd
import torch

from softar_lab import (
    CharTokenizer,
    ModelConfig,
    SoftAR,
    TrainConfig,
    generate,
    load_corpus,
    load_language,
    train,
)
from softar_lab.compare import CONDITION, run_conditions
from softar_lab.core.cells import save_results
from softar_lab.core.predictor import Predictor
from softar_lab.data.corpora import Corpus
from softar_lab.generation.schedule import Oracle
from softar_lab.metrics.drift import detectors
from softar_lab.training.mixing import train_mixing

from .make_results import ROOT, names_asked_for

RUNS, RESULTS = ROOT / "runs" / "collapse", ROOT / "data" / "results" / "collapse.csv"
PROMPTS, CHARS, SEEDS, STEPS = 32, 32, 3, 256
RATE = 0.25  # share of tokens above a schedule's threshold, on the model's own hard text
COLLAPSES = ["nearest", "barycentric", "mixing", "vote", "deferred(4, None, 2)"]  # and "softmax"
CONTROLS = ["shown", "mean", "other", "nearest", "pause"]
FEEDBACKS = ["mixture", "raw", "norm-restored", "sampled", "gumbel", "hidden"]
KEYS = ["corpus", "model", *CONDITION, "soft_temperature", "seed"]
SHAPE, RECIPE = {"context": 320}, TrainConfig(steps=600, batch_size=8, eval_every=0, save_every=0)


@dataclass(frozen=True)
class Subject:
    """One model of the table: its corpus, and its config (dict) or its checkpoint (name)."""

    corpus: str
    model: dict | str

    @property
    def samples(self) -> bool:
        """Whether it predicts a distribution over vectors; only such a model can vote."""
        return isinstance(self.model, dict) and self.model["objective"] == "energy"


SUBJECTS = {
    "tales-orthonormal": Subject("tales", "tales-orthonormal"),
    "shakespeare-orthonormal": Subject("shakespeare", {"objective": "mse", "table": "orthonormal"}),
    "tales-energy": Subject("tales", {"objective": "energy", "table": "orthonormal"}),
    "shakespeare-energy": Subject("shakespeare", {"objective": "energy", "table": "orthonormal"}),
}
JUDGES = {
    "tales": Subject("tales", "tales-hard"),
    "shakespeare": Subject("shakespeare", {"objective": "ce"}),
}


@cache
def corpus_named(name: str) -> Corpus:
    return load_corpus(name)


def load(name: str, subject: Subject) -> SoftAR:
    """A checkpoint, or a model trained once and saved in RUNS; it has no mixing layer yet."""
    if isinstance(subject.model, str):
        return SoftAR.load(ROOT / "data" / "checkpoints" / subject.model)
    folder, corpus = RUNS / "models" / name, corpus_named(subject.corpus)
    tokenizer = CharTokenizer.fit(corpus.train)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **SHAPE, **subject.model)
    return train(SoftAR(config, tokenizer), corpus, RECIPE, out=folder, progress=False).model


def prompts_of(corpus: Corpus) -> list[str]:
    """The beginnings of PROMPTS validation documents.

    A text without documents is cut at PROMPTS evenly spaced positions.
    """
    if corpus.separator:
        return [one[:CHARS] for one in corpus.val.split(corpus.separator) if len(one) > CHARS][
            :PROMPTS
        ]
    begins = np.linspace(0, len(corpus.val) - CHARS, PROMPTS).astype(int)
    return [corpus.val[begin : begin + CHARS] for begin in begins]


def schedules_of(model: SoftAR, prompts: list[str], oracle: Predictor | str) -> list:
    """The schedules compared.

    Thresholds of entropy, distance and off-hull are set so that each would collapse a share RATE of
    the model's own hard texts.
    """
    written = detectors(
        generate(model, prompts, STEPS, seed=range(1000, 1000 + len(prompts))), model
    )
    above = {
        name: round(float(written[name].quantile(1 - RATE)), 4)
        for name in ("entropy", "distance", "off_hull")
    }
    return [
        *("always", "never", "every(4)", f"random({RATE})"),
        *(
            f"entropy({above['entropy']})",
            f"distance({above['distance']})",
            f"off-hull({above['off_hull']})",
        ),
        Oracle(0.1, truth=oracle),
        *("retro(4)", "liquid(4)"),
    ]


def measure(name: str) -> pd.DataFrame:
    """All conditions of one model."""
    # 1) the model, its judge and its prompts
    subject = SUBJECTS[name]
    corpus, judge = (
        corpus_named(subject.corpus),
        load(f"{subject.corpus}-judge", JUDGES[subject.corpus]),
    )
    model, prompts = load(name, subject), prompts_of(corpus)
    if not subject.samples:
        train_mixing(model, corpus)
    # 2) the schedules, and what judges the texts
    truth = load_language("tales") if subject.corpus == "tales" else None
    schedules = schedules_of(model, prompts, subject.corpus if truth else judge)
    words = set(re.findall(r"\w+", corpus.train))
    frames = []
    # 3) every condition at each soft temperature; None: that of the hard tokens, which is 1
    for heat in (0, None):
        for collapses, feedbacks, count in parts(subject, heat):
            frame = run_conditions(
                model, prompts, collapses, schedules[:count], feedbacks, judge, SEEDS, truth=truth, words=words,
                separator=corpus.separator, steps=STEPS, soft_temperature=heat, out=RUNS / name / f"soft-{heat}",
            )  # fmt: skip
            frames.append(frame.assign(soft_temperature=1 if heat is None else heat))
    return pd.concat(frames).assign(corpus=subject.corpus, model=name)


def parts(subject: Subject, heat: int | None) -> list[tuple[list, list, int | None]]:
    """Collapses, feedbacks and the number of schedules (None: all) of each block of conditions.

    At a soft temperature of 0 only the model's own readout is used (collapse "softmax"). The last
    four schedules also run with that readout only; two of them read their slots many times. Models
    that sample vectors are included for the collapse "vote".
    """
    if subject.samples:
        vote, own = (["vote"], [*FEEDBACKS, "shown"], 6), (["softmax"], ["mixture", "shown"], 2)
        return [] if heat == 0 else [vote, own]
    own = [(["softmax"], [*FEEDBACKS, *CONTROLS], None)]
    return own if heat == 0 else [*own, (COLLAPSES, [*FEEDBACKS, "shown"], 6)]


def recipe(name: str) -> dict:
    """Everything that determines a model's rows."""
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
        "trained": subject.model
        if isinstance(subject.model, str)
        else {**SHAPE, **subject.model, **asdict(RECIPE)},
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
