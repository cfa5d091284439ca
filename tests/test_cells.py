"""Tables of results: on disk; and those in data/results are what their recipes say, and hold
together.
"""

import json
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from softar_lab.core.cells import cell_path, load_or_run, load_results, save_results
from softar_lab.core.estimates import interval
from softar_lab.core.store import StoreError
from softar_lab.data.corpora import load_corpus
from softar_lab.generation.feedback import FEEDBACKS
from softar_lab.generation.schedule import SCHEDULES
from softar_lab.models.embedding_tables import TABLES
from softar_lab.models.objectives import OBJECTIVES
from softar_lab.training.config import TrainConfig
from softar_studies import (
    make_adapting,
    make_collapse,
    make_compression,
    make_dial,
    make_drift,
    make_forecast,
    make_positions,
    make_pretrained,
    make_prompts,
    make_recall,
    make_retrieval,
    make_soft_inputs,
    make_tokenizers,
    make_window,
    tables,
    widths,
)
from softar_studies.make_results import BUDGETS, PARTS, RESULTS, SEEDS
from softar_studies.objectives_table import Budget, recipe


@pytest.fixture(scope="module")
def found():
    return load_results(RESULTS)


@pytest.mark.slow
def test_recipes_are_those_of_the_tool(found):
    told = {one["corpus"]: one for one in found[1]}
    assert set(told) == set(BUDGETS)
    assert told["tales"] == recipe(load_corpus("tales"), BUDGETS["tales"])
    for name, budget in BUDGETS.items():  # Shakespeare's text may not be here
        assert Budget.from_recipe(told[name]) == budget
        assert json.loads(json.dumps(told[name])) == told[name]


def test_every_cell_is_stored_exactly_once(found):
    frame = found[0]
    there = frame.groupby(["corpus", "objective", "table", "seed"])["readout"].nunique()
    wanted = {
        (c, OBJECTIVES.complete(o, *[None] * 3), TABLES.complete(t, *[None] * 3), s)
        for c in BUDGETS
        for os, ts in PARTS
        for o in os
        for t in ts
        for s in range(SEEDS)
    }
    assert set(there.index) == wanted
    assert not frame.duplicated(["corpus", "objective", "table", "readout", "seed"]).any()


def test_figures_lie_where_they_can(found):
    frame = found[0]
    assert frame["bits"].gt(0).all()
    assert frame["top1"].between(0, 1).all()
    assert frame["ece"].between(0, 1).all()
    for n in range(1, 5):
        assert frame[f"brier_{n}"].between(-1, 1).all()
    assert (
        frame["brier_lm"].isna().eq(frame["problem"] != "").all()
    )  # a figure is missing only with a reason
    tales = frame[frame["corpus"] == "tales"]
    assert tales["excess"].gt(0).all()
    assert (tales["bits"] - tales["excess"]).max() - (
        tales["bits"] - tales["excess"]
    ).min() < 1e-4  # one floor
    assert frame.loc[frame["corpus"] == "shakespeare", "excess"].map(math.isnan).all()


def test_readouts_of_a_cell_share_its_training(found):
    cells = found[0].groupby(["corpus", "objective", "table", "seed"])
    for name in ("multiply_adds_per_step", "parameters", "embedding_rank", "seconds_per_step"):
        assert cells[name].nunique().eq(1).all()


# -- soft inputs ------------------------------------------------------------------------------------------------------


def test_soft_inputs_are_whole_and_their_recipe_is_that_of_the_tool():
    frame, recipes = load_results(make_soft_inputs.RESULTS)
    assert recipes == [json.loads(json.dumps(make_soft_inputs.cell_recipe()))]
    assert (
        len(frame)
        == len(make_soft_inputs.OBJECTIVES) * len(make_soft_inputs.SOFT) * make_soft_inputs.SEEDS
    )
    assert not frame.duplicated(["objective", "inputs", "seed"]).any()
    assert frame["problem"].eq("").all()


# -- tokenizers -------------------------------------------------------------------------------------------------------


def test_tokenizers_are_whole_and_their_recipe_is_that_of_the_tool():
    frame, recipes = load_results(make_tokenizers.RESULTS)
    told = {one["corpus"]: one for one in recipes}
    assert told["topics"] == json.loads(json.dumps(make_tokenizers.recipe("topics")))
    ours = {
        name: value for name, value in told["topics"].items() if name not in ("corpus", "sha256")
    }
    assert told["shakespeare"].items() >= ours.items()  # its text may not be here
    for name in make_tokenizers.SIZES:
        part, cells = frame[frame["corpus"] == name], make_tokenizers.cells(name)
        found = set(part[["tokenizer", "vocab_size", "seed"]].itertuples(index=False, name=None))
        assert {cell for cell in found if cell[0] != "char"} == {
            cell for cell in cells if cell[0] != "char"
        }
        assert len(part) == len(found) == len(cells)
    assert frame["problem"].eq("").all()


