"""Drift against the schedule's own measure, detectors against their definitions, horizons by
hand.
"""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from bounds import exact
from scipy.spatial.distance import mahalanobis
from scipy.stats import mannwhitneyu
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from test_predictor import Bigram

from softar_lab.data.languages import Markov
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.generation import generate
from softar_lab.generation.schedule import Oracle
from softar_lab.metrics.drift import (
    auroc,
    coherence_horizon,
    detectors,
    drift,
    drift_curve,
    replay,
)
from softar_lab.models.simplex import hull_distance

PROMPTS = ["ab", "", "cdcdc"]


class Witness(Oracle):
    """The oracle schedule, that keeps what it measured."""

    def measure(self, context):
        found = super().measure(context)
        seen.append(torch.where(context.step >= 0, found, torch.nan))
        return found


seen: list[torch.Tensor] = []


@pytest.fixture
def witnessed():
    seen.clear()
    return seen


def frame(*rows, **columns):
    """A drift frame with these kl, a list a trajectory."""
    index = pd.MultiIndex.from_tuples(
        [(i, t) for i, row in enumerate(rows) for t in range(len(row))],
        names=["trajectory", "step"],
    )
    kl = np.concatenate(rows).astype(float)
    return pd.DataFrame({"kl": kl, "lost": np.isinf(kl), **columns}, index=index)


# -- replay -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [24, 6])
@pytest.mark.parametrize("when", ["always", "never", "every(3)"])
def test_replay_gives_the_recorded_predictions_also_where_the_window_was_renewed(
    tiny, when, context
):
    model = tiny(objective="mse", context=context, scale=0.15)
    written = generate(model, PROMPTS, 12, schedule=when, seed=1)
    found = replay(written, model)
    for row, one in enumerate(written):
        mine = found.log_probs.view(3, 12, -1)[row]
        torch.testing.assert_close(
            mine.gather(1, one.token_ids[:, None])[:, 0], one.log_probs, **exact(model)
        )
        torch.testing.assert_close(
            torch.special.entr(mine.exp()).sum(-1), one.entropy, **exact(model)
        )
    with torch.inference_mode():
        again = model.objective.predict(found.hidden, model.embedding)
    torch.testing.assert_close(
        again.vector, torch.cat([one.vectors for one in written]), **exact(model)
    )


def test_replay_of_one_trajectory_and_of_a_model_without_vectors():
    model = Markov.random(4)
    one = generate(model, "ab", 5, seed=2)
    found = replay(one, model)
    assert found.hidden is None
    torch.testing.assert_close(
        found.log_probs, model.next_log_probs(model.tokenizer.encode("ab" + one.text)[None])[0, 2:]
    )


def test_replay_takes_trajectories_of_unequal_length(tiny):
    model = tiny(objective="mse", scale=0.15)
    long, short = (generate(model, "ab", n, schedule="never", seed=n) for n in (9, 4))
    found = replay([long, short], model).log_probs
    torch.testing.assert_close(
        found, torch.cat([replay(one, model).log_probs for one in (long, short)]), **exact(model)
    )


def test_replay_refuses_what_another_model_wrote_or_what_was_read_otherwise(tiny):
    model = tiny(objective="mse", scale=0.15)
    written = generate(model, ["ab", "b"], 6, schedule="never")
    with pytest.raises(ValueError, match=r"trajectory 0, step 0: .*another model wrote"):
        replay(written, tiny(objective="mse", scale=0.15, seed=1))
    inputs = written[1].inputs.clone()
    inputs[3] += 1
    with pytest.raises(ValueError, match=r"trajectory 1, step 4: .*something else than `inputs`"):
        replay([written[0], replace(written[1], inputs=inputs)], model)
    with pytest.raises(ValueError, match="no trajectory"):
        replay([], model)


# -- drift ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [None, "language", "strict"])
@pytest.mark.parametrize("when", [0.05, 1e9])
def test_drift_is_what_the_oracle_schedule_measured(tiny, witnessed, truth, when):
    """With prompts of unequal length, beyond the context, and with a language that the texts soon
    leave.
    """
    model = tiny(objective="mse", letters="abcd", context=8, scale=0.15)
    conditionals = np.random.default_rng(0).dirichlet(np.ones(4), 4)
    if truth == "strict":
        conditionals[1] = [0, 0, 1, 0]  # b is followed by c
    judge = truth and Markov(conditionals)
    written = generate(model, ["ab", "", "cdcdc"] if truth != "strict" else ["abc", "", "a"], 14,
                       schedule=Witness(when, truth=judge), seed=3)  # fmt: skip
    measured = torch.stack(witnessed, 1)  # (3, positions)
    found = drift(written, model, judge)
    for row in range(3):
        expected = measured[row][~measured[row].isnan()][:14]
        np.testing.assert_allclose(found.loc[row, "kl"], expected, atol=1e-6)
    assert found["lost"].any() == (truth == "strict")
    assert (found["kl"].eq(math.inf) == found["lost"]).all()
    assert (found["log_prob"].isna() == found["lost"]).all()


