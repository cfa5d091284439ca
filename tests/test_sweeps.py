"""sweep(): every cell exactly once, on every backend, whatever dies on the way."""

import json
import linecache
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import softar_lab as lab
from softar_lab.core.cells import load_results
from softar_lab.core.store import CheckpointError, StoreError
from softar_lab.sweeps import backends, keys
from softar_lab.sweeps.journal import Journal, Outcome
from softar_lab.sweeps.sweep import cells_of

GRID = {"a": [1, 2, 3], "b": [10, 20]}


def add(a, b, base=0):
    return {"sum": a + b + base}


def noted(a, b, log):
    """A cell that leaves a line in a file each time it runs."""
    with open(log, "a") as file:
        file.write(f"{a} {b}\n")
    return {"sum": a + b}


def train_one(seed, width):
    """A small training, whose figure would differ in its last bits with other threads."""
    torch.manual_seed(seed)
    layer = torch.nn.Sequential(
        torch.nn.Linear(64, width), torch.nn.Tanh(), torch.nn.Linear(width, 1)
    )
    optimizer = torch.optim.Adam(layer.parameters())
    inputs = torch.randn(512, 64)
    for _ in range(5):
        loss = layer(inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"loss": loss.item(), "threads": torch.get_num_threads()}


def ends_its_process(a, b):
    if (a, b) == (2, 10):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"sum": a + b}


def figures(frame):
    return frame.drop(columns="seconds")


# -- the table -------------------------------------------------------------------------------------


def test_a_grid_gives_one_row_per_cell_in_its_order(tmp_path):
    frame = lab.sweep(add, GRID, common={"base": 100}, out=tmp_path, progress=False)
    assert list(zip(frame.a, frame.b, strict=True)) == list(product([1, 2, 3], [10, 20]))
    assert (frame["sum"] == frame.a + frame.b + 100).all()
    assert list(frame) == ["a", "b", "sum", "seconds", "problem"]
    saved, (recipe,) = load_results(tmp_path / "table.csv")
    pd.testing.assert_frame_equal(figures(saved), figures(frame))
    assert recipe["cell"].endswith(".add")
    assert recipe["common"] == {"base": 100}


def test_cells_may_be_listed_and_may_give_several_rows():
    def rows(a, b):
        return [{"a": a, "which": i, "value": i * b} for i in range(a)]

    frame = lab.sweep(rows, [{"a": 2, "b": 5}, {"a": 1, "b": 7}], progress=False)
    assert frame[["a", "b", "which", "value"]].to_numpy().tolist() == [
        [2, 5, 0, 0],
        [2, 5, 1, 5],
        [1, 7, 0, 0],
    ]


def test_figures_come_back_as_they_were(tmp_path):
    values = {
        "i": 3,
        "f": 0.1,
        "n": float("nan"),
        "inf": math.inf,
        "none": None,
        "t": "a\nb",
        "y": True,
    }

    def cell(a):
        return {**values, "np": np.float32(0.1), "many": np.int64(2**60)}

    frame = lab.sweep(cell, {"a": [1]}, out=tmp_path, progress=False)
    row = frame.iloc[0].to_dict()
    assert math.isnan(row.pop("n"))
    assert {name: row[name] for name in ("i", "f", "inf", "none", "t", "y")} == {
        name: values[name] for name in ("i", "f", "inf", "none", "t", "y")
    }
    assert row["np"] == float(np.float32(0.1))
    assert row["many"] == 2**60


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grid": {}}, None),
        ({"grid": {"a": [], "b": [1]}}, "no cell"),
        ({"grid": []}, "no cell"),
        ({"grid": {"a": "text", "b": [1]}}, r"grid\['a'\] must be a list"),
        ({"grid": [{"a": 1, "b": 2}, {"a": 1}]}, "the same arguments"),
        ({"grid": {"a": [1, 1], "b": [2]}}, "cells 0 and 1 of the grid are the same"),
        ({"grid": GRID, "backend": "cloud"}, "no backend 'cloud': here, cores, ray"),
        ({"grid": GRID, "workers": 0}, "workers must be a whole number"),
        ({"grid": GRID, "common": {"b": 1}}, "stand in the grid and in `common`"),
        ({"grid": {"seconds": [1]}}, "columns \\['seconds'\\] of its own"),
        ({"grid": {"a": [Path("/no/such/file")], "b": [1]}}, "no such file"),
    ],
)
def test_what_is_no_sweep_is_refused(given, message):
    if message is None:  # a grid without names has one cell: the empty one
        assert cells_of({}) == [{}]
        return
    with pytest.raises(ValueError, match=message):
        lab.sweep(add, **{"progress": False, **given})


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (3, "must return a dict"),
        ([1, 2], "must return a dict"),
        ({"x": torch.zeros(2)}, "'x' must be a number or a text, not Tensor"),
        ({"a": 5}, "must not be called 'a'"),
        ({"problem": "none"}, "must not be called 'problem'"),
    ],
)
def test_what_is_no_figure_is_the_cells_problem(returned, problem):
    frame = lab.sweep(lambda a: returned, {"a": [1]}, progress=False)
    assert problem in frame.problem[0]


