"""Soft tokens among the inputs of training: their law, what they may know, where gradients go, and
exact resumes.
"""

import math
import os
import signal
from itertools import combinations

import numpy as np
import pytest
import torch
from bounds import exact
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional as F

from softar_lab.core.predictor import Prediction
from softar_lab.models.scoring import calibrate
from softar_lab.models.simplex import posterior_dirichlet, posterior_gumbel
from softar_lab.training import data as batches
from softar_lab.training import trainer as training
from softar_lab.training.config import TrainConfig
from softar_lab.training.data import TrainingRows
from softar_lab.training.loop import TrainingDiverged, train
from softar_lab.training.soft_inputs import (
    REFIT,
    SOFT_INPUTS,
    PosteriorGumbel,
    Scheduled,
    SoftInputs,
    names,
    soft_rows,
)
from softar_lab.training.update import autocast, make_optimizers, update

BOTH = ("scheduled(1)", "posterior-gumbel")
LEARNERS = ("ce", "mse", "energy(4)")


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def small(tiny, **changes):
    return tiny(**{"alive": False, "context": 8, "n_layers": 1, "d_model": 8, **changes})


def letters(model, generator, rows=3, length=6):
    return torch.randint(model.vocab_size, (rows, length), generator=generator)


# -- Gumbel noise given who wins --------------------------------------------------------------------------------------


@given(
    st.integers(0, 2**32),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([0.1, 1.0, 30.0]),
)
@settings(max_examples=100, deadline=None)
def test_posterior_gumbel_gives_the_token_the_largest_entry_however_unlikely_it_is(
    seed, dtype, spread
):
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.log_softmax(spread * torch.randn(20, 7, generator=generator, dtype=dtype), -1)
    token_ids = torch.randint(7, (20,), generator=generator)
    found = posterior_gumbel(
        log_probs, token_ids, torch.rand(20, 7, generator=generator, dtype=torch.float64)
    )
    assert found.dtype == dtype
    assert torch.equal(found.gather(1, token_ids[:, None])[:, 0], found.max(1).values)


def test_posterior_gumbel_of_tokens_of_the_language_is_plain_gumbel_noise():
    """Each entry is log p + Gumbel, no two depend on each other, and the largest is Gumbel
    whichever symbol won.

    14 tests at p > 1e-5: a right program fails for 1 seed in 7,000.
    """
    p, rng = np.array([0.55, 0.3, 0.13, 0.02]), np.random.default_rng(0)
    token_ids, uniform = rng.choice(4, 20_000, p=p), torch.from_numpy(rng.random((20_000, 4)))
    log_probs = torch.from_numpy(np.log(p)).expand(20_000, 4)
    found = posterior_gumbel(log_probs, torch.from_numpy(token_ids), uniform).numpy()
    noise = found - np.log(p)
    chances = [stats.kstest(noise[:, i], "gumbel_r").pvalue for i in range(4)]
    chances += [
        stats.spearmanr(noise[:, i], noise[:, j]).pvalue for i, j in combinations(range(4), 2)
    ]
    chances += [stats.kstest(found.max(1)[token_ids == i], "gumbel_r").pvalue for i in range(4)]
    assert min(chances) > 1e-5


@pytest.mark.parametrize("concentration", [1.0, 4.0, 50.0])
def test_posterior_dirichlet_of_tokens_of_the_language_is_a_dirichlet(concentration):
    """Each share of Dirichlet(c p) follows Beta(c p_i, c (1 - p_i)), and a symbol is as likely as its
    weight. False-alarm odds: 5 tests at 1e-4; the draws are seeded.
    """
    probs, n = np.array([0.5, 0.3, 0.15, 0.05]), 20_000
    generator = np.random.default_rng(5)
    ids = generator.choice(4, size=n, p=probs)
    log_probs = torch.from_numpy(np.log(probs)).expand(n, 4)
    uniform = torch.from_numpy(generator.random((n, 4)))
    found = posterior_dirichlet(log_probs, torch.from_numpy(ids), uniform, concentration).numpy()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    for i in range(4):
        law = stats.beta(concentration * probs[i], concentration * (1 - probs[i]))
        assert stats.kstest(found[:, i], law.cdf).pvalue > 1e-4
    right = found[np.arange(n), ids] - (found**2).sum(
        1
    )  # mean 0: the weight that was met, expected
    assert abs(right.mean()) < 4 * right.std() / n**0.5


