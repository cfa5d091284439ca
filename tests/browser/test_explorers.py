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
# What a setting shows: its text, and of the first plotly figure its path and the lines to the
# symbols read off it.
SHOWN = """which => JSON.stringify([
    document.querySelectorAll('.jupyter-widgets div[style*="pre-wrap"]')[which]?.innerText,
    ...['reading ', ''].map(kind => document.querySelector('.js-plotly-plot')._fullData.find(
        trace => trace.name === kind + 'ABCD'[which])).map(trace => trace?.visible && [[...trace.x], [...trace.y]])])"""
# Chooses an option of the which-th dropdown of a name, and says after how many ms what is shown has
# changed.
CHOOSE = """async ([which, description, option]) => {
    const shown = SHOWN, before = JSON.parse(shown(which)), begin = performance.now();
    const labels = [...document.querySelectorAll('.widget-label')].filter(e => e.innerText.trim() === description);
    const select = labels[which].closest('.widget-inline-hbox').querySelector('select');
    select.selectedIndex = [...select.options].findIndex(e => e.textContent.trim() === option);
    select.dispatchEvent(new Event('change', {bubbles: true}));
    while (performance.now() < begin + 600_000) {
        await new Promise(requestAnimationFrame);
        const now = JSON.parse(shown(which));
        const changed = part => JSON.stringify(now[part]) !== JSON.stringify(before[part]);
        if (changed(0) && changed(1))
            return [performance.now() - begin, changed(2)];
    }
}""".replace("SHOWN", SHOWN)


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


def choose(lab, which: int, description: str, option: str) -> bool:
    """Choose it in a setting; text and readings change (how soon is printed). Whether the soft
    tokens moved.
    """
    ms, moved = lab.page.evaluate(CHOOSE, [which, description, option])
    print(f"{'ABCD'[which]}, {description} {option}: text and picture changed after {ms:.0f} ms")
    return moved


def test_collapse_explorer_shows_two_texts_two_paths_and_two_drifts(collapse):
    for which in (0, 1):
        assert "Once the king " in collapse.page.evaluate(SHOWN, which)
    assert "differs from A at" in collapse.shown()
    collapse.screenshot("collapse")
    collapse.check()


@pytest.mark.parametrize("option", ["softmax", "barycentric", "nearest"])
def test_another_collapse_of_a_soft_path_changes_what_is_read_off_it(collapse, option):
    assert not choose(
        collapse, 1, "Collapse", option
    )  # the path is the same: nothing that is read is fed back
    collapse.wait_for(r"B read again in \d+ ms$|B read again in \d+ ms\n")
    collapse.check()


@pytest.mark.parametrize("option", ["nearest", "barycentric", "softmax"])
def test_another_collapse_of_what_is_fed_back_changes_text_and_path(collapse, option):
    assert choose(collapse, 0, "Collapse", option)
    collapse.wait_for(r"A written in \d+ ms")
    collapse.check()


def test_settings_are_added_and_removed(collapse):
    collapse.press("Add setting")
    collapse.press("Add setting")
    choose(collapse, 3, "Schedule", "every(4)")
    collapse.wait_for(r"D written in \d+ ms")
    collapse.screenshot("four")
    collapse.press("Remove")
    collapse.press("Remove")
    collapse.wait_until(
        lambda: "C " not in collapse.page.locator(".widget-html").all_inner_texts(), "C to be gone"
    )
    assert '"C' not in collapse.page.evaluate(SHOWN, 2)
    collapse.check()


def test_what_a_setting_cannot_do_is_reported(collapse):
    collapse.choose("Collapse", "vote")
    collapse.wait_for("A: collapse .vote. needs a model that predicts a distribution")
    collapse.screenshot("problem")
    collapse.choose("Collapse", "softmax")
    collapse.check()


def test_trajectory_explorer_walks(lab):
    lab.open("trajectory.ipynb")
    lab.run_all()
    assert "⚠" not in lab.shown()
    lab.slide("Step", 33)
    lab.wait_for("step 33: ")
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
