"""The explorers, used as a person would: another collapse redraws text and path, a step moves all
that hangs on it.
"""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parents[2]
MODELS = """
import softar_lab as lab
from softar_lab.widgets import AttentionExplorer, CollapseExplorer, TokenExplorer, TrajectoryExplorer
soft = lab.SoftAR.load("../data/checkpoints/tales-soft")
hard = lab.SoftAR.load("../data/checkpoints/tales-hard")
"""
NOTEBOOKS = {
    "attention": [
        MODELS,
        "AttentionExplorer(hard, 'Once the king had a lamp.\\nThe king gave the lamp to the')",
    ],
    "collapse": [
        MODELS,
        "settings = [{}, {'schedule': 'never', 'feedback': 'raw', 'collapse': 'nearest'}]",
        "CollapseExplorer({'soft': soft, 'hard': hard}, 'Once the king ', settings=settings)",
    ],
    "tokens": [
        MODELS,
        "grown = lab.GrowingTokenizer.fit('the thane thinks that the other thing is thin ' * 9, 60)\n"
        "units = lab.SoftAR(lab.ModelConfig(vocab_size=60, n_layers=1, d_model=32), grown)",
        "TokenExplorer({'letters': hard, 'units': units}, 'the thing')",
    ],
    "trajectory": [
        MODELS,
        "TrajectoryExplorer(soft, 'Once the king ', schedule='never', feedback='raw', temperature=0.8)",
    ],
}
# The text of each setting, and the colours of the strip below its river.
SHOWN = """() => [...document.querySelectorAll('.softar-river .text')].map((text, i) => [
    [...text.querySelectorAll('[data-step]')].map(e => e.textContent).join(''),
    [...document.querySelectorAll(`.softar-river .column[data-river="${i}"] > rect[height="8"]`)].map(
        e => e.getAttribute('fill')).join()])"""


@pytest.fixture(scope="module")
def lab(start_lab, tmp_path_factory):
    """A Lab on notebooks of two cells; the checkpoints lie beside them."""
    root = tmp_path_factory.mktemp("project")
    (root / "notebooks").mkdir()
    (root / "data").symlink_to(ROOT / "data")
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for name, sources in NOTEBOOKS.items():
        nb = new_notebook(
            cells=[new_code_cell(source) for source in sources], metadata={"kernelspec": kernelspec}
        )
        nbformat.write(nb, root / "notebooks" / f"{name}.ipynb")
    return start_lab(root / "notebooks")


@pytest.fixture(scope="module")
def collapse(lab):
    lab.open("collapse.ipynb")
    lab.run_all()
    lab.check()
    return lab


def choose(lab, which: int, question: str, option: str) -> None:
    """Choose an option in a setting, A is 0; wait until its text or its strip is another one."""
    before = lab.page.evaluate(SHOWN)[which]
    label = lab.page.locator(".widget-label", has_text=question)
    row = lab.page.locator(".widget-inline-hbox", has=label).nth(which)
    row.locator("select").select_option(label=option)
    lab.wait_until(lambda: lab.page.evaluate(SHOWN)[which] != before, f"what {option} shows")


def test_collapse_explorer_shows_two_texts_and_two_drifts(collapse):
    (one, drift), (other, other_drift) = collapse.page.evaluate(SHOWN)
    assert len(one) > 30
    assert one != other
    assert drift != other_drift
    assert "collapse, schedule, feedback differ" in collapse.shown()
    collapse.screenshot("collapse")
    collapse.check()


def test_another_collapse_changes_what_is_read_off_a_path_and_what_is_written(collapse):
    for which in (1, 0):
        choose(collapse, which, "How is a symbol picked?", "barycentric")
    collapse.check()


def test_settings_are_added_and_removed(collapse):
    collapse.press("Compare")
    collapse.press("Compare")
    collapse.wait_until(lambda: len(collapse.page.evaluate(SHOWN)) == 4, "four texts")
    choose(collapse, 3, "When must it choose?", "every(4)")
    collapse.wait_for("only schedule differs")
    collapse.screenshot("four")
    collapse.press("Remove")
    collapse.press("Remove")
    collapse.wait_until(lambda: len(collapse.page.evaluate(SHOWN)) == 2, "two texts")
    collapse.check()


