"""The fair table: its figures against models trained and judged by hand, its folder of cells, its
statistics.
"""

import math
import os
import signal
from copy import deepcopy
from dataclasses import replace

import pandas as pd
import pytest
import torch
from scipy import stats

from softar_lab.core.store import StoreError
from softar_lab.data.corpora import Corpus, corpus_of
from softar_lab.data.languages.markov import Markov
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.models.config import ModelConfig
from softar_lab.models.objectives import OBJECTIVES
from softar_lab.models.scoring import calibrate, char_log_probs, evaluate
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.config import TrainConfig
from softar_lab.training.data import TrainingRows
from softar_lab.training.loop import train
from softar_studies import objectives_table as comparison
from softar_studies.objectives_table import (
    FIGURES,
    Budget,
    fair_table,
    multiply_adds,
    run_cell,
    short_names,
    summary,
)

SHAPE = {"context": 12, "n_layers": 1, "n_heads": 2, "d_model": 16, "embedding_dim": 14}
TRAIN = TrainConfig(steps=3, batch_size=2, eval_every=0, save_every=0)
TINY = Budget(model=SHAPE, train=TRAIN, rows=8)
READOUTS = {"ce": ["softmax"], "energy(2)": ["votes(200)", "tau", "affine", "barycentric"]}
CHAIN = Markov.random(5, seed=1)


def table(corpus, objectives=("ce",), tables=("random",), seeds=1, budget=TINY, **more):
    return fair_table(objectives, tables, corpus, seeds, budget, progress=False, **more)


def figures(frame):
    """All that must be the same when a table is made again."""
    return frame.drop(columns="seconds_per_step")


@pytest.fixture(scope="module")
def both(corpus):
    """Two objectives, two seeds."""
    return table(corpus, list(READOUTS), seeds=2)


@pytest.fixture(scope="module")
def chain():
    """A corpus whose truth is known."""
    return corpus_of(CHAIN, 2000, 300, 100)


# -- cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fair_table_has_a_row_a_cell_and_readout(both):
    expected = [
        (name, seed, way) for name, ways in READOUTS.items() for seed in (0, 1) for way in ways
    ]
    short = short_names(both)
    assert list(zip(short["objective"], short["seed"], short["readout"], strict=True)) == expected
    assert {
        "corpus",
        "table",
        "embedding_dim",
        "parameters",
        "multiply_adds_per_step",
        "seconds_per_step",
    } < set(both)
    assert {"embedding_rank", "embedding_norm", *FIGURES, "problem"} < set(both)
    assert both[["bits", "top1", "ece", "brier_1"]].notna().all(axis=None)
    assert both["excess"].isna().all()
    assert (both["brier_lm"].isna() == both["problem"].str.startswith("no geometric mean")).all()
    assert (both["seconds_per_step"] > 0).all()


def test_fair_table_made_again_is_the_same(both, corpus):
    again = figures(table(corpus, seeds=[0, 1]))
    pd.testing.assert_frame_equal(again, figures(both[both["objective"] == "ce"]), check_exact=True)


@pytest.mark.parametrize("objective", READOUTS)
def test_fair_table_says_what_a_model_trained_by_hand_is_worth(both, corpus, objective):
    tokenizer = CharTokenizer.fit(corpus.train)
    model = SoftAR(
        ModelConfig(vocab_size=13, objective=objective, table="random", **SHAPE), tokenizer, seed=1
    )
    train(model, corpus, TRAIN, seed=1, progress=False)
    name = OBJECTIVES.short(objective, *[None] * 3)
    for way in READOUTS[objective]:
        read = model.with_readout(way)
        calibrate(
            read,
            TrainingRows(read, corpus, TRAIN, seed=1).calibration(read.objective.readout.tokens),
        )
        own = short_names(both).set_index(["objective", "seed", "readout"])
        row = own.loc[(name, 1, way)]
        assert row["bits"] == pytest.approx(evaluate(read, corpus.val) / math.log(2), abs=1e-6)
        assert row["parameters"] == model.n_parameters()
        assert row["embedding_norm"] == pytest.approx(read.embedding.norm(dim=1).mean().item())


