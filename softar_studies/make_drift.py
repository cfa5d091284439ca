"""Measure what soft paths forget and what is only misread: python -m softar_studies.make_drift

True texts are dictated, and each model reads along softly, as a schedule and a feedback say. Readers
(`softar_lab.metrics.drift_readers`) are fitted on texts that begin as training text does, and score
texts that begin as validation text does. One row per condition and seed; a seed is another set of
texts, the readers are fitted once. Finished conditions are saved in runs/drift; the same command
goes on, and writes data/results/drift.csv and .json at the end.
"""

from dataclasses import asdict, dataclass

import torch

from softar_lab import SoftAR, generate, load_corpus, load_language
from softar_lab.core.cells import save_results
from softar_lab.core.trajectory import Trajectory
from softar_lab.generation.feedback import FEEDBACKS
from softar_lab.generation.schedule import SCHEDULES
from softar_lab.metrics.drift_readers import drift_by_reader, fit_readers, split_harm
from softar_studies.frontier import TeacherForced

from .make_results import ROOT
from .tables import asked_for, figures

CELLS, RESULTS = ROOT / "runs" / "drift", ROOT / "data" / "results" / "drift.csv"
FITTED, SCORED, SEEDS = 128, 16, 5
SOFT = ("sampled", "gumbel", "raw", "mixture", "norm-restored", "hidden")
CONTROLS = ("nearest", "mean", "other", "pause")
GROUNDED = ("every(2)", "every(4)", "every(8)", "random(0.5)")
CONDITIONS = [
    ("always", "mixture"),
    *(("never", feedback) for feedback in SOFT + CONTROLS),
    *((schedule, "mixture") for schedule in GROUNDED),
]


@dataclass(frozen=True)
class Subject:
    """A checkpoint, the length of its beginnings, and the steps behind them.

    Beginnings and steps fit into its context, so nothing is lost by a renewed window.
    """

    corpus: str
    begin: int
    steps: int


SUBJECTS = {
    "tales-hard": Subject("tales", 24, 64),
    "tales-orthonormal": Subject("tales", 24, 64),
    "mess3-hard": Subject("mess3", 16, 48),
}


def beginnings(subject: Subject, part: str, count: int) -> list[str]:
    """Different beginnings of documents, or where there are none, of equal pieces of the text."""
    text, n = getattr(load_corpus(subject.corpus), part), subject.begin
    if load_language(subject.corpus).separator is None:
        found = [text[i : i + n] for i in range(0, count * n, n)]
    else:
        documents = load_corpus(subject.corpus).documents(part)
        found = list(dict.fromkeys(one[:n] for one in documents))[:count]
    if len(found) < count:
        raise ValueError(f"{subject.corpus} has {len(found)} beginnings, not {count}")
    return found


def dictated(
    model: SoftAR, subject: Subject, texts: list[str], seed: int, schedule: str, feedback: str
) -> list[Trajectory]:
    """True texts, read as the schedule and the feedback say; text i draws with seed + i."""
    truth = load_language(subject.corpus)
    return generate(
        model, texts, subject.steps, collapse=TeacherForced(truth), schedule=schedule,
        feedback=feedback, seed=range(seed, seed + len(texts)),
    )  # fmt: skip


def run(model: str, schedule: str, feedback: str, fitted: int = FITTED) -> list[dict]:
    """One condition: the readers fitted once, then one row per seed."""
    subject, rows = SUBJECTS[model], []
    reader = SoftAR.load(ROOT / "data" / "checkpoints" / model)
    truth = load_language(subject.corpus)
    # 1) fit on texts that begin as training text does, with seeds of their own
    training = beginnings(subject, "train", fitted)
    paths = dictated(reader, subject, training, 10**6, schedule, feedback)
    readers = fit_readers(paths, reader, truth)
    # 2) score others
    validation = beginnings(subject, "val", SCORED * SEEDS)
    for seed in range(SEEDS):
        texts = validation[seed * SCORED : (seed + 1) * SCORED]
        paths = dictated(reader, subject, texts, seed * SCORED, schedule, feedback)
        frame = drift_by_reader(paths, reader, readers, truth)
        soft = torch.cat([~path.collapsed for path in paths]).double().mean()
        for begin in (0, subject.steps // 2):
            figures = split_harm(frame, begin).to_dict()
            rows.append({"seed": seed, "begin": begin, "soft": float(soft), **figures})
    about = {"temperature": readers.temperature, "ridge": readers.ridge}
    return [{**about, **row} for row in rows]


def cell_recipe() -> dict:
    """Everything that determines a cell except its model, schedule and feedback."""
    subjects = {name: asdict(subject) for name, subject in SUBJECTS.items()}
    return {"fitted": FITTED, "scored": SCORED, "seeds": SEEDS, "subjects": subjects}


def main(arguments: list[str] | None = None) -> None:
    asked = asked_for(__doc__, arguments=arguments)
    grid = [
        {"model": name, "schedule": schedule, "feedback": feedback}
        for name in SUBJECTS
        for schedule, feedback in CONDITIONS
    ]
    weights = {name: ROOT / "data" / "checkpoints" / name for name in SUBJECTS}
    frame = figures(run, grid, CELLS, {**cell_recipe(), **weights}, asked.backend)
    for axis in (SCHEDULES, FEEDBACKS):  # with every parameter
        frame[axis.kind] = [axis.complete(name) for name in frame[axis.kind]]
    keys = ["model", "schedule", "feedback", "begin", "seed"]
    save_results(frame, [cell_recipe()], RESULTS, keys)
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
