"""Every measure against an oracle: enumeration, analytic values, scipy, or many repeated
samples.
"""

import math
from inspect import unwrap
from itertools import product

import numpy as np
import pytest
import torch
from bounds import exact
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy, sem
from sklearn.calibration import calibration_curve

from softar_lab.core.predictor import Prediction, Predictor
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.metrics import distributions as metrics
from softar_lab.metrics.distributions import (
    BrierLM,
    bits_per_char,
    brier,
    brier_exact,
    brier_lm,
    calibration,
    distinct_n,
    diversity,
    excess_bits,
    judge,
    kl_bits,
    repetition,
)
from softar_lab.models.scoring import char_log_probs

START = [0.5, 0.3, 0.2]
Q = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.1, 0.2, 0.7]]
P = [[0.4, 0.4, 0.2], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]
PATHS = torch.cartesian_prod(*[torch.arange(3)] * 4)  # (81, 4)


class Chain(Predictor):
    """First order, over "abc": `start` (V,), `table` (V, V), float64. A strict one refuses what it
    holds impossible.
    """

    vocab_size = 3
    tokenizer = CharTokenizer.fit("abc")

    def __init__(self, table, start=START, strict=False):
        self.table = torch.tensor(
            [*table, start], dtype=torch.float64
        )  # the last row: nothing read yet
        self.strict = strict

    def start(self, batch_size=1):
        return torch.full((batch_size,), -1)

    def predict(self, state):
        return Prediction(self.table[state].log())

    def advance(self, state, token_ids=None, vectors=None):
        if self.strict and (self.table[state, token_ids] == 0).any():
            raise ValueError("position so and so: expected another symbol")
        return token_ids

    def probability(self, path):
        """Of a whole path, as a product of table entries."""
        rows = [-1, *path[:-1]]
        return math.prod(
            self.table[row, token].item() for row, token in zip(rows, path, strict=True)
        )


TRUTH, MODEL = Chain(Q), Chain(P, [0.2, 0.3, 0.5])


def iid(*probs):
    return Chain([probs] * 3, probs)


