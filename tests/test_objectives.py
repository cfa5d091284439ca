"""Every objective's loss, gradient, soft token and p(w | prefix) against float64 numpy written from
its definition.
"""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import expit, ive, log_softmax, logsumexp
from torch.nn import functional as F

from softar_lab.generation import generate
from softar_lab.models.embedding_tables import make_table
from softar_lab.models.objectives import (
    OBJECTIVES,
    READOUTS,
    Objective,
    make_objective,
    squared_distance,
)
from softar_lab.models.objectives.densities import angles, negative_log_c
from softar_lab.models.objectives.samplers import energy_score
from softar_lab.training.config import TrainConfig
from softar_lab.training.loop import train

B, T, D, V, M = 2, 3, 8, 5, 7
N = B * T
SPECS = [
    *("ce", "metric", "anchored(0.5)", "mse", "cosine", "successor(0.7)", "successor(0)"),
    *("vmf", "vmf(published=True)", "mixture(3)", "energy(4)", "energy(3, alpha=1.5)", "flow(3)"),
]
PAIRS = [
    (name, readout) for name in OBJECTIVES.names() for readout in OBJECTIVES.get(name).readouts
]
SMALL = {"mixture": "mixture(2)", "energy": "energy(3)", "flow": "flow(2)", "votes": "votes(9)"}


def make(spec, alive=True, table="random", seed=0, readout=None):
    """An objective with hidden states (B, T, d), targets (B, T) and a table (V, m)."""
    generator = torch.Generator().manual_seed(seed)
    objective = make_objective(SMALL.get(spec, spec), SMALL.get(readout, readout), D, V, M)
    if alive:
        for name, value in objective.state_dict().items():
            value.normal_(0, 0.5, generator=generator)
            if name == "readout.prior":
                value.copy_(torch.softmax(value, 0))
    hidden = torch.randn(B, T, D, generator=generator)
    target_ids = torch.randint(V, (B, T), generator=generator)
    return objective, hidden, target_ids, make_table(table, V, M, generator).weight.detach().clone()


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def silu(x):
    return x * expit(x)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def net(p, hidden, noise):
    """The noise-conditioned head: noise (…, N, k) -> (…, N, m)."""
    inner = (
        hidden @ p["from_hidden.weight"].T
        + p["from_hidden.bias"]
        + noise @ p["from_noise.weight"].T
    )
    return hidden @ p["head.weight"].T + silu(inner) @ p["out.weight"].T


def gaussians(p, y, k, noise):
    """log weights (N, K), means (N, K, m) and standard deviations (N, K)."""
    log_weights, widths, means = y[:, :k], y[:, k : 2 * k], y[:, 2 * k :].reshape(len(y), k, M)
    return (
        log_softmax(log_weights, axis=-1),
        means + p["means"],
        np.sqrt((noise**2 + np.exp(2 * widths)) / M),
    )


def mixture_density(p, y, k, noise, points):
    """log f of one point a position (N, m) -> (N,), by scipy's normal densities."""
    log_weights, means, sigma = gaussians(p, y, k, noise)
    each = [
        [stats.norm(means[n, j], sigma[n, j]).logpdf(points[n]).sum() for j in range(k)]
        for n in range(N)
    ]
    return logsumexp(log_weights + np.array(each), axis=-1)


def oracle_loss(objective, spec, p, hidden, target_ids, table):
    """The mean loss in float64; the noise is drawn as the objective draws it."""
    name, generator = OBJECTIVES.name_of(spec), seeded()
    h, ids = hidden.reshape(N, D), target_ids.ravel()
    rows, hits = table[ids], (np.arange(N), ids)

    def noise(*shape):
        return torch.randn(shape, generator=generator).double().numpy()

    if name == "energy":
        z = net(p, h, noise(objective.samples, N, 16))
        away = sum(np.linalg.norm(one - rows, axis=-1) ** objective.alpha for one in z)
        apart = sum(
            np.linalg.norm(one - other, axis=-1) ** objective.alpha for one in z for other in z
        )
        return (2 * away / len(z) - apart / (len(z) * (len(z) - 1))).mean()
    if name == "flow":
        begin = noise(N, M) / math.sqrt(M)
        time = torch.rand(N, 1, generator=generator).double().numpy()
        inputs = np.concatenate([(begin * (1 - time) + rows * time) * math.sqrt(M), time], -1)
        return ((net(p, h, inputs) - (rows - begin)) ** 2).sum(-1).mean()
    y = h @ p["head.weight"].T
    if name == "ce":
        return -log_softmax(y, axis=-1)[hits].mean()
    if name == "mixture":
        points = rows + noise(N, M) * objective.noise / math.sqrt(M)
        return -mixture_density(p, y, objective.components, objective.noise, points).mean()
    if name == "cosine":
        return (1 - (unit(y) * unit(rows)).sum(-1)).mean()
    if name == "vmf":
        kappa, v = np.linalg.norm(y, axis=-1), M / 2 - objective.published
        root = np.sqrt((v + 1) ** 2 + kappa**2)
        dot = (y * unit(rows)).sum(-1)
        extra = 0.02 * kappa + 0.9 * dot if objective.published else 0
        return (root - (v - 1) * np.log(v - 1 + root) - dot + extra).mean()
    if name == "successor":
        rows = np.zeros((B, T, M))
        for b, t in product(range(B), range(T)):
            for k in range(T - t):
                rows[b, t] += objective.gamma**k * table[target_ids[b, t + k]]
        return ((y - rows.reshape(N, M)) ** 2).sum(-1).mean()
    square = ((y - rows) ** 2).sum(-1).mean()
    if name == "mse":
        return square
    distance = ((y[:, None, :] - table[None]) ** 2).sum(-1)  # (N, V)
    nats = -log_softmax(-distance / np.exp(p["log_tau"]), axis=-1)[hits].mean()
    return nats + (objective.pull * square if name == "anchored" else 0)


