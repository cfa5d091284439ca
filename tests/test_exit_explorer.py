"""ExitExplorer, used from Python as a person uses it."""

import pytest
from test_exiting import writer
from test_widgets import carries_a_picture

from softar_lab.generation import generate
from softar_lab.plots.river import HEAT
from softar_lab.widgets import ExitExplorer


@pytest.fixture
def explorer():
    return ExitExplorer(writer(), "abc", steps=12, seed=3)


def test_the_threshold_decides_who_leaves(explorer):
    explorer.threshold.value = 0.0
    assert set(explorer.early.layers.tolist()) == {3}
    assert "0% of the layers saved, the same text" in explorer.status.value
    explorer.threshold.value = 2.0
    assert explorer.early.layers.min() < 3
    choices = {"seed": 3, "temperature": 0.8}
    assert explorer.early.text == generate(writer(), "abc", 12, exit="entropy(2.0)", **choices).text
    assert explorer.full.text == generate(writer(), "abc", 12, **choices).text
    assert "of the layers saved" in repr(explorer)


@pytest.mark.parametrize(("rule", "start"), [("margin", 0.9), ("norm", 0.95), ("entropy", 0.1)])
def test_each_rule_has_its_range(explorer, rule, start):
    explorer.rule.value = "margin" if rule != "margin" else "norm"
    explorer.rule.value = rule
    assert explorer.threshold.value == start
    assert explorer.early.settings["exit"].startswith(rule)


def test_another_rule_is_written_once_even_where_the_threshold_stays(explorer, monkeypatch):
    explorer.rule.value = "margin"
    explorer.threshold.value = 0.95  # where "norm" starts
    written = []
    monkeypatch.setattr(explorer, "write", lambda: written.append(explorer.threshold.value))
    explorer.rule.value = "norm"
    assert written == [0.95]
    explorer.rule.value = "entropy"
    explorer.threshold.value = 1.7  # beyond the range of the next rule
    explorer.rule.value = "margin"
    assert written == [0.95, 0.1, 1.7, 0.9]


def test_the_strip_is_the_layer(explorer):
    explorer.threshold.value = 2.0
    plain, early = explorer.river.rivers["rivers"]
    assert set(plain["strip"]) == {3}
    assert early["strip"] == explorer.early.layers.tolist()
    assert explorer.river.rivers["strip"]["name"] == "layer"


def test_the_still_picture_has_the_same_strip(explorer):
    explorer.threshold.value = 0.0  # all leave at the last layer: the darkest colour
    axes = explorer.still().axes
    for ax, river in zip(axes, explorer.river.rivers["rivers"], strict=True):
        below = [one for one in ax.patches if one.get_y() < 0]
        colours = {one.get_facecolor() for one in below}
        assert len(below) == len(river["strip"]) == 12
        assert colours == {HEAT(1.0)}


def test_it_carries_a_picture_and_names_what_is_wrong(explorer):
    carries_a_picture(explorer)
    explorer.beginning.prompt.value = "Z"
    assert "Z" in explorer.problem
    assert len(explorer.full) == len(explorer.early)  # what was there before
    with pytest.raises(ValueError, match="no exit heads"):
        ExitExplorer(writer(False), "abc")


def test_where_an_exit_cannot_be_written_the_panel_tells_so_and_stays_whole(explorer):
    explorer.model = writer(False)  # the plain text could be written
    explorer.beginning.steps.value = 20
    assert "no exit heads" in explorer.problem
    assert len(explorer.full) == len(explorer.early) == 12
    assert "ExitExplorer(entropy(0.1)" in repr(explorer)
