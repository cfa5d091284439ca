"""What goes back in."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_predictor import Bigram

from softar_lab.core.predictor import Prediction
from softar_lab.generation import feedback, generate
from softar_lab.generation.run_context import RunContext
from softar_lab.generation.step_context import StepContext

EMBEDDING = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def context(log_probs, vector):
    prediction = Prediction(log_probs, vector)
    n = len(log_probs)
    one_hot = torch.eye(5)[
        torch.zeros(n).long()
    ]  # what a collapse might say: no feedback here may listen to it
    return StepContext(torch.zeros(n).long(), prediction, one_hot, torch.zeros(n).long(), EMBEDDING)


def test_mixture_is_the_weighted_mean_of_the_rows():
    probs = torch.softmax(torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), -1)
    found = feedback.resolve("mixture")(context(probs.log(), torch.zeros(4, 3)))
    expected = [
        sum(p * e for p, e in zip(row, EMBEDDING.double().numpy()))
        for row in probs.double().numpy()
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    torch.testing.assert_close(feedback.mixture(probs, EMBEDDING), found)


def test_mixture_of_certainty_is_the_row_itself():
    assert torch.equal(
        feedback.resolve("mixture")(context(torch.eye(5).log(), torch.zeros(5, 3))), EMBEDDING
    )


def test_raw_is_the_vector_untouched():
    vector = torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
    assert torch.equal(
        feedback.resolve("raw")(context(torch.zeros(2, 5).log_softmax(-1), vector)), vector
    )


@pytest.mark.parametrize("name", feedback.names())
def test_every_feedback_gives_one_vector_a_row(name, tiny):
    model = tiny(letters="abcde", embedding_dim=3)
    given = context(torch.zeros(2, 5).log_softmax(-1), torch.ones(2, 3))
    given = replace(given, state=model.start(2), run=RunContext(model, 2))
    assert feedback.resolve(name)(given).shape == (2, 3)


@pytest.mark.parametrize("name", feedback.names())
def test_every_feedback_of_certainty_is_the_row_itself(name):
    """All but `hidden`, `mean`, the two others and `pause`, which do not listen to the row's own
    probabilities.
    """
    certain = StepContext(
        torch.arange(5),
        Prediction(torch.eye(5).log(), EMBEDDING),
        torch.eye(5),
        torch.arange(5),
        EMBEDDING,
    )
    if name not in ("hidden", "mean", "other", "other-text", "pause"):
        torch.testing.assert_close(feedback.resolve(name)(certain), EMBEDDING)


def test_unknown_feedback_lists_the_known():
    with pytest.raises(ValueError, match="unknown feedback 'echo'; known: mixture, raw"):
        feedback.resolve("echo")


def test_gumbel_leans_towards_the_emitted_symbol_and_becomes_its_row_when_cold():
    log_probs = torch.randn(6, 5, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    shown = torch.tensor([0, 1, 2, 3, 4, 4])
    given = StepContext(
        torch.arange(6),
        Prediction(log_probs),
        log_probs.exp(),
        shown,
        EMBEDDING,
        (0, 0, 7, 7, 7, 8),
    )
    torch.testing.assert_close(feedback.resolve("gumbel(1e-6)")(given), EMBEDDING[shown])
    warm = feedback.resolve("gumbel")(given)
    assert not torch.allclose(warm, EMBEDDING[shown], atol=1e-2)
    assert torch.equal(warm, feedback.resolve("gumbel")(given))  # seed and step decide the noise


def test_dirichlet_goes_from_the_emitted_symbols_row_to_the_mixture():
    log_probs = torch.randn(6, 5, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    shown = torch.tensor([0, 1, 2, 3, 4, 4])
    given = StepContext(
        torch.arange(6),
        Prediction(log_probs),
        log_probs.exp(),
        shown,
        EMBEDDING,
        (0, 0, 7, 7, 7, 8),
    )
    torch.testing.assert_close(feedback.resolve("dirichlet(1e-9)")(given), EMBEDDING[shown])
    mixed = feedback.mixture(log_probs.exp(), EMBEDDING)
    found = feedback.resolve("dirichlet(1e9)")(given)
    torch.testing.assert_close(found, mixed, atol=1e-3, rtol=0)
    warm = feedback.resolve("dirichlet")(given)
    assert torch.equal(warm, feedback.resolve("dirichlet")(given))  # seed and step decide the draw
    with pytest.raises(ValueError, match="concentration above 0, not 0"):
        feedback.resolve("dirichlet(0)")


def test_gumbel_noise_depends_on_seed_and_step_and_not_on_the_neighbours():
    log_probs = torch.zeros(4, 5).log_softmax(-1)
    shown = torch.zeros(4, dtype=torch.long)
    given = StepContext(
        torch.tensor([0, 1, 0, 0]),
        Prediction(log_probs),
        log_probs.exp(),
        shown,
        EMBEDDING,
        (1, 1, 2, 1),
    )
    soft = feedback.resolve("gumbel")(given)
    assert torch.equal(soft[0], soft[3])
    assert not torch.allclose(soft[0], soft[1])
    assert not torch.allclose(soft[0], soft[2])


@pytest.mark.parametrize("spec", ["mixture({})", "mixture({}, 3)", "gumbel({})"])
@pytest.mark.parametrize("temperature", ["1e-30", "1e-38", "1e-45", "1e-300"])
def test_the_coldest_temperatures_give_the_row_of_the_best_symbol(tiny, spec, temperature):
    """Log-probabilities divided by so little are infinite in float32."""
    model = tiny(objective="mse")
    how = {"schedule": "never", "temperature": 0, "collapse": "softmax"}
    path = generate(model, "ab", 6, feedback=spec.format(temperature), **how)
    torch.testing.assert_close(path.inputs, model.embedding[path.token_ids])


def test_gumbel_refuses_a_temperature_that_is_infinite():
    with pytest.raises(ValueError, match="needs a temperature above 0, not inf"):
        feedback.GumbelSoft(math.inf)


def test_gumbel_refuses_a_temperature_of_zero():
    with pytest.raises(ValueError, match="above 0"):
        feedback.resolve("gumbel(0)")


# -- norm-restored, sampled, hidden -----------------------------------------------------------------------------------


def random_context(n=6):
    log_probs = (2 * torch.randn(n, 5, generator=torch.Generator().manual_seed(3))).log_softmax(-1)
    return StepContext(
        torch.arange(n), Prediction(log_probs), log_probs.exp(), torch.arange(n) % 5, EMBEDDING
    )


def test_norm_restored_is_the_mixture_as_long_as_its_rows_in_the_mean():
    given = random_context()
    p, rows = given.prediction.log_probs.double().exp().numpy(), EMBEDDING.double().numpy()
    mixed, length = p @ rows, p @ np.linalg.norm(rows, axis=1)
    found = feedback.resolve("norm-restored")(given)
    np.testing.assert_allclose(
        found, mixed / np.linalg.norm(mixed, axis=1)[:, None] * length[:, None], rtol=1e-5
    )
    torch.testing.assert_close(found.norm(dim=-1), torch.from_numpy(length).float())


def test_norm_restored_leaves_a_mixture_of_no_length_alone():
    table = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    given = StepContext(
        torch.zeros(1).long(), Prediction(torch.zeros(1, 2).log_softmax(-1)), None, None, table
    )
    assert torch.equal(feedback.resolve("norm-restored")(given), torch.zeros(1, 2))


@pytest.mark.parametrize("beta", [0, 0.5, 1, 4.0])
def test_sampled_is_mixture_of_inputs_by_hand(beta):
    given = random_context()
    p, rows = given.prediction.log_probs.double().exp().numpy(), EMBEDDING.double().numpy()
    H = -(p * np.log(p)).sum(1, keepdims=True) / np.log(5)
    w = (H * p + (beta + 1 - H) * np.eye(5)[given.token_ids]) / (beta + 1)
    np.testing.assert_allclose(w.sum(1), 1)
    np.testing.assert_allclose(feedback.resolve(f"sampled({beta})")(given), w @ rows, atol=1e-6)


def test_sampled_in_its_limits():
    """A large beta is the symbol's row; of a uniform p at beta 0 nothing but the mixture is left; V
    = 1 is certain.
    """
    given = random_context()
    torch.testing.assert_close(feedback.resolve("sampled(1e9)")(given), EMBEDDING[given.token_ids])
    even = replace(given, prediction=Prediction(torch.zeros(6, 5).log_softmax(-1)))
    torch.testing.assert_close(feedback.resolve("sampled(0)")(even), EMBEDDING.mean(0).expand(6, 3))
    only = StepContext(
        torch.zeros(1).long(),
        Prediction(torch.zeros(1, 1)),
        None,
        torch.zeros(1).long(),
        EMBEDDING[:1],
    )
    assert torch.equal(feedback.resolve("sampled")(only), EMBEDDING[:1])


@pytest.mark.parametrize(
    "spec", ["sampled(-1)", "sampled(float)", "sampled('a')", "sampled(1e999)", "norm-restored(1)"]
)
def test_a_wrong_argument_is_a_value_error(spec):
    with pytest.raises(ValueError, match=r"sampled|norm-restored"):
        feedback.resolve(spec)


@pytest.mark.parametrize("width", [4, 16, 20])
def test_hidden_is_the_vector_read_most_like_the_hidden_state(tiny, width):
    """Least squares in float64 (the shortest solution where there are many); exact where m reaches
    the body's width.
    """
    model = tiny(embedding_dim=width)
    state = model.read(model.start(3), torch.tensor([[1, 2], [3, 4], [5, 6]]))
    given = StepContext(torch.zeros(3).long(), model.predict(state), None, None, model.embedding)
    found = feedback.resolve("hidden")(replace(given, state=state, run=RunContext(model, 3)))
    weight = model.input.weight.detach().double().numpy()  # (d, m)
    expected = np.linalg.lstsq(weight, state.hidden.double().numpy().T)[0].T
    size = np.abs(expected).max()
    np.testing.assert_allclose(found.detach() / size, expected / size, atol=1e-4)
    if width >= 16:
        torch.testing.assert_close(model.input(found), state.hidden, atol=1e-3, rtol=1e-3)


def test_hidden_inverts_the_input_map_once_per_run(tiny, monkeypatch):
    asked, pinv = [], torch.linalg.pinv
    monkeypatch.setattr(torch.linalg, "pinv", lambda weight: asked.append(1) or pinv(weight))
    generate(tiny(), "ab", 6, schedule="never", feedback="hidden")
    assert asked == [1]


def test_hidden_needs_a_model_with_one_linear_map():
    given = replace(random_context(1), state=torch.zeros(1).long(), run=RunContext(Bigram(), 1))
    with pytest.raises(ValueError, match="only a SoftAR"):
        feedback.resolve("hidden")(given)


# -- the controls -----------------------------------------------------------------------------------------------------


def test_control_shown_is_the_row_of_the_symbol_whatever_was_predicted():
    given = replace(random_context(), token_ids=torch.tensor([4, 4, 0, 1, 2, 3]))
    assert torch.equal(feedback.resolve("shown")(given), EMBEDDING[[4, 4, 0, 1, 2, 3]])


@pytest.mark.parametrize("when", ["never", "every(3)"])
def test_control_shown_generates_what_always_generates(tiny, when):
    model = tiny(objective="mse", scale=0.15)
    found, hard = (
        generate(model, "ab", 20, schedule=s, feedback="shown", seed=3) for s in (when, "always")
    )
    assert found.text == hard.text
    torch.testing.assert_close(found.inputs, hard.inputs)


def test_mean_is_the_mean_row_for_everyone():
    assert torch.equal(feedback.resolve("mean")(random_context()), EMBEDDING.mean(0).expand(6, 3))


def test_other_is_the_mixture_of_the_row_before():
    given = random_context()
    mixed = feedback.resolve("mixture")(given)
    assert torch.equal(feedback.resolve("other")(given), mixed[[5, 0, 1, 2, 3, 4]])


def test_other_needs_another_row(tiny):
    with pytest.raises(ValueError, match="at least 2 prompts"):
        generate(tiny(), "ab", 3, schedule="never", feedback="other")


def test_nearest_is_the_row_closest_to_the_vector():
    vectors = torch.randn(6, 3, generator=torch.Generator().manual_seed(5))
    given = replace(
        random_context(), prediction=Prediction(torch.zeros(6, 5).log_softmax(-1), vectors)
    )
    closest = [min(range(5), key=lambda i: np.linalg.norm(EMBEDDING[i] - y)) for y in vectors]
    assert torch.equal(feedback.resolve("nearest")(given), EMBEDDING[closest])
    with pytest.raises(ValueError, match='feedback "nearest" needs a model that predicts vectors'):
        feedback.resolve("nearest")(random_context())


@pytest.mark.parametrize("shape", [(5, 7), (5, 3), (5, 5)])
def test_pause_is_as_long_as_rows_and_orthogonal_to_them_where_they_leave_a_direction(shape):
    table = torch.randn(shape, generator=torch.Generator().manual_seed(6))
    given = replace(random_context(), embedding=table)
    found = feedback.resolve("pause")(given)
    assert torch.equal(found, found[:1].expand_as(found))
    torch.testing.assert_close(found.norm(dim=-1), table.norm(dim=-1).mean().expand(6))
    if shape[0] < shape[1]:
        torch.testing.assert_close(table @ found[0], torch.zeros(5), atol=1e-5, rtol=0)
    assert torch.equal(found, feedback.resolve("pause")(given))
    assert not torch.allclose(found, feedback.resolve("pause(1)")(given), atol=1e-2)


def test_other_text_is_the_symbol_of_the_row_before():
    given = context(torch.zeros(3, 5).log_softmax(-1), torch.zeros(3, 3))
    given = replace(given, token_ids=torch.tensor([4, 1, 2]))
    found = feedback.resolve("other-text")(given)
    assert torch.equal(found, EMBEDDING[[2, 4, 1]])
    alone = context(torch.zeros(1, 5).log_softmax(-1), torch.zeros(1, 3))
    with pytest.raises(ValueError, match='"other-text" takes the symbols of another row'):
        feedback.resolve("other-text")(alone)


# -- projected ------------------------------------------------------------------------------------


def test_projected_at_rate_1_is_raw(tiny):
    model = tiny(objective="mse", scale=0.15)
    raw, projected = (
        generate(model, ["ab", "", "cdc"], 9, schedule=schedule, feedback=feed, seed=range(3))
        for feed in ("raw", "projected(1.0)")
        for schedule in ["every(3)"]
    )
    for one, other in zip(raw, projected, strict=True):
        assert torch.equal(one.inputs, other.inputs)


@pytest.mark.parametrize("prompts", [["ab", "cdc"], ["", "b"]])
@pytest.mark.parametrize("when", ["never", "every(3)", "random(0.5)"])
def test_projected_steps_from_what_was_read_last(tiny, when, prompts):
    """u + rate (y - u), step by step from the stored path: u is the input before."""
    model, rate = tiny(objective="mse", scale=0.15), 0.3
    for path in generate(model, prompts, 12, schedule=when, feedback=f"projected({rate})",
                         seed=range(2)):  # fmt: skip
        read = model.tokenizer.encode(path.prompt)
        u = model.embedding[read[-1]] if len(read) else path.vectors[0]
        for t in range(len(path)):
            if not path.collapsed[t]:
                torch.testing.assert_close(path.inputs[t], torch.lerp(u, path.vectors[t], rate))
            u = path.inputs[t]


def test_projected_noise_is_decided_by_seed_and_step_and_as_large_as_it_says():
    wide = torch.nn.functional.normalize(torch.randn(5, 400), dim=-1) * 2  # rows of length 2
    log_probs = torch.zeros(3, 5).log_softmax(-1)
    given = StepContext(
        torch.tensor([0, 0, 1]), Prediction(log_probs, torch.zeros(3, 400)), None,
        torch.zeros(3).long(), wide, (1, 1, 1),
    )  # fmt: skip
    found = feedback.resolve("projected(1, 0.1)")(given)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    # 1,200 numbers of standard deviation 0.2: theirs is off by 5 standard errors once in 10^6 runs
    assert found[1:].std().item() == pytest.approx(0.2, rel=5 / (2 * 800) ** 0.5)


@pytest.mark.parametrize("spec", ["projected(0)", "projected(1.5)", "projected(0.5, -1)"])
def test_projected_names_a_wrong_number(spec):
    with pytest.raises(ValueError, match=r"projected\((rate|noise)\)"):
        feedback.resolve(spec)
    assert feedback.FEEDBACKS.spec(feedback.Projected()) == "projected(rate=0.5, noise=0.0)"
