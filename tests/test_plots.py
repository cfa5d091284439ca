"""Pictures: drawn without a warning, showing the very coordinates, and markup stays text."""

import io
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.font_manager import get_font
from matplotlib.text import Annotation, Text

from softar_lab import plots
from softar_lab.counting.exact import TWO_STRINGS, CountingModel
from softar_lab.data.corpora import load_corpus
from softar_lab.generation import generate
from softar_lab.metrics.pca import PCABasis
from softar_lab.plots import fonts

MARKUP = "ab<&>\"'$\\ \n"


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(objective="mse", letters=MARKUP)


@pytest.fixture(scope="module")
def basis(model):
    return PCABasis.fit(model.embedding)


@pytest.fixture(scope="module")
def path(model):
    """30 steps, every third collapsed, that show every symbol there is again and again."""
    path = generate(model, "<a$", 30, schedule="every(3)", feedback="raw", temperature=2)
    shown = torch.arange(30) % len(MARKUP)
    return replace(path, token_ids=shown, text=model.tokenizer.decode(shown))


@pytest.fixture(autouse=True)
def _nothing_is_left_open():
    yield
    assert plt.get_fignums() == []


def png(figure):
    """Drawn for real: what matplotlib complains of, it does here."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return buffer.getvalue()


# still pictures


@pytest.mark.parametrize(
    "options", [{}, {"first": 4, "steps": 7}, {"steps": 1}, {"title": "a $ and a $"}]
)
def test_draw_path_shows_the_coordinates_of_the_basis(path, basis, model, options):
    figure = plots.draw_path(path, basis, model.embedding, **options)
    dots, letters = figure.axes[0].collections
    begin, steps = options.get("first", 0), options.get("steps", 40)
    points = basis.transform(path.vectors)[begin : begin + steps, :2]
    np.testing.assert_array_equal(dots.get_offsets(), points)
    np.testing.assert_array_equal(letters.get_offsets(), basis.transform(model.embedding)[:, :2])
    assert png(figure).startswith(b"\x89PNG")


def test_draw_path_leads_an_arrow_from_each_step_to_the_next(path, basis, model):
    figure = plots.draw_path(path, basis, model.embedding, steps=9)
    arrows = [child for child in figure.axes[0].get_children() if isinstance(child, Annotation)]
    points = basis.transform(path.vectors)[:9, :2].numpy()
    np.testing.assert_array_equal([arrow.xyann for arrow in arrows], points[:-1])
    np.testing.assert_array_equal([arrow.xy for arrow in arrows], points[1:])


def test_draw_path_rings_what_was_collapsed(path, basis, model):
    dots = plots.draw_path(path, basis, model.embedding).axes[0].collections[0]
    black = [tuple(edge) == to_rgba("black") for edge in dots.get_edgecolors()]
    assert black == path.collapsed.tolist()


def test_draw_path_names_every_symbol_and_takes_no_dollar_for_mathematics(path, basis, model):
    figure = plots.draw_path(path, basis, model.embedding, steps=22)
    axes = figure.axes[0]
    letters = {text.get_text() for text in axes.texts if not isinstance(text, Annotation)}
    assert letters == {plots.visible(symbol) for symbol in MARKUP}
    title = axes.get_title(loc="center").split("\n")
    assert title[0] == "softmax · every(3) · raw"
    assert title[1] == "".join(map(plots.visible, path.text[:22]))
    assert title[1].count("$") == 2
    png(figure)


def test_draw_paths_puts_all_of_them_in_one_plane(path, basis, model):
    for trajectories in ([path], [path, path, path]):
        figure = plots.draw_paths(trajectories, basis, model.embedding, steps=5)
        assert len(figure.axes) == len(trajectories)
        assert len({axes.get_xlim() + axes.get_ylim() for axes in figure.axes}) == 1
        png(figure)


@pytest.mark.parametrize("floor", [None, 0.5])
def test_draw_history_draws_each_run_and_the_floor(floor):
    history = pd.DataFrame({"step": [10, 20], "val_bits_per_char": [3.0, 2.0]})
    figure = plots.draw_history({"one": history, "other": history / 2}, floor)
    lines = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    assert lines[:2] == [[[10, 3], [20, 2]], [[5, 1.5], [10, 1]]]
    assert [line[0][1] for line in lines[2:]] == ([] if floor is None else [floor])
    png(figure)


def test_draw_bits_draws_bars_and_marks():
    figure = plots.draw_bits(MARKUP, {"first": np.arange(11.0), "second": np.arange(11.0) / 2})
    axes = figure.axes[0]
    assert [bar.get_height() for bar in axes.patches] == list(range(11))
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), np.arange(11) / 2)
    assert [label.get_text() for label in axes.get_xticklabels()] == list(
        map(plots.visible, MARKUP)
    )
    png(figure)


def test_pictures_have_a_glyph_for_every_symbol_of_the_built_in_texts(tiny):
    letters = "".join(sorted(set(load_corpus("topics").train)))[:64]
    model = tiny(objective="mse", letters=letters, d_model=32)
    path = generate(model, "", 64, temperature=2)
    png(plots.draw_path(path, PCABasis.fit(model.embedding), model.embedding, steps=64))


def panel(figure, i):
    """The colours' numbers and their limits, the labels and the texts of a matrix."""
    ax = figure.axes[i]
    (image,) = ax.images
    labels = [
        [label.get_text() for label in axis.get_ticklabels()] for axis in (ax.yaxis, ax.xaxis)
    ]
    return image.get_array(), image.get_clim(), labels, [text.get_text() for text in ax.texts]