def test_excess_is_over_what_the_truth_needs_for_the_same_text(chain):
    found = table(
        chain, budget=replace(TINY, chars=1000), truth=CHAIN
    )  # the floor is the language's own sum
    assert found["excess"].item() == pytest.approx(
        found["bits"].item() - chain.floor_bits_per_char, abs=1e-9
    )
    short = table(chain, budget=replace(TINY, chars=40), truth=CHAIN)
    floor = -char_log_probs(CHAIN, chain.val[:40]).mean().item() / math.log(2)
    assert short["excess"].item() == pytest.approx(short["bits"].item() - floor, abs=1e-9)
    assert table(chain)["excess"].isna().all()


def test_documents_are_judged_to_the_end_of_the_last_one_begun():
    documents = ["abc\n", "defgh\n", "ab\n", "cdefghab\n"] * 10
    text = "".join(documents)
    corpus = Corpus("d", text, text, text, separator="\n")
    model = SoftAR(ModelConfig(vocab_size=9, table="random", **SHAPE), CharTokenizer.fit(text))
    train(model, corpus, TRAIN, progress=False)
    for chars, whole in ((1, 1), (4, 1), (5, 2), (10, 2), (11, 3), (10**6, 40)):
        found = run_cell("ce", "random", corpus, 0, replace(TINY, chars=chars))[0]
        expected = evaluate(model, "".join(documents[:whole]), "\n") / math.log(2)
        assert found["bits"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_budget_trains_every_objective_by_a_cheap_readout_of_its_own(objective):
    config = TINY.config(13, objective, "random")
    assert config.readout == {"ce": "softmax"}.get(objective, "tau")
    assert config.embedding_dim == 14
    assert TINY.config(13, objective, "orthonormal(trained=True)").embedding_dim == 13


@pytest.mark.parametrize("rate", [1e30, 1e12])
def test_a_cell_that_diverges_is_rows_with_a_problem(corpus, rate):
    """At 1e30 the loss is no number; at 1e12 the weights are finite still, and what is computed
    from them is not.
    """
    wild = replace(TINY, train=replace(TRAIN, muon_learning_rate=rate))
    found = table(corpus, ["mse"], budget=wild)
    assert list(found["readout"]) == [
        "tau",
        "affine(tokens=65536, ridge=None)",
        "barycentric(0.07)",
    ]
    assert found["problem"].str.contains("learning_rate|at the end").all()
    assert found[FIGURES].isna().all(axis=None)
    assert (found["multiply_adds_per_step"] > 0).all()
    assert summary(found).empty


# -- the folder of cells ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fair_table_goes_on_where_it_was_to_the_same_figures(both, corpus, tmp_path, monkeypatch):
    table(corpus, ["energy(2)"], seeds=[1], out=tmp_path / "cells")
    ran = []
    monkeypatch.setattr(
        comparison, "run_cell", lambda *given: ran.append((given[0], given[3])) or run_cell(*given)
    )
    found = table(corpus, list(READOUTS), seeds=2, out=tmp_path / "cells")
    assert ran == [("ce", 0), ("ce", 1), ("energy(2)", 0)]
    pd.testing.assert_frame_equal(figures(found), figures(both), check_exact=True)
    again = table(corpus, list(READOUTS), seeds=2, out=tmp_path / "cells")
    assert len(ran) == 3
    pd.testing.assert_frame_equal(again, found, check_exact=True)
    assert len(list((tmp_path / "cells").iterdir())) == 4


def test_fair_table_stopped_by_control_c_keeps_no_half_trained_cell(
    both, corpus, tmp_path, monkeypatch
):
    """Training returns when it is stopped, as it should; the table must not take that for a cell
    that is done.
    """
    presses = iter([False] * 4 + [True])  # three steps of the first cell, two of the second

    def press(event):
        if next(presses, False):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(
        comparison, "train", lambda *given, **more: train(*given, **more, on_step=press)
    )
    with pytest.raises(KeyboardInterrupt):
        table(corpus, seeds=2, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letters_ce_random_0.json"]
    expected = both[both["objective"] == "ce"]
    pd.testing.assert_frame_equal(
        figures(table(corpus, seeds=2, out=tmp_path)), figures(expected), check_exact=True
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chars": 30}, "chars: saved 20000, now 30"),
        ({"train": replace(TRAIN, steps=4)}, r"train\.steps: saved 3, now 4"),
        ({"model": {**SHAPE, "d_model": 8}}, r"model\.d_model: saved 16, now 8"),
        ({"arguments": {}}, r"arguments\.votes: saved 'votes\(200\)', now None"),
    ],
)
def test_fair_table_refuses_cells_of_another_recipe(corpus, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(comparison, "run_cell", lambda *given: [{"bits": 1.0}])
    table(corpus, out=tmp_path)
    with pytest.raises(
        StoreError, match=rf"letters_ce_random_0\.json.*another recipe \({message}\)"
    ):
        table(corpus, budget=replace(TINY, **change), out=tmp_path)
    assert len(table(corpus, out=tmp_path)) == 1


def test_fair_table_refuses_cells_of_another_text(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "run_cell", lambda *given: [{"bits": 1.0}])
    table(corpus, out=tmp_path)
    with pytest.raises(StoreError, match="another recipe \\(sha256: saved"):
        table(replace(corpus, test="ab"), out=tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-2], lambda data: b"", lambda data: b"[1]", lambda data: b"{}"]
)
def test_fair_table_refuses_a_damaged_cell(corpus, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(comparison, "run_cell", lambda *given: [{"bits": 1.0}])
    table(corpus, out=tmp_path)
    path = tmp_path / "letters_ce_random_0.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        StoreError, match=r"letters_ce_random_0\.json is no finished cell .* delete it"
    ):
        table(corpus, out=tmp_path)