# -- finished cells --------------------------------------------------------------------------------


def test_finished_cells_are_not_run_again(tmp_path):
    log = tmp_path / "log"
    run = partial(lab.sweep, noted, common={"log": str(log)}, out=tmp_path / "out", progress=False)
    run({"a": [1, 2], "b": [10]})
    frame = run({"a": [1, 2, 3], "b": [10]})
    run({"a": [3, 1], "b": [10]})
    assert log.read_text().split("\n") == ["1 10", "2 10", "3 10", ""]
    assert frame["sum"].tolist() == [11, 12, 13]


def test_failed_cells_are_rows_and_run_again_on_request(tmp_path):
    mended = tmp_path / "mended"

    def cell(a):
        if a == 2 and not mended.exists():
            raise RuntimeError("not today")
        return {"double": 2 * a}

    run = partial(
        lab.sweep, cell, {"a": [1, 2, 3]}, out=tmp_path / "out", version="1", progress=False
    )
    assert run().problem.tolist() == ["", "RuntimeError: not today", ""]
    mended.touch()
    assert run().problem[1] != ""  # finished is finished
    assert run(retry=True)["double"].tolist() == [2, 4, 6]
    assert run()["problem"].tolist() == [""] * 3
    assert len((tmp_path / "out" / "cells.jsonl").read_text().splitlines()) == 1 + 4


def test_another_version_text_or_model_is_another_cell(tmp_path):
    log, text, read = tmp_path / "log", tmp_path / "text.txt", tmp_path / "read.txt"

    def cell(a, text, weights):
        with open(log, "a") as file:
            file.write("x")
        return {"length": len(text.read_text())}

    def run(weights, version="1", depends=None):
        lab.sweep(
            cell,
            {"a": [1]},
            common={"text": text, "weights": weights},
            depends=depends,
            out=tmp_path / "out",
            version=version,
            progress=False,
        )
        return len(log.read_text())

    text.write_text("one")
    assert run(torch.zeros(3)) == 1
    assert run(torch.zeros(3)) == 1
    assert run(torch.tensor([0.0, 0.0, -0.0])) == 2  # to the bit
    text.write_text("two")
    assert run(torch.zeros(3)) == 3
    assert run(torch.zeros(3), version="2") == 4
    assert run(torch.zeros(3), depends={"steps": 3}) == 5
    assert run(torch.zeros(3), depends={"steps": 3}) == 5
    assert run(torch.zeros(3), depends={"steps": 4}) == 6
    read.write_text("one")
    assert run(torch.zeros(3), depends={"file": read}) == 7
    read.write_text("two")
    assert run(torch.zeros(3), depends={"file": read}) == 8


