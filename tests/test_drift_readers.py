"""The re-fitted reader where the answer is known: a reader that can be found, one temperature,
nothing to find; what may not change it; harm split by hand.
"""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from softar_lab.core.predictor import divergence
from softar_lab.data.languages import Markov
from softar_lab.generation import generate
from softar_lab.metrics import drift_readers
from softar_lab.metrics.drift import drift
from softar_lab.metrics.drift_readers import (
    drift_by_reader,
    fit,
    fit_readers,
    harm_by_text,
    split_harm,
)
from softar_lab.metrics.replay import ReplayError

S, D, V = 600, 5, 4
ROWS = torch.arange(S) // 50  # 12 trajectories
BEGINNINGS = ["ab", "", "cd", "ba", "dc", "aa"]


@pytest.fixture
def states(rng):
    """Own log p and hidden states that have nothing to do with each other."""
    own = torch.log_softmax(2 * torch.randn(S, V, generator=rng(1)), -1)
    return own, 3 * torch.randn(S, D, generator=rng(2)) + 1


def drifts(readers, own, hidden, should):
    """Mean drift by reader."""
    found = readers.log_probs(own, hidden)
    return {name: float(divergence(should.log(), one).mean()) for name, one in found.items()}


def test_a_reader_that_exists_is_found(states, rng):
    """The fit cannot cost more than the right reader does, which pays its penalty alone."""
    own, hidden = states
    weight, bias = torch.randn(D, V, generator=rng(3)), torch.randn(V, generator=rng(4))
    should = torch.softmax(0.7 * own + hidden @ weight + bias, -1)
    ridge = 1e-7
    readers = fit(own, hidden, should, ROWS, [ridge])
    spread = (hidden - hidden.mean(0)).square().mean().sqrt()
    size = (weight * spread).square().sum() + (bias + hidden.mean(0) @ weight).square().sum()
    # + what L-BFGS leaves: it stops where a step gains less than 1e-8 of the loss
    assert drifts(readers, own, hidden, should)["refitted"] < ridge * float(size) + 1e-5
    assert readers.sharpness == pytest.approx(0.7, abs=0.02)
    others = 3 * torch.randn(S, D, generator=rng(5)) + 1  # and it reads other states as well
    right = torch.softmax(0.7 * own + others @ weight + bias, -1)
    assert drifts(readers, own, others, right)["refitted"] < 1e-3


def test_one_temperature_is_found_and_nothing_beside_it(states):
    own, hidden = states
    should = torch.softmax(own / 3.5, -1)
    readers = fit(own, hidden, should, ROWS)
    assert readers.temperature == pytest.approx(3.5, rel=1e-4)
    found = drifts(readers, own, hidden, should)
    assert found["tempered"] < 1e-8
    assert found["refitted"] < 1e-6
    assert found["own"] > 0.3


def test_where_nothing_is_known_the_unigram_is_all_there_is(states, rng):
    """The truth is drawn apart from states and own log p: no reader of other steps can do better."""
    own, hidden = states
    law = torch.tensor([0.5, 0.3, 0.15, 0.05])
    should = torch.eye(V)[torch.multinomial(law, S, replacement=True, generator=rng(6))]
    readers = fit(own, hidden, should, ROWS)
    expected = (should.sum(0) + 1 / V) / (S + 1)
    torch.testing.assert_close(readers.unigram.exp(), expected.double())
    # on new steps: H(law) at least; the largest ridge is chosen, which lets nearly nothing through
    found = readers.log_probs(own.roll(7, 0), hidden.roll(3, 0))
    cost = {name: float(-(law * one).sum(-1).mean()) for name, one in found.items()}
    entropy = float(torch.special.entr(law).sum())
    assert entropy <= cost["unigram"] < cost["own"]
    assert cost["refitted"] < cost["tempered"] < cost["own"]
    assert cost["refitted"] < entropy + 0.15  # own log p, drawn apart, is all that misleads


