"""What staying soft costs: on dictated texts, against languages whose truth is known."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import chisquare

from softar_lab import plots
from softar_lab.core.predictor import divergence
from softar_lab.data.languages import Markov
from softar_lab.generation import EveryK, generate
from softar_lab.generation.schedule import Oracle
from softar_lab.metrics.drift import drift
from softar_studies.frontier import (
    ENDS,
    OneStepOracle,
    TeacherForced,
    against_oracle,
    harm_by_lag,
    selective_frontier,
)

LANGUAGE = Markov(
    [[0.7, 0.3, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.2, 0.8], [0.6, 0, 0, 0.4]]
)  # half is impossible


class Spied(OneStepOracle):
    """Keeps what it measured."""

    def measure(self, context):
        measured.append(super().measure(context))
        return measured[-1]


measured: list[torch.Tensor] = []


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(objective="mse", letters="abcd", context=40, scale=0.15)


@pytest.mark.slow
def test_dictated_texts_are_the_languages_own_whatever_the_model_thinks(model):
    """2,000 symbols after a: their law is row a. False alarm 1e-4, and seeded."""
    written = generate(
        model, ["a"] * 2000, 2, collapse=TeacherForced(LANGUAGE), schedule="never", seed=range(2000)
    )
    first = np.bincount([int(one.token_ids[0]) for one in written], minlength=4)
    assert first[2] == first[3] == 0
    assert chisquare(first[:2], [1400, 600]).pvalue > 1e-4
    assert not drift(written, model, LANGUAGE)["lost"].any()


def test_foresight_measures_the_next_prediction_had_it_stayed_soft(model):
    """At each step of a hard text: what the model says after the mixture, against the row of the
    symbol shown.
    """
    measured.clear()
    text = generate(model, "ab", 12, collapse=TeacherForced(LANGUAGE), seed=1)
    rows = model.embedding[model.tokenizer.encode("ab" + text.text)]
    table = torch.tensor(
        [[0.7, 0.3, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.2, 0.8], [0.6, 0, 0, 0.4]],
        dtype=torch.float64,
    )
    expected = []
    with torch.inference_mode():
        for t in range(12):
            said = model.predict(model.read(model.start(), vectors=rows[None, : 2 + t]))
            mixed = torch.cat([rows[: 2 + t], said.probs @ model.embedding])
            after = model.predict(model.read(model.start(), vectors=mixed[None])).log_probs
            expected.append(float(divergence(table[text.token_ids[t]][None].log(), after)[0]))
    both = generate(
        model,
        ["ab"],
        12,
        collapse=TeacherForced(LANGUAGE),
        schedule=Spied(0, truth=LANGUAGE),
        seed=[1],
    )
    assert both[0].text == text.text
    assert both[0].collapsed.all()  # a measure above 0 everywhere, so that all it read is the same
    np.testing.assert_allclose(torch.cat(measured), expected, rtol=1e-3, atol=1e-5)
    for above in (expected[0] - 1e-3, expected[0] + 1e-3):
        one = generate(
            model,
            "ab",
            1,
            collapse=TeacherForced(LANGUAGE),
            schedule=OneStepOracle(above, truth=LANGUAGE),
            seed=1,
        )
        assert one.collapsed.tolist() == [expected[0] > above]


def test_foresight_of_the_impossible_is_hard(model):
    written = generate(model, "a", 20, schedule=OneStepOracle(1e9, truth=LANGUAGE), seed=2)
    lost = np.flatnonzero(drift(written, model, LANGUAGE)["lost"])
    assert len(lost)
    assert written.collapsed[lost[0] - 1 :].all()  # from the impossible symbol itself on
    assert not written.collapsed[: lost[0] - 1].any()


def test_foresight_and_oracle_without_a_truth_never_touch_a_hard_path(model):
    """One-hot feedback: the model itself on hard tokens is the truth, so nothing is ever wrong."""
    for schedule in (OneStepOracle(1e-4, feedback="shown"), Oracle(1e-4)):
        written = generate(model, ["a", "bc"], 9, schedule=schedule, feedback="shown", seed=1)
        assert not torch.stack([one.collapsed for one in written]).any()


def test_selective_frontier_is_a_row_a_schedule_and_seed(model):
    families = {"every": [EveryK(2), EveryK(4)], "ends": ENDS}
    found = selective_frontier(
        model, ["a", "bc"], LANGUAGE, families, 12, 3, collapse=TeacherForced(LANGUAGE)
    )
    assert found["family"].tolist() == ["every"] * 6 + ["ends"] * 6
    assert found["schedule"].unique().tolist() == ["every(2)", "every", "always", "never"]
    assert found["seed"].tolist() == [0, 1, 2] * 4
    np.testing.assert_allclose(
        found.groupby("schedule")["share"].first()[["every", "always", "never"]], [0.25, 1, 0]
    )
    assert found["valid"].eq(1).all()
    alone = generate(
        model, ["a", "bc"], 12, schedule=EveryK(4), collapse=TeacherForced(LANGUAGE), seed=[2, 3]
    )
    row = found[(found["schedule"] == "every") & (found["seed"] == 1)].iloc[0]
    frame = drift(alone, model, LANGUAGE)
    assert row["excess"] == pytest.approx(frame["kl"].mean() / math.log(2), rel=1e-4)
    assert row["bits"] == pytest.approx(-frame["log_prob"].mean() / math.log(2))


def test_selective_frontier_draws_for_each_text_alone(model):
    """At one seed for all, the 40 random masks of 40 symbols were one. False alarm 1e-4, and
    seeded.
    """
    families = {"random": ["random(0.5)"]}
    found = selective_frontier(
        model, ["a"] * 40, LANGUAGE, families, 40, collapse=TeacherForced(LANGUAGE)
    )
    assert abs(found["share"].item() - 0.5) < 3.9 * 0.5 / 40


def test_selective_frontier_of_free_texts_says_how_much_could_be_judged(model):
    found = selective_frontier(
        model, ["a", "b", "c", "d"] * 3, LANGUAGE, {"ends": ["never"]}, 20, 2
    )
    assert found["valid"].between(0, 1, inclusive="neither").all()
    assert np.isfinite(found[["excess", "bits"]]).all().all()


def test_against_oracle_reads_off_the_line_between_its_points():
    frontier = pd.DataFrame(
        [("oracle", "oracle(1)", 0, 0.2, 2.0), ("oracle", "oracle(1)", 1, 0.2, 4.0), ("ends", "always", 0, 1.0, 1.0),
         ("mine", "x", 0, 0.6, 4.0), ("mine", "y", 0, 0.1, 4.0)],
        columns=["family", "schedule", "seed", "share", "excess"],
    ).assign(bits=0.0, valid=1.0)  # fmt: skip
    found = against_oracle(frontier).set_index("schedule")
    assert found.loc["x", ["at_oracle", "ratio"]].tolist() == pytest.approx([2, 2])
    assert found.loc["oracle(1)", "ratio"] == 1
    assert math.isnan(
        found.loc["y", "ratio"]
    )  # fewer than the oracle's least, and no "never" to go on to
    with pytest.raises(ValueError, match="no family 'best'.*oracle, ends, mine"):
        against_oracle(frontier, "best")


def test_against_oracle_leaves_out_a_threshold_that_collapses_more_and_costs_more():
    frontier = pd.DataFrame(
        [("oracle", "oracle(1)", 0.2, 1.0), ("oracle", "oracle(9)", 0.4, 6.0), ("ends", "always", 1.0, 0.5),
         ("mine", "x", 0.4, 2.0), ("mine", "y", 0.7, 0.75)],
        columns=["family", "schedule", "share", "excess"],
    ).assign(seed=0, bits=0.0, valid=1.0)  # fmt: skip
    found = against_oracle(frontier).set_index("schedule")
    assert found.loc[["x", "y"], "at_oracle"].tolist() == pytest.approx([1, 0.75])
    assert found.loc["oracle(9)", "ratio"] == 6


@pytest.mark.parametrize("families", [[], ["entropy"], ["oracle"], ["oracle", "entropy"]])
def test_the_legend_names_the_families_there_are(families):
    columns = {"family": families, "share": 0.5, "excess": 0.1}
    frame = pd.DataFrame(columns, columns=["family", "share", "excess"])
    legend = plots.draw_frontier(frame).axes[0].get_legend()
    names = [text.get_text() for text in legend.get_texts()] if legend else []
    assert names == sorted(families)


def test_harm_by_lag_is_what_a_step_by_step_reading_pays(tiny):
    """One soft slot, made from a hard past; every other slot is its symbol's row."""
    model, language = tiny(letters="abcd", objective="mse", context=40, scale=0.15), LANGUAGE
    ids = language.sample(20, 3, seed=1)
    frame = harm_by_lag(model, ids, [2, 7], language, lags=5)
    assert frame.shape == (6, 6)
    for text in range(3):
        should = language.next_log_probs(ids[text : text + 1])[0]
        for place in (2, 7):
            soft = hard = model.read(model.start(), ids[text : text + 1, :place])
            vector = model.predict(hard).probs @ model.embedding
            soft = model.advance(soft, vectors=vector)
            hard = model.advance(hard, token_ids=ids[text, place : place + 1])
            for lag in range(1, 6):
                at = should[place + lag : place + lag + 1]
                more = [divergence(at, model.predict(state).log_probs) for state in (soft, hard)]
                expected = float(more[0] - more[1]) / math.log(2)
                assert frame.loc[(text, place), lag] == pytest.approx(expected, abs=1e-4)
                token = ids[text, place + lag : place + lag + 1]
                soft, hard = (model.advance(state, token_ids=token) for state in (soft, hard))
            entropy = float(torch.special.entr(should[place].exp()).sum())
            assert frame.loc[(text, place), "choice"] == pytest.approx(entropy, abs=1e-9)