def parameters(objective):
    return {name: value.detach().double().numpy() for name, value in objective.state_dict().items()}


def given(objective, hidden, target_ids, table):
    return (
        parameters(objective),
        hidden.double().numpy(),
        target_ids.numpy(),
        table.double().numpy(),
    )


def test_every_objective_has_an_oracle_here():
    assert {OBJECTIVES.name_of(spec) for spec in SPECS} == set(OBJECTIVES.names())


# -- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("seed", range(3))
def test_loss_agrees_with_float64(spec, seed):
    objective, hidden, target_ids, table = make(spec, seed=seed)
    expected = oracle_loss(objective, spec, *given(objective, hidden, target_ids, table))
    assert objective.loss(hidden, target_ids, table, seeded()).item() == pytest.approx(
        expected, abs=3e-5, rel=1e-5
    )


@pytest.mark.parametrize("spec", SPECS)
def test_gradient_agrees_with_finite_differences_of_the_oracle(spec):
    """Along 6 random directions in the space of each trained tensor, the hidden states and the
    table.
    """
    objective, hidden, target_ids, table = make(spec)
    p, *rest = given(objective, hidden, target_ids, table)
    values = {**p, "hidden": rest[0], "table": rest[2]}
    leaves = {
        **dict(objective.named_parameters()),
        "hidden": hidden.requires_grad_(),
        "table": table.requires_grad_(),
    }
    objective.loss(hidden, target_ids, table, seeded()).backward()
    chance, step = np.random.default_rng(0), 1e-5

    def loss(name, shift):
        moved = {**values, name: values[name] + shift}
        return oracle_loss(objective, spec, moved, moved["hidden"], rest[1], moved["table"])

    for name, leaf in leaves.items():
        if name == "table" and spec == "ce":
            assert leaf.grad is None
            continue
        for _ in range(6):
            way = chance.normal(size=leaf.shape)
            numeric = (loss(name, step * way) - loss(name, -step * way)) / (2 * step)
            assert (leaf.grad.double().numpy() * way).sum() == pytest.approx(
                numeric, abs=1e-4, rel=1e-4
            ), name


@pytest.mark.parametrize("spec", ["mixture", "energy", "flow"])
def test_noise_comes_from_the_generator_alone(spec):
    objective, *batch = make(spec)
    torch.manual_seed(1)
    first = objective.loss(*batch, seeded(1))
    torch.manual_seed(2)
    assert torch.equal(first, objective.loss(*batch, seeded(1)))
    assert not torch.equal(first, objective.loss(*batch, seeded(2)))


@pytest.mark.parametrize(
    ("name", "table"), [("ce", "joint"), ("metric", "random"), ("metric", "orthonormal")]
)
def test_loss_at_the_start_is_that_of_knowing_nothing(name, table):
    objective, *batch = make(name, alive=False, table=table)
    assert objective.loss(*batch, seeded()).item() == pytest.approx(math.log(V), abs=1e-6)


def test_mse_at_the_start_is_the_squared_norm_of_a_row_and_its_reading_uniform():
    objective, hidden, target_ids, table = make("mse", alive=False)
    assert objective.loss(hidden, target_ids, table, seeded()).item() == pytest.approx(
        1.0, abs=1e-6
    )
    torch.testing.assert_close(objective.predict(hidden[0], table).probs, torch.full((T, V), 1 / V))


