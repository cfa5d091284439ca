"""The interface, held against a bigram model whose every probability is known."""

import math

import numpy as np
import pytest
import torch
from bounds import exact
from scipy.stats import entropy

from softar_lab.core.predictor import Prediction, Predictor, divergence

TABLE = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.1, 0.2, 0.7]])


class Bigram(Predictor):
    """p(next | last); before anything was read the last symbol counts as 0. A state is (B,) last
    symbols.
    """

    vocab_size = 3

    def start(self, batch_size=1):
        return torch.zeros(batch_size, dtype=torch.long)

    def predict(self, state):
        return Prediction(TABLE[state].log())

    def advance(self, state, token_ids=None, vectors=None):
        if token_ids is None:
            raise ValueError("a bigram reads token ids only")
        return token_ids


def test_prediction_probs_are_the_exponential_and_sum_to_one():
    prediction = Bigram().predict(torch.tensor([0, 1, 2]))
    torch.testing.assert_close(prediction.probs, TABLE)
    torch.testing.assert_close(prediction.probs.sum(-1), torch.ones(3))


@pytest.mark.parametrize(
    ("probs", "nats"),
    [([0.25] * 4, math.log(4)), ([1.0, 0, 0, 0], 0.0), ([0.5, 0.5, 0, 0], math.log(2))],
)
def test_prediction_entropy_of_known_distributions(probs, nats):
    entropy = Prediction(torch.tensor([probs]).log()).entropy
    torch.testing.assert_close(entropy, torch.tensor([nats]))


def test_sample_vectors_needs_a_distribution_over_vectors(rng):
    with pytest.raises(TypeError, match="one vector"):
        Bigram().predict(torch.tensor([0])).sample_vectors(3, rng())


def test_sample_vectors_asks_the_sampler(rng):
    def sampler(n, generator):
        return torch.randn(n, 2, 5, generator=generator)

    prediction = Prediction(TABLE[:2].log(), None, sampler)
    drawn = prediction.sample_vectors(4, rng(1))
    assert drawn.shape == (4, 2, 5)
    assert torch.equal(drawn, prediction.sample_vectors(4, rng(1)))


def test_read_is_one_advance_a_token():
    token_ids = torch.tensor([[0, 2, 1], [1, 1, 2]])
    assert Bigram().read(Bigram().start(2), token_ids).tolist() == [1, 2]


def test_read_of_nothing_changes_nothing():
    state = torch.tensor([2, 1])
    assert torch.equal(Bigram().read(state, torch.zeros(2, 0, dtype=torch.long)), state)


def test_probs_and_next_state_are_predict_and_advance():
    model, state = Bigram(), torch.tensor([2])
    assert torch.equal(model.probs(state), model.predict(state).probs)
    assert torch.equal(model.next_state(state, torch.tensor([1])), torch.tensor([1]))


def test_every_path_has_the_product_of_its_choices_and_all_sum_to_one():
    paths = torch.cartesian_prod(*[torch.arange(3)] * 4)  # (81, 4)
    model, total = Bigram(), torch.zeros(81)
    state = model.start(81)
    for t in range(4):
        total += model.predict(state).log_probs.gather(1, paths[:, t : t + 1]).squeeze(1)
        state = model.next_state(state, paths[:, t])
    expected = [
        TABLE[0, a] * TABLE[a, b] * TABLE[b, c] * TABLE[c, d] for a, b, c, d in paths.tolist()
    ]
    torch.testing.assert_close(total.exp(), torch.stack(expected))
    torch.testing.assert_close(total.exp().sum(), torch.tensor(1.0))


def test_whole_texts_are_scored_as_they_are_read(tiny, rng):
    model = tiny()
    token_ids = torch.randint(model.vocab_size, (3, 7), generator=rng())
    stepwise = Predictor.next_log_probs(model, token_ids)  # (B, T, V)
    torch.testing.assert_close(model.next_log_probs(token_ids), stepwise, **exact(model))
    gathered = torch.stack(
        [stepwise[:, t].gather(1, token_ids[:, t : t + 1])[:, 0] for t in range(7)], 1
    )
    torch.testing.assert_close(model.log_probs(token_ids), gathered, **exact(model))


def test_divergence_is_that_of_scipy():
    q, p = (np.random.default_rng(i).dirichlet(np.ones(5), 7) for i in range(2))
    q[2], p[3, 0] = [0, 1, 0, 0, 0], 0
    with np.errstate(divide="ignore"):
        found = divergence(torch.from_numpy(np.log(q)), torch.from_numpy(np.log(p)))
    np.testing.assert_allclose(found, entropy(q, p, axis=1), atol=1e-12)
    assert found[3] == math.inf