def test_posterior_dirichlet_is_the_row_of_the_token_or_the_mixture_at_its_ends():
    probs, ids = torch.tensor([[0.6, 0.3, 0.1, 0.0]]), torch.tensor([2])
    uniform = torch.tensor([[0.5, 0.1, 0.9, 0.999]])
    near, far = (posterior_dirichlet(probs.log(), ids, uniform, c) for c in (1e-9, 1e9))
    torch.testing.assert_close(near, torch.tensor([[0.0, 0.0, 1.0, 0.0]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(far, probs, atol=1e-4, rtol=0)
    for end in (0.0, 1 - 2**-53):
        ends = torch.full((1, 4), end, dtype=torch.float64)
        assert posterior_dirichlet(probs.log(), ids, ends, 0.5).isfinite().all()


@pytest.mark.parametrize("end", [0.0, np.nextafter(1.0, 0.0)])
def test_posterior_gumbel_stays_finite_at_the_ends_of_the_uniform_numbers(end):
    log_probs = torch.tensor([[0.5, 0.5 - 1e-30, 1e-30]]).log()
    uniform = torch.full((1, 3), end, dtype=torch.float64)
    for token_id in range(3):
        assert posterior_gumbel(log_probs, torch.tensor([token_id]), uniform).isfinite().all()


@pytest.mark.parametrize("token_id", [0, 1])
def test_posterior_gumbel_never_lets_the_impossible_win_but_where_it_happened(token_id):
    log_probs, uniform = (
        torch.tensor([[0.0, -torch.inf, -torch.inf]]),
        torch.rand(1, 3, dtype=torch.float64),
    )
    found = posterior_gumbel(log_probs, torch.tensor([token_id]), uniform)[0]
    assert found[2] == -torch.inf
    assert found[token_id].isfinite()
    assert found.argmax() == token_id
    assert not found.isnan().any()


def test_posterior_gumbel_at_low_temperature_is_the_row_of_the_token(tiny, rng):
    """At 1e-6 a row is off by more than 1e-5 if the winner leads by less than 1.4e-5: 1 seed in
    4,000 for 18.
    """
    model = tiny(objective="mse")
    ids = letters(model, rng())
    hard = F.embedding(ids, model.embedding)
    cold, warm = (
        soft_rows(model, ids, PosteriorGumbel(t), 0.0, rng()).detach() for t in (1e-6, 1.0)
    )
    torch.testing.assert_close(cold, hard, atol=1e-5, rtol=0)
    assert (warm - hard).norm(dim=-1).max() > 0.1


# -- what a soft token knows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 5, 12])
@pytest.mark.parametrize("objective", [*LEARNERS, "vmf"])
@pytest.mark.parametrize("spec", BOTH)
def test_soft_rows_have_a_vector_for_every_token(tiny, rng, spec, objective, length):
    model = tiny(objective=objective, embedding_dim=14)
    found = soft_rows(
        model, letters(model, rng(), length=length), SOFT_INPUTS.make(spec), 1.0, rng()
    )
    assert found.shape == (3, length, 14)
    assert found.dtype == torch.float32
    assert found.isfinite().all()


@pytest.mark.parametrize("t", [0, 3, 5])
@pytest.mark.parametrize("objective", LEARNERS)
@pytest.mark.parametrize("spec", BOTH)
def test_soft_rows_know_no_later_token_and_scheduled_ones_not_even_their_own(
    tiny, rng, spec, objective, t
):
    model = tiny(objective=objective)
    ids = letters(model, rng())
    other = ids.clone()
    other[:, t] = (other[:, t] + 1) % 13
    how = SOFT_INPUTS.make(spec)
    one, two = (soft_rows(model, given, how, 1.0, rng()).detach() for given in (ids, other))
    moved = (one - two).norm(dim=-1).amax(0)  # (T,)
    assert (moved[:t] < 1e-6).all()
    assert (moved[t] < 1e-6) == (spec == "scheduled(1)")
    assert (moved[t + 1 :] > 1e-5).all()


@pytest.mark.parametrize("objective", LEARNERS)
def test_scheduled_at_the_begin_is_the_hard_rows(tiny, rng, objective):
    model = tiny(objective=objective)
    ids = letters(model, rng())
    assert torch.equal(
        soft_rows(model, ids, Scheduled(1), 0.0, rng()), F.embedding(ids, model.embedding)
    )


@pytest.mark.parametrize("objective", ["ce", "mse", "metric", "successor(0.5)"])
def test_scheduled_in_full_is_what_the_model_predicts_token_by_token(tiny, rng, objective):
    model = tiny(objective=objective)
    ids = letters(model, rng())
    state, expected = model.start(len(ids)), []
    for column in ids.T:
        expected.append(model.predict(state).vector)
        state = model.advance(state, token_ids=column)
    found = soft_rows(model, ids, Scheduled(1), 1.0, rng())
    torch.testing.assert_close(found.detach(), torch.stack(expected, 1), **exact(model))


@pytest.mark.parametrize("objective", ["ce", "mse"])
def test_scheduled_in_several_passes_is_the_model_fed_its_own_predictions(tiny, rng, objective):
    """Six tokens: a run is at most six long, so six passes are enough, and five are not."""
    model = tiny(objective=objective)
    ids = letters(model, rng())
    found = {
        passes: soft_rows(model, ids, Scheduled(1.0, passes), 1.0, rng()) for passes in (5, 6, 7)
    }
    state = model.start(len(ids))
    for t in range(ids.shape[1]):
        vectors = model.predict(state).vector
        torch.testing.assert_close(found[6][:, t].detach(), vectors, atol=1e-4, rtol=1e-4)
        state = model.advance(state, vectors=vectors)
    assert torch.equal(found[6], found[7])
    assert not torch.equal(found[5], found[6])


@pytest.mark.parametrize("objective", ["ce", "mse"])
def test_scheduled_in_several_passes_replaces_the_same_tokens_in_each(tiny, rng, objective):
    model = tiny(objective=objective)
    ids = letters(model, rng())
    rows = [soft_rows(model, ids, Scheduled(0.5, passes), 1.0, rng()) for passes in (1, 4)]
    once, often = ((one == model.embedding[ids]).all(-1) for one in rows)
    assert torch.equal(once, often)
    assert once.any()
    assert not once.all()


def test_scheduled_in_full_is_a_draw_of_an_objective_that_has_draws(tiny, rng):
    model = tiny(objective="energy(4)")
    ids = letters(model, rng())
    one, two = (soft_rows(model, ids, Scheduled(1), 1.0, rng(seed)) for seed in (1, 2))
    output = model.objective.output(model.hidden_states(ids[:, :-1]).flatten(0, 1))
    noise = torch.randn(1, len(output), model.objective.noise_dim, generator=rng(1))
    torch.testing.assert_close(
        one.flatten(0, 1), model.objective.draw(output, noise, model.embedding)[0].detach()
    )
    assert not torch.isclose(one, two).any()


@pytest.mark.parametrize(("share", "done"), [(0.6, 0.5), (1, 0.3), (0.3, 1.0)])
def test_scheduled_replaces_a_share_that_grows_in_a_straight_line(rng, share, done):
    """Always 30 %, of 10,000 tokens: more than 5 standard deviations off for 1 seed in 1.7
    million.
    """
    table, ids = torch.ones(2, 3), torch.zeros(10_000, dtype=torch.long)
    prediction = Prediction(torch.zeros(10_000, 2), vector=torch.zeros(10_000, 3))
    found = Scheduled(share)(prediction, ids, table, done, rng())
    assert torch.equal(found, found[:, :1].expand(-1, 3))  # a token is replaced as a whole
    assert abs((found[:, 0] == 0).double().mean() - 0.3) < 5 * (0.3 * 0.7 / 10_000) ** 0.5


# -- where gradients go -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", LEARNERS)
@pytest.mark.parametrize("spec", BOTH)
def test_soft_rows_send_no_gradient_into_the_first_pass(tiny, rng, spec, objective):
    """A trained table is reached all the same, as it is read; a frozen one leaves nothing to
    differentiate.
    """
    model = tiny(objective=objective, table="random(trained=True)")
    soft_rows(
        model, letters(model, rng()), SOFT_INPUTS.make(spec), 0.5, rng()
    ).square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == [
        "table.weight"
    ]
    frozen = tiny(objective=objective, table="random")
    assert not soft_rows(
        frozen, letters(frozen, rng()), SOFT_INPUTS.make(spec), 0.5, rng()
    ).requires_grad


def test_posterior_gumbel_reaches_the_table_by_the_weights_of_its_mixtures(tiny, rng):
    model = tiny(objective="mse", table="orthonormal(trained=True)")
    found = soft_rows(model, letters(model, rng()), PosteriorGumbel(), 0.0, rng()).flatten(0, 1)
    mixed = found.detach() @ model.embedding.T  # (N, V): rows at right angles give the weights back
    torch.testing.assert_close(mixed.sum(1), torch.ones(len(mixed)))
    found.sum().backward()
    torch.testing.assert_close(model.table.weight.grad, mixed.sum(0)[:, None].expand(13, 13))


def test_scheduled_reaches_the_table_by_what_stays_hard(tiny, rng):
    model = tiny(objective="mse", table="joint")
    ids = letters(model, rng(), rows=20)
    found = soft_rows(model, ids, Scheduled(1), 0.5, rng())
    hard = (found == F.embedding(ids, model.table.weight)).all(-1)
    assert 0 < hard.sum() < ids.numel()
    found.sum().backward()
    counts = torch.bincount(ids[hard], minlength=13).float()
    torch.testing.assert_close(model.table.weight.grad, counts[:, None].expand(13, 16))


@pytest.mark.parametrize("spec", BOTH)
def test_bf16_is_for_the_body_alone_and_costs_no_gradient(tiny, rng, spec):
    """Autocast keeps the weights it has cast: those of a pass without gradient must not serve the
    one that learns.
    """
    model = tiny(objective="vmf", table="joint", scale=0.15)
    ids, seen, gradients = letters(model, rng()), [], {}

    def how(prediction, *others):
        seen.append(prediction)
        return SOFT_INPUTS.make(spec)(prediction, *others)

    for precision in ("fp32", "bf16"):
        model.zero_grad()
        with autocast(model.device, precision):
            soft = soft_rows(model, ids, SOFT_INPUTS.resolve(how), 0.5, rng())
            hidden = model.hidden_states(vectors=soft)
        assert soft.dtype == torch.float32
        model.objective.loss(hidden.float()[:, :-1], ids, model.table.weight, rng()).backward()
        gradients[precision] = {
            name: p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None
        }
    assert seen[1].probs.sum(1).sub(1).abs().max() < 1e-6
    assert gradients["bf16"].keys() == gradients["fp32"].keys()
    assert all(
        F.cosine_similarity(gradients["bf16"][n], g, dim=0) > 0.99
        for n, g in gradients["fp32"].items()
    )


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["drawn", "scheduled", "posterior-gumbel", "posterior-dirichlet"])
def test_predictions_that_are_no_numbers_are_a_divergence_for_every_member(
    tiny, corpus, monkeypatch, spec
):
    """Also for one that somebody adds: torch refuses to draw from NaN in words of its own."""

    class Drawn(SoftInputs):
        def __call__(self, prediction, token_ids, table, done, generator):
            probs = prediction.log_probs.exp()
            return table[torch.multinomial(probs, 1, generator=generator).flatten()]

    monkeypatch.setitem(SOFT_INPUTS._members, "drawn", Drawn)
    recipe = TrainConfig(
        steps=3, batch_size=1, eval_every=0, save_every=0, muon_learning_rate=1e30, soft_inputs=spec
    )
    with pytest.raises(TrainingDiverged, match="at step 2"):
        train(tiny(alive=False), corpus, recipe, progress=False)


def test_names_are_those_of_the_package():
    """Beside them a study may have registered a control of its own, where it was imported."""
    own = [name for name in names() if SOFT_INPUTS.get(name).__module__.startswith("softar_lab.")]
    assert own == ["scheduled", "posterior-gumbel", "posterior-dirichlet"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("x", "unknown soft_inputs 'x'; known: scheduled, posterior-gumbel"),
        ("", "known: scheduled, posterior-gumbel"),
        ("scheduled(2)", r"'scheduled\(2\)': share must lie in \[0, 1\], not 2"),
        ("scheduled(-0.1)", "share"),
        ("scheduled(0.1, 0)", "passes must be a whole number of at least 1, not 0"),
        ("scheduled(0.1, 2, 3)", "scheduled"),
        ("posterior-gumbel(0)", r"'posterior-gumbel\(0\)': temperature must be above 0, not 0"),
        ("posterior-gumbel(heat=1)", "heat"),
        ("posterior-dirichlet(0)", "concentration must be above 0, not 0"),
    ],
)
def test_train_config_refuses_other_soft_inputs(spec, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(soft_inputs=spec)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["scheduled", "posterior-gumbel", "posterior-dirichlet"])
@pytest.mark.parametrize("objective", LEARNERS)
def test_train_learns_from_soft_inputs(tiny, corpus, objective, spec):
    losses = []
    recipe = TrainConfig(steps=60, batch_size=8, eval_every=0, save_every=0, soft_inputs=spec)
    model = tiny(alive=False, objective=objective, n_layers=1)
    done = train(
        model,
        corpus,
        recipe,
        progress=False,
        on_step=lambda event: losses.append(event["train_loss"]),
    )
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert done.val_bits_per_char < 2.5  # read as hard tokens; 3.7 at first


def test_streams_of_a_step_have_numbers_of_their_own(tiny, corpus):
    """The generator may not take all of a seed for its own: what counts is what it draws, not what
    it was given.
    """
    rows = TrainingRows(small(tiny), corpus, TrainConfig(), seed=3)
    drawn = [
        torch.rand(5, generator=rows.generator(step, stream))
        for step in (-1, 0, 1)
        for stream in range(3)
    ]
    assert not any(torch.equal(one, other) for one, other in combinations(drawn, 2))
    assert torch.equal(
        drawn[3], torch.rand(5, generator=torch.Generator().manual_seed(3_000_010))
    )  # as ever


@pytest.mark.parametrize("spec", BOTH)
def test_update_learns_from_what_the_soft_rows_say(tiny, corpus, spec):
    recipe = TrainConfig(steps=6, batch_size=2, precision="fp32", soft_inputs=spec)
    model = tiny(objective="mse")
    rows = TrainingRows(model, corpus, recipe, seed=3)
    batch = rows.batch(2)
    soft = soft_rows(
        model, batch[:, :-1], SOFT_INPUTS.make(spec), 2 / 6, rows.generator(2, stream=2)
    )
    expected = model.objective.loss(
        model.hidden_states(vectors=soft), batch, model.table.weight, rows.generator(2)
    )
    assert update(model, rows, 2, make_optimizers(model, recipe), recipe) == pytest.approx(
        expected.item(), rel=1e-6
    )


@pytest.mark.parametrize("spec", BOTH)
def test_train_with_soft_inputs_depends_on_its_seed_alone(tiny, corpus, spec):
    found = []
    for seed, noise, inputs in ((0, 1, spec), (0, 2, spec), (1, 1, spec), (0, 1, None)):
        torch.manual_seed(noise)
        model = small(tiny, objective="energy(4)")
        train(
            model,
            corpus,
            TrainConfig(steps=6, batch_size=2, soft_inputs=inputs),
            seed=seed,
            progress=False,
        )
        found.append(weights(model))
    assert same(found[0], found[1])
    assert not any(same(found[0], other) for other in found[2:])


@pytest.mark.parametrize("how", ["tau", "affine", "barycentric"])
@pytest.mark.parametrize("spec", BOTH)
def test_how_often_training_evaluates_changes_no_weight(tiny, corpus, monkeypatch, spec, how):
    monkeypatch.setattr(training, "REFIT", 3)
    found = []
    for every in (0, 1, 2, 5):
        recipe = TrainConfig(steps=7, batch_size=2, eval_every=every, soft_inputs=spec)
        model = small(tiny, objective="mse", readout=how)
        found.append(weights(train(model, corpus, recipe, progress=False).model))
    assert all(same(found[0], other) for other in found[1:])


@pytest.mark.parametrize("stop_at", [1, 2, 5])
@pytest.mark.parametrize("objective", LEARNERS)
@pytest.mark.parametrize("spec", BOTH)
def test_train_with_soft_inputs_goes_on_exactly_where_it_was_stopped(
    tiny, corpus, tmp_path, monkeypatch, spec, objective, stop_at
):
    monkeypatch.setattr(training, "REFIT", 3)  # before, at and after a stop
    recipe = TrainConfig(steps=6, batch_size=2, eval_every=2, save_every=2, soft_inputs=spec)
    whole = train(small(tiny, objective=objective), corpus, recipe, progress=False)

    def press(event):
        if event["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    part = train(
        small(tiny, objective=objective),
        corpus,
        recipe,
        out=tmp_path,
        progress=False,
        on_step=press,
    )
    assert part.interrupted
    rest = train(small(tiny, objective=objective), corpus, recipe, out=tmp_path, progress=False)
    assert same(weights(whole.model), weights(rest.model))
    assert whole.history.drop(columns="seconds").equals(rest.history.drop(columns="seconds"))


@pytest.mark.parametrize(
    ("spec", "expected"), [(None, [6]), ("posterior-gumbel", [0, 3, 6]), ("scheduled", [0, 3, 6])]
)
def test_train_fits_the_readout_again_only_for_soft_inputs(
    tiny, corpus, monkeypatch, spec, expected
):
    monkeypatch.setattr(training, "REFIT", 3)
    updates, fitted = [], []
    monkeypatch.setattr(training, "update", lambda *given: updates.append(1) or update(*given))
    monkeypatch.setattr(
        batches, "calibrate", lambda *given: fitted.append(len(updates)) or calibrate(*given)
    )
    train(
        small(tiny),
        corpus,
        TrainConfig(steps=6, batch_size=2, eval_every=0, soft_inputs=spec),
        progress=False,
    )
    assert fitted == expected  # after so many steps; the last one is that of the evaluation
    assert REFIT == 50


@pytest.mark.parametrize("objective", LEARNERS)
def test_train_without_soft_inputs_is_the_plain_loop(tiny, corpus, objective):
    recipe = TrainConfig(steps=4, batch_size=2, warmup=0, eval_every=0, precision="fp32")
    plain, model = (
        small(tiny, objective=objective, readout="tau" if objective != "ce" else None)
        for _ in range(2)
    )
    rows, optimizers = TrainingRows(plain, corpus, recipe, seed=0), make_optimizers(plain, recipe)
    full = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    for step, share in enumerate((1, 1, 2 / 3, 1 / 3)):  # up in one step, then down to 0 in three
        batch = rows.batch(step)
        hidden = plain.hidden_states(batch[:, :-1])
        plain.objective.loss(
            hidden, batch, plain.table.weight, rows.generator(step, stream=1)
        ).backward()
        for optimizer, rate in zip(optimizers, full, strict=True):
            optimizer.param_groups[0]["lr"] = share * rate
            optimizer.step()
            optimizer.zero_grad()
    train(model, corpus, recipe, progress=False)
    trained = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter, trained[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("temperature", ["1e-30", "1e-38", "1e-300"])
def test_the_coldest_posterior_gumbel_gives_the_rows_themselves(tiny, rng, temperature):
    """Log-probabilities divided by so little are infinite in float32."""
    model = tiny(objective="mse")
    ids = letters(model, rng())
    how = SOFT_INPUTS.resolve(f"posterior-gumbel({temperature})")
    soft = soft_rows(model, ids, how, 0.0, rng()).detach()
    torch.testing.assert_close(soft, F.embedding(ids, model.embedding))


def test_an_infinite_temperature_is_refused():
    with pytest.raises(ValueError, match="temperature must be above 0, not inf"):
        PosteriorGumbel(math.inf)