def test_mse_minimum_is_the_mixture_under_the_true_probabilities():
    """The best y for one hidden state is qE (FACTS): there the gradient of the expected loss
    vanishes.
    """
    objective, _, _, table = make("mse")
    counts = torch.tensor([3, 1, 0, 4, 2])
    target_ids = torch.repeat_interleave(torch.arange(V), counts)[None]
    hidden = torch.zeros(1, target_ids.numel(), D)
    hidden[..., 0] = 1
    objective.head.weight.data[:, 0] = (counts / counts.sum()) @ table
    objective.loss(hidden, target_ids, table, seeded()).backward()
    torch.testing.assert_close(objective.head.weight.grad[:, 0], torch.zeros(M), atol=1e-6, rtol=0)


@pytest.mark.parametrize("m", [8, 32, 64])
def test_vmf_normaliser_is_close_to_bessel_functions_and_the_published_order_is_not(m):
    """But for a constant, over concentrations 0.1 … 5m, in float64; the mean length A(kappa)
    too.
    """
    kappa, order = np.geomspace(0.1, 5 * m, 60), m / 2 - 1
    kappa = kappa[ive(order, kappa) > 1e-250]
    exact = np.log(ive(order, kappa)) + kappa - order * np.log(kappa)  # -log C but for a constant
    z = torch.zeros(len(kappa), m, dtype=torch.float64)
    z[:, 0] = torch.from_numpy(kappa)
    error = negative_log_c(z, m / 2).numpy() - exact
    assert np.ptp(error) < 0.35
    assert np.ptp(negative_log_c(z, m / 2 - 1).numpy() - exact) > 1.5
    objective = make_objective("vmf", None, D, V, m)
    length = objective.vector(z, torch.eye(V, m).double()).norm(dim=-1).numpy()
    np.testing.assert_allclose(length, ive(m / 2, kappa) / ive(order, kappa), atol=0.02)


def test_energy_score_in_expectation_is_the_distance_between_distributions():
    """All pairs of draws from p against all targets from q: S(p, q) - S(q, q) = -(p-q)ᵀ D (p-q), 0
    only at p = q.
    """
    generator = seeded(3)
    rows = torch.randn(V, M, generator=generator).double()
    p, q = torch.softmax(torch.randn(2, V, generator=generator).double(), -1)
    pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    draws = rows[pairs.T]  # (2, V², m)

    def expected(p):
        weight = p[pairs].prod(-1)
        return sum(
            q[w] * (weight * energy_score(draws, rows[w].expand(V * V, M), 1)).sum()
            for w in range(V)
        )

    regret = -(p - q) @ torch.cdist(rows, rows) @ (p - q)
    torch.testing.assert_close(expected(p) - expected(q), regret)
    assert regret > 0


def test_energy_at_alpha_two_does_not_tell_a_distribution_from_its_mean():
    rows = torch.eye(2).double()
    pairs = rows[torch.cartesian_prod(torch.arange(2), torch.arange(2)).T]  # all pairs, (2, 4, m)
    mean = rows.mean(0).expand(2, 4, 2)
    for alpha, same in ((2, True), (1, False)):
        spread, point = (
            energy_score(draws, rows[0].expand(4, 2), alpha).mean() for draws in (pairs, mean)
        )
        assert torch.isclose(spread, point).item() is same
        assert spread <= point + 1e-12