def test_drift_of_a_hard_path_from_the_model_itself_is_nothing(tiny):
    model = tiny(objective="mse", scale=0.15)
    written = generate(model, PROMPTS, 9, seed=1)
    found = drift(written, model)
    np.testing.assert_allclose(found["kl"], 0, atol=1e-6)
    np.testing.assert_allclose(
        found["log_prob"], torch.cat([one.log_probs for one in written]), atol=1e-5
    )
    assert drift(generate(model, PROMPTS, 9, schedule="never", seed=1), model)["kl"].max() > 0.01


def test_drift_of_a_language_from_itself_is_exactly_zero():
    language = Markov.random(4)
    assert (drift(generate(language, ["ab", "c"], 9), language, language)["kl"] == 0).all()


def test_drift_names_a_truth_that_could_write_more():
    model = Bigram()
    model.tokenizer = CharTokenizer.fit("abc")
    with pytest.raises(ValueError, match="could write 'd'"):
        drift(generate(model, "ab", 3), model, Markov.random(4))


# -- horizons ---------------------------------------------------------------------------------------------------------


def test_horizon_counts_the_steps_before_the_first_too_far():
    found = coherence_horizon(
        frame([0, 0.1, 0.2, 0], [0.5, 0, 0], [0, 0, 0], [0, 0, math.inf]), 0.1
    )
    assert found["steps"].tolist() == [2, 0, 3, 2]
    assert found["passed"].tolist() == [True, True, False, True]


def test_horizon_over_several_steps_forgives_one():
    drifts = frame([0, 0.6, 0, 0, 0.6, 0.6, 0], [0, math.inf, math.inf, 0, 0, 0, 0])
    assert coherence_horizon(drifts, 0.3, over=1)["steps"].tolist() == [1, 1]
    assert coherence_horizon(drifts, 0.3, over=2)["steps"].tolist() == [5, 1]
    assert coherence_horizon(drifts, 0.3, over=9)["passed"].tolist() == [False, True]
    with pytest.raises(ValueError, match="at least 1"):
        coherence_horizon(drifts, 0.1, over=0)


def test_drift_curve_is_median_and_quartiles_also_of_the_lost():
    found = drift_curve(frame([0, 1], [1, 2], [2, math.inf], [3, math.inf], [4, math.inf]))
    assert found.loc[0].tolist() == [2, 1, 3]
    assert found.loc[1].tolist() == [math.inf, 2, math.inf]


# -- detectors --------------------------------------------------------------------------------------------------------