def test_draw_matrices_shows_each_matrix_with_its_labels_and_colours_of_its_own():
    signed = pd.DataFrame([[1.0, -4.0, 0.0]], ["a $"], ["x", "long", " "])
    shares = pd.DataFrame([[0.25, 0.75], [1.0, 0.0]])
    figure = plots.draw_matrices({"signed $x$": signed, "shares": shares}, digits=2)
    values, limits, labels, texts = panel(figure, 0)
    np.testing.assert_array_equal(values, signed)
    assert (limits, labels) == ((-4, 4), [["a $"], ["x", "long", "␣"]])
    assert texts == ["1.00", "−4.00", "0.00"]
    values, limits, labels, texts = panel(figure, 1)
    np.testing.assert_array_equal(values, shares)
    assert limits == (0, 1)
    assert [ax.get_title() for ax in figure.axes] == ["signed $x$", "shares"]
    png(figure)


def test_draw_matrices_greys_what_is_not_finite_and_writes_no_negative_zero():
    frame = pd.DataFrame([[0.5, -math.inf, math.nan, math.inf, -0.001]])
    figure = plots.draw_matrices({"": frame}, digits=1)
    values, limits, _, texts = panel(figure, 0)
    assert values.mask.tolist() == [[False, True, True, True, False]]
    assert limits == (-0.5, 0.5)  # set by what is finite
    assert texts == ["0.5", "−∞", "nan", "∞", "0.0"]
    png(figure)
    png(plots.draw_matrices({"": frame * math.nan}, digits=1))


def test_draw_matrices_breaks_rows_and_leaves_no_empty_frame():
    frame = pd.DataFrame(np.eye(3))
    figure = plots.draw_matrices(dict.fromkeys("abcde", frame), columns=2)
    assert [len(ax.images) for ax in figure.axes] == [1] * 5 + [0]
    assert not figure.axes[-1].axison
    assert not figure.axes[0].texts
    png(figure)


# pictures to turn


def test_history_figure_has_a_line_for_the_loss_and_one_for_the_bits():
    figure = plots.history_figure(50, floor=0.5)
    assert ["loss" in trace.name for trace in figure.data] == [True, False]
    assert figure.layout.xaxis.range == (0, 50)
    assert figure.layout.shapes[0].y0 == 0.5
    assert not plots.history_figure(50).layout.shapes


# Pictures of languages and of measurements


def written(figure):
    """All texts in a figure's first axes."""
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def test_trie_shows_every_prefix_with_its_count_and_every_token():
    model = CountingModel.fit(TWO_STRINGS)
    texts = written(plots.draw_trie(model))
    prefixes = list(model.prefixes())
    assert sorted(t for t in texts if t.isdigit()) == ["1"] * 9 + ["2"]
    assert sorted(t for t in texts if not t.isdigit()) == sorted(
        ["∅", *(s[-1] for s in prefixes[1:])]
    )


def test_simplex_places_certainty_in_the_corners_and_ignorance_in_the_middle():
    beliefs = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1 / 3, 1 / 3, 1 / 3]])
    figure = plots.draw_simplex({"truth": beliefs, "read": beliefs[::-1]}, ("x", "y", "z"))
    first, second = (ax.collections[0] for ax in figure.axes)
    height = 3**0.5 / 2
    np.testing.assert_allclose(
        first.get_offsets(), [[0, 0], [1, 0], [0.5, height], [0.5, height / 3]], atol=1e-12
    )
    np.testing.assert_allclose(second.get_offsets(), first.get_offsets()[::-1], atol=1e-12)
    np.testing.assert_array_equal(
        second.get_facecolors(), first.get_facecolors()
    )  # a colour is the first's belief
    assert written(figure) == ["x", "y", "z"]