# -- what is predicted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "readout"), PAIRS)
@pytest.mark.parametrize("table", ["random", "orthonormal", "joint(sphere=False)"])
def test_predict_gives_probabilities_that_sum_to_one(name, readout, table):
    objective, hidden, _, rows = make(name, table=table, readout=readout)
    for scale in (1, 1000):
        prediction = objective.predict(scale * hidden.flatten(0, 1), rows)
        assert prediction.vector.shape == (N, M)
        assert torch.isfinite(prediction.vector).all()
        assert (prediction.probs >= 0).all()
        torch.testing.assert_close(prediction.probs.sum(-1), torch.ones(N), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_predict_of_a_row_does_not_depend_on_its_neighbours(name):
    objective, hidden, _, table = make(name)
    together, alone = objective.predict(hidden[0], table), objective.predict(hidden[0, 1:2], table)
    torch.testing.assert_close(together.vector[1:2], alone.vector)
    torch.testing.assert_close(together.probs[1:2], alone.probs)


@pytest.mark.parametrize(
    ("name", "readout"), [pair for pair in PAIRS if pair[1] in ("softmax", "density", "tau")]
)
def test_probabilities_agree_with_float64(name, readout):
    objective, hidden, target_ids, table = make(name, table="joint(sphere=False)", readout=readout)
    prediction = objective.predict(hidden.flatten(0, 1), table)
    p, h, _, rows = given(objective, hidden, target_ids, table)
    y = h.reshape(N, D) @ p["head.weight"].T if name not in ("energy", "flow") else None
    if readout == "density":
        if name == "vmf":
            scores = y @ unit(rows).T
        else:
            scores = np.stack(
                [mixture_density(p, y, 2, 0.5, np.tile(row, (N, 1))) for row in rows], -1
            )
    elif name == "ce":
        scores = y
    else:
        vector, tau = (
            (y, "log_tau")
            if readout == "softmax"
            else (prediction.vector.detach(), "readout.log_tau")
        )
        scores = -((np.asarray(vector)[:, None] - rows) ** 2).sum(-1) / np.exp(p[tau])
    np.testing.assert_allclose(
        prediction.log_probs.detach(), log_softmax(scores, axis=-1), atol=5e-5, rtol=1e-5
    )


def test_vectors_agree_with_float64():
    table_norm = None
    for name in ("ce", "mse", "metric", "anchored", "successor", "cosine", "mixture"):
        objective, hidden, target_ids, table = make(name, table="joint(sphere=False)")
        p, h, _, rows = given(objective, hidden, target_ids, table)
        table_norm = np.linalg.norm(rows, axis=-1).mean()
        expected = h.reshape(N, D) @ p["head.weight"].T
        if name == "ce":
            expected = np.exp(log_softmax(expected, axis=-1)) @ rows
        elif name == "cosine":
            expected = unit(expected) * table_norm
        elif name == "mixture":
            log_weights, means, _ = gaussians(p, expected, 2, 0.5)
            expected = (np.exp(log_weights)[..., None] * means).sum(1)
        found = objective.predict(hidden.flatten(0, 1), table).vector.detach()
        np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("name", "readout"), PAIRS)
