"""compare(): every way writes what generate() writes, is judged as score_texts judges, and is kept
when it is done.
"""

import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from softar_lab.compare import (
    CONDITION,
    against_control,
    compare,
    run_conditions,
    short_names,
    summary,
)
from softar_lab.core.estimates import interval
from softar_lab.core.store import StoreError
from softar_lab.data.languages.markov import Markov
from softar_lab.generation import EveryK, generate
from softar_lab.metrics.drift_readers import harm_by_text
from softar_lab.metrics.free_texts import score_texts

MODULE = sys.modules["softar_lab.compare"]  # softar_lab.compare is the function
PROMPTS = ["ab", "", "cab"]
HOW = {"steps": 12, "progress": False}


@pytest.fixture
def model(tiny):
    return tiny(objective="mse")


def test_write_all_is_generate_and_score_texts(model, tiny):
    judge = tiny(objective="ce", seed=1)
    found = run_conditions(
        model, PROMPTS, ["nearest"], [EveryK(3)], ["raw"], judge, 2, soft_temperature=0.5, **HOW
    )
    assert found["seed"].tolist() == [0, 1]
    for seed, row in found.iterrows():
        texts = generate(
            model, PROMPTS, 12, collapse="nearest", schedule="every(3)", feedback="raw", soft_temperature=0.5,
            seed=range(3 * seed, 3 * seed + 3),
        )  # fmt: skip
        expected = score_texts(texts, judge).mean()
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-4, nan_ok=True), name
        assert row["share"] == np.mean([one.collapsed.double().mean() for one in texts])
        assert row["own_bits"] == pytest.approx(
            -np.mean([one.log_probs.mean() for one in texts]) / math.log(2), rel=1e-4
        )


def test_write_all_has_a_row_per_condition_and_seed_and_marks_controls(model):
    found = run_conditions(
        model,
        PROMPTS,
        ["softmax", "nearest"],
        ["always", "never"],
        ["mixture", "pause"],
        model,
        2,
        **HOW,
    )
    assert len(found) == 2 * 2 * 2 * 2
    assert not found.duplicated([*CONDITION, "seed"]).any()
    assert found.loc[found["control"], "feedback"].unique().tolist() == ["pause(0)"]


def test_always_is_the_same_under_every_feedback_and_written_once(model, monkeypatch):
    calls = []
    monkeypatch.setattr(
        MODULE, "generate", lambda *a, **k: calls.append(k["feedback"]) or generate(*a, **k)
    )
    found = run_conditions(
        model, PROMPTS, ["softmax"], ["always"], ["mixture", "raw", "other"], model, 2, **HOW
    )
    assert len(calls) == 1
    assert found.groupby("seed")["bits"].nunique().eq(1).all()
    assert found["share"].eq(1).all()


def test_control_shown_without_its_own_temperature_is_always(model):
    found = run_conditions(
        model, PROMPTS, ["softmax"], ["always", "every(3)"], ["shown"], model, 2, **HOW
    )
    always, control = (found[found["schedule"] == name] for name in ("always", "every(3)"))
    assert control["bits"].tolist() == always["bits"].tolist()
    assert control["share"].lt(1).all()


def test_truth_says_how_far_a_text_holds(tiny):
    language = Markov(np.array([[0, 1.0], [0.5, 0.5]]))
    model = tiny(letters="".join(language.tokenizer.tokens), objective="mse")
    found = run_conditions(
        model, ["", ""], ["softmax"], ["never"], ["mixture"], model, 1, truth=language, **HOW
    )
    texts = generate(model, ["", ""], 12, schedule="never", seed=range(2))
    a = language.tokenizer.tokens[0]
    held = [one.text.find(a + a) + 1 if a + a in one.text else 12 for one in texts]
    assert found["held"].item() == np.mean(held)


def test_a_condition_that_the_model_refuses_holds_the_reason(model):
    found = run_conditions(model, PROMPTS, ["vote"], ["never"], ["raw"], model, 2, **HOW)
    assert found["bits"].isna().all()
    assert (
        found["problem"]
        .eq('collapse "vote" needs a model that predicts a distribution over vectors')
        .all()
    )


def test_compare_gives_means_and_intervals_best_first(model):
    options = {
        "collapses": ["softmax", "vote"],
        "schedules": ["always", "never"],
        "feedbacks": ["mixture"],
    }
    found = compare(model, PROMPTS, judge=model, seeds=3, **options, **HOW)
    runs = short_names(run_conditions(model, PROMPTS, *options.values(), model, 3, **HOW))
    assert len(found) == 4
    assert found["bits"].dropna().is_monotonic_increasing
    assert (
        found["problem"].ne("").tolist()
        == found["bits"].isna().tolist()
        == [False, False, True, True]
    )
    for _, row in found[:2].iterrows():
        values = runs.loc[(runs[CONDITION] == row[CONDITION]).all(axis=1), "bits"].to_numpy()
        expected = interval(values)
        assert [row["bits"], row["bits_low"], row["bits_high"]] == pytest.approx(
            [expected[k] for k in ("mean", "low", "high")]
        )
        assert row["seeds"] == 3