def test_each_reader_costs_no_more_than_what_it_contains(states, rng):
    own, hidden = states
    should = torch.softmax(2 * torch.randn(S, V, generator=rng(7)), -1)
    for ridge in (1.0, 1e-3):
        readers = fit(own, hidden, should, ROWS, [ridge])
        found = drifts(readers, own, hidden, should)
        penalty = ridge * float(readers.weight.square().sum() + readers.bias.square().sum())
        assert found["tempered"] <= found["own"]
        assert found["refitted"] + penalty <= found["tempered"] + 1e-9


def test_units_rotation_and_order_change_nothing(states, rng):
    """With a uniform own reading the problem is strongly convex, by 2 ridge: two fits whose slopes
    are g and g' lie no farther apart than (|g| + |g'|) / 2 ridge.
    """
    _, hidden = states
    own = torch.full((S, V), -math.log(V))
    should = torch.softmax(hidden[:, :V] + torch.randn(S, V, generator=rng(8)), -1)
    turn = torch.linalg.qr(torch.randn(D, D, generator=rng(9), dtype=torch.float64))[0]
    ridge, order = 0.05, torch.randperm(S, generator=rng(10))
    first = fit(own, hidden.double(), should, ROWS, [ridge])
    moved = 1e3 * hidden.double() @ turn - 5
    second = fit(own, moved[order], should[order], ROWS[order], [ridge])

    def slope(readers, states):
        """The size of the loss's slope in W and b."""
        x = (states - readers.centre) / readers.spread
        weight, bias = (one.clone().requires_grad_() for one in (readers.weight, readers.bias))
        log_probs = torch.log_softmax(x @ weight + bias, -1)
        loss = -(should * log_probs).sum() / S
        loss = loss + ridge * (weight.square().sum() + bias.square().sum())
        slopes = torch.autograd.grad(loss, [weight, bias])
        return math.sqrt(sum(float(one.square().sum()) for one in slopes))

    apart = (slope(first, hidden.double()) + slope(second, moved)) / (2 * ridge)
    assert apart < 1e-2
    one, other = first.weight, turn @ second.weight
    assert float((one - other).norm()) <= apart + 1e-9
    assert float((first.bias - second.bias).norm()) <= apart + 1e-9


def test_the_ridge_is_chosen_by_held_out_trajectories(states, rng):
    """Few steps and noise ask for a strong ridge; many steps of a strong law for a weak one."""
    own, hidden = states
    weight = torch.randn(D, V, generator=rng(3))
    strong = torch.softmax(hidden @ weight, -1)
    assert fit(own, hidden, strong, ROWS, [1.0, 1e-4]).ridge == 1e-4
    noise = torch.eye(V)[torch.randint(V, (16,), generator=rng(4))]
    rows = torch.arange(16) // 4
    assert fit(own[:16], hidden[:16], noise, rows, [10.0, 1e-4]).ridge == 10.0


# -- on paths -------------------------------------------------------------------------------------


def test_own_is_the_drift_and_the_truth_is_followed(tiny):
    language = Markov.random(4, seed=1)
    model = tiny(letters="abcd", objective="mse", scale=0.15)
    training, written = (
        generate(model, BEGINNINGS, 12, schedule="never", seed=range(s, s + 6)) for s in (10, 0)
    )
    readers = fit_readers(training, model, language)
    frame = drift_by_reader(written, model, readers, language)
    np.testing.assert_allclose(frame["own"], drift(written, model, language)["kl"])
    assert frame.index.equals(drift(written, model, language).index)
    assert readers.steps == 72


def test_a_hard_path_has_no_harm(tiny):
    """The model itself is the truth, so its own reading is right: nothing is misread."""
    model = tiny(letters="abcd", objective="mse", scale=0.15)
    training, written = (generate(model, BEGINNINGS, 12, seed=range(s, s + 6)) for s in (10, 0))
    readers = fit_readers(training, model)
    mean = split_harm(drift_by_reader(written, model, readers))
    assert readers.temperature == pytest.approx(1, abs=1e-3)
    assert mean["own"] == pytest.approx(0, abs=1e-9)
    assert mean["refitted"] == pytest.approx(0, abs=1e-4)


