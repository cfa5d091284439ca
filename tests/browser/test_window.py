"""The window's and the sums' panels, used as a person would: drag a size, and strip and answer
follow.
"""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parents[2]
STORY = (
    "One day the uncle slept on the farm. He had his clock. Then the brother came from the barn with his ball. "
    "The uncle gave the clock to the brother. Who has the clock? The brother."
)
SOURCES = [
    "import softar_lab as lab\nfrom softar_lab.data.corpora import tales_words\n"
    "from softar_lab.widgets import SumExplorer, WindowExplorer\n"
    "model = lab.SoftAR.load('../data/checkpoints/tales-window')\n"
    "words = lab.SoftAR.load('../data/checkpoints/tales-words')",
    f"WindowExplorer(model, {STORY!r})",
    "SumExplorer(words.embedding, tales_words().words, 'king - man + woman')",
]
# The slot of every character that the strip shows.
STRIP = "() => [...document.querySelectorAll('.widget-html span[title]')].map(e => e.title).join()"


@pytest.fixture(scope="module")
def lab(start_lab, tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    (root / "notebooks").mkdir()
    (root / "data").symlink_to(ROOT / "data")
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb = new_notebook(
        cells=[new_code_cell(source) for source in SOURCES], metadata={"kernelspec": kernelspec}
    )
    nbformat.write(nb, root / "notebooks" / "window.ipynb")
    lab = start_lab(root / "notebooks")
    lab.open("window.ipynb")
    lab.run_all()
    lab.check()
    return lab


def test_every_character_stands_in_its_slot(lab):
    parts = lab.page.evaluate(STRIP).split(",")
    assert len(parts) == len(STORY)
    assert {"aggregate", "segment 1", "segment 2", "hard", "soft"} == set(parts)
    assert "with its memory" in lab.shown()
    assert "memory masked" in lab.shown()
    lab.screenshot("window")
    lab.check()


@pytest.mark.parametrize(
    ("name", "value"), [("Hard", 20), ("Soft", 2), ("Read", 60), ("Segments", 4)]
)
def test_dragging_a_size_redraws_the_strip_within_a_second(lab, name, value):
    before = lab.page.evaluate(STRIP)
    watch = """([strip, before]) => new Promise(done => {
        const begin = performance.now();
        const look = () => eval(strip)() !== before ? done(performance.now() - begin)
            : performance.now() > begin + 600_000 ? done(null) : requestAnimationFrame(look);
        window.drawn = null; look();
    })"""
    lab.page.evaluate(f"([s, b]) => {{ window.redrawn = ({watch})([s, b]) }}", [STRIP, before])
    lab.slide(name, value)
    ms = lab.page.evaluate("() => window.redrawn")
    assert ms is not None
    print(
        f"{name} {value}: the strip changed after {ms:.0f} ms, the search for the slider included"
    )
    assert "⚠" not in lab.shown()
    lab.check()


def test_what_no_model_was_trained_for_is_reported(lab):
    lab.wait_for("and was trained as that")
    lab.slide("Segments", 2)
    lab.wait_for("with its memory")
    lab.screenshot("dragged")
    lab.check()


def test_another_sum_is_read(lab):
    lab.write("Sum", "queen + ring")
    lab.wait_for("2 words added")
    lab.screenshot("sum")
    lab.write("Sum", "queen + dragon")
    lab.wait_for("is not among the 167 words")
    lab.check()
