"""Evidence: what is false raises, what depends on the processor is masked, and nothing else is."""

import configparser
import math
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from softar_lab.core.palette import COLOURS
from softar_lab.evidence import MASK, ClaimError, claim, masked, measured, scaled, setup, table

# claim


@pytest.mark.parametrize("holds", [True, np.True_, torch.tensor(True)])
def test_claim_that_holds_is_printed(holds, capsys):
    claim("it holds", holds)
    assert capsys.readouterr().out == "✓ it holds\n"


@pytest.mark.parametrize("holds", [False, np.False_, torch.tensor(False)])
def test_claim_that_fails_is_printed_and_raises(holds, capsys):
    with pytest.raises(ClaimError, match="^it holds$"):
        claim("it holds", holds)
    assert capsys.readouterr().out == "✗ it holds\n"


@pytest.mark.parametrize(
    "holds",
    [
        1,
        1.0,
        "yes",
        [True],
        None,
        np.array([True]),
        torch.tensor([True]),
        torch.tensor(1.0),
        math.nan,
    ],
)
def test_claim_takes_nothing_that_is_true_too_easily(holds, capsys):
    with pytest.raises(TypeError, match="expected a bool"):
        claim("it holds", holds)
    assert capsys.readouterr().out == ""


def test_claim_names_dtype_and_shape_of_a_tensor_that_is_no_verdict():
    with pytest.raises(TypeError, match=r"torch\.bool and shape \(2,\)"):
        claim("all hold", torch.tensor([True, True]))


# measured


def test_measured_masks_the_digits_only(capsys):
    measured("loss", 1.23456, 1.2, 0.1, unit="nats")
    measured("share", torch.tensor(0.5), at_least=0.25, at_most=1)
    assert capsys.readouterr().out == (
        "✓ loss ⟨1.235⟩ nats (expected 1.2 ± 0.1)\n✓ share ⟨0.5000⟩ (expected at least 0.25 and at most 1)\n"
    )


@settings(deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(-1e3, 1e3), st.floats(0, 1e3))
def test_measured_holds_within_the_tolerance_and_nowhere_else(value, expect, tol):
    if abs(value - expect) <= tol:
        measured("x", value, expect, tol)
    else:
        with pytest.raises(ClaimError):
            measured("x", value, expect, tol)


def test_measured_limits_include_their_bounds(capsys):
    for limits in ({"at_least": 2}, {"at_most": 2}, {"at_least": 2, "at_most": 2}):
        measured("x", 2.0, **limits)
    for value, limits in ((1.999, {"at_least": 2}), (2.001, {"at_most": 2})):
        with pytest.raises(ClaimError, match=r"x ⟨.*⟩ \(expected at"):
            measured("x", value, **limits)
    assert [line[0] for line in capsys.readouterr().out.splitlines()] == list("✓✓✓✗✗")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("expected", [{"at_least": 0}, {"at_most": 0}, {"expect": 0, "tol": 1}])
def test_measured_never_holds_for_what_is_not_finite(value, expected):
    with pytest.raises(ClaimError):
        measured("x", value, **expected)


@pytest.mark.parametrize(
    "expected",
    [
        {},
        {"expect": 1},
        {"tol": 1},
        {"expect": 1, "tol": 1, "at_least": 1},
        {"expect": 1, "tol": -1},
        {"expect": 1, "tol": math.inf},
        {"at_most": math.nan},
        {"at_most": math.inf},
    ],
)
def test_measured_wants_to_know_what_is_expected(expected, capsys):
    with pytest.raises(ValueError, match="measured"):
        measured("x", 1.0, **expected)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.5, "0.5000"), (1234.0, "1234"), (12345.6, "12346"), (0, "0.000"), (2.5e-7, "2.500e-07")],
)
def test_measured_shows_four_significant_digits(value, shown, capsys):
    measured("x", value, at_most=1e9)
    assert f"⟨{shown}⟩" in capsys.readouterr().out


# masked


def test_masked_shows_figures_in_significant_digits_and_texts_as_they_are():
    values = [0.123456, np.float32(0.5), 3, "zwo", torch.tensor(3), torch.tensor(0.5)]
    shown = [masked(value) for value in values]
    assert shown == ["⟨0.1235⟩", "⟨0.5000⟩", "⟨3⟩", "⟨zwo⟩", "⟨3⟩", "⟨0.5000⟩"]
    assert masked(0.123456, digits=2) == "⟨0.12⟩"


def test_masked_text_cannot_end_its_mask():
    assert MASK.sub("", masked("a⟩b⟨c⟩") + "!") == "!"


