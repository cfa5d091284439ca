"""Marginals by enumeration and by powers; a model that is right by construction forecasts them
exactly.
"""

from itertools import pairwise, product

import numpy as np
import pandas as pd
import pytest
import torch

from softar_lab.core.predictor import Prediction, Predictor
from softar_lab.data.languages import Markov
from softar_studies.forecast import (
    against_sampling,
    forecast_error,
    marginals,
    transitions,
    worth,
)

P = np.array([[0.1, 0.6, 0.3], [0.5, 0.5, 0.0], [0.2, 0.0, 0.8]])


class Linear(Predictor):
    """What a perfectly trained model of a first-order chain would be: the last input's weights
    times P.
    """

    vocab_size = 3

    def __init__(self, table, table_of_probs=P, tokens=None):
        self.tokenizer = Markov(P).tokenizer if tokens is None else tokens
        self.embedding, self.P = table, torch.tensor(table_of_probs).float()

    def start(self, batch_size=1):
        return torch.zeros(batch_size, 3)

    def predict(self, state):
        probs = (state @ self.P).clamp_min(1e-30)
        return Prediction(
            (probs / probs.sum(-1, keepdim=True).clamp_min(1e-9)).log(), probs @ self.embedding
        )

    def advance(self, state, token_ids=None, vectors=None):
        vectors = self.embedding[token_ids] if vectors is None else vectors
        return vectors @ torch.linalg.pinv(self.embedding)


def test_marginals_are_sums_over_all_paths():
    found = marginals(
        torch.tensor(P), torch.tensor([[0.2, 0.3, 0.5], [1.0, 0, 0]], dtype=torch.float64), 3
    )
    for row, q in zip(found, ([0.2, 0.3, 0.5], [1, 0, 0])):
        for k in (1, 2, 3):
            law = np.zeros(3)
            for path in product(range(3), repeat=k + 1):
                law[path[-1]] += q[path[0]] * np.prod([P[a, b] for a, b in pairwise(path)])
            np.testing.assert_allclose(row[k - 1], law)


def test_transitions_are_those_of_the_chain_and_zeros_where_it_never_is():
    np.testing.assert_allclose(transitions(Markov(P)), P)
    transient = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.3, 0.3, 0.4]])
    np.testing.assert_allclose(transitions(Markov(transient))[2], 0)
    for wrong in (Markov.random(3, order=2), Linear(torch.eye(3))):
        with pytest.raises(ValueError, match="order 1, not"):
            transitions(wrong)


@pytest.mark.parametrize("feedback", ["raw", "mixture"])
def test_forecast_error_of_a_perfect_chain_is_none(feedback):
    table = torch.linalg.qr(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))[
        0
    ].T.contiguous()
    found = forecast_error(Linear(table), Markov(P), ["a", "abc", "ab"], 8, feedback)
    assert found.index.names == ["prompt", "k"]
    assert len(found) == 24
    np.testing.assert_allclose(found["error"], 0, atol=1e-5)
    gaps = [
        np.linalg.norm(Markov(P).stationary - np.linalg.matrix_power(P, k)[2]) for k in (1, 2, 8)
    ]
    sizes = [np.linalg.norm(np.linalg.matrix_power(P, k)[2]) for k in (1, 2, 8)]
    np.testing.assert_allclose(
        found.loc[1, "unconditional"].loc[[1, 2, 8]], np.array(gaps) / sizes, rtol=1e-4
    )


def test_forecast_error_measures_a_wrong_chain():
    wrong = np.full((3, 3), 1 / 3)
    found = forecast_error(Linear(torch.eye(3), wrong), Markov(P), ["a"], 2)
    expected = [np.linalg.norm(1 / 3 - law) / np.linalg.norm(law) for law in (P[0], (P @ P)[0])]
    np.testing.assert_allclose(found["error"], expected, rtol=1e-5)


def test_forecast_error_of_a_real_model_and_of_no_prompt(tiny):
    model = tiny(letters="abc", objective="mse")
    assert (forecast_error(model, Markov(P), ["ab", "c"], 4)["error"] > 0.01).all()
    with pytest.raises(ValueError, match="prompt is empty"):
        forecast_error(model, Markov(P), ["a", ""])


def test_against_sampling_of_perfect_chains_is_their_variance():
    """A soft chain without error; hard chains without bias, whose spread has a formula."""
    model, steps, n = Linear(torch.eye(3)), 4, 4000
    found = against_sampling(model, model, Markov(P), steps, n)
    np.testing.assert_allclose(found["soft"], 0, atol=1e-10)
    laws = marginals(torch.tensor(P), torch.eye(3, dtype=torch.float64), steps).numpy()  # (V, K, V)
    before = np.concatenate([np.eye(3)[:, None], laws[:, :-1]], 1)
    size = (laws**2).sum(-1)
    expected = {"symbols": 1 - size, "vectors": before @ (P**2).sum(-1) - size}
    for name, spread in expected.items():
        # a variance of bounded numbers is off by 5 / √n of their size once in 10⁶ runs
        np.testing.assert_allclose(
            found[f"{name}_spread"], spread.mean(0), atol=5 * 2 / (3 * n) ** 0.5
        )
        assert (found[f"{name}_bias"] < 10 * 2 / n).all()
    stationary = Markov(P).stationary
    np.testing.assert_allclose(
        found["unconditional"], ((stationary - laws) ** 2).sum(-1).mean(0), rtol=1e-9
    )


def test_chains_of_two_tables_are_not_compared():
    """Their vectors have nothing to do with each other, and no width would tell."""
    soft, hard = Linear(torch.eye(3)), Linear(torch.eye(3).flip(0))
    with pytest.raises(ValueError, match="both models need one table"):
        against_sampling(soft, hard, Markov(P), 2, 4)


def test_worth_is_the_number_whose_error_is_the_soft_ones():
    frame = pd.DataFrame(
        {
            "soft": [0.03, 0.03, 0.01],
            "vectors_bias": [0.01, 0.0, 0.02],
            "vectors_spread": [1, 0.6, 1],
        }
    )
    assert worth(frame).tolist() == pytest.approx([50, 20, np.inf])
