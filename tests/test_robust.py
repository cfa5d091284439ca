"""The suite under other processors' settings goes on where it stopped, and leaves no process
behind.
"""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import robust

CONFIG = """[tool.pytest.ini_options]
addopts = ["-p", "nbval.plugin", "--nbval", "--nbval-current-env"]
"""
TESTS = """
import os
import pytest

def test_setting():
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["NUMBA_CPU_NAME"] == "x86-64-v3"  # of the setting
    assert os.environ["OF_THE_CALLER"] == "kept"

def test_notes(request):
    with open("runs/notes", "a") as notes:
        notes.write("tests ")

def test_something_killed():
    raise AssertionError("left out, as what it says is no number")

@pytest.mark.skip
def test_skipped(): ...
"""
SETTINGS = (
    robust.Setting(
        name="one", why="", threads=3, kernels={"ATEN_CPU_CAPABILITY": "default"} | robust.PORTABLE
    ),
    robust.Setting(
        name="two",
        why="",
        threads=3,
        busy=1,
        kernels={"ATEN_CPU_CAPABILITY": "avx2"} | robust.PORTABLE,
    ),
)
SOURCE = """import os
with open('../runs/notes', 'a') as notes:
    notes.write('notebook ')
print(os.environ['NUMBA_CPU_NAME'], os.environ['OF_THE_CALLER'])"""


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A project with three tests and one notebook; each notes that it ran."""
    monkeypatch.setenv("OF_THE_CALLER", "kept")
    monkeypatch.setenv(
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1"
    )  # nbval alone: loading all takes seconds
    monkeypatch.setattr(robust, "possible", lambda setting: True)
    for name in ("tests", "notebooks", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "pyproject.toml").write_text(CONFIG)
    (tmp_path / "tests" / "test_it.py").write_text(TESTS)
    (tmp_path / ".gitignore").write_text("/runs/\n__pycache__/\n")
    stored = [new_output("stream", text="x86-64-v3 kept\n")]
    nb = new_notebook(cells=[new_code_cell(SOURCE, execution_count=1, outputs=stored)])
    nbformat.write(nb, tmp_path / "notebooks" / "a.ipynb")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "all"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    return tmp_path


def notes(suite):
    """What has run since the last look."""
    file = suite / "runs" / "notes"
    noted = file.read_text().split() if file.exists() else []
    file.unlink(missing_ok=True)
    return sorted(noted)


@pytest.mark.slow
def test_what_passed_is_not_run_again_and_what_failed_is(suite, capsys):
    assert robust.main([], suite, SETTINGS) == 0
    assert notes(suite) == ["notebook", "notebook", "tests", "tests"]
    table = capsys.readouterr().out.splitlines()[-2:]
    assert [" ".join(line.split()[:-1]) for line in table] == [
        f"{name} 2 / 0 / 1 1 / 0" for name in ("one", "two")
    ]

    notebook = suite / "notebooks" / "a.ipynb"
    good = notebook.read_text()
    notebook.write_text(
        good.replace("x86-64-v3 kept", "another verdict")
    )  # another source: nothing counts
    assert robust.main(["--only", "one"], suite, SETTINGS) == 1
    assert notes(suite) == ["notebook", "tests"]
    *_, line, first = capsys.readouterr().out.splitlines()
    assert " ".join(line.split()[1:-1]) == "2 / 0 / 1 0 / 1"
    assert "a" in first
    assert "Cell 0" in first
    assert robust.main(["--only", "one"], suite, SETTINGS) == 1
    assert notes(suite) == ["notebook"]

    notebook.write_text(good)
    assert robust.main([], suite, SETTINGS) == 0
    assert notes(suite) == []


def test_a_setting_may_be_for_some_tests_alone(suite):
    some = robust.Setting(name="some", why="", paths=("tests/oracles",))
    assert robust.pieces(suite, some) == {"tests": ["tests/oracles"]}
    assert list(robust.pieces(suite, SETTINGS[0])) == ["tests", "notebooks/a"]


@pytest.mark.slow
def test_a_run_that_died_is_a_failure_and_leaves_no_report(suite, capsys):
    (suite / "tests" / "test_it.py").write_text("import os\n\ndef test_dies():\n    os._exit(7)\n")
    assert robust.main(["--only", "one"], suite, SETTINGS) == 1
    assert "pytest ended with 7" in capsys.readouterr().out
    assert len(list(suite.glob("runs/robust/*/one/*.xml"))) == 1  # the notebook's


def test_what_is_left_out_exists_and_is_left_out_once():
    """Files by their names; tests of kills by a word in theirs, wherever they stand."""
    folder, names = Path(__file__).parent, sum(robust.NOT_NUMERICAL.values(), ())
    assert [name for name in names if not (folder / name).exists()] == []
    assert len(set(names)) == len(names)
    tests = {path.name: path.read_text() for path in folder.glob("test_*.py")}
    kills = {name for name, text in tests.items() if re.search(r"def test_\w*kill", text)}
    assert {"test_training.py", "test_reinforcement.py", "test_adapting.py"} <= kills


def test_busy_processes_end_with_their_block():
    spinning = []

    def fails():
        with robust.busy(2) as processes:
            spinning.extend(processes)
            assert [process.poll() for process in spinning] == [None, None]
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [process.returncode for process in spinning] == [-9, -9]


def test_busy_processes_end_where_their_parent_is_killed():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import robust, os, signal\n"
    code += "with robust.busy(1) as (one,):\n    print(one.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    command = [sys.executable, "-c", code, str(Path(robust.__file__).parent)]
    # its standard output closes only when the last that inherited it has ended
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=300, check=False)
    assert done.returncode == -9


def test_every_setting_has_a_name_and_a_reason_of_its_own():
    assert (
        len({one.name for one in robust.SETTINGS})
        == len({one.why for one in robust.SETTINGS})
        == len(robust.SETTINGS)
    )
    assert {one.threads for one in robust.SETTINGS} == {1, 2}
    assert any(one.busy for one in robust.SETTINGS)


@pytest.mark.parametrize(
    ("here", "widest"), [("sve256", "default"), ("avx2", "avx2"), ("avx512", "avx512")]
)
def test_kernels_that_this_processor_lacks_are_left_out(monkeypatch, here, widest):
    monkeypatch.setattr(robust, "capability", lambda: here)
    able = [one for one in robust.SETTINGS if robust.possible(one)]
    assert {"plain-1", "plain-2", "oldest-1", "busy-2"} <= {one.name for one in able}
    wanted = {one.kernels.get("ATEN_CPU_CAPABILITY", "default") for one in able}
    assert wanted == set(robust.WIDTHS[: robust.WIDTHS.index(widest) + 1])
