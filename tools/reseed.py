"""Do the notebooks' findings hold with other seeds? Every claim, computed again by chance of its own.

usage: python tools/reseed.py [--seeds N] [--train] [NOTEBOOK ...]     (hours; the same command goes on)

Each notebook runs N times on a fresh kernel in which every generator of random numbers is seeded
otherwise: where models begin, what order they read in, what noise, which samples of a language. A
claim that fails is written down and the notebook goes on. With --train the shipped checkpoints are
first trained again, by the same other chance; else they are those of data/checkpoints. Languages
and corpora are what they were.

Round 0 changes nothing. Its figures tell which later ones moved at all: what rests on a stored
table (data/results) is the same in every round, and its own spread over seeds stands in the
notebook. A claim that a stored cell was measured again to the digit can't hold elsewhere; such
claims are counted apart. Rows lie in runs/reseed/; the table ends with each claim that failed.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from functools import wraps
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import torch
from nbclient import NotebookClient
from traitlets.config import Config

from softar_lab import evidence
from softar_lab.data.languages.language import Language
from softar_lab.models import compiled

ROOT = Path(__file__).parents[1]
OF_STORED = re.compile(r"\bstored?\b|\bagain\b|\brecipe\b|\btable's\b")
SPREAD = 0x9E3779B97F4A7C15  # so that no round's seeds are another round's, moved by a few
BEGIN = "import sys\nsys.path.insert(0, {tools!r})\nimport reseed\nreseed.begin({round}, {log!r})"


def other(seed: int, round: int) -> int:
    """The seed that takes the place of `seed` in a round; round 0 keeps it."""
    return (int(seed) ^ (round * SPREAD)) % 2**63


def change_seeds(round: int) -> None:
    """Let everything in this process that is seeded be seeded otherwise."""

    class Generator(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(other(seed, round))

    seed_all, default_rng = torch.manual_seed, np.random.default_rng

    def seeded(seed=None):
        numbers = isinstance(seed, int | list | tuple)  # not a generator, which is what it is
        return default_rng([round, *np.atleast_1d(seed)] if numbers else seed)

    torch.Generator = Generator
    torch.manual_seed = lambda seed: seed_all(other(seed, round))
    np.random.default_rng = seeded

    kinds = [Language]
    for kind in kinds:  # grows while it is walked
        kinds += kind.__subclasses__()
        if "sample" in vars(kind):
            kind.sample = sampling_otherwise(kind.sample, round)


def sampling_otherwise(sample, round: int):
    """A language's `sample` with another seed, unless a corpus is being made, which stays itself."""

    @wraps(sample)
    def sampled(self, length, batch_size=1, seed=0):
        corpus = sys._getframe(1).f_globals["__name__"] == "softar_lab.data.corpora"
        return sample(self, length, batch_size, seed if corpus else other(seed, round))

    return sampled


def begin(round: int, log: str) -> None:
    """What a notebook's kernel does first: change the seeds, and write verdicts down."""
    if round:
        change_seeds(round)

    def write_down(text: str, holds: bool) -> None:
        print("✓" if holds else "✗", text)
        with open(log, "a") as file:
            file.write(json.dumps({"text": text, "holds": bool(holds)}) + "\n")

    evidence._verdict = write_down


def workplace(round: int, train: bool) -> Path:
    """A folder with the notebooks and data of a round; with its own checkpoints if asked."""
    folder = ROOT / "runs" / "reseed" / f"{round}{'-trained' if train and round else ''}"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for source in [ROOT / "notebooks", *(ROOT / "data").iterdir()]:
        place = folder / source.relative_to(ROOT)
        if source.name == "notebooks":
            shutil.copytree(source, place, dirs_exist_ok=True)
        elif not place.exists() and not (train and round and source.name == "checkpoints"):
            place.symlink_to(source)
    if train and round:
        train_checkpoints(round, folder / "data" / "checkpoints")
    return folder


def train_checkpoints(round: int, folder: Path) -> None:
    """Train the shipped models by another chance; one that is there already stays."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import reseed\n"
        f"reseed.change_seeds({round})\n"
        "from pathlib import Path\nfrom softar_studies import make_checkpoints as made\n"
        f"made.FOLDER = Path({str(folder)!r})\nsys.argv = ['make_checkpoints']\nmade.main()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder.parents[1], check=True)


def run(path: Path, round: int, report: Path) -> None:
    """Run one notebook; `report` gets a line a claim, and one for each cell that broke."""
    draft = report.with_suffix(".draft")
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.write_text("")
    nb = nbformat.read(path, as_version=4)
    first = BEGIN.format(tools=str(ROOT / "tools"), round=round, log=str(draft))
    nb.cells.insert(0, nbformat.v4.new_code_cell(first))
    NotebookClient(
        nb,
        timeout=3600,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        config=Config({"KernelManager": {"transport_encryption": "auto"}}),
    ).execute()
    with draft.open("a") as file:
        for number, cell in enumerate(nb.cells):
            for output in cell.get("outputs", []):
                if output.output_type == "error" and "raises-exception" not in cell.metadata.get(
                    "tags", []
                ):
                    text = f"cell {number}: {output.ename}: {output.evalue[:120]}"
                    file.write(json.dumps({"text": text, "holds": False, "broke": True}) + "\n")
    draft.replace(report)


def compare(rounds: pd.DataFrame) -> pd.DataFrame:
    """The claims of the later rounds: `kind` says what each rests on, `first` what it was in round 0.

    A claim is known by its text without figures and its place among claims of the same text.
    """
    rounds = rounds.assign(plain=rounds.text.str.replace(r"⟨[^⟩]*⟩", "", regex=True))
    keys = ["notebook", "plain", "nth"]
    rounds["nth"] = rounds.groupby(["notebook", "round", "plain"]).cumcount()
    first = rounds[rounds["round"] == 0].set_index(keys)["text"].rename("first")
    later = rounds[rounds["round"] > 0].join(first, on=keys)
    later["kind"] = "did not move, or is no figure"
    figure = later.text.str.contains("⟨")
    later.loc[figure & (later.text != later["first"]), "kind"] = "figure that moved"
    later.loc[later.text.str.contains(OF_STORED), "kind"] = "stored cell again"
    return later


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="rounds with other seeds (5)")
    parser.add_argument("--train", action="store_true", help="train the checkpoints again, too")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all but the solutions")
    asked = parser.parse_args(arguments)
    compiled.prepare()  # so that no notebook changes kernels half-way
    paths = [path.resolve() for path in asked.notebooks] or sorted(ROOT.glob("notebooks/*.ipynb"))
    rows = []
    for round in range(asked.seeds + 1):
        folder = workplace(round, asked.train)
        for path in paths:
            report, start = folder / "reports" / f"{path.stem}.jsonl", time.perf_counter()
            if not report.exists():
                run(folder / path.relative_to(ROOT), round, report)
            found = [json.loads(line) for line in report.read_text().splitlines()]
            failed = sum(not one["holds"] for one in found)
            print(
                f"round {round} {path.stem:30} {len(found):4} claims, {failed} failed "
                f"({time.perf_counter() - start:.0f} s)", flush=True,
            )  # fmt: skip
            rows += [{"round": round, "notebook": path.stem, **one} for one in found]
    later = compare(pd.DataFrame(rows))
    table = later.groupby(["notebook", "kind"]).holds.agg(claims="size", held="sum")
    print(table.to_string())
    print(later.groupby("kind").holds.agg(claims="size", share="mean").to_string())
    for _, one in later[~later.holds].iterrows():
        print(f"round {one['round']} {one.notebook}: {one.text}  [{one.kind}; was {one['first']}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