def test_mask_is_what_nbval_masks():
    options = configparser.RawConfigParser()
    options.read(Path(__file__).with_name("nbval_sanitize.cfg"), encoding="utf-8")
    regex = re.compile(options["measured"]["regex"])
    text = "x ⟨1.5⟩, ⟨a\nb⟩ and ⟨⟩ or ⟨open"
    assert regex.sub("", text) == MASK.sub("", text) == "x ,  and  or ⟨open"


# table


def rows(loss):
    return pd.DataFrame(
        {"model": ["hard", "soft"], "rate": [0.1, 0.2], "steps": [4, 10**6], "loss": loss}
    )


def test_table_masks_floats_and_shows_the_rest():
    assert repr(table(rows([1.5, 0.25]), exact=["rate"])).splitlines() == [
        "model  rate    steps          loss",
        " hard   0.1        4  ⟨     1.500⟩",
        " soft   0.2  1000000  ⟨    0.2500⟩",
    ]


FIGURES = [0.0, 0.5, -0.25, 1.0, -123456.0, 987654321.0, 1.5e-5, -2.5e-7, -1e-120, 3e200]
FIGURE = st.sampled_from(FIGURES) | st.floats(allow_nan=False, allow_infinity=False)
COLUMN = st.tuples(*[st.tuples(FIGURE, st.text())] * 2)


def compared(shown):
    """What nbval compares of a table: its text and its HTML, once masked."""
    return MASK.sub("<digits>", repr(shown)), MASK.sub("<digits>", shown._repr_html_())


@settings(deadline=None)
@given(COLUMN, COLUMN, st.sampled_from([1, 2, 3, 4, 5]))
def test_table_of_another_processor_is_the_same_once_masked(here, there, digits):
    """Figures and texts of any length, beside a header that is wider, narrower or itself masked."""

    def shown(column):
        frame = rows([figure for figure, _ in column])
        frame["word"] = [masked(text) for _, text in column]
        frame["a word, and where"] = [
            f"{masked(text)} at {masked(figure)}" for figure, text in column
        ]
        frame["missing"] = [column[0][0], math.nan]
        frame[f"best: {masked(column[1][1])}"] = [1, 10]
        return table(frame, digits=digits, exact=["rate"])

    assert compared(shown(here)) == compared(shown(there))


@pytest.mark.parametrize("digits", [1, 3, 5])
def test_table_stands_in_columns_for_usual_figures(digits):
    figures = [*FIGURES[:8], -9.87654321e-5]
    lines = repr(table(pd.DataFrame({"x": figures, "y": 1}), digits=digits)).splitlines()
    assert (
        len({line.index("⟨") for line in lines[1:]})
        == len({line.index("⟩") for line in lines[1:]})
        == 1
    )


def test_table_leaves_missing_numbers_unmasked():
    shown = repr(table(rows([math.nan, -math.inf])))
    assert re.findall("nan|-inf", MASK.sub("", shown)) == ["nan", "-inf"]


def test_table_shows_tensors_numpy_and_flags_as_what_they_are():
    values = [torch.tensor(0.5), np.float32(0.5), torch.tensor(3), np.int64(3), True, np.True_]
    cells = [
        line.strip()
        for line in repr(table(pd.DataFrame({"x": pd.Series(values, dtype=object)}))).splitlines()
    ]
    assert cells == ["x", "⟨    0.5000⟩", "⟨    0.5000⟩", "3", "3", "True", "True"]


def test_table_takes_a_named_index_for_settings():
    frame = rows([1.5, 0.25]).set_index(["model", "rate"])[["loss"]]
    lines = repr(table(frame)).splitlines()
    assert [line.split("⟨")[0].split() for line in lines] == [
        ["model", "rate", "loss"],
        ["hard", "0.1"],
        ["soft", "0.2"],
    ]


def test_table_html_is_escaped_and_not_padded():
    html = table(pd.DataFrame({"a<b": ["<i>&"], "x": [0.5]}))._repr_html_()
    assert "a&lt;b" in html
    assert "&lt;i&gt;&amp;" in html
    assert "⟨0.5000⟩" in html


def test_table_names_missing_columns():
    with pytest.raises(KeyError, match=r"\['speed'\].*model"):
        table(rows([1, 2]), exact=["speed", "loss"])


# scaled, setup


@pytest.mark.parametrize(
    ("value", "chosen"), [(None, "full"), ("", "full"), ("0", "full"), ("1", "fast"), ("x", "fast")]
)
def test_scaled_obeys_the_environment(value, chosen, monkeypatch):
    monkeypatch.delenv("SOFTAR_FAST", raising=False)
    if value is not None:
        monkeypatch.setenv("SOFTAR_FAST", value)
    assert scaled(full="full", fast="fast") == chosen


def test_setup_draws_in_the_colours_of_the_lab():
    with mpl.rc_context():
        setup()
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLOURS)
        figure = Figure()
        assert figure.get_layout_engine() is not None
        figure.draw_without_rendering()