def test_tokenizers_differ_in_their_table_alone():
    """The same body: what a row of the table and of the head costs falls out."""
    frame = load_results(make_tokenizers.RESULTS)[0]
    width = make_tokenizers.SHAPE["d_model"]
    assert len(set(frame["parameters"] - 2 * width * frame["vocab_size"])) == 1
    assert frame.loc[frame["tokenizer"] == "char", "chars_per_token"].eq(1).all()
    assert frame["bits"].between(1, 5).all()


@pytest.mark.slow
def test_characters_per_token_are_those_of_the_tool():
    frame = load_results(make_tokenizers.RESULTS)[0]
    text = make_tokenizers.corpus_named("topics").val
    for kind, part in frame[frame["corpus"] == "topics"].groupby("tokenizer"):
        tokenizer = make_tokenizers.fitted("topics", kind, 512)
        assert len(text) / len(tokenizer.encode(text)) == pytest.approx(
            part["chars_per_token"].iloc[0], rel=1e-5
        )


# -- positions --------------------------------------------------------------------------------------------------------


def test_positions_are_whole_and_their_recipe_is_that_of_the_tool():
    frame, recipes = load_results(make_positions.RESULTS)
    told = make_positions.recipe(recipes[0]["sha256"])  # its text may not be here
    assert recipes == [json.loads(json.dumps(told))]
    bins = range(0, make_positions.SCORED, make_positions.BIN)
    for name, shape in make_positions.MODELS.items():
        windows = (
            [shape["attention_window"]]
            if "attention_window" in shape
            else [0, make_positions.TRAINED]
        )
        part = frame[frame["positions"] == name]
        found = set(part[["window", "seed", "begin"]].itertuples(index=False, name=None))
        assert found == {
            (w, s, b) for w in windows for s in range(make_positions.SEEDS) for b in bins
        }
        assert len(part) == len(found)
        near = part[part["begin"] < 64].pivot(
            index=["seed", "begin"], columns="window", values="bits"
        )
        assert near.std(axis=1).fillna(0).max() < 1e-6  # a window of 64 hides nothing there
    assert frame["problem"].eq("").all()
    assert frame["bits"].between(2, 5).all()


def test_positions_tool_keeps_its_cells_and_writes_the_table(tmp_path, monkeypatch, corpus):
    """Tiny models, on a text of its own: what is scored at each position is what `next_log_probs`
    says.
    """
    monkeypatch.setattr(
        make_positions, "load_corpus", lambda name: replace(corpus, val=corpus.train)
    )
    monkeypatch.setattr(make_positions, "TRAINED", 8)
    monkeypatch.setattr(make_positions, "SCORED", 32)
    monkeypatch.setattr(
        make_positions, "TRAIN", TrainConfig(steps=2, window=8, eval_every=0, save_every=0)
    )
    monkeypatch.setattr(make_positions, "SEEDS", 1)
    monkeypatch.setattr(make_positions, "CELLS", tmp_path / "cells")
    monkeypatch.setattr(make_positions, "RESULTS", tmp_path / "results.csv")
    make_positions.main([])
    frame, _ = load_results(tmp_path / "results.csv")
    first = (tmp_path / "results.csv").read_bytes()
    lines = (tmp_path / "cells" / "cells.jsonl").read_bytes().splitlines()
    assert len(lines) == 1 + len(make_positions.MODELS)
    assert len(frame) == (2 * 4 + 1) * 2
    assert frame["bits"].between(1, 5).all()
    (tmp_path / "results.csv").unlink()
    make_positions.main([])
    assert (tmp_path / "results.csv").read_bytes() == first
    assert len((tmp_path / "cells" / "cells.jsonl").read_bytes().splitlines()) == len(lines)


# -- widths ---------------------------------------------------------------------------------------


def test_widths_are_cells_of_the_grid_and_their_recipe_is_that_of_the_tool():
    frame, recipes = load_results(widths.RESULTS)
    assert recipes == [json.loads(json.dumps(widths.recipe()))]
    assert not frame.duplicated([*widths.GRID, "readout"]).any()
    cells = frame.groupby(["seed", "width", "steps"])["readout"].nunique()
    assert cells.eq(3).all()
    assert set(cells.index) == set(product(*(widths.GRID[k] for k in ("seed", "width", "steps"))))
    assert frame["excess"].gt(0).all()


