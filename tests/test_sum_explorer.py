"""SumExplorer, used from Python as a person uses it: what is typed is what is added."""

import pytest
import torch
from test_widgets import carries_a_picture, said

from softar_lab.widgets import SumExplorer

NAMES = ["king", "man", "queen", "woman", "ring"]
TABLE = torch.tensor(
    [[3.0, 0, 0, 1], [0, 3.0, 0, 1], [3.0, 0, 0, -1], [0, 3.0, 0, -1], [0, 0, 3.0, 0]]
)


@pytest.fixture
def explorer():
    return SumExplorer(TABLE, NAMES, "king - man + woman")


def test_sum_is_what_is_typed(explorer):
    assert torch.equal(explorer.vector, TABLE[0] - TABLE[1] + TABLE[3])
    assert explorer.nearest(1) == ["queen"]
    assert explorer.nearest(1, without=True) == ["queen"]
    explorer.sum.value = "king + ring"
    assert set(explorer.mixture(2)) == {"king", "ring"}
    assert not {"king", "ring"} & set(explorer.nearest(3, without=True))
    assert "ring" in explorer.shown.value


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("king + duke", "'duke' is not among the 5 words"),
        ("", "write words with"),
        ("+", "write words with"),
        ("king -", "write words with"),
        ("king ring", "write words with"),
        ("king + - ring", "write words with"),
    ],
)
def test_what_cannot_be_added_is_reported_and_the_last_sum_stays(explorer, typed, complaint):
    before = explorer.shown.value
    explorer.sum.value = typed or " "
    assert complaint in said(explorer)
    assert said(explorer).startswith("⚠")
    assert explorer.shown.value == before
    explorer.sum.value = "king"
    assert said(explorer) == "1 words added, of 5"


def test_it_tells_its_state_and_carries_a_picture(explorer):
    assert carries_a_picture(explorer)
    assert "'king - man + woman'" in repr(explorer)
    assert "nearest of all words ⟨'queen'⟩" in repr(explorer)


def test_a_wrong_sum_from_the_start_is_reported():
    assert repr(SumExplorer(TABLE, NAMES, "duke")).startswith(
        "SumExplorer(nothing: 'duke' is not among"
    )
