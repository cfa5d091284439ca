"""Every objective against float64 numpy written from its definition."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from softar_lab.models.objectives import OBJECTIVES, squared_distance
from softar_lab.models.targets import make_table

N, D, V, M = 6, 8, 5, 7
UNIT_ROWS = ("random", "orthonormal")
TEMPERED = ("mse", "metric")


def make(name, alive=True, table="random", seed=0):
    """An objective with hidden states (N, d), targets (N,) and a table (V, m)."""
    generator = torch.Generator().manual_seed(seed)
    objective = OBJECTIVES.get(name)(D, V, M)
    if alive:
        objective.head.weight.data.normal_(0, 0.5, generator=generator)
    if alive and name in TEMPERED:
        objective.log_tau.data.fill_(-0.7)
    hidden = torch.randn(N, D, generator=generator)
    target_ids = torch.randint(V, (N,), generator=generator)
    return objective, hidden, target_ids, make_table(table, V, M, generator).weight.detach().clone()


def oracle(name, hidden, head, table, target_ids, log_tau):
    """(loss, log p, soft token) in float64."""
    y = hidden @ head.T
    if name == "ce":
        log_probs = log_softmax(y, axis=-1)
        return -log_probs[np.arange(len(y)), target_ids].mean(), log_probs, np.exp(log_probs) @ table
    distance = ((y[:, None, :] - table[None]) ** 2).sum(-1)  # (N, V)
    log_probs = log_softmax(-distance / np.exp(log_tau), axis=-1)
    hits = np.arange(len(y)), target_ids
    return (distance[hits].mean() if name == "mse" else -log_probs[hits].mean()), log_probs, y


def as_numpy(objective, hidden, target_ids, table):
    log_tau = objective.log_tau.item() if hasattr(objective, "log_tau") else 0.0
    head = objective.head.weight.detach()
    return hidden.double().numpy(), head.double().numpy(), table.double().numpy(), target_ids.numpy(), log_tau


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_every_objective_has_an_oracle_here(name):
    assert name in ("ce", *TEMPERED), "a new objective needs its definition in oracle()"


@pytest.mark.parametrize("name", OBJECTIVES.names())
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_predict_agree_with_float64(name, seed):
    objective, hidden, target_ids, table = make(name, seed=seed)
    loss, log_probs, vector = oracle(name, *as_numpy(objective, hidden, target_ids, table))
    prediction = objective.predict(hidden, table)
    assert objective.loss(hidden, target_ids, table).item() == pytest.approx(loss, abs=1e-5)
    np.testing.assert_allclose(prediction.log_probs.detach(), log_probs, atol=2e-5)
    np.testing.assert_allclose(prediction.vector.detach(), vector, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES.names())
@pytest.mark.parametrize("table", ["joint", "random", "orthonormal"])
def test_predict_gives_probabilities_that_sum_to_one(name, table):
    objective, hidden, _, rows = make(name, table=table)
    probs = objective.predict(hidden, rows).probs
    assert (probs >= 0).all()
    torch.testing.assert_close(probs.sum(-1), torch.ones(N), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_predict_stands_hidden_states_a_thousand_times_too_large(name):
    objective, hidden, _, table = make(name)
    prediction = objective.predict(1000 * hidden, table)
    assert torch.isfinite(prediction.probs).all()
    torch.testing.assert_close(prediction.probs.sum(-1), torch.ones(N))


@pytest.mark.parametrize(("name", "table"), [("ce", "joint"), ("metric", "random"), ("metric", "orthonormal")])
def test_loss_at_the_start_is_that_of_knowing_nothing(name, table):
    objective, hidden, target_ids, rows = make(name, alive=False, table=table)
    assert objective.loss(hidden, target_ids, rows).item() == pytest.approx(math.log(V), abs=1e-6)


def test_mse_at_the_start_is_the_squared_norm_of_a_row_and_its_reading_uniform():
    objective, hidden, target_ids, table = make("mse", alive=False)
    assert objective.loss(hidden, target_ids, table).item() == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(objective.predict(hidden, table).probs, torch.full((N, V), 1 / V))


@pytest.mark.parametrize("name", OBJECTIVES.names())
@pytest.mark.parametrize("what", ["hidden", "head", "table", "log_tau"])
def test_loss_gradient_agrees_with_finite_differences_of_the_oracle(name, what):
    objective, hidden, target_ids, table = make(name)
    leaves = {"hidden": hidden, "head": objective.head.weight, "table": table}
    if name == "metric":
        leaves["log_tau"] = objective.log_tau
    if what not in leaves or (name, what) == ("ce", "table"):
        return  # ce does not use the table, mse's tau is not trained
    objective.loss(hidden.requires_grad_(), target_ids, table.requires_grad_()).backward()

    given = as_numpy(objective, hidden.detach(), target_ids, table.detach())
    values = dict(zip(("hidden", "head", "table", "ids", "log_tau"), given, strict=True))

    def loss(shift):
        moved = {**values, what: values[what] + shift}
        return oracle(name, moved["hidden"], moved["head"], moved["table"], moved["ids"], moved["log_tau"])[0]

    step, shape = 1e-5, np.shape(values[what])
    numeric = np.zeros(shape)
    for index in np.ndindex(*shape):
        shift = np.zeros(shape)
        shift[index] = step
        numeric[index] = (loss(shift) - loss(-shift)) / (2 * step)
    np.testing.assert_allclose(leaves[what].grad, numeric, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("table", UNIT_ROWS)
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_mse_calibrate_finds_the_best_temperature_of_a_fine_grid(table, scale):
    objective, _, _, rows = make("mse", table=table)
    generator = torch.Generator().manual_seed(1)
    hidden = scale * torch.randn(400, D, generator=generator)
    vectors = objective.head(hidden)
    target_ids = torch.multinomial(torch.softmax(2 * vectors @ rows.T, -1), 1, generator=generator).squeeze(1)

    values = as_numpy(objective, hidden, target_ids, rows)[:-1]

    def nats(log_tau):
        return -oracle("mse", *values, log_tau)[1][np.arange(400), target_ids].mean()

    objective.calibrate(hidden, target_ids, rows)
    grid = np.linspace(-7, 3, 401)
    losses = [nats(log_tau) for log_tau in grid]
    best = int(np.argmin(losses))
    assert abs(float(objective.log_tau) - grid[best]) <= grid[1] - grid[0]
    assert nats(float(objective.log_tau)) <= min(losses) + 1e-6
    assert nats(float(objective.log_tau)) < nats(0.0)


@pytest.mark.parametrize("name", ["ce", "metric"])
def test_calibrate_leaves_trained_probabilities_alone(name):
    objective, hidden, target_ids, table = make(name)
    before = objective.predict(hidden, table).probs
    objective.calibrate(hidden, target_ids, table)
    assert torch.equal(before, objective.predict(hidden, table).probs)


def test_mse_minimum_is_the_mixture_under_the_true_probabilities():
    """The best y for one hidden state is qE (FACTS): there the gradient of the expected loss vanishes."""
    objective, _, _, table = make("mse")
    counts = torch.tensor([3, 1, 0, 4, 2])
    target_ids = torch.repeat_interleave(torch.arange(V), counts)
    best = (counts / counts.sum()) @ table
    hidden = torch.zeros(len(target_ids), D)
    hidden[:, 0] = 1
    objective.head.weight.data[:, 0] = best
    loss = objective.loss(hidden, target_ids, table)
    loss.backward()
    torch.testing.assert_close(objective.head.weight.grad[:, 0], torch.zeros(M), atol=1e-6, rtol=0)


def test_squared_distance_agrees_with_loops_and_is_never_negative():
    generator = torch.Generator().manual_seed(0)
    vectors, table = torch.randn(30, M, generator=generator), torch.randn(V, M, generator=generator)
    vectors[:V] = table
    found = squared_distance(vectors, table)
    expected = [[((y - e) ** 2).sum() for e in table.double().numpy()] for y in vectors.double().numpy()]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found >= 0).all()