def test_excess_draws_a_line_a_column_and_the_last_in_black():
    frame = pd.DataFrame({"counts": [0.5, 0.1], "learned": [0.9, 0.01]}, index=[1000, 10_000])
    ax = plots.draw_excess(frame, "letters").axes[0]
    assert [line.get_label() for line in ax.lines] == ["counts", "learned"]
    assert ax.lines[-1].get_color() == "black"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1,000", "10,000"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.5, 0.1])


def test_grid_writes_what_is_not_zero():
    frame = pd.DataFrame([[0, 2], [-1, 0]], index=["", "a"], columns=["x", " "])
    figure = plots.draw_grid(frame, "title")
    assert written(figure) == ["+2", "-1"]
    assert written(plots.draw_grid(frame.replace(0, np.nan), "title", ".2f")) == ["2.00", "-1.00"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["∅", "a"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["x", "␣"]


def test_calibration_draws_each_curve_beside_the_diagonal():
    curve = pd.DataFrame({"confidence": [0.2, 0.9], "accuracy": [0.3, 0.8], "count": [10, 90]})
    ax = plots.draw_calibration({"hard": curve}).axes[0]
    diagonal, line = ax.lines
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_array_equal(line.get_xydata(), curve[["confidence", "accuracy"]])
    small, large = ax.collections[0].get_sizes()
    assert small < large


def test_among_draws_rings_and_dots_in_the_plane_of_the_symbols(model):
    basis = PCABasis.fit(model.embedding)
    here = model.embedding[:3]
    figure = plots.draw_among(
        basis, model.embedding, model.tokenizer.tokens, true_mean=here, draws=here / 2
    )
    rings, dots = figure.axes[0].collections[:2]
    np.testing.assert_allclose(rings.get_offsets(), basis.transform(here)[:, :2], atol=1e-6)
    np.testing.assert_allclose(dots.get_offsets(), basis.transform(here / 2)[:, :2], atol=1e-6)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "true mean",
        "draws",
    ]


@pytest.mark.parametrize("log", ["", "x", "y", "xy"])
def test_lines_of_one_name_share_a_colour_and_a_place_in_the_legend(log):
    index = pd.Index([1, 2, 8], name="m")
    frame = pd.DataFrame([[1.0, 2.0, 3.0]] * 3, index=index, columns=["joint", "joint", "random"])
    (ax,) = plots.draw_lines(frame, "rank", log=log, mark=(2, "here")).axes
    first, second, other, mark = ax.get_lines()
    assert first.get_color() == second.get_color() != other.get_color()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["joint", "random"]
    assert mark.get_xdata() == [2, 2]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("m", "rank")
    assert (ax.get_xscale() == "log", ax.get_yscale() == "log") == ("x" in log, "y" in log)


def test_ranking_has_a_panel_a_table_and_the_best_objective_on_top():
    rows = [
        ("mse", "random", "tau", 3.0, 2.9, 3.1),
        ("mse", "random", "affine", 2.0, 1.9, 2.1),
        ("ce", "random", "softmax", 1.5, 1.4, 1.6),
        ("ce", "joint", "softmax", 1.2, 1.1, 1.3),
    ]
    frame = pd.DataFrame(rows, columns=["objective", "table", "readout", "mean", "low", "high"])
    figure = plots.draw_ranking(frame, "bits", reference=1.2, limit=2.5)
    assert [text.get_text() for text in figure.axes[0].texts] == ["3 →"]
    assert [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes] == ["random", "joint"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "mse",
        "ce",
    ]  # from below
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "affine",
        "softmax",
        "tau",
    ]