def test_affine_logits_are_the_probabilities_where_there_are_any(name, readout):
    objective, hidden, _, table = make(name, readout=readout)
    found = objective.affine_logits(table)
    straight = (
        readout in ("softmax", "tau", "affine") and objective.linear
    ) or readout == "softmax"
    assert (found is not None) is (straight or (name, readout) == ("vmf", "density"))
    if found is not None:
        h = hidden.flatten(0, 1)
        probs = torch.softmax(h @ found[0] + found[1], -1)
        torch.testing.assert_close(probs, objective.predict(h, table).probs, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_sample_vectors_are_of_objectives_that_hold_a_distribution(name):
    objective, hidden, _, table = make(name)
    prediction = objective.predict(hidden[0], table)
    if name not in ("vmf", "mixture", "energy", "flow"):
        with pytest.raises(TypeError, match="one vector a step"):
            prediction.sample_vectors(3, seeded())
        return
    draws = prediction.sample_vectors(4, seeded(1))
    assert draws.shape == (4, T, M)
    assert torch.equal(draws, prediction.sample_vectors(4, seeded(1)))
    assert not torch.equal(draws, prediction.sample_vectors(4, seeded(2)))


@pytest.mark.parametrize("name", ["vmf", "mixture", "energy", "flow"])
def test_with_a_generator_each_a_prefix_draws_as_it_does_alone(name):
    objective, hidden, _, table = make(name)
    together = objective.predict(hidden[0], table).sample_vectors(6, [seeded(i) for i in range(T)])
    for i in range(T):
        alone = objective.predict(hidden[0, i : i + 1], table).sample_vectors(6, seeded(i))
        torch.testing.assert_close(together[:, i : i + 1], alone, atol=1e-5, rtol=1e-5)


def test_mixture_draws_have_its_mean_and_spread():
    """20,000 draws a position; means within 6 standard errors, variances within 10 % (odds of a
    false alarm < 1e-6).
    """
    objective, hidden, _, table = make("mixture")
    prediction = objective.predict(hidden[0], table)
    draws = prediction.sample_vectors(20_000, seeded()).detach()
    log_weights, means, variance = objective.parts(objective.output(hidden[0]))
    weights = log_weights.exp()[..., None]
    spread = (weights * (means**2 + variance[..., None])).sum(1) - prediction.vector**2  # (T, m)
    assert ((draws.mean(0) - prediction.vector).abs() < 6 * (spread / 20_000).sqrt()).all()
    torch.testing.assert_close(draws.var(0), spread.detach(), rtol=0.1, atol=0)


def vmf_draws(m, kappa, n=20_000):
    """n draws around one random direction: the draws (n, m) and that direction (m,), in float64."""
    axis = unit(np.random.default_rng(m).normal(size=m))
    output = torch.from_numpy(kappa * axis).float()[None]
    noise = torch.randn(n, 1, m + 1, generator=seeded(m))
    return make_objective("vmf", None, D, V, m).draw(output, noise, torch.eye(m))[
        :, 0
    ].double().numpy(), axis


@pytest.mark.parametrize("spec", ["vmf", "vmf(published=True)"])
def test_vmf_draws_are_as_long_as_the_rows_on_average(spec):
    objective, hidden, _, table = make(spec, table="joint(sphere=False)")
    draws = objective.predict(hidden[0], 3 * table).sample_vectors(4, seeded())
    torch.testing.assert_close(draws.norm(dim=-1), (3 * table).norm(dim=-1).mean().expand(4, T))


@pytest.mark.parametrize(
    ("m", "kappa"),
    [
        (2, 0.5),
        (2, 10),
        (2, 1e4),
        (3, 0.01),
        (3, 5),
        (16, 20),
        (64, 300),
        (64, 1e4),
        (256, 10),
        (256, 1e4),
    ],
)
def test_vmf_draws_have_the_exact_mean(m, kappa):
    """Along the axis within 5 standard errors, across it by chi² at 1e-6: odds of a false alarm <
    2e-5 in all.
    """
    draws, axis = vmf_draws(m, kappa)
    length = ive(m / 2, kappa) / ive(m / 2 - 1, kappa)
    mean, variance = draws.mean(0), 1 - length**2 - (m - 1) * length / kappa
    assert abs(mean @ axis - length) < 5 * math.sqrt(variance / len(draws))
    across = mean - (mean @ axis) * axis
    assert stats.chi2(m - 1).sf(len(draws) * across @ across * kappa / length) > 1e-6


@pytest.mark.parametrize(("m", "kappa"), [(3, 5), (16, 20), (64, 300)])
def test_vmf_draws_have_the_distribution_of_scipys(m, kappa):
    """KS at 1e-6 each: cosines against the density summed finely, a slanting coordinate against
    scipy's draws.
    """
    draws, axis = vmf_draws(m, kappa)
    angle = np.linspace(0, math.pi, 100_001)[1:]
    density = np.exp(kappa * (np.cos(angle) - 1)) * np.sin(angle) ** (m - 2)
    below = 1 - density.cumsum() / density.sum()
    assert stats.kstest(draws @ axis, lambda w: np.interp(np.arccos(w), angle, below)).pvalue > 1e-6
    slant = unit(axis + unit(np.eye(m)[0] - axis[0] * axis))
    peers = stats.vonmises_fisher(axis, kappa).rvs(len(draws), random_state=0)
    assert stats.ks_2samp(draws @ slant, peers @ slant).pvalue > 1e-6


@pytest.mark.parametrize("m", [2, 3, 64, 256])
@pytest.mark.parametrize("kappa", [0, 0.5, 10, 1e4])
def test_vmf_angles_are_exact_quantiles(m, kappa):
    """No chance here: quantiles of the angle against its density summed finely."""
    uniform, fine = np.linspace(0, 1, 1001), (np.arange(400_000) + 0.5) * math.pi / 400_000
    density = np.exp(kappa * (np.cos(fine) - 1) + (m - 2) * np.log(np.sin(fine)))
    found = angles(torch.tensor([[kappa]]).double(), m, torch.from_numpy(uniform)[None])[0].numpy()
    assert ((found >= 0) & (found <= math.pi)).all()
    below = (density.cumsum() - density / 2) / density.sum()
    np.testing.assert_allclose(np.interp(found, fine, below), uniform, atol=5e-4)


@pytest.mark.parametrize("m", [2, 3, M])
def test_vmf_draws_are_uniform_where_there_is_no_concentration(m):
    """KS of each coordinate, a stretched beta variable, at 1e-6: odds of a false alarm < 2e-5 in
    all.
    """
    draws, _ = vmf_draws(m, 0)
    uniform = stats.beta((m - 1) / 2, (m - 1) / 2, loc=-1, scale=2)
    assert min(stats.kstest(draws[:, i], uniform.cdf).pvalue for i in range(m)) > 1e-6


def test_vmf_draws_on_a_line_are_its_two_points():
    """20,000 draws; the share of one point within 5 standard errors (odds of a false alarm <
    1e-6).
    """
    draws, axis = vmf_draws(1, 0.7)
    share = expit(2 * 0.7)
    assert set(draws.ravel()) == {-1, 1}
    assert abs((draws @ axis > 0).mean() - share) < 5 * math.sqrt(share * (1 - share) / len(draws))


@pytest.mark.parametrize("rows", [1, N])
def test_vmf_draws_of_a_batch_are_those_of_its_rows(rows):
    objective, hidden, _, table = make("vmf")
    output = objective.output(hidden.flatten(0, 1)).detach() * torch.tensor(
        [[0], [1], [30], [1e4], [1], [1]]
    )
    noise = torch.randn(4, rows, M + 1, generator=seeded())
    alone = [
        objective.draw(output[n : n + 1], noise[:, n % rows][:, None], table) for n in range(N)
    ]
    torch.testing.assert_close(objective.draw(output, noise, table), torch.cat(alone, 1))


def test_flow_draws_follow_its_velocity_in_euler_steps():
    objective, hidden, target_ids, table = make("flow(3)")
    p, h, *_ = given(objective, hidden, target_ids, table)
    noise = torch.randn(2, N, M, generator=seeded())
    points = noise.double().numpy() / math.sqrt(M)
    for step in range(3):
        time = np.full((2, N, 1), step / 3)
        points = (
            points + net(p, h.reshape(N, D), np.concatenate([points * math.sqrt(M), time], -1)) / 3
        )
    found = objective.draw(objective.output(hidden.flatten(0, 1)), noise, table)
    np.testing.assert_allclose(found.detach(), points, atol=2e-5)


# -- readouts ---------------------------------------------------------------------------------------------------------


def text_like(spec, readout, scale=1.0, table="random", n=400):
    """Hidden states whose vectors tell something about the next symbol, so that there is something
    to fit.
    """
    objective, _, _, rows = make(spec, table=table, readout=readout)
    hidden = scale * torch.randn(n, D, generator=seeded(1))
    vectors = objective.predict(hidden, rows).vector.detach()
    target_ids = torch.multinomial(
        torch.softmax(2 * vectors @ rows.T, -1), 1, generator=seeded(2)
    ).squeeze(1)
    return objective, hidden, target_ids, rows, vectors


@pytest.mark.parametrize("table", ["random", "orthonormal"])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_tau_is_the_best_of_a_fine_grid(table, scale):
    objective, hidden, target_ids, rows, vectors = text_like("mse", "tau", scale, table)
    distance = ((vectors[:, None] - rows) ** 2).sum(-1).double().numpy()

    def nats(log_tau):
        return -log_softmax(-distance / np.exp(log_tau), axis=-1)[np.arange(400), target_ids].mean()

    with torch.inference_mode():
        objective.calibrate(hidden, target_ids, rows)
    found = float(objective.readout.log_tau)
    grid = np.linspace(-7, 3, 401)
    losses = [nats(log_tau) for log_tau in grid]
    assert abs(found - grid[int(np.argmin(losses))]) <= grid[1] - grid[0]
    assert nats(found) <= min(losses) + 1e-6


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 0.01, 100, 1e6, 1e12])
@pytest.mark.parametrize("readout", ["tau", "affine"])
def test_scaling_vectors_and_table_changes_no_reading(readout, scale):
    """xatol: the search for log tau ends within 1e-5, where the loss is flat. L-BFGS ends at 1e-5
    of the gradient, and float32 rounds the standardised vectors.
    """
    objective, hidden, target_ids, rows, _ = text_like("mse", readout)
    found = []
    for factor in (1, scale):
        objective.head.weight.data *= factor
        with torch.inference_mode():
            objective.calibrate(hidden, target_ids, factor * rows)
            found.append(objective.predict(hidden, factor * rows).log_probs)
    nats = [-one.gather(1, target_ids[:, None]).mean().item() for one in found]
    assert nats[0] < math.log(V) - 0.1  # the vectors tell something
    assert nats[1] == pytest.approx(nats[0], abs=1e-6 if readout == "tau" else 1e-4)


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4])
def test_tau_reads_rows_that_lie_close_together(spread):
    """A table that collapses is read as float64 reads the same vectors, and no worse than blind."""
    objective, _, target_ids, rows, vectors = text_like("mse", "tau")
    centre = torch.full((M,), 0.5)
    table, y = centre + spread * rows, centre + spread * vectors
    readout = objective.readout
    with torch.inference_mode():
        readout.calibrate(objective, y, y, target_ids, table)
        log_probs = readout.read(objective, y, y, table)[0]
    far = torch.cdist(y.double(), table.double()).square()
    expected = torch.log_softmax(-far / readout.log_tau.double().exp(), -1)
    # M products of size |y||r|·2/tau, each rounded once, and their sum
    size = float(2 * y.norm(dim=1).max() * (table - table.mean(0)).norm(dim=1).max())
    bound = (M + 2) * 2.0**-23 * size / float(readout.log_tau.exp())
    assert (log_probs - expected).abs().max() < bound < 0.5
    nats = -log_probs.gather(1, target_ids[:, None]).mean()
    assert nats < math.log(V) - 0.1


