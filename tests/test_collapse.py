"""How a soft token becomes a symbol: ties, limits and frequencies."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from softar_lab.generation import collapse
from softar_lab.generation.collapse import nearest, nearest_distance, pick
from softar_lab.predictor import Prediction


def uniforms(n, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", collapse.names())
def test_every_collapse_of_a_certain_prediction_is_that_token(name):
    embedding = torch.nn.functional.normalize(torch.randn(6, 9, generator=torch.Generator().manual_seed(0)), dim=-1)
    certain = Prediction(torch.eye(6).log(), embedding)
    probs = collapse.resolve(name)(certain, embedding)
    for temperature in (0, 0.5, 1.0, 3.0):
        assert pick(probs, temperature, uniforms(6)).tolist() == list(range(6))


@pytest.mark.parametrize("name", collapse.names())
def test_every_collapse_gives_probabilities(name):
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(6, 4, generator=generator)
    log_probs = torch.log_softmax(torch.randn(5, 6, generator=generator), -1)
    probs = collapse.resolve(name)(Prediction(log_probs, torch.randn(5, 4, generator=generator)), embedding)
    assert (probs >= 0).all()
    torch.testing.assert_close(probs.sum(-1), torch.ones(5))


def test_nearest_agrees_with_loops_in_float64():
    generator = torch.Generator().manual_seed(0)
    vectors, embedding = torch.randn(50, 5, generator=generator), torch.randn(9, 5, generator=generator)
    distance = np.linalg.norm(vectors.double().numpy()[:, None] - embedding.double().numpy()[None], axis=-1)
    assert nearest(vectors, embedding).tolist() == distance.argmin(1).tolist()
    np.testing.assert_allclose(nearest_distance(vectors, embedding), distance.min(1), atol=1e-6)


def test_nearest_of_ties_is_the_smallest_id():
    embedding = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]])
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, -0.5], [-2.0, -2.0], [3.0, 0.0]])
    assert nearest(vectors, embedding).tolist() == [0, 1, 1, 3, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("function", [nearest, nearest_distance])
def test_nearest_names_the_first_row_that_is_not_finite(bad, function):
    vectors = torch.zeros(4, 3)
    vectors[2, 1] = vectors[3, 0] = bad
    with pytest.raises(ValueError, match="soft token 2 holds NaN or infinity"):
        function(vectors, torch.eye(3))


def test_nearest_needs_vectors():
    with pytest.raises(ValueError, match="predicts vectors"):
        collapse.resolve("nearest")(Prediction(torch.zeros(1, 3).log_softmax(-1)), None)


# -- pick -------------------------------------------------------------------------------------------------------------

PROBS = torch.tensor([0.05, 0.4, 0.0, 0.3, 0.25])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1, 2.5])
def test_pick_draws_with_the_tempered_frequencies(temperature):
    """50,000 draws, chi-square. Another seed would raise a false alarm once in a million."""
    expected = np.where(PROBS > 0, PROBS.double().numpy() ** (1 / temperature), 0)
    drawn = pick(PROBS.expand(50_000, -1), temperature, uniforms(50_000))
    counts = np.bincount(drawn.numpy(), minlength=5)
    assert counts[2] == 0
    possible = expected > 0
    frequencies = expected[possible] / expected.sum() * 50_000
    assert chisquare(counts[possible], frequencies).pvalue > 1e-6


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300, 5e-324])
def test_pick_in_the_limit_of_temperature_zero_is_the_most_probable(temperature):
    probs = torch.softmax(torch.randn(200, 7, generator=torch.Generator().manual_seed(1)), -1)
    best = pick(probs, 0, uniforms(200))
    assert torch.equal(best, probs.argmax(-1))
    clear = probs.topk(2).values.diff().squeeze(1) < -0.01
    assert torch.equal(pick(probs, temperature, uniforms(200))[clear], best[clear])


def test_pick_in_the_limit_of_infinite_temperature_is_uniform_over_what_is_possible():
    """20,000 draws over four symbols; false alarm once in a million."""
    drawn = pick(PROBS.expand(20_000, -1), 1e12, uniforms(20_000))
    counts = np.bincount(drawn.numpy(), minlength=5)
    assert counts[2] == 0
    assert chisquare(counts[[0, 1, 3, 4]]).pvalue > 1e-6


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("probs", [[0, 0, 1, 0], [0, 0.5, 0.5, 0], [0, 1e-30, 1, 0], [0, 0.1, 0.2, 0]])
def test_pick_never_takes_what_is_impossible(uniform, probs):
    row = torch.tensor([probs], dtype=torch.float32)
    chosen = pick(row, 1.0, torch.tensor([uniform], dtype=torch.float64))
    assert row[0, chosen.item()] > 0


def test_pick_at_temperature_zero_takes_the_smallest_id_of_ties():
    assert pick(torch.tensor([[0.1, 0.3, 0.3, 0.3]]), 0, uniforms(1)).tolist() == [1]


def test_pick_of_a_row_does_not_depend_on_its_neighbours():
    probs = torch.softmax(torch.randn(40, 6, generator=torch.Generator().manual_seed(2)), -1)
    together = pick(probs, 0.7, uniforms(40))
    alone = [pick(probs[i : i + 1], 0.7, uniforms(40)[i : i + 1]).item() for i in range(40)]
    assert together.tolist() == alone