def test_intervals_are_a_panel_a_model_and_a_row_a_setting_from_above():
    rows = [
        ("A", "never", "soft", 3.0, 2.0, 5.0), ("A", "never", "shown", 1.0, 0.9, 1.1),
        ("A", "always", "soft", 0.5, 0.4, 0.6), ("B", "never", "shown", 2.0, math.nan, math.nan),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["panel", "row", "mark", "value", "low", "high"])
    figure = plots.draw_intervals(frame, "bits", reference={"A": 0.7, "B": 0.8}, log=True)
    left, right = figure.axes
    assert [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes] == ["A", "B"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["never", "always"]
    assert left.yaxis_inverted()  # the first on top
    soft = left.containers[0]
    np.testing.assert_array_equal(soft.lines[0].get_xdata(), [3.0, 0.5])
    np.testing.assert_allclose(
        [segment[:, 0] for segment in soft.lines[2][0].get_segments()], [[2, 5], [0.4, 0.6]]
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["soft", "shown"]
    assert right.lines[-1].get_xdata() == [0.8, 0.8]
    png(figure)


# how far soft paths stray


def test_drift_draws_each_curve_with_its_band_up_to_where_it_is_lost():
    steps = pd.Index([0, 1, 2], name="step")
    curve = pd.DataFrame(
        {"median": [0, 0.5, math.inf], "low": [0, 0.1, 1.0], "high": [0, 1.0, math.inf]},
        index=steps,
    )
    figure = plots.draw_drift({"never": curve, "always": curve * 0}, limit=0.1)
    never, _, limit = figure.axes[0].lines
    np.testing.assert_array_equal(never.get_ydata(), [0, 0.5, math.nan])
    np.testing.assert_array_equal(limit.get_ydata(), [0.1, 0.1])
    assert written(figure) == ["0.1"]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "never",
        "always",
    ]
    assert figure.axes[0].collections[0].get_paths()[0].vertices[:, 1].max() == 1
    png(figure)


def test_frontier_draws_a_line_a_family_by_share_and_the_oracle_in_black():
    frame = pd.DataFrame(
        [("oracle", 0.9, 0.1), ("oracle", 0.1, 2.0), ("entropy", 0.5, 0.4)],
        columns=["family", "share", "excess"],
    )
    figure = plots.draw_frontier(frame, floor=0.05)
    entropy, oracle, floor = figure.axes[0].lines
    assert (oracle.get_label(), oracle.get_color()) == ("oracle", "black")
    np.testing.assert_array_equal(oracle.get_xydata(), [[0.1, 2.0], [0.9, 0.1]])
    np.testing.assert_array_equal(entropy.get_xydata(), [[0.5, 0.4]])
    np.testing.assert_array_equal(floor.get_ydata(), [0.05, 0.05])
    png(figure)


def test_intervals_are_drawn_where_a_panel_has_no_reference():
    row = {"row": "r", "mark": "m", "value": 1.0, "low": 0.5, "high": 1.5}
    frame = pd.DataFrame([{"panel": "A", **row}, {"panel": "B", **row}])
    one, other = plots.draw_intervals(frame, "bits", reference={"A": 0.7}).axes
    dashed = [[line.get_linestyle() for line in ax.lines].count("--") for ax in (one, other)]
    assert dashed == [1, 0]


# -- characters that the own fonts lack --------------------------------------------------------------


@pytest.fixture
def foreign():
    """A printable character that only another installed font has, and that font's family."""
    others = [get_font(path) for path, name in fonts._installed() if name == "STIXGeneral"]
    codes = (chr(code) for code in others[0].get_charmap())
    return next(char for char in codes if char.isprintable() and not fonts._in_own(char))


def test_a_character_of_another_font_is_drawn_with_it(foreign, model):
    assert fonts.drawable(foreign) == foreign
    assert "Last Resort" not in fonts._other(foreign)
    figure = plots.draw_tokens({"one": ([foreign, "a"], [0, 1])})
    texts = {text.get_text(): text.get_fontfamily() for text in figure.findobj(Text)}
    assert texts[foreign] == ["monospace", fonts._other(foreign)]
    assert texts["a"] == ["monospace"]
    png(figure)  # a missing glyph is a warning, and so an error here


def test_ticks_and_titles_are_drawn_with_it_too(foreign):
    frame = pd.DataFrame([[0.5, 0.5]], index=[foreign], columns=["a", foreign])
    png(plots.draw_matrices({"a": frame}))
    weights = np.full((1, 1, 2, 2), 0.5)
    png(plots.draw_attention(weights, ["a", foreign], ["a", foreign], 0, 0, 1))
    png(plots.draw_sum({foreign: [(foreign, 1.0)]}, f"{foreign} + a"))


def test_what_no_font_has_is_a_box():
    nobody = next(chr(code) for code in range(0x20000, 0x2A6DF) if not fonts._other(chr(code)))
    assert fonts.drawable(nobody) == "□"
    png(plots.draw_bits(["a", nobody], {"one": np.ones(2)}))