def test_tau_reads_equal_rows_as_knowing_nothing():
    objective, hidden, target_ids, rows, _ = text_like("mse", "tau")
    with torch.inference_mode():
        objective.calibrate(hidden, target_ids, rows[:1].expand(V, M))
        found = objective.predict(hidden, rows[:1].expand(V, M)).log_probs
    torch.testing.assert_close(found, torch.full_like(found, -math.log(V)))


@pytest.mark.parametrize("spec", ["mse", "vmf", "successor"])
def test_affine_is_a_multinomial_logistic_regression(spec):
    """Equal rows have no reading by distance to begin with, so the ridge pulls W towards zero."""
    from sklearn.linear_model import LogisticRegression

    objective, hidden, target_ids, rows, vectors = text_like(spec, "affine(400, 1e-5)")
    with torch.inference_mode():
        objective.calibrate(hidden, target_ids, rows[:1].expand(V, M))
    x = ((vectors - vectors.mean(0)) / vectors.var(0).mean().sqrt()).double().numpy()
    peer = LogisticRegression(C=1 / (2 * 1e-5 * len(x)), tol=1e-8, max_iter=5000).fit(x, target_ids)
    probs = objective.predict(hidden, rows).probs
    np.testing.assert_allclose(probs.detach(), peer.predict_proba(x), atol=5e-3)
    nats = -probs.log().gather(1, target_ids[:, None]).mean().item()
    best = -np.log(peer.predict_proba(x))[np.arange(len(x)), target_ids].mean()
    assert nats == pytest.approx(best, abs=2e-4)


