"""A page that loads plotly slowly, as on a busy machine, shows in the end what a quick one shows."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

CELLS = [
    "import plotly.graph_objects as go\n"
    "from softar_lab.widgets.picture import Picture\n"
    "picture = Picture(go.Figure(layout={'height': 250}))\n"
    "late = 'await new Promise(done => setTimeout(done, 4000));'\n"
    "picture.library.value = late + picture.library.value\n"
    "picture",
    "picture.figure.add_scatter(x=[0, 1, 2], y=[2, 0, 1], name='line')\npicture.draw()",
    "picture.figure.data[0].y = [5, 5, 5]\npicture.draw()",
]


@pytest.fixture(scope="module")
def lab(start_lab, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow") / "notebooks"
    folder.mkdir()
    (folder.parent / "data").mkdir()
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = new_notebook(cells=[new_code_cell(cell) for cell in CELLS])
    book.metadata["kernelspec"] = kernelspec
    nbformat.write(book, folder / "slow.ipynb")
    lab = start_lab(folder)
    lab.open("slow.ipynb")
    return lab


def test_a_picture_that_changes_while_plotly_loads_shows_the_last_change(lab):
    """anywidget gives up a widget whose own module is not ready within two seconds."""
    lab.run_all()
    points = "document.querySelector('.js-plotly-plot')?._fullData?.map(trace => [...trace.y])"
    lab.wait_until(lambda: lab.page.evaluate(points) == [[5, 5, 5]], "the last change")
    lab.check()