# -- what holds for every table ---------------------------------------------------------------------------------------

# module: its cells, and their folder
STUDIES = {
    make_adapting: ("run", "RUNS"),
    make_compression: ("run", "CELLS"),
    make_dial: ("run", "CELLS"),
    make_drift: ("run", "CELLS"),
    make_forecast: ("run", "CELLS"),
    make_positions: ("run", "CELLS"),
    make_pretrained: ("run", "RUNS"),
    make_prompts: ("run", "RUNS"),
    make_recall: ("run", "RUNS"),
    make_retrieval: ("run run_engine", "RUNS"),
    make_soft_inputs: ("run", "CELLS"),
    make_tokenizers: ("run", "CELLS"),
    make_window: ("measure", "RUNS"),
}
ELSEWHERE = {  # of texts and packages that may not be here, or take long to load
    make_compression: {"recipe": dict},
    make_positions: {"load_corpus": lambda name: replace(load_corpus("mess3"), name=name)},
    make_retrieval: {
        "is_installed": lambda package: True,
        "recipe": lambda system: {},
        "engine_recipe": lambda engine: {},
    },
    make_soft_inputs: {"cell_recipe": dict},
    make_tokenizers: {"recipe": lambda name: {}},
    make_window: {"recipe": lambda name, seeds: {}},
}


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.__name__.rpartition(".")[2])
def test_the_tool_of_a_table_writes_it_from_its_cells(study, tmp_path, monkeypatch):
    """Given the stored figures of each cell, main() writes the stored table, byte by byte."""
    (cells, folder), stored = STUDIES[study], load_results(study.RESULTS)[0]
    again, ran = tmp_path / "again.csv", []

    def figures(**arguments):
        ran.append(arguments)
        return rows_of_cell(stored, arguments)

    changed = {
        folder: tmp_path / "cells",
        "RESULTS": again,
        **dict.fromkeys(cells.split(), figures),
    }
    expected = study.RESULTS.read_bytes()
    for name, value in (changed | ELSEWHERE.get(study, {})).items():
        monkeypatch.setattr(study, name, value)
    study.main([])
    if study is make_window:  # MISSING: one cell is not in the table
        lines = again.read_text().splitlines(keepends=True)
        again.write_text("".join(line for line in lines if "rotated,,,,2," not in line))
    assert again.read_bytes() == expected
    count = len(ran)
    study.main([])
    assert len(ran) == count > 1


def rows_of_cell(stored, arguments):
    """The stored rows of the cell with these arguments, without the arguments."""
    columns = dict(arguments)
    if (size := columns.pop("size", None)) is not None and columns["tokenizer"] != "char":
        columns["vocab_size"] = size
    for axis in (SCHEDULES, FEEDBACKS):
        if axis.kind in columns and axis.kind in stored and "schedule" in columns:
            columns[axis.kind] = axis.complete(columns[axis.kind])
    if "inputs" in columns and "steps" not in columns:
        columns["objective"] = OBJECTIVES.complete(columns["objective"], *[None] * 3)
    is_its = np.all([stored[name] == value for name, value in columns.items()], axis=0)
    return stored[is_its].drop(columns=[*arguments, "problem"], errors="ignore").to_dict("records")


def test_a_study_writes_no_table_without_its_failed_cells_and_tries_them_again(tmp_path):
    mended = tmp_path / "mended"

    def cell(a):
        if a == 2 and not mended.exists():
            raise RuntimeError("not today")
        return {"double": 2 * a}

    grid = {"a": [1, 2]}
    with pytest.raises(RuntimeError, match="1 cells failed.*not today"):
        tables.figures(cell, grid, tmp_path / "cells", {})
    mended.touch()
    found = tables.figures(cell, grid, tmp_path / "cells", {})
    assert found.to_dict("list") == {"a": [1, 2], "double": [2, 4]}
    tables.figures(cell, grid, tmp_path / "cells", {"steps": 3})  # another recipe, other cells
    assert len((tmp_path / "cells" / "cells.jsonl").read_text().splitlines()) == 1 + 3 + 2


def test_the_command_line_of_a_study(capsys):
    asked = tables.asked_for("A study.", range(3), "SEED", ["2", "0", "--backend", "cores"])
    assert (asked.names, asked.backend) == ([2, 0], "cores")
    assert tables.asked_for("A study.", arguments=[]).names == []
    with pytest.raises(SystemExit):
        tables.asked_for("A study.", ["urn"], "CORPUS", ["urne"])
    assert "unknown: urne; known: urn" in capsys.readouterr().err