def test_summary_keeps_models_and_corpora_apart():
    runs = pd.DataFrame(
        {"corpus": ["a", "b"] * 2, "collapse": "softmax", "schedule": "never", "feedback": "raw", "control": False,
         "seed": [0, 0, 1, 1], "bits": [1.0, 5.0, 3.0, 7.0], "problem": ""}
    )  # fmt: skip
    assert summary(runs)["bits"].tolist() == [2, 6]
    cool = pd.concat(
        [runs.assign(soft_temperature=heat, bits=runs["bits"] + heat) for heat in (0, 1)]
    )
    assert summary(cool)["bits"].tolist() == [2, 3, 6, 7]


def test_against_control_takes_off_the_same_rule_with_hard_tokens(model):
    runs = run_conditions(
        model,
        PROMPTS,
        ["softmax", "vote"],
        ["always", "never"],
        ["mixture", "shown", "pause"],
        model,
        2,
        **HOW,
    )
    runs = short_names(runs)
    (found,) = against_control(runs).to_dict("records")
    bits = (
        runs[runs["schedule"] == "never"]
        .set_index(["collapse", "feedback", "seed"])["bits"]["softmax"]
        .unstack(0)
    )
    less = interval((bits["mixture"] - bits["shown"]).to_numpy())
    assert found == {"collapse": "softmax", "schedule": "never", "feedback": "mixture", **less}
    with pytest.raises(ValueError, match="'never', 'mixture'] has no control: measure"):
        against_control(runs[runs["feedback"] != "shown"])


def test_finished_conditions_are_not_run_again(model, tmp_path, monkeypatch):
    arguments = (model, PROMPTS, ["softmax", "vote"], ["always", "never"], ["mixture"], model, 2)
    first = run_conditions(*arguments, out=tmp_path / "kept", **HOW)
    monkeypatch.setattr(MODULE, "generate", None)
    pd.testing.assert_frame_equal(run_conditions(*arguments, out=tmp_path / "kept", **HOW), first)
    with pytest.raises(StoreError, match="made by another recipe.*steps: saved 12, now 13"):
        run_conditions(*arguments, out=tmp_path / "kept", **{**HOW, "steps": 13})


@pytest.mark.parametrize("changed", ["model", "judge", "truth", "words", "separator"])
def test_cells_of_another_model_or_judge_are_not_taken(model, tiny, tmp_path, changed):
    """A cell is what its name says only for those who made it: the weights count, not the class."""
    other = tiny(seed=1)
    made = {"model": model, "judge": model, "truth": model, "words": {"a"}, "separator": None}
    change = {"words": {"b"}, "separator": "\n"}.get(changed, other)
    for options in (made, {**made, changed: change}):
        arguments = dict(options, prompts=PROMPTS, collapses=["softmax"], schedules=["never"])
        arguments |= dict(feedbacks=["mixture"], seeds=1, out=tmp_path, **HOW)
        if options is made:
            run_conditions(**arguments)
        else:
            with pytest.raises(StoreError, match=f"made by another recipe.*{changed}: saved"):
                run_conditions(**arguments)


def test_two_functions_of_one_name_are_refused(model):
    def made(k):
        def favourite(prediction, embedding):
            return torch.nn.functional.one_hot(prediction.probs.argmax(1) * 0 + k, 13).float()

        return favourite

    with pytest.raises(ValueError, match="two collapses are named 'favourite'"):
        compare(model, PROMPTS, collapses=[made(1), made(2)], judge=model, progress=False)
    with pytest.raises(ValueError, match="two schedules are named 'always'"):
        compare(model, PROMPTS, schedules=["always", "always"], judge=model, progress=False)


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("collapses", "unknown collapse 'best'"),
        ("schedules", "unknown schedule 'best'"),
        ("feedbacks", "unknown feedback 'best'"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_written(model, axis, message):
    with pytest.raises(ValueError, match=message):
        compare(
            model, PROMPTS, judge=model, **{axis: ["softmax" if axis == "x" else "best"]}, **HOW
        )


def test_no_prompts_are_refused(model):
    with pytest.raises(ValueError, match="no prompt"):
        compare(model, [], judge=model, **HOW)


def test_refit_adds_the_harm_and_its_parts(model, tmp_path):
    """As `harm_by_text` gives them, with seeds behind those of the texts."""
    refit = ["a", "b", "ca", "bb"]
    found = run_conditions(
        model, PROMPTS, ["softmax"], ["always", "never", "retro(2)"], ["mixture"], model, 2,
        refit=refit, out=tmp_path, **HOW,
    )  # fmt: skip
    written, training = (
        generate(model, texts, 12, schedule="never", seed=seeds)
        for texts, seeds in ((PROMPTS * 2, range(6)), (refit, range(6, 10)))
    )
    expected = harm_by_text(written, training, model)
    soft = found[found["schedule"] == "never"]
    for name in expected:
        np.testing.assert_allclose(soft[name], expected[name].groupby(expected.index // 3).mean())
    hard = found[found["schedule"] == "always"]
    assert hard["harm"].abs().max() < 1e-9 < soft["harm"].min()
    late = found[found["schedule"] == "retro(k=2)"]
    assert late["harm"].isna().all()
    assert late["bits"].notna().all()
    with pytest.raises(StoreError, match="refit"):
        run_conditions(model, PROMPTS, ["softmax"], ["never"], ["mixture"], model, 2,
                       refit=refit[::-1], out=tmp_path, **HOW)  # fmt: skip
    with pytest.raises(ValueError, match="at least 4 beginnings, not 1"):
        compare(model, PROMPTS, judge=model, refit=["a"], **HOW)