@pytest.mark.parametrize("tokens", [40, 400, 4000])
def test_affine_loses_nothing_to_the_reading_by_distance_it_contains(tokens):
    """Symbols drawn from softmax(-|y - e|²/tau), so `tau` is the truth, and every other map is
    worse: a ridge chosen on held-out tokens must not leave it for noise.

    2N times the excess of k fitted numbers on fresh tokens follows chi² with k degrees of freedom:
    a free fit has V·M, one that stays at `tau` has the V - 1 of its bias. The false-alarm odds are
    1 in 1,000; the draws are seeded. A ridge of 1e-5 is all but a free fit.
    """
    generator = seeded(3)
    rows = F.normalize(torch.randn(V, M, generator=generator), dim=1)

    def drawn(n):
        y = rows[torch.randint(V, (n,), generator=generator)]
        y = y + 0.7 * torch.randn(n, M, generator=generator)
        logits = -torch.cdist(y, rows).square() / 0.5
        return y, logits.softmax(-1).multinomial(1, generator=generator).flatten()

    (y, ids), (fresh, after) = drawn(tokens), drawn(20_000)
    nats = {}
    for way in ("tau", "affine", "affine(400, 1e-5)"):
        objective = make("mse", readout=way)[0]
        with torch.inference_mode():
            objective.readout.calibrate(objective, y, y, ids, rows)
            found = objective.readout.read(objective, fresh, fresh, rows)[0]
        nats[way] = F.nll_loss(found, after).item()
    price = stats.chi2.ppf(0.999, V - 1) / (2 * tokens)  # of the bias, which no ridge holds
    assert nats["affine"] <= nats["tau"] + price
    if tokens <= 400:
        assert nats["affine(400, 1e-5)"] > nats["affine"] + 0.02


def test_affine_finds_a_map_that_distances_do_not_know():
    """The vectors are turned against the rows: by distance they say nothing, by a map all."""
    _, _, target_ids, rows, vectors = text_like("mse", "affine")
    turned = vectors.roll(1, dims=1)
    nats = {}
    for way in ("tau", "affine"):
        one = make("mse", readout=way)[0]
        with torch.inference_mode():
            one.readout.calibrate(one, turned, turned, target_ids, rows)
            found = one.readout.read(one, turned, turned, rows)[0]
        nats[way] = F.nll_loss(found, target_ids).item()
    assert nats["affine"] < nats["tau"] - 0.1


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [("affine(3)", "tokens"), ("affine(64, 0)", "ridge"), ("affine(64, -1.0)", "ridge")],
)
def test_affine_refuses_what_it_cannot_be_fitted_with(spec, wrong):
    with pytest.raises(ValueError, match=wrong):
        make("mse", readout=spec)