FRAME = pd.DataFrame({"figure": [2.0, 1 / 3], "name": ["b", "a"], "problem": ["", "no figure"]})


def test_interval_is_that_of_scipy():
    values = np.array([1.0, 2.0, 4.0])
    low, high = scipy.stats.t.interval(0.95, 2, values.mean(), scipy.stats.sem(values))
    assert interval(values) == pytest.approx({"mean": 7 / 3, "low": low, "high": high, "seeds": 3})
    assert math.isnan(interval(values[:1])["low"])


def test_results_come_back_as_they_were_saved(tmp_path):
    path = tmp_path / "new" / "results.csv"
    save_results(FRAME, [{"steps": 3}], path, ["name"])
    frame, recipes = load_results(path)
    assert recipes == [{"steps": 3}]
    pd.testing.assert_frame_equal(
        frame, FRAME.iloc[::-1].reset_index(drop=True)[["name", "figure", "problem"]], rtol=1e-5
    )
    first = path.read_bytes()
    save_results(frame, recipes, path, ["name"])
    assert path.read_bytes() == first


def test_a_stored_cell_is_not_run_again(tmp_path):
    path = cell_path(tmp_path / "new", "a name", "every(4)", 0)
    assert path.name == "a-name_every-4_0.json"
    assert load_or_run(path, {"steps": 3}, lambda: [{"figure": 1.5}]) == [{"figure": 1.5}]
    assert load_or_run(path, {"steps": 3}, list) == [{"figure": 1.5}]
    with pytest.raises(StoreError, match="made by another recipe.*steps: saved 3, now 4"):
        load_or_run(path, {"steps": 4}, list)
    path.write_text("{")
    with pytest.raises(StoreError, match="no finished cell"):
        load_or_run(path, {"steps": 3}, list)


def test_without_a_folder_nothing_is_stored():
    assert cell_path(None, "a") is None
    assert load_or_run(None, {}, lambda: [{"figure": 1.5}]) == [{"figure": 1.5}]


def damaged(path, how):
    """One of the two files, spoilt."""
    match how:
        case "no table":
            path.unlink()
        case "no recipes":
            path.with_suffix(".json").unlink()
        case "a line less":
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
        case "cut short":
            path.write_bytes(path.read_bytes()[:-9])
        case "another figure":
            path.write_text(path.read_text().replace("0", "1", 1))
        case "no JSON":
            path.with_suffix(".json").write_text("{")
        case "other JSON":
            path.with_suffix(".json").write_text(json.dumps([{"corpus": "c"}]))


@pytest.mark.parametrize(
    "how",
    [
        "no table",
        "no recipes",
        "a line less",
        "cut short",
        "another figure",
        "no JSON",
        "other JSON",
    ],
)
def test_results_that_are_missing_or_damaged_are_refused(tmp_path, how):
    path = tmp_path / "results.csv"
    save_results(FRAME, [{"corpus": "c"}], path, ["name"])
    assert len(load_results(path)[0]) == 2
    damaged(path, how)
    with pytest.raises(StoreError, match=r"results\.csv"):
        load_results(path)


# -- collapse × schedule × feedback ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collapses():
    return load_results(make_collapse.RESULTS)


def test_collapse_recipes_are_those_of_the_tool(collapses):
    told = {one["model"]: one for one in collapses[1]}
    assert set(told) == set(make_collapse.SUBJECTS)
    for name, subject in make_collapse.SUBJECTS.items():
        if subject.corpus != "shakespeare":  # whose text may not be here
            assert told[name] == json.loads(json.dumps(make_collapse.recipe(name)))


@pytest.mark.parametrize("name", make_collapse.SUBJECTS)
def test_every_condition_of_a_model_is_stored_exactly_once(collapses, name):
    frame = collapses[0][collapses[0]["model"] == name]
    assert not frame.duplicated(make_collapse.KEYS).any()
    assert frame["bits"].isna().eq(frame["problem"] != "").all()
    # A vote asks for a model that predicts more than one vector.
    assert set(frame.loc[frame["problem"] != "", "collapse"]) <= {"vote(draws=200, least=1)"}
    ten = frame["schedule"].unique()
    assert len(ten) == (6 if make_collapse.SUBJECTS[name].samples else 10)
    wanted = 0
    for heat in (0, None):
        for hows, feedbacks, count in make_collapse.parts(make_collapse.SUBJECTS[name], heat):
            part = frame[
                (frame["soft_temperature"] == (0 if heat == 0 else 1))
                & frame["collapse"].isin(hows)
            ]
            cells = part.groupby(["collapse", "schedule", "feedback"])["seed"].nunique()
            assert cells.eq(make_collapse.SEEDS).all()
            wanted += len(hows) * len(feedbacks) * len(ten[:count])
    assert len(frame) == wanted * make_collapse.SEEDS


