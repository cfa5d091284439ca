"""The harness sees what a person would see, and notices what a person would miss."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

WIDGETS = """
import time
import ipywidgets as w, plotly.graph_objects as go
from IPython.display import display
from softar_lab.widgets.picture import Picture
button, broken = w.Button(description="Count"), w.Button(description="Break")
label = w.Label("pressed 0 times")
figure = go.Figure(go.Scatter3d(x=[0, 1], y=[0, 1], z=[0, 1]), layout={"height": 250})
picture = Picture(figure)
mode = w.Dropdown(description="Mode", options=["one", "two"])
steps = w.IntSlider(description="Steps", min=0, max=10)
rate = w.FloatSlider(description="Rate", max=1.0, step=0.05)
name, flag = w.Text(description="Name"), w.Checkbox(description="Flag")
def count(_):
    time.sleep(0.5)
    figure.data[0].z = (2, 3)
    picture.draw()
    label.value = f"pressed {int(label.value.split()[1]) + 1} times"
button.on_click(count)
broken.on_click(lambda _: 1 / 0)
said = w.Label()
def say(_):
    said.value = f"{mode.value} {steps.value} {rate.value} {name.value} {flag.value}"
for control in (mode, steps, rate, name, flag):
    control.observe(say, "value")
display(w.VBox([button, broken, label, picture, mode, steps, rate, name, flag, said]))
"""
NOTEBOOKS = {
    "widgets": [WIDGETS, "import time; time.sleep(1)", "print('the last', 'cell')"],
    "failing": ["print(1)", "raise RuntimeError('this cell fails')", "print('never', 'reached')"],
    "foreign": [
        "from IPython.display import HTML\nHTML('<img src=\"http://softar.invalid/pixel.png\">')"
    ],
    "writing": [
        "from pathlib import Path\nPath('left.txt').write_text('x')\nprint(Path('../data/here').read_text())"
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A project of its own: notebooks/ with the four above, data/ beside it."""
    root = tmp_path_factory.mktemp("project")
    (root / "notebooks").mkdir()
    (root / "data").mkdir()
    (root / "data" / "here").write_text("data reached")
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for name, sources in NOTEBOOKS.items():
        nb = new_notebook(
            cells=[new_code_cell(source) for source in sources], metadata={"kernelspec": kernelspec}
        )
        nbformat.write(nb, root / "notebooks" / f"{name}.ipynb")
    return root / "notebooks"


@pytest.fixture(scope="module")
def lab(start_lab, folder):
    return start_lab(folder)


def test_widgets_do_what_a_person_asks(lab):
    lab.open("widgets.ipynb")
    lab.run_all()
    assert "the last cell" in lab.shown()
    lab.press("Count")
    assert "pressed 1 times" in lab.shown()  # at once: press() returned when the callback had ended
    lab.press("Count")
    lab.wait_for("pressed 2 times")
    lab.choose("Mode", "two")
    lab.slide("Steps", 7)
    lab.slide("Rate", 0.35)
    lab.write("Name", "Ada")
    lab.tick("Flag")
    assert "two 7 0.35 Ada True" in lab.shown()
    assert lab.screenshot("widgets").stat().st_size > 10_000
    lab.check()


def test_callback_error_is_a_problem(lab):
    lab.open("widgets.ipynb")
    lab.run_all()
    lab.check()
    lab.press("Break")
    assert any(re.match("callback: ZeroDivisionError", problem) for problem in lab.problems())
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        lab.check()


def test_cell_error_is_a_problem(lab):
    lab.open("failing.ipynb")
    lab.run_all()
    assert "cell: RuntimeError: this cell fails" in lab.problems()
    assert "never reached" not in lab.shown()


def test_foreign_request_is_a_problem(lab):
    lab.open("foreign.ipynb")
    lab.run_all()
    assert "request to another host: http://softar.invalid/pixel.png" in lab.problems()


def test_notebooks_are_opened_as_a_copy(lab, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    lab.open("writing.ipynb")
    lab.run_all()
    lab.page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    assert "data reached" in lab.shown()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    lab.check()


def test_missing_output_names_what_was_awaited(lab):
    lab.open("failing.ipynb")
    with pytest.raises(TimeoutError, match="no output matches 'nowhere'"):
        lab.wait_for("nowhere", timeout=1)