@pytest.mark.parametrize("readout", ["barycentric", "votes"])
def test_prior_is_the_smoothed_frequency_of_symbols(readout):
    objective, hidden, _, rows = make("energy", readout=readout)
    target_ids = torch.tensor([0, 0, 0, 1, 3, 3])
    objective.calibrate(hidden.flatten(0, 1), target_ids, rows)
    torch.testing.assert_close(objective.readout.prior, torch.tensor([4.0, 2, 1, 3, 1]) / 11)


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_barycentric_reading_of_a_mixture_is_its_weights(share):
    """Rows are affinely independent and the vectors are mixtures of them, so the weights are
    known.
    """
    objective, _, _, rows = make("mse", readout=f"barycentric({share})")
    weights = torch.softmax(torch.randn(D, V, generator=seeded()), -1)
    objective.head.weight.data = (weights @ rows).T
    found = objective.predict(torch.eye(D), rows).probs
    torch.testing.assert_close(
        found, (1 - share) * weights + share * objective.readout.prior, atol=2e-6, rtol=0
    )


@pytest.mark.parametrize("name", ["mixture", "energy", "flow"])
def test_votes_count_the_nearest_rows_of_draws(name):
    objective, hidden, _, rows = make(name, table="joint(sphere=False)", readout="votes(9)")
    h, rows = hidden.flatten(0, 1), 3 * rows
    noise = torch.randn(9, 1, objective.noise_dim, generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(N, V)
    for draw in objective.draw(objective.output(h), noise, rows):  # (N, m)
        for n, vector in enumerate(draw):
            counts[n, (vector - rows).norm(dim=-1).argmin()] += 1
    torch.testing.assert_close(
        objective.predict(h, rows).probs, (counts + objective.readout.prior) / 10
    )


@pytest.mark.parametrize("name", ["ce", "metric", "vmf", "mixture"])
def test_calibrate_leaves_probabilities_alone_that_need_no_fitting(name):
    objective, hidden, target_ids, table = make(name)
    before = objective.predict(hidden[0], table).probs
    objective.calibrate(hidden.flatten(0, 1), target_ids.flatten(), table)
    assert torch.equal(before, objective.predict(hidden[0], table).probs)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_readouts_that_make_no_sense_are_refused_with_those_that_do(name):
    for readout in READOUTS.names():
        if readout in OBJECTIVES.get(name).readouts:
            assert make_objective(name, readout, D, V, M).readout is not None
        else:
            with pytest.raises(
                ValueError, match=f"'{name}' cannot be read by '{readout}'; its readouts: "
            ):
                make_objective(name, readout, D, V, M)


@pytest.mark.parametrize(
    ("spec", "readout", "message"),
    [
        ("magic", None, "unknown objective 'magic'; known: ce, metric"),
        ("mse", "magic", "cannot be read by 'magic'"),
        ("mse(3)", None, r"objective 'mse\(3\)'"),
        ("successor(1)", None, r"gamma must lie in \[0, 1\), not 1"),
        ("mixture(0)", None, "components must be at least 1"),
        ("energy(alpha=0.5)", None, r"alpha in \[1, 2\]"),
        ("energy(1)", None, "samples must be at least 2"),
        ("flow(11)", None, "steps must lie in 1 … 10, not 11"),
        ("anchored(-1)", None, "pull must be at least 0, not -1"),
        ("mse", "barycentric(1.5)", "share must lie between 0 and 1, not 1.5"),
        ("flow", "votes(0)", "draws must be at least 1, not 0"),
    ],
)
def test_make_objective_says_what_would_be_right(spec, readout, message):
    with pytest.raises(ValueError, match=message):
        make_objective(spec, readout, D, V, M)


def test_a_new_objective_is_one_class_and_one_registry_line(tiny, corpus, monkeypatch):
    monkeypatch.setattr(OBJECTIVES, "_members", dict(OBJECTIVES._members))

    @OBJECTIVES.register("absolute")
    class Absolute(Objective):
        def losses(self, output, target_ids, table, generator):
            return (output - table[target_ids]).abs().sum(-1)

    model = tiny(alive=False, objective="absolute", n_layers=1)
    losses = train(model, corpus, TrainConfig(steps=20, eval_every=10), progress=False).history[
        "train_loss"
    ]
    assert losses.iloc[-1] < losses.iloc[0]
    assert len(generate(model, "abc", 5).text) == 5
    assert model.with_readout("barycentric").config.readout == "barycentric(0.07)"


def test_tau_of_old_checkpoints_is_found():
    objective, *_ = make("mse")
    objective.load_state_dict({"head.weight": torch.ones(M, D), "log_tau": torch.tensor(-1.5)})
    assert objective.readout.log_tau == -1.5


def test_squared_distance_agrees_with_loops_and_is_never_negative():
    vectors, table = torch.randn(30, M, generator=seeded()), torch.randn(V, M, generator=seeded(1))
    vectors[:V] = table
    found = squared_distance(vectors, table)
    expected = [
        [((y - e) ** 2).sum() for e in table.double().numpy()] for y in vectors.double().numpy()
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found >= 0).all()
