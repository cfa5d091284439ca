"""What goes back in."""

import numpy as np
import pytest
import torch

from softar_lab.generation import feedback
from softar_lab.generation.thought import Thought
from softar_lab.predictor import Prediction

EMBEDDING = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def thought(log_probs, vector):
    prediction = Prediction(log_probs, vector)
    n = len(log_probs)
    one_hot = torch.eye(5)[torch.zeros(n).long()]  # what a collapse might say: no feedback here may listen to it
    return Thought(torch.zeros(n).long(), prediction, one_hot, torch.zeros(n).long(), EMBEDDING)


def test_mixture_is_the_weighted_mean_of_the_rows():
    probs = torch.softmax(torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), -1)
    found = feedback.resolve("mixture")(thought(probs.log(), torch.zeros(4, 3)))
    expected = [sum(p * e for p, e in zip(row, EMBEDDING.double().numpy())) for row in probs.double().numpy()]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    torch.testing.assert_close(feedback.mixture(probs, EMBEDDING), found)


def test_mixture_of_certainty_is_the_row_itself():
    assert torch.equal(feedback.resolve("mixture")(thought(torch.eye(5).log(), torch.zeros(5, 3))), EMBEDDING)


def test_raw_is_the_vector_untouched():
    vector = torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
    assert torch.equal(feedback.resolve("raw")(thought(torch.zeros(2, 5).log_softmax(-1), vector)), vector)


@pytest.mark.parametrize("name", feedback.names())
def test_every_feedback_gives_one_vector_a_row(name):
    given = thought(torch.zeros(2, 5).log_softmax(-1), torch.ones(2, 3))
    assert feedback.resolve(name)(given).shape == (2, 3)


def test_unknown_feedback_lists_the_known():
    with pytest.raises(ValueError, match="unknown feedback 'echo'; known: mixture, raw"):
        feedback.resolve("echo")


def test_gumbel_leans_towards_the_symbol_shown_and_becomes_its_row_when_cold():
    log_probs = torch.randn(6, 5, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    shown = torch.tensor([0, 1, 2, 3, 4, 4])
    given = Thought(torch.arange(6), Prediction(log_probs), log_probs.exp(), shown, EMBEDDING, (0, 0, 7, 7, 7, 8))
    torch.testing.assert_close(feedback.resolve("gumbel(1e-6)")(given), EMBEDDING[shown])
    warm = feedback.resolve("gumbel")(given)
    assert not torch.allclose(warm, EMBEDDING[shown], atol=1e-2)
    assert torch.equal(warm, feedback.resolve("gumbel")(given))  # seed and step decide the noise


def test_gumbel_noise_depends_on_seed_and_step_and_not_on_the_neighbours():
    log_probs = torch.zeros(4, 5).log_softmax(-1)
    shown = torch.zeros(4, dtype=torch.long)
    given = Thought(torch.tensor([0, 1, 0, 0]), Prediction(log_probs), log_probs.exp(), shown, EMBEDDING, (1, 1, 2, 1))
    soft = feedback.resolve("gumbel")(given)
    assert torch.equal(soft[0], soft[3])
    assert not torch.allclose(soft[0], soft[1])
    assert not torch.allclose(soft[0], soft[2])


def test_gumbel_refuses_a_temperature_of_zero():
    with pytest.raises(ValueError, match="above 0"):
        feedback.resolve("gumbel(0)")