def test_a_language_without_a_past_has_nothing_to_forget(tiny):
    """Letters drawn one by one: the unigram is the truth, and the refitted reader finds it."""
    language = Markov(np.tile([0.4, 0.3, 0.2, 0.1], (4, 1)))
    model = tiny(letters="abcd", objective="mse", scale=0.15)
    training, written = (
        generate(model, BEGINNINGS, 40, schedule="never", seed=range(s, s + 6)) for s in (10, 0)
    )
    readers = fit_readers(training, model, language)
    mean = split_harm(drift_by_reader(written, model, readers, language))
    # the unigram's share of one step that knows nothing, of 240
    assert mean["unigram"] < 1 / 240
    assert mean["forgotten"] < 0.01 < mean["own"]
    assert mean["misread"] == pytest.approx(mean["own"] - mean["refitted"])


def test_refusals(tiny):
    model = tiny(letters="abcd", objective="mse", scale=0.15)
    few = generate(model, ["ab", "b", "c"], 6, schedule="never")
    with pytest.raises(ValueError, match="at least 4 paths .* not on 3"):
        fit_readers(few, model)
    language = Markov.random(4, seed=1)
    texts = generate(language, ["ab"] * 4, 6, seed=range(4))
    with pytest.raises(ReplayError, match="hidden states, and this model has none"):
        fit_readers(texts, language)


def test_steps_at_which_the_truth_is_lost_are_neither_fitted_nor_counted(tiny):
    language = Markov(np.array([[0, 1.0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]]))
    model = tiny(letters="abcd", objective="mse", scale=0.15)
    training = generate(model, ["a"] * 12, 8, schedule="never", seed=range(12))
    judged = drift(training, model, language)
    rows = judged[~judged["lost"]]
    readers = fit_readers(training, model, language)
    assert readers.steps == len(rows) < len(judged)
    frame = drift_by_reader(training, model, readers, language)
    assert (frame.loc[frame["lost"], ["own", "refitted", "unigram"]] == math.inf).all(axis=None)
    assert split_harm(frame)["own"] == pytest.approx(rows["kl"].mean())


def test_split_harm_by_hand():
    index = pd.MultiIndex.from_product([[0], range(4)], names=["trajectory", "step"])
    columns = {"own": [9.0, 4, 6, math.inf], "tempered": [9.0, 3, 3, math.inf]}
    columns |= {"refitted": [9.0, 1, 2, math.inf], "unigram": [9.0, 3, 3, math.inf]}
    frame = pd.DataFrame({**columns, "lost": [False] * 3 + [True]}, index=index)
    found = split_harm(frame, begin=1)
    expected = {"own": 5, "tempered": 3, "refitted": 1.5, "unigram": 3}
    expected |= {"misread": 3.5, "forgotten": 1.5, "left": 0.5}
    assert found.to_dict() == pytest.approx(expected)


def test_harm_by_text_is_in_bits_and_nan_where_a_path_cannot_be_read_again(tiny):
    model = tiny(letters="abcd", objective="mse", scale=0.15)
    training, written = (
        generate(model, BEGINNINGS, 9, schedule="never", seed=range(s, s + 6)) for s in (10, 0)
    )
    found = harm_by_text(written, training, model)
    expected = drift(written, model)["kl"].groupby(level="trajectory").mean() / math.log(2)
    np.testing.assert_allclose(found["harm"], expected)
    np.testing.assert_allclose(found["misread"] + found["forgotten"], found["harm"])
    late = [generate(model, BEGINNINGS, 9, schedule="retro(2)", seed=range(6)) for _ in range(2)]
    assert harm_by_text(*late, model).isna().all(axis=None)
    assert drift_readers.RIDGES[0] == max(drift_readers.RIDGES)


def test_readers_of_another_model_and_ridges_that_are_none_are_refused(tiny):
    """Widths agree, so nothing else would be noticed."""
    model, other = tiny(), tiny(seed=1)
    paths = generate(model, BEGINNINGS, 6, schedule="never", seed=range(6))
    readers = fit_readers(paths, model)
    foreign = generate(other, BEGINNINGS, 6, schedule="never", seed=range(6))
    with pytest.raises(ValueError, match="fitted on another model"):
        drift_by_reader(foreign, other, readers)
    for ridges, message in (([], "ridges is empty"), ([-1.0], "at least 0"), ([math.nan], "at")):
        with pytest.raises(ValueError, match=message):
            fit_readers(paths, model, ridges=ridges)