# -- what sums keep ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compression_is_whole_and_its_recipe_is_that_of_the_tool():
    frame, recipes = load_results(make_compression.RESULTS)
    assert recipes == [json.loads(json.dumps(make_compression.recipe()))]
    assert frame["value"].between(-1, 1).all()
    assert not frame.duplicated(["part", "way", "at", "what", "seed"]).any()
    assert (
        frame.groupby(["part", "way", "at", "what"])["seed"]
        .nunique()
        .eq(make_compression.SEEDS)
        .all()
    )


def test_a_table_without_problems_is_loaded(tmp_path):
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]})
    save_results(frame, [{}], tmp_path / "t.csv", ["a"])
    assert load_results(tmp_path / "t.csv")[0].equals(frame)


# -- drift and forecast ---------------------------------------------------------------------------


def test_drift_is_whole_and_its_recipe_is_that_of_the_tool():
    frame, recipes = load_results(make_drift.RESULTS)
    assert recipes == [json.loads(json.dumps(make_drift.cell_recipe()))]
    cells = len(make_drift.SUBJECTS) * len(make_drift.CONDITIONS)
    assert len(frame) == cells * make_drift.SEEDS * 2
    assert not frame.duplicated(["model", "schedule", "feedback", "begin", "seed"]).any()
    for axis in (FEEDBACKS, SCHEDULES):
        assert all(axis.complete(name) == name for name in frame[axis.kind].unique())
    np.testing.assert_allclose(frame["misread"], frame["own"] - frame["refitted"], atol=1e-4)


def test_recipes_of_dial_prompts_and_adapting_are_those_of_the_tools():
    due = {
        make_dial: [make_dial.recipe()],
        make_prompts: [make_prompts.recipe(part, 0) for part in make_prompts.PARTS],
        make_adapting: [
            make_adapting.recipe(arm, 0, feedback)
            for arm in make_adapting.TABLE
            for feedback in make_adapting.FEEDBACKS
        ],
    }
    for tool, recipes in due.items():
        assert load_results(tool.RESULTS)[1] == json.loads(json.dumps(recipes))


def test_what_decides_a_table_stands_in_its_recipe(monkeypatch):
    """A saved cell of another length, number of pairs or text is not taken for this one."""
    for tool, name, value, made in (
        (make_drift, "SUBJECTS", {}, make_drift.cell_recipe),
        (
            make_prompts,
            "PAIRS",
            {False: [1, 1], True: [1, 1]},
            lambda: make_prompts.recipe("bullets", 0),
        ),
        (make_prompts, "LENGTH", 1, lambda: make_prompts.recipe("mess3 in state 0", 0)),
        (make_adapting, "READ", 1, lambda: make_adapting.recipe(make_adapting.ARMS[0], 0, "hard")),
        (
            make_adapting,
            "DRAWN",
            1,
            lambda: make_adapting.recipe(make_adapting.ARMS[-1], 0, "hard"),
        ),
    ):
        before = made()
        with monkeypatch.context() as changed:
            changed.setattr(tool, name, value)
            assert made() != before


def test_forecast_is_whole_and_its_recipe_is_that_of_the_tool():
    frame, recipes = load_results(make_forecast.RESULTS)
    assert recipes == [json.loads(json.dumps(make_forecast.cell_recipe()))]
    assert len(frame) == make_forecast.SEEDS * make_forecast.STEPS
    assert not frame.duplicated(["seed", "k"]).any()


def test_drift_measures_a_condition_again():
    """Readers fitted on fewer texts, the same texts scored: the own reader's figures are the same."""
    frame, _ = load_results(make_drift.RESULTS)
    was = frame[(frame["model"] == "mess3-hard") & (frame["schedule"] == "every(2)")]
    now = pd.DataFrame(make_drift.run("mess3-hard", "every(2)", "mixture", fitted=8))
    keys = ["begin", "seed"]
    was, now = (one.set_index(keys).sort_index() for one in (was, now))
    np.testing.assert_allclose(now["own"], was["own"], rtol=0.02)
    assert (now["refitted"] < now["own"]).mean() > 0.5