def test_code_counts_and_comments_do_not(tmp_path, monkeypatch):
    """The code of a cell is its module and what this imports of its package, not the rest."""
    sources = {
        "__init__": "",
        "cell": "from .used import one\n\n\ndef run(a):\n    return {'x': a + one()}\n",
        "used": "from studied import deep\n\n\ndef one():\n    return deep.ONE\n",
        "deep": "import math\n\nONE = 1\n",
        "other": "TWO = 2\n",
    }

    def digest(**changed):
        keys._module_digest.cache_clear()
        folder = tmp_path / "studied"
        folder.mkdir(exist_ok=True)
        for name, source in {**sources, **changed}.items():
            (folder / f"{name}.py").write_text(source)
        for name in [name for name in sys.modules if name.startswith("studied")]:
            del sys.modules[name]
        import studied.cell

        notebook = {"__name__": "__main__", "studied": studied.cell}
        code = tmp_path / "notebook.py"
        code.write_text("def run(a):\n    return studied.run(a)\n")
        exec(compile(code.read_text(), code, "exec"), notebook)
        return keys.code_digest(studied.cell.run), keys.code_digest(notebook["run"])

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    first = digest()
    assert digest() == first
    assert digest(other="TWO = 3\n") == first
    said = 'def run(a):\n    """Said."""\n    # why\n    return {"x": a + one()}\n'
    assert digest(cell="from .used import one\n" + said) == first
    for change in (
        {"cell": sources["cell"].replace("a +", "a -")},
        {"used": sources["used"].replace("deep.ONE", "-deep.ONE")},
        {"deep": "import math\n\nONE = 3\n"},
        {"__init__": "SEED = 1\n"},
    ):
        assert not set(digest(**change)) & set(first), change
    keys._module_digest.cache_clear()


def test_a_notebooks_function_counts_with_what_it_uses(tmp_path):
    script = """
SCALE = {scale}
def helper(x):
    return x {operation} SCALE
def cell(a):
    return {{"y": helper(a)}}
"""

    def digest(**words):
        file, names = tmp_path / "cell.py", {"__name__": "__main__"}
        file.write_text(script.format(**{"scale": 1, "operation": "*", **words}))
        linecache.checkcache(str(file))
        exec(compile(file.read_text(), file, "exec"), names)
        return keys.code_digest(names["cell"])

    first = digest()
    assert digest() == first
    assert digest(scale=22) != first
    assert digest(operation="+ 0 +") != first


# -- the journal -----------------------------------------------------------------------------------


def test_a_line_that_was_cut_off_runs_again(tmp_path):
    lab.sweep(add, GRID, out=tmp_path, progress=False)
    file = tmp_path / "cells.jsonl"
    whole = file.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in (1, 9, last - 1):
        file.write_bytes(whole[:-cut])
        lab.sweep(add, GRID, out=tmp_path, progress=False)
        assert len(file.read_bytes().splitlines()) == 7
    file.write_bytes(whole[:3])  # cut in its first line
    assert len(lab.sweep(add, GRID, out=tmp_path, progress=False)) == 6


def test_a_damaged_or_foreign_journal_is_named(tmp_path):
    lab.sweep(add, GRID, out=tmp_path, progress=False)
    file = tmp_path / "cells.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:3], lines[3].replace(b"sum", b"sun"), *lines[4:]]))
    with pytest.raises(StoreError, match=r"cells\.jsonl: line 4 is damaged: delete it"):
        lab.sweep(add, GRID, out=tmp_path, progress=False)
    file.write_bytes(b"".join([*lines[:3], *lines[4:]]))  # the remedy that is named
    assert len(lab.sweep(add, GRID, out=tmp_path, progress=False)) == 6
    file.write_bytes(b'{"format": "another"}\n')
    with pytest.raises(StoreError, match="no journal of a sweep"):
        lab.sweep(add, GRID, out=tmp_path, progress=False)


