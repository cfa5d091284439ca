"""The tables in data/results are what their recipes say, and hold together."""

import json
import math
import sys
from pathlib import Path

import pytest

from softar_lab.analysis.comparison import Budget, load_results, recipe
from softar_lab.models.objectives import OBJECTIVES
from softar_lab.sources.corpora import load_corpus

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from make_results import BUDGETS, PARTS, RESULTS, SEEDS  # noqa: E402


@pytest.fixture(scope="module")
def found():
    return load_results(RESULTS)


def test_recipes_are_those_of_the_tool(found):
    told = {one["corpus"]: one for one in found[1]}
    assert set(told) == set(BUDGETS)
    assert told["tales"] == recipe(load_corpus("tales"), BUDGETS["tales"])
    for name, budget in BUDGETS.items():  # Shakespeare's text may not be here
        assert Budget.from_recipe(told[name]) == budget
        assert json.loads(json.dumps(told[name])) == told[name]


def test_every_cell_is_there_and_once(found):
    frame = found[0]
    there = frame.groupby(["corpus", "objective", "table", "seed"])["readout"].nunique()
    wanted = {(c, o, t, s) for c in BUDGETS for os, ts in PARTS for o in os for t in ts for s in range(SEEDS)}
    assert set(there.index) == wanted
    assert not frame.duplicated(["corpus", "objective", "table", "readout", "seed"]).any()
    assert set(frame["objective"]) == set(OBJECTIVES.names())


def test_figures_lie_where_they_can(found):
    frame = found[0]
    assert frame["bits"].gt(0).all()
    assert frame["top1"].between(0, 1).all()
    assert frame["ece"].between(0, 1).all()
    for n in range(1, 5):
        assert frame[f"brier_{n}"].between(-1, 1).all()
    assert frame["brier_lm"].isna().eq(frame["problem"] != "").all()  # a figure is missing only with a reason
    tales = frame[frame["corpus"] == "tales"]
    assert tales["excess"].gt(0).all()
    assert (tales["bits"] - tales["excess"]).max() - (tales["bits"] - tales["excess"]).min() < 1e-4  # one floor
    assert frame.loc[frame["corpus"] == "shakespeare", "excess"].map(math.isnan).all()


def test_readouts_of_a_cell_share_its_training(found):
    cells = found[0].groupby(["corpus", "objective", "table", "seed"])
    for name in ("multiply_adds_per_step", "parameters", "embedding_rank", "seconds_per_step"):
        assert cells[name].nunique().eq(1).all()