def test_what_a_model_cannot_do_is_not_offered(collapse):
    label = collapse.page.locator(".widget-label", has_text="How is a symbol picked?")
    offered = collapse.page.locator(".widget-inline-hbox", has=label).first.locator("option")
    assert "vote" not in offered.all_inner_texts()
    assert "nearest" in offered.all_inner_texts()


def test_trajectory_explorer_walks(lab):
    lab.open("trajectory.ipynb")
    lab.run_all()
    assert "⚠" not in lab.shown()
    lab.slide("Which step?", 33)
    lab.wait_for("step 33: ")
    dots = lab.page.locator(".softar-plane svg circle title")
    lab.wait_until(lambda: dots.last.text_content() == "step 33", "the step in the plane")
    lab.choose("What does the strip show?", "entropy (nats)")
    lab.wait_for("entropy")
    assert "⚠" not in lab.shown()
    lab.screenshot("trajectory")
    lab.check()


def test_token_explorer_cuts_what_is_typed(lab):
    lab.open("tokens.ipynb")
    lab.run_all()
    lab.wait_for(r"9 characters; tokens: letters 9, units \d")
    lab.page.locator(".jupyter-widgets textarea").fill("the é")
    lab.wait_for(r"letters: unknown character 'é' at position 4")
    lab.page.locator(".jupyter-widgets textarea").fill("then the thane")
    lab.wait_for(r"14 characters; tokens: letters 14, units \d")
    lab.screenshot("tokens")
    lab.check()


def test_attention_explorer_shows_under_the_pointer_where_a_token_looks(lab):
    lab.open("attention.ipynb")
    lab.run_all()
    lab.wait_for(r"4 layers of 4 heads, 56 slots")
    letters = lab.page.locator(".attended span")
    assert letters.all_inner_texts()[1:5] == list("Once")
    letters.nth(26).hover()
    lab.wait_for(r"↵ \(26\) looks at")  # the end of the line
    lab.page.mouse.move(5, 5)
    tint = "[...document.querySelectorAll('.attended span')].map(e => e.style.background)"
    before = lab.page.evaluate(tint)
    letters.nth(20).hover()
    lab.wait_for(r"␣ \(20\) looks at")
    lab.wait_until(lambda: lab.page.evaluate(tint) != before, "the letters to be tinted anew")
    lab.screenshot("attention-hover")
    lab.page.mouse.move(5, 5)
    lab.wait_for(r"e \(55\) looks at")
    lab.wait_until(lambda: lab.page.evaluate(tint) == before, "the first tints to come back")
    letters.nth(20).click()
    lab.choose("Head", "mean of all")
    lab.page.mouse.move(5, 5)
    lab.wait_for(r"␣ \(20\) looks at")
    frames = "[...document.querySelectorAll('.js-plotly-plot')].map(e => e.layout.shapes[0])"
    lab.wait_until(lambda: lab.page.evaluate(frames)[1]["y0"] == 19.5, "row 20 to be framed")
    squares = lab.page.locator(".js-plotly-plot .nsewdrag")
    box = squares.nth(0).bounding_box()
    squares.nth(0).click(
        position={"x": 0.6 * box["width"], "y": 0.9 * box["height"]}
    )  # layer 4, head 3
    lab.wait_until(
        lambda: lab.page.evaluate(frames)[0]["y0"] > 3 * 56, "the fourth layer to be framed"
    )
    box = squares.nth(1).bounding_box()
    squares.nth(1).click(
        position={"x": 0.1 * box["width"], "y": 0.7 * box["height"]}
    )  # row 39 of 56
    lab.wait_for(r" \(39\) looks at")
    assert "⚠" not in lab.shown()
    lab.screenshot("attention")
    lab.check()