def test_cells_have_files_of_their_own(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(
        comparison, "run_cell", lambda *given: [{"objective": given[0], "table": given[1]}]
    )
    objectives, tables = (
        ["vmf", "vmf(published=True)", "energy(2)", "energy(2, 1.5)"],
        ["random", "random(sphere=False)"],
    )
    found = [table(corpus, objectives, tables, seeds=[3, 31], out=tmp_path) for _ in range(2)]
    assert len(list(tmp_path.iterdir())) == 16
    pd.testing.assert_frame_equal(*found)


# -- what a step costs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("table_name", ["random", "joint"])
def test_multiply_adds_are_those_of_the_formulas(corpus, table_name, precision):
    """One layer, window 12: B = 2 rows of T = 13 slots, the first of which is no token."""
    config = replace(TRAIN, precision=precision)
    model = SoftAR(
        ModelConfig(vocab_size=13, table=table_name, **SHAPE), CharTokenizer.fit(corpus.train)
    )
    B, T, V, d, m = 2, 13, 13, 16, 14
    linears = (
        B * T * (d * 3 * d + d * d + 2 * d * 4 * d + d * V)
    )  # forward; backward costs twice that:
    read = (
        B * (T - 1) * m * d
    )  # for the weights and for what came in, which is only the table's business here
    attention = (
        B * T * T * d
    )  # queries by keys, weights by values; each has two products of its size backwards
    muon = 0
    for a, b in (
        (d, 3 * d),
        (d, d),
        (d, 4 * d),
        (d, 4 * d),
        (m, d),
    ):  # five Newton-Schulz steps a matrix (a <= b)
        muon += 5 * (a * b * a + a * a * a + a * a * b)
    expected = 3 * linears + (3 if table_name == "joint" else 2) * read + 3 * 2 * attention + muon
    assert multiply_adds(model, TrainingRows(model, corpus, config, 0), config) == expected


def test_multiply_adds_of_soft_inputs_hold_the_first_pass(corpus):
    model = SoftAR(
        ModelConfig(vocab_size=13, table="random", **SHAPE), CharTokenizer.fit(corpus.train)
    )
    B, T, V, d, m = 2, 13, 13, 16, 14
    first = (
        B * (T - 1) * (d * 3 * d + d * d + 2 * d * 4 * d + d * V)
        + B * (T - 2) * m * d
        + 2 * B * (T - 1) ** 2 * d
    )
    mixtures = 2 * B * (T - 1) * V * m  # ce's soft token, and the one that is read
    costs = []
    for soft_inputs in (None, "posterior-gumbel"):
        config = replace(TRAIN, soft_inputs=soft_inputs)
        costs.append(multiply_adds(model, TrainingRows(model, corpus, config, 0), config))
    assert costs[1] - costs[0] == first + mixtures


def test_multiply_adds_leave_the_model_as_it_is(corpus):
    model = SoftAR(
        ModelConfig(vocab_size=13, table="joint", **SHAPE), CharTokenizer.fit(corpus.train)
    )
    before, card = (
        {name: value.clone() for name, value in model.state_dict().items()},
        deepcopy(model.card),
    )
    multiply_adds(model, TrainingRows(model, corpus, TRAIN, 0), TRAIN)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.card == card


# -- statistics -------------------------------------------------------------------------------------------------------


def runs(**values):
    """A frame of hand-made runs: objective=[a value a seed]; the readout is "tau" but for what
    follows "__".
    """
    rows = []
    for name, of_seeds in values.items():
        objective, _, readout = name.partition("__")
        for seed, bits in enumerate(of_seeds):
            row = {
                "corpus": "c",
                "objective": objective,
                "table": "random",
                "readout": readout or "tau",
            }
            rows.append({**row, "seed": seed, "bits": bits, "top1": 1 - bits / 10})
    return pd.DataFrame(rows)


def test_summary_is_the_t_interval_of_scipy():
    values = [1.0, 2.0, 4.0, 4.5]
    found = summary(runs(mse=values, ce=[0.5], vmf=[3.0, 3.5]))
    assert list(found["objective"]) == ["ce", "mse", "vmf"]  # the best first
    assert list(found["seeds"]) == [1, 4, 2]
    low, high = stats.t.interval(0.95, 3, loc=2.875, scale=stats.sem(values))
    assert found.loc[1, ["mean", "low", "high"]].tolist() == pytest.approx(
        [2.875, low, high], rel=1e-12
    )
    assert found.loc[0, ["low", "high"]].isna().all()


def test_summary_puts_the_best_first_also_where_more_is_better():
    assert list(summary(runs(mse=[1.0, 2.0], ce=[0.5, 0.7]), "top1")["objective"]) == ["ce", "mse"]


def test_summary_keeps_readouts_and_corpora_apart_and_leaves_out_what_is_missing():
    frame = pd.concat(
        [runs(mse=[3.0, math.nan, 5.0], mse__affine=[1.0]), runs(mse=[0.5]).assign(corpus="b")]
    )
    found = summary(frame)
    told = [("b", "tau", 0.5, 1), ("c", "affine", 1.0, 1), ("c", "tau", 4.0, 2)]
    assert (
        list(found[["corpus", "readout", "mean", "seeds"]].itertuples(index=False, name=None))
        == told
    )
    assert summary(frame.assign(bits=math.nan)).empty


def test_summary_against_another_pairs_the_seeds():
    """The seeds differ by 10, the difference of each pair is 1, 2 or 3: mean 2, standard error
    1/√3, t = 4.302653.
    """
    frame = runs(ce=[0.0, 10.0, 20.0, 30.0], mse=[1.0, 12.0, 23.0])
    found = summary(frame.sample(frac=1, random_state=0), against=("ce", "random"))
    assert list(found["objective"]) == ["ce", "mse"]
    assert found.loc[0, ["mean", "low", "high"]].tolist() == [0, 0, 0]
    half = 4.302653 / 3**0.5
    assert found.loc[1, ["mean", "low", "high"]].tolist() == pytest.approx(
        [2, 2 - half, 2 + half], abs=1e-6
    )
    assert list(found["seeds"]) == [4, 3]


def test_summary_against_another_takes_its_best_readout():
    frame = runs(mse__tau=[3.0, 4.0], mse__affine=[2.0, 5.0], ce=[2.0, 4.0])
    assert summary(frame, against=("mse", "random"))["mean"].tolist() == [0, 0.5, 0.5]
    assert summary(frame, "top1", ("mse", "random"))["mean"].tolist() == pytest.approx(
        [0, -0.05, -0.05]
    )


@pytest.mark.parametrize("against", [("flow", "random"), ("ce", "joint")])
def test_summary_against_what_was_not_run_says_so(against):
    with pytest.raises(ValueError, match=f"no run of {against[0]} on {against[1]} to compare with"):
        summary(runs(ce=[1.0]), against=against)