def draw(chain, rows, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    state, ids = chain.start(rows), []
    for _ in range(length):
        ids.append(torch.multinomial(chain.probs(state), 1, generator=generator)[:, 0])
        state = chain.advance(state, token_ids=ids[-1])
    return torch.stack(ids, 1)


def as_called(function, *arguments, **more):
    """As a user calls it: without the enforcement of shapes that the tests add."""
    return unwrap(function)(*arguments, **more)


# -- bits per character -----------------------------------------------------------------------------------------------


def test_bits_per_char_of_rows_is_mean_and_sem():
    log_probs = -torch.rand(20, 7, generator=torch.Generator().manual_seed(0))
    bits = -log_probs.double().numpy() / np.log(2)
    found = bits_per_char(log_probs)
    assert found == pytest.approx(bits.mean(), rel=1e-12)
    assert found.standard_error == pytest.approx(sem(bits.mean(1)), rel=1e-9)


def test_bits_per_char_of_texts_of_any_length_weighs_characters_alike():
    texts = [
        torch.tensor([-1.0, -3.0]),
        torch.zeros(0),
        torch.tensor([-2.0]),
        torch.tensor([0.0] * 5),
    ]
    found = bits_per_char(texts)
    assert found == pytest.approx(6 / 8 / math.log(2))
    residuals = [
        4 - 2 * 6 / 8,
        2 - 6 / 8,
        -5 * 6 / 8,
    ]  # nats of a text less the mean for its length
    expected = math.sqrt(3 / 2 * sum(r**2 for r in residuals)) / 8 / math.log(2)
    assert found.standard_error == pytest.approx(expected)


def test_bits_per_char_of_one_text_knows_no_error():
    found = bits_per_char(torch.full((8,), -math.log(2)))
    assert found == pytest.approx(1)
    assert math.isnan(found.standard_error)


def test_bits_per_char_error_is_the_spread_of_repeated_samples():
    """Texts of 1 to 30 dependent characters, 500 times 40 of them; seeded. The spread's own error
    is 3 %.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(500):
        lengths = rng.integers(1, 31, 40)
        levels = rng.gamma(2, 1, 40)  # what all characters of a text share
        texts = [
            torch.from_numpy(-level * rng.random(n))
            for level, n in zip(levels, lengths, strict=True)
        ]
        found.append(bits_per_char(texts))
    assert np.mean([one.standard_error for one in found]) == pytest.approx(np.std(found), rel=0.12)


def test_bits_per_char_of_the_impossible_is_infinite():
    assert bits_per_char(torch.tensor([[-1.0, -math.inf], [-1.0, -1.0]])) == math.inf


def test_bits_per_char_names_what_is_wrong():
    with pytest.raises(ValueError, match="NaN: text 1, character 2"):
        bits_per_char([torch.zeros(4), torch.tensor([0.0, 0.0, math.nan])])
    for nothing in ([], torch.zeros(0), torch.zeros(3, 0)):
        with pytest.raises(ValueError, match="log_probs are empty"):
            bits_per_char(nothing)
    with pytest.raises(ValueError, match=r"not of shape \(2, 2, 2\)"):
        bits_per_char(torch.zeros(2, 2, 2))


# -- excess over the truth --------------------------------------------------------------------------------------------


def test_kl_bits_is_that_of_scipy_at_every_position():
    paths = PATHS[[TRUTH.probability(path) > 0 for path in PATHS.tolist()]]
    found = kl_bits(MODEL, TRUTH, paths)
    for path, row in zip(paths.tolist(), found.tolist(), strict=True):
        expected = [entropy(TRUTH.table[w], MODEL.table[w], base=2) for w in [-1, *path[:-1]]]
        assert row == pytest.approx(expected, abs=1e-14)


def test_kl_bits_adds_up_to_the_divergence_of_whole_texts():
    """The chain rule, by every text of four symbols."""
    q, p = (
        np.array([chain.probability(path) for path in PATHS.tolist()]) for chain in (TRUTH, MODEL)
    )
    expected = q @ kl_bits(MODEL, TRUTH, PATHS).sum(1).numpy()
    assert expected == pytest.approx(entropy(q, p, base=2), rel=1e-12)


def test_excess_of_the_truth_is_exactly_zero():
    found = excess_bits(TRUTH, TRUTH, draw(TRUTH, 50, 20))
    assert (found, found.standard_error) == (0, 0)


def test_excess_of_a_uniform_model_is_the_analytic_value():
    probs = [0.7, 0.3, 0.0]
    found = excess_bits(iid(1 / 3, 1 / 3, 1 / 3), iid(*probs), PATHS[:16, :2])
    assert found == pytest.approx(math.log2(3) - entropy(probs, base=2), abs=1e-14)
    assert found.standard_error == pytest.approx(0, abs=1e-15)


def test_excess_where_the_model_forbids_what_is_possible_is_infinite():
    rows = torch.tensor([[0, 2, 0], [0, 1, 1]])
    model = Chain([[0.5, 0.5, 0.0], Q[1], Q[2]])
    assert kl_bits(model, TRUTH, rows).tolist() == [[0, math.inf, 0], [0, math.inf, 0]]
    assert excess_bits(model, TRUTH, rows) == math.inf


def test_excess_is_the_difference_of_two_scores_with_less_noise():
    """Both have the same mean, so they differ by less than 4.5 standard errors: false alarm 7e-6,
    and it is seeded.
    """
    rows = draw(TRUTH, 4000, 12)
    found = excess_bits(MODEL, TRUTH, rows)
    gap = bits_per_char(MODEL.log_probs(rows) - TRUTH.log_probs(rows))
    assert abs(found - gap) < 4.5 * gap.standard_error
    assert found.standard_error < 0.8 * gap.standard_error


def test_excess_error_is_the_spread_of_repeated_samples():
    """400 samples of 30 rows; seeded. The spread's own error is 4 %."""
    found = [excess_bits(MODEL, TRUTH, rows) for rows in draw(TRUTH, 12_000, 6).split(30)]
    assert np.mean([one.standard_error for one in found]) == pytest.approx(np.std(found), rel=0.14)


@given(
    st.lists(st.integers(0, 4), min_size=12, max_size=12),
    st.lists(st.integers(0, 4), min_size=12, max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_kl_bits_of_any_distributions_zeros_included(q, p):
    q, p = (
        np.reshape(counts, (4, 3)) + np.array([1, 0, 0]) for counts in (q, p)
    )  # the first symbol always may be
    q, p = (table / table.sum(1, keepdims=True) for table in (q, p))
    found = kl_bits(
        Chain(p[:3].tolist(), p[3].tolist()), Chain(q[:3].tolist(), q[3].tolist()), PATHS
    )
    expected = entropy(q, p, base=2, axis=1)  # after a, b, c and nothing
    before = torch.cat([torch.full((81, 1), 3), PATHS[:, :3]], 1)
    np.testing.assert_allclose(found, expected[before], rtol=0, atol=1e-12)


def test_kl_bits_does_not_depend_on_how_many_rows_are_held_at_once(monkeypatch):
    whole = kl_bits(MODEL, TRUTH, PATHS)
    monkeypatch.setattr(metrics, "_ENTRIES", 7 * 4 * 3)
    assert torch.equal(kl_bits(MODEL, TRUTH, PATHS), whole)


@pytest.mark.parametrize("objective", ["ce", "mse"])
def test_kl_bits_of_a_trained_kind_of_model(tiny, objective):
    model = tiny(letters="abc", objective=objective, context=3, scale=0.15)
    found = kl_bits(model, TRUTH, PATHS)
    for path, row in zip(PATHS[::7], found[::7], strict=True):
        for t in range(4):
            state = model.read(model.start(), path[None, :t])
            p = model.predict(state).log_probs[0].double().exp().numpy()
            expected = entropy(
                TRUTH.table[path[t - 1] if t else -1], p, base=2
            )  # scipy makes p sum to 1
            assert row[t].item() == pytest.approx(expected, abs=1e-4)


def test_excess_names_what_is_wrong(tiny):
    rows = PATHS[:5]
    with pytest.raises(ValueError, match=r"same vocabulary: 13 symbols against 3"):
        excess_bits(tiny(), TRUTH, rows)
    with pytest.raises(ValueError, match=r"same vocabulary: .*\('a', 'b', 'x'\)"):
        excess_bits(tiny(letters="abx"), TRUTH, rows)
    with pytest.raises(
        ValueError, match="rows of 4 tokens; the model's context of 2 allows one more"
    ):
        excess_bits(tiny(letters="abc", context=2), TRUTH, rows)
    for nothing in (rows[:0], rows[:, :0]):
        with pytest.raises(ValueError, match="at least one token"):
            excess_bits(MODEL, TRUTH, nothing)
    with pytest.raises(ValueError, match=r"not of shape \(4,\)"):
        as_called(kl_bits, MODEL, TRUTH, rows[0])
    with pytest.raises(
        ValueError, match=r"the model's probabilities sum to 1\.25, not 1, at position 1"
    ):
        excess_bits(Chain([[0.5, 0.5, 0.25], *Q[1:]]), TRUTH, rows)
    with pytest.raises(ValueError, match="the truth's probabilities sum to nan"):
        excess_bits(MODEL, Chain(Q, [math.nan] * 3), rows)


# -- Brier-n and BrierLM ----------------------------------------------------------------------------------------------


def test_brier_over_every_outcome_is_its_expectation_exactly():
    """Two tokens from p and a reference from q, each outcome as often as its probability says: 2
    sum qp - sum p².
    """
    p = [(0, 0), (0, 0), (0, 1), (1, 1)]
    q = [(0, 0), (0, 1), (2, 1), (0, 1), (1, 1)]
    first, second, reference = torch.tensor(list(product(p, p, q))).unbind(1)
    p_of, q_of = (
        {pair: pairs.count(pair) / len(pairs) for pair in product(range(3), repeat=2)}
        for pairs in (p, q)
    )
    expected = 2 * sum(q_of[x] * p_of[x] for x in p_of) - sum(v**2 for v in p_of.values())
    found = brier(first, second, reference)
    assert found == pytest.approx(expected, abs=1e-15)
    same = [
        (a == b).all(1).numpy() * 1
        for a, b in ((first, reference), (second, reference), (first, second))
    ]
    assert found.standard_error == pytest.approx(sem(same[0] + same[1] - same[2]), rel=1e-12)


def test_two_argmax_draws_break_brier():
    """They agree always, so the sharpest model pays as if it were certain: 2 accuracy - 1, whatever
    its p.
    """
    best = torch.zeros(10, 1, dtype=torch.long)
    reference = torch.tensor([[0]] * 7 + [[1]] * 3)
    assert brier(best, best, reference) == pytest.approx(2 * 0.7 - 1)


@given(
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
)
def test_brier_exact_is_proper_and_what_samples_estimate(q, p):
    q, p = (torch.tensor(counts, dtype=torch.float64) / sum(counts) for counts in (q, p))
    targets = torch.arange(3)
    honest, other = (float(q @ brier_exact(probs.expand(3, 3), targets)) for probs in (q, p))
    assert honest == pytest.approx(float(q @ q), abs=1e-12)
    assert other == pytest.approx(float(2 * q @ p - p @ p), abs=1e-12)
    assert other <= honest + 1e-12


def brier_n_by_enumeration(model, truth, prefix, n):
    """E[2 p(y | prefix) - sum_x p(x | prefix)²] over prefixes and continuations of the truth, by
    every text.
    """
    total = 0.0
    tables = []
    for chain in (truth, model):
        tables.append(
            {path: chain.probability(path) for path in product(range(3), repeat=prefix + n)}
        )
    for before in product(range(3), repeat=prefix):
        after = [before + more for more in product(range(3), repeat=n)]
        q, p = (np.array([table[path] for path in after]) for table in tables)
        if q.sum():
            p = p / p.sum()
            total += 2 * q @ p - q.sum() * p @ p
    return total


@pytest.mark.parametrize("model", [TRUTH, MODEL], ids=["truth", "model"])
def test_brier_lm_is_the_enumerated_value(model):
    """8 comparisons at 4.5 standard errors: false alarm 6e-5 in all, and it is seeded."""
    rows = draw(TRUTH, 3000, 6)
    found = brier_lm(model, rows, prefixes=[0, 2])
    for n, estimate in enumerate(found.brier, 1):
        expected = (
            brier_n_by_enumeration(model, TRUTH, 0, n) + brier_n_by_enumeration(model, TRUTH, 2, n)
        ) / 2
        assert abs(estimate - expected) < 4.5 * estimate.standard_error
        assert estimate.standard_error < 0.02
    assert found.score == pytest.approx(100 * np.prod(found.brier) ** 0.25)
    assert found.problem == ""


def test_brier_lm_prefers_the_truth():
    """By 20 standard errors here, so no seed matters."""
    rows = draw(TRUTH, 3000, 8)
    truth, model = (brier_lm(one, rows).score for one in (TRUTH, MODEL))
    assert truth - model > 10 * (truth.standard_error + model.standard_error)


def test_brier_lm_of_a_certain_language_is_100():
    """It counts what it has read, so no prefix may be read twice and no continuation may leave a
    trace.
    """

    hours = torch.tensor([0, 1, 2, 2, 1])

    class Clock(Chain):
        def start(self, batch_size=1):
            return torch.zeros(batch_size, dtype=torch.long)

        def advance(self, state, token_ids=None, vectors=None):
            return state + 1

        def predict(self, state):
            return Prediction(torch.eye(3)[hours[state % 5]].log())

    rows = hours.repeat(5, 3)  # (5, 15)
    for prefixes in (None, (5, 1, 2)):
        found = brier_lm(Clock(Q), rows, prefixes, seed=3)
        assert (found.score, found.score.standard_error) == (100, 0)
        assert [*found.brier] == [1, 1, 1, 1]


def test_brier_lm_does_not_let_two_wrongs_make_a_right():
    certainly_wrong = iid(1.0, 0.0, 0.0)
    found = brier_lm(certainly_wrong, torch.ones(5, 2, dtype=torch.long), n_max=2)
    assert [*found.brier] == [-1, -1]
    assert math.isnan(found.score)
    assert math.isnan(found.score.standard_error)
    assert found.problem == "no geometric mean: Brier-1 = -1, Brier-2 = -1, not above 0"


def test_brier_lm_error_is_the_spread_of_repeated_samples():
    """300 samples of 1500 rows, so that no Brier-4 is negative; seeded. The spread's own error is 4
    %.
    """
    scores = [
        brier_lm(TRUTH, rows, seed=i).score
        for i, rows in enumerate(draw(TRUTH, 450_000, 4).split(1500))
    ]
    assert np.mean([score.standard_error for score in scores]) == pytest.approx(
        np.std(scores), rel=0.14
    )


def test_brier_lm_draws_no_rows_again():
    """Rows that were drawn with the very same seed: samples like them would agree always. 4.5
    errors, seeded.
    """
    rows = draw(TRUTH, 2000, 1, seed=5)
    (found,) = brier_lm(TRUTH, rows.repeat(2, 1)[:2000], n_max=1, seed=5).brier
    assert abs(found - sum(p**2 for p in START)) < 4.5 * found.standard_error


def test_brier_lm_depends_on_its_seed_alone():
    rows = draw(MODEL, 40, 8)
    again = [brier_lm(MODEL, rows, seed=seed) for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


def test_brier_lm_reads_on_from_where_it_was(tiny):
    """Continuations leave no trace: a model that reads every prefix anew draws the same tokens."""
    model = tiny(letters="abc", context=12, scale=0.15)

    class Anew(Chain):
        def start(self, batch_size=1):
            return torch.zeros(batch_size, 0, dtype=torch.long)

        def advance(self, state, token_ids=None, vectors=None):
            return torch.cat([state, token_ids[:, None]], 1)

        def predict(self, state):
            return model.predict(model.read(model.start(len(state)), state))

    rows = draw(TRUTH, 30, 12)
    assert brier_lm(model, rows, prefixes=(1, 5, 8)) == brier_lm(Anew(Q), rows, prefixes=(8, 1, 5))


def test_brier_names_what_is_wrong():
    ids = torch.zeros(4, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"one shape \(N, n\) .* not \(4, 2\), \(4, 1\), \(4, 2\)"):
        as_called(brier, ids, ids[:, :1], ids)
    with pytest.raises(ValueError, match="not be empty"):
        brier(ids[:0], ids[:0], ids[:0])
    for more in (
        {"n_max": 3},
        {"n_max": 0},
        {"n_max": 1, "prefixes": [2]},
        {"n_max": 1, "prefixes": [-1]},
    ):
        with pytest.raises(
            ValueError, match=f"4 rows of 2 tokens, n_max {more['n_max']}, prefixes"
        ):
            brier_lm(TRUTH, ids, **more)
    with pytest.raises(ValueError, match="0 rows of 2 tokens"):
        brier_lm(TRUTH, ids[:0], n_max=1)
    assert math.isnan(BrierLM.of(torch.ones(1, 2, dtype=torch.float64)).score.standard_error)


# -- calibration ------------------------------------------------------------------------------------------------------


def two_way(confidence):
    """Two symbols, the second more probable: probs (N, 2)."""
    confidence = torch.as_tensor(confidence, dtype=torch.float64)
    return torch.stack([1 - confidence, confidence], 1)


def test_calibration_curve_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 1000)
    targets = torch.from_numpy(rng.integers(0, 2, 1000))
    found = calibration(two_way(confidence), targets, bins=7)
    accuracy, mean = calibration_curve(targets.numpy(), confidence, n_bins=7, strategy="quantile")
    np.testing.assert_allclose(found.curve["accuracy"], accuracy)
    np.testing.assert_allclose(found.curve["confidence"], mean)
    assert found.curve["count"].tolist() == [143, 143, 143, 142, 143, 143, 143]
    assert found.ece == pytest.approx(
        np.average(abs(accuracy - mean), weights=found.curve["count"])
    )


def test_calibration_by_hand():
    probs = two_way([0.6, 0.6, 0.9, 0.9])
    found = calibration(probs, torch.tensor([1, 0, 1, 1]), bins=2)
    assert found.curve.to_numpy().tolist() == [[0.6, 0.5, 2], [0.9, 1.0, 2]]
    assert found.ece == pytest.approx((0.1 + 0.1) / 2)


def test_calibration_keeps_equal_confidences_together():
    certain = torch.tensor([[1.0, 0.0]]).repeat(90, 1)
    unsure = two_way(torch.linspace(0.5, 0.9, 10)).float()
    curve = calibration(
        torch.cat([certain, unsure]), torch.zeros(100, dtype=torch.long), bins=10
    ).curve
    assert curve["count"].tolist() == [10, 90]
    assert (
        calibration(torch.cat([certain, unsure]), torch.zeros(100, dtype=torch.long), 2).curve[
            "count"
        ][1]
        == 90
    )
    assert len(calibration(certain, torch.zeros(90, dtype=torch.long)).curve) == 1


def test_calibration_of_honest_and_of_boastful_probabilities():
    """Honest ones keep a chance gap of 0.4 sqrt(bins / N) = 0.011 at most; seeded."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 20_000)
    targets = torch.from_numpy((rng.random(20_000) < confidence).astype(np.int64))
    assert calibration(two_way(confidence), targets).ece < 0.4 * math.sqrt(15 / 20_000)
    boast = calibration(two_way((1 + confidence) / 2), targets).ece  # right in 0.75, says 0.875
    assert abs(boast - 0.125) < 4.5 * boast.standard_error


def test_calibration_error_is_the_spread_of_repeated_samples():
    """400 samples of 300, gaps far from 0; seeded. The spread's own error is 4 %."""
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        confidence = rng.uniform(0.7, 1, 300)
        targets = torch.from_numpy((rng.random(300) < confidence - 0.3).astype(np.int64))
        found.append(calibration(two_way(confidence), targets, bins=3).ece)
    assert np.mean([one.standard_error for one in found]) == pytest.approx(np.std(found), rel=0.14)


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_calibration_error_is_that_of_its_curve(n, bins, seed):
    rng = np.random.default_rng(seed)
    probs = torch.from_numpy(rng.dirichlet([0.3] * 4, n).round(1))
    probs = (probs + 0.01) / (probs + 0.01).sum(1, keepdim=True)
    found = calibration(probs, torch.from_numpy(rng.integers(0, 4, n)), bins)
    curve = found.curve
    assert curve["count"].sum() == n
    assert 1 <= len(curve) <= bins
    assert curve["confidence"].is_monotonic_increasing
    expected = np.average(abs(curve["accuracy"] - curve["confidence"]), weights=curve["count"])
    assert found.ece == pytest.approx(expected, abs=1e-12)


def test_calibration_names_what_is_wrong():
    probs, targets = two_way([0.6, 0.7]), torch.tensor([0, 1])
    for wrong in (
        two_way([0.6, math.nan]),
        probs * 1.1 - 0.05 + torch.tensor([[0.0], [0.1]]),
        two_way([0.6, 1.2]),
    ):
        with pytest.raises(ValueError, match="row 1 of probs is no distribution"):
            calibration(wrong, targets)
    with pytest.raises(ValueError, match="targets must lie in 0 … 1"):
        calibration(probs, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="bins must be at least 1, not 0"):
        calibration(probs, targets, bins=0)
    with pytest.raises(ValueError, match=r"not \(0, 2\) and \(0,\)"):
        calibration(probs[:0], targets[:0])
    with pytest.raises(ValueError, match=r"not \(2, 2\) and \(1,\)"):
        as_called(brier_exact, probs, targets[:1])


# -- diversity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "n", "share"), [("abab", 1, 0.5), ("abab", 2, 2 / 3), ("aaaa", 3, 0.5), ("abc", 3, 1)]
)
def test_distinct_n_by_hand(text, n, share):
    assert distinct_n(text, n) == pytest.approx(share)


@given(st.text("ab", min_size=1, max_size=40), st.integers(1, 3), st.integers(1, 10))
def test_repetition_is_counted_as_defined(text, n, window):
    grams = [text[i : i + n] for i in range(len(text) - n + 1)]
    if not grams:
        assert math.isnan(repetition(text, n, window))
        return
    again = [gram in grams[max(0, i - window) : i] for i, gram in enumerate(grams)]
    assert repetition(text, n, window) == pytest.approx(np.mean(again))
    assert repetition(text, n) == pytest.approx(1 - distinct_n(text, n))
    assert repetition(text, n, window) <= repetition(text, n)


def test_diversity_tells_a_loop_from_prose():
    prose = "Whoever reads this sentence to its end has met each of its words once and no more."
    loop, told = diversity("ab" * 40), diversity(prose)
    assert list(loop) == [
        "length",
        "distinct_1",
        "distinct_2",
        "distinct_3",
        "distinct_4",
        "repetition_16",
    ]
    assert loop["repetition_16"] > 0.95
    assert told["repetition_16"] == 0
    assert told["distinct_4"] > 0.9 > 0.1 > loop["distinct_4"]


def test_diversity_of_too_short_a_text_is_not_a_number():
    row = diversity("ab")
    assert row["distinct_2"] == 1
    assert math.isnan(row["distinct_3"])
    assert math.isnan(diversity("")["distinct_1"])
    with pytest.raises(ValueError, match="n must be at least 1, not 0"):
        distinct_n("abc", 0)
    with pytest.raises(ValueError, match="window must be None or at least 1, not 0"):
        repetition("abc", 1, 0)


# -- a text before a judge --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
def test_judge_scores_every_character_of_a_possible_text(strict):
    found = judge("abbb", Chain(Q, strict=strict))
    assert found.log_probs.exp().tolist() == pytest.approx([0.5, 0.25, 1, 1])
    assert found.possible == 1
    assert found.bits_per_char == pytest.approx(3 / 4)


@pytest.mark.parametrize("strict", [False, True])
def test_judge_stops_at_the_first_impossible_character(strict):
    """After b only b: the c is impossible, and what follows it is not judged."""
    found = judge("caabbcab", Chain(Q, strict=strict))
    assert found.log_probs[:5].exp().tolist() == pytest.approx([0.2, 0.1, 0.5, 0.25, 1])
    assert found.log_probs[5] == -math.inf
    assert found.log_probs[6:].isnan().all()
    assert len(found.log_probs) == 8
    assert found.possible == 5 / 8
    assert found.bits_per_char == bits_per_char(found.scored)
    assert judge("ba", Chain(Q, strict=strict)).log_probs.tolist() == [math.log(0.3), -math.inf], (
        "at the very end too"
    )


def test_judge_holds_characters_it_does_not_know_for_impossible():
    found = judge("ab!a", TRUTH)
    assert found.log_probs[:3].tolist() == pytest.approx([math.log(0.5), math.log(0.25), -math.inf])
    assert found.log_probs[3].isnan()
    nothing = judge("!ab", TRUTH)
    assert nothing.possible == 0
    assert math.isnan(nothing.bits_per_char)
    assert judge("bc!", Chain(Q, strict=True)).possible == 1 / 3, "what comes first counts"


def test_judge_that_lets_unknown_characters_in_scores_them(tiny):
    model = tiny(letters="abcd")  # four symbols, the last of which becomes <unk>
    model.tokenizer = CharTokenizer.fit("abc", unk=True)
    assert judge("ab!a?", model).possible == 1
    assert judge("ab!a?", model).log_probs.tolist() == judge("abéaé", model).log_probs.tolist()


@pytest.mark.parametrize("strict", [False, True])
def test_judge_reads_a_prompt_without_judging_it(strict):
    judged = Chain(Q, strict=strict)
    assert (
        judge("bb", judged, prompt="a").log_probs.tolist()
        == judge("abb", judged).log_probs[1:].tolist()
    )
    assert judge("ba", judged, prompt="a").possible == 0.5
    for prompt in ("ba", "a!"):
        with pytest.raises(
            ValueError, match="prompt is impossible for this judge: '[a!]' at position 1"
        ):
            judge("b", judged, prompt=prompt)


def test_judge_finds_every_text_of_a_language_possible():
    for row in draw(TRUTH, 30, 40):
        found = judge(TRUTH.tokenizer.decode(row), Chain(Q, strict=True))
        assert found.possible == 1
        assert found.log_probs.tolist() == pytest.approx(TRUTH.log_probs(row[None])[0].tolist())


@pytest.mark.parametrize("separator", [None, "\n"])
def test_judge_that_is_a_model_scores_as_evaluation_does(tiny, separator):
    model, text = tiny(context=6), "abc\ndefgh\nkkkkkkkkkk\n\nab\ncd"
    found = judge(text, model, separator=separator).log_probs
    expected = char_log_probs(model, text, separator).double()
    torch.testing.assert_close(found[len(found) - len(expected) :], expected, **exact(model))
    first = model.predict(model.start()).log_probs[0, model.tokenizer.encode("a")]
    assert found[0] == pytest.approx(first.item(), abs=exact(model)["atol"]), (
        "the first character is judged too"
    )
    assert judge("a", model).log_probs.tolist() == pytest.approx(
        first.tolist(), abs=exact(model)["atol"]
    )


def test_judge_reads_documents_one_by_one():
    lines = Chain([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]], [1.0, 0.0, 0.0], strict=True)
    assert judge("abcabcaab", lines, separator="c").possible == 1, "each begins anew"
    assert judge("abcabcbab", lines, separator="c").possible == 6 / 9
    assert judge("abcabc", lines).possible == 3 / 6


def test_judge_raises_what_has_another_cause(tiny):
    class Broken(Chain):
        def advance(self, state, token_ids=None, vectors=None):
            raise ValueError("out of order")

    with pytest.raises(ValueError, match="out of order"):
        judge("abb", Broken(Q))
    with pytest.raises(ValueError, match="to be judged is empty"):
        judge("", TRUTH)
    mute = Chain(Q)
    mute.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        judge("a", mute)
    with pytest.raises(ValueError, match=r"unknown character '\|'"):
        judge("a", TRUTH, separator="|")