def test_a_full_disk_loses_nothing_that_was_finished(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    with journal:
        journal.add("a", Outcome([{"x": 1}], 0.1))

        class Full:
            """A file on a disk that takes 20 bytes more."""

            def write(self, line):
                os.write(file.fileno(), line[:20])
                return 20

            def fileno(self):
                return file.fileno()

        file = journal._file
        monkeypatch.setattr(journal, "_file", Full())
        with pytest.raises(StoreError, match="only a part of a line; the finished cells are safe"):
            journal.add("b", Outcome([{"x": 2}], 0.1))
    with Journal(tmp_path) as again:
        assert "a" in again
        assert "b" not in again
        assert again["a"] == Outcome([{"x": 1}], 0.1)
        again.add("b", Outcome([], 0.2, "why"))
        assert again.failed("b")


def test_a_folder_has_one_writer(tmp_path):
    with Journal(tmp_path), pytest.raises(CheckpointError, match="is being written by"):
        lab.sweep(add, GRID, out=tmp_path, progress=False)


# -- backends --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_cores_give_the_figures_of_one(tmp_path):
    grid = {"seed": range(4), "width": [32, 257]}
    here = lab.sweep(train_one, grid, progress=False)
    cores = lab.sweep(train_one, grid, backend="cores", workers=2, progress=False)
    pd.testing.assert_frame_equal(figures(cores), figures(here), check_exact=True)
    assert (here.threads == 1).all()


@pytest.mark.slow
def test_a_cluster_runs_no_more_cells_at_a_time_than_were_asked_for():
    assert backends._sent_at_once(None, 8) == 8 * backends.AHEAD
    assert backends._sent_at_once(8, 8) == 8 * backends.AHEAD
    assert backends._sent_at_once(3, 8) == 3


def test_a_cell_that_ends_its_process_costs_only_itself(tmp_path):
    frame = lab.sweep(ends_its_process, GRID, backend="cores", workers=2, progress=False)
    assert frame.problem.tolist() == ["", "", "it ended its process, 3 times", "", "", ""]
    whole = frame[frame.problem == ""]
    assert (whole["sum"] == whole.a + whole.b).all()


DRIVER = """
import sys, time
import softar_lab as lab

def cell(a, log):
    with open(log, "a") as file:
        file.write(f"{a}\\n")
    time.sleep(0.02)
    return {"square": a * a}

if __name__ == "__main__":
    folder, backend = sys.argv[1:]
    frame = lab.sweep(cell, {"a": range(40)}, common={"log": folder + "/log"}, out=folder,
                      backend=backend, workers=2, version="1", progress=False)
    print(frame.square.sum(), frame.a.is_unique, (frame.problem == "").all())
"""


@pytest.mark.slow
def test_a_killed_driver_goes_on(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    command = [sys.executable, script, tmp_path, "cores"]
    driver = subprocess.Popen(command, start_new_session=True)
    journal = tmp_path / "cells.jsonl"
    while not (journal.exists() and len(journal.read_bytes().splitlines()) > 10):
        assert driver.poll() is None
        time.sleep(0.01)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    finished = len(journal.read_bytes().splitlines()) - 1
    assert subprocess.check_output(command, text=True).split() == ["20540", "True", "True"]
    ran = [int(line) for line in (tmp_path / "log").read_text().split()]
    assert set(ran) == set(range(40))
    assert len(ran) - 40 <= 6  # only cells that were under way when it was killed: 2 and those sent
    assert len(journal.read_bytes().splitlines()) == 41
    assert finished >= 10


def test_the_journal_is_text_that_people_can_read(tmp_path):
    lab.sweep(add, {"a": [1], "b": [2]}, out=tmp_path, progress=False)
    head, line = (tmp_path / "cells.jsonl").read_text().splitlines()
    assert json.loads(head) == {"format": "softar-lab/sweep", "version": 1}
    found = json.loads(line[9:])
    assert found["outcome"]["rows"] == [{"sum": 3}]