def test_detectors_are_what_they_are_called(tiny):
    model = tiny(objective="mse", embedding_dim=4, scale=0.15)
    text = torch.randint(13, (20, 10), generator=torch.Generator().manual_seed(1))
    written = generate(model, PROMPTS, 9, schedule="every(4)", feedback="raw", seed=1)
    found = detectors(written, model, text)
    for row, one in enumerate(written):
        mine = found.loc[row]
        np.testing.assert_array_equal(mine["entropy"], one.entropy)
        np.testing.assert_array_equal(mine["distance"], one.distance)
        np.testing.assert_allclose(mine["norm"], one.vectors.norm(dim=-1))
        np.testing.assert_allclose(
            mine["off_hull"], hull_distance(one.vectors, model.embedding), atol=1e-4
        )
        assert mine["soft_run"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
        np.testing.assert_allclose(
            mine["input_off_hull"], [0, *hull_distance(one.inputs, model.embedding)[:-1]], atol=1e-6
        )
        distances = (one.inputs[:, None] - model.embedding).norm(dim=-1).amin(-1)
        np.testing.assert_allclose(mine["input_distance"], [0, *distances[:-1]], atol=1e-6)
    at_home = model.hidden_states(text)[:, 1:].flatten(0, 1).detach().numpy()
    law = LedoitWolf().fit(at_home)
    hidden = replay(written, model).hidden.numpy()
    expected = [mahalanobis(one, law.location_, law.precision_) for one in hidden]
    np.testing.assert_allclose(found["mahalanobis"], expected, rtol=1e-3)


@pytest.mark.parametrize("table", ["joint", "orthonormal"])
def test_detectors_call_a_mixture_on_the_hull_exactly(tiny, table):
    """Rounding is the larger the less sharp the mixture: it would pass for a detector."""
    model = tiny(objective="ce", table=table)
    found = detectors(generate(model, PROMPTS, 9, schedule="never", feedback="mixture"), model)
    assert (found[["off_hull", "input_off_hull"]] == 0).all().all()


def test_detectors_need_soft_tokens():
    language = Markov.random(3)
    with pytest.raises(ValueError, match="model that predicts vectors"):
        detectors(generate(language, "a", 3), language)


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    drifts = frame(rng.random(40) * 0.2, rng.random(30) * 0.2)
    scores = pd.DataFrame(
        {"noisy": drifts["kl"] + rng.random(70) * 0.2, "reversed": -drifts["kl"]},
        index=drifts.index,
    )
    found = auroc(drifts, scores)
    high, low = (scores["noisy"][side] for side in (drifts["kl"] > 0.1, drifts["kl"] <= 0.1))
    expected = mannwhitneyu(high, low).statistic / len(high) / len(low)
    assert found.loc["noisy", "auroc"] == pytest.approx(expected)
    assert found.loc["reversed", "auroc"] == 0
    assert found.loc["noisy", "low"] <= expected <= found.loc["noisy", "high"]
    assert found.loc["noisy", ["steps", "problem"]].tolist() == [70, ""]
    assert found["share"].eq((drifts["kl"] > 0.1).mean()).all()


def test_auroc_of_resamples_is_sklearns_with_ties_and_weights():
    rng = np.random.default_rng(1)
    kl, scores = rng.random((6, 25)) * 0.2, rng.integers(0, 8, 150).astype(float)
    drifts = frame(*kl)
    found = auroc(drifts, pd.DataFrame({"s": scores}, index=drifts.index), resamples=40, seed=3)
    wrong, draws = kl.ravel() > 0.1, np.random.default_rng(3).multinomial(6, [1 / 6] * 6, 40)
    each = [roc_auc_score(wrong, scores, sample_weight=np.repeat(draw, 25)) for draw in draws]
    expected = [roc_auc_score(wrong, scores), *np.quantile(each, [0.025, 0.975])]
    np.testing.assert_allclose(found.loc["s", ["auroc", "low", "high"]].tolist(), expected)


def test_auroc_refuses_scores_that_are_no_numbers():
    drifts = frame([0.0, 0.2])
    with pytest.raises(ValueError, match=r"detector 's' has no number"):
        auroc(drifts, pd.DataFrame({"s": [0.0, math.nan]}, index=drifts.index))


def test_auroc_leaves_out_the_lost_and_gives_the_problem_where_it_is_nan():
    drifts = frame([0.0, 0.2, math.inf, math.inf])
    scores = pd.DataFrame({"s": [0.0, 1.0, -5.0, -5.0]}, index=drifts.index)
    found = auroc(drifts, scores).loc["s"]
    assert (found["auroc"], found["steps"]) == (1, 2)
    assert math.isnan(found["low"])  # one trajectory alone tells no interval
    for kl, problem in (
        ([0.0, 0.05], "no step"),
        ([0.5, 0.6], "every step"),
        ([math.inf] * 2, "truth is lost"),
    ):
        few = frame(kl)
        found = auroc(few, pd.DataFrame({"s": [0.0, 1.0]}, index=few.index)).loc["s"]
        assert math.isnan(found["auroc"])
        assert found["problem"].startswith(problem)


@pytest.mark.slow
def test_auroc_interval_covers_the_truth():
    """Normal scores one sigma apart, trajectories of their own level: 20 intervals of nominal 95 %.

    The true value is the normal distribution's at 1 / sqrt(2 * 1.25), 0.736. If coverage is 0.9,
    fewer than 13 of 20 have probability 4e-4; it is seeded.
    """
    covered = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        drifts = frame(*(rng.random((30, 12)) < 0.5).astype(float))
        level = np.repeat(0.5 * rng.standard_normal(30), 12)
        scores = pd.DataFrame(
            {"s": drifts["kl"] + level + rng.standard_normal(360)}, index=drifts.index
        )
        found = auroc(drifts, scores, resamples=50, seed=seed).loc["s"]
        covered += found["low"] <= 0.7365 <= found["high"]
    assert covered >= 13


def test_region_and_cosine_by_hand(tiny):
    """From the centre of the table, in units of the rows' root mean square distance."""
    model = tiny(objective="mse", scale=0.15)
    path = generate(model, "ab", 12, schedule="never", seed=1)
    found = detectors(path, model)
    rows = model.embedding.double().numpy()
    centre = rows.mean(0)
    away = path.vectors.double().numpy() - centre
    radius = np.sqrt(((rows - centre) ** 2).sum(1).mean())
    np.testing.assert_allclose(found["region"], np.linalg.norm(away, axis=1) / radius, rtol=1e-6)
    unit = away / np.linalg.norm(away, axis=1, keepdims=True)
    expected = [0] + [np.mean([unit[t] @ unit[s] for s in range(max(0, t - 8), t)])
                      for t in range(1, 12)]  # fmt: skip
    np.testing.assert_allclose(found["cosine"], expected, atol=1e-6)


def test_a_chain_that_stands_still_has_cosine_one_and_rows_lie_in_their_region(tiny):
    model = tiny(objective="mse", table="orthonormal", embedding_dim=16, scale=0.15)
    path = generate(model, "ab", 12, schedule="never", seed=1)
    still = replace(path, vectors=model.embedding[3].expand(12, -1))
    found = detectors(still, model)
    np.testing.assert_allclose(found["cosine"], [0] + [1] * 11, atol=1e-6)
    np.testing.assert_allclose(found["region"], 1, rtol=1e-6)  # orthonormal rows are all as far
