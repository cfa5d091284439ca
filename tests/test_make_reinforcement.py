"""The study of notebook 12: its table, its cells, and the models that it ships."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from softar_lab.core.cells import load_results
from softar_lab.data.tasks import load_task
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.roll_outs import roll_out, score_thoughts
from softar_lab.training.thoughts import KINDS
from softar_studies import gradients, make_reinforcement


@pytest.mark.parametrize(("keys", "name"), make_reinforcement.SHIPPED.items())
def test_shipped_models_are_those_of_the_table(keys, name):
    """Held-out problems answered right, as the table says, but for rounding in 3 of 1,312."""
    kind, steps, width, seed = keys
    folder = make_reinforcement.THINKERS / name
    model, task = SoftAR.load(folder, "cpu"), load_task(make_reinforcement.TASK)
    card = json.loads((folder / "config.json").read_text())["card"]["thoughts"]
    assert (card["kind"], card["thoughts"], card["seed"]) == (kind, steps, seed)
    lesson = make_reinforcement.LESSON
    assert {**asdict(type(lesson)()), **card["config"]} == asdict(lesson)
    table, _ = load_results(make_reinforcement.RESULTS)
    row = table[
        (table["part"] == "supervised") & (table["training"] == kind) & (table["seed"] == seed)
        & (table["thoughts"] == steps) & (table["width"] == width) & (table["thinking"] == "own")
    ]  # fmt: skip
    problems = task.split().held_out
    own = roll_out(model, problems, steps, KINDS[kind], temperature=0).vectors
    score = score_thoughts(model, task, problems, own)
    assert score.accuracy == pytest.approx(row["accuracy"].item(), abs=3 / len(problems))


def test_cells_are_measured_once_and_joined(tmp_path, monkeypatch):
    """All parts at a tiny size; the second time nothing is computed."""
    tiny = {"TASK": "minimum-sum(largest=2, length=3)", "SEEDS": (0,), "SHIPPED": {}}
    tiny |= {"CELLS": tmp_path / "cells", "RESULTS": tmp_path / "table.csv"}
    tiny["SHAPE"] = {"context": 7, "n_layers": 1, "n_heads": 1, "d_model": 4}
    for name in ("LESSON", "HALF"):
        tiny[name] = replace(make_reinforcement.LESSON, steps=2, batch_size=4)
    tiny["REINFORCED"] = replace(make_reinforcement.REINFORCED, steps=2, problems=2, group=2)
    tiny["SUPERVISED"] = [[("soft", 2, 4), ("none", 0, 4)]]
    tiny["STARTS"] = [("soft", "gaussian", "drawn", 3, 4), ("none", "hard", "", 0, 4)]
    tiny |= {"TUNING_SEEDS": (1,), "RATES": (1e-3,), "NOISY": ("hard", "gaussian"), "THROUGH": ()}
    for name, value in tiny.items():
        monkeypatch.setattr(make_reinforcement, name, value)
    monkeypatch.setattr(gradients, "BATCHES", 2)
    monkeypatch.setattr("sys.argv", ["make_reinforcement"])
    make_reinforcement.best_rates.cache_clear()
    make_reinforcement.main()
    table, recipes = load_results(tiny["RESULTS"])
    assert set(table["part"]) == set(make_reinforcement.PARTS)
    assert len(recipes) == 5
    own = table[(table["part"] == "supervised") & (table["training"] == "soft")]
    assert set(own["thinking"]) == {"own", "mean", "other", "pause", "hard", "exact"}
    files = {path: path.stat().st_mtime_ns for path in tiny["CELLS"].rglob("*.json")}
    make_reinforcement.main()
    assert files == {path: path.stat().st_mtime_ns for path in tiny["CELLS"].rglob("*.json")}


def test_gradients_are_compared_in_units_of_the_exact_one():
    true = torch.tensor([2.0, 0.0])
    found = torch.tensor([[2.0, 1.0], [2.0, -1.0], [4.0, 0.0], [0.0, 0.0]])
    row = gradients.compared(found, true)
    assert row["along"] == 1
    assert row["cosine_of_mean"] == 1
    assert row["noise"] == pytest.approx(((8 / 3 + 2 / 3) ** 0.5) / 2)
