"""How a soft token becomes a symbol: ties, limits and frequencies."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from softar_lab.core.predictor import Prediction
from softar_lab.counting.exact import CountingModel
from softar_lab.generation import collapse, generate
from softar_lab.generation.collapse import pick
from softar_lab.generation.step_context import StepContext
from softar_lab.models.embedding_tables import make_table
from softar_lab.models.nearest import nearest, nearest_distance


def uniforms(n, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ask(spec, prediction, embedding, seeds=None, steps=None):
    """What a collapse says of a prediction, at step 0 of seed 0 unless told otherwise."""
    how, n = collapse.resolve(spec), len(prediction.log_probs)
    step = torch.zeros(n).long() if steps is None else torch.tensor(steps)
    context = StepContext(
        step, prediction, None, None, embedding, (0,) * n if seeds is None else seeds
    )
    return collapse.ask(how, prediction, embedding, context)


def predicting(log_probs, vector, noise=0.0):
    """A prediction whose draws are normal around its vector."""

    def sampler(n, generators):
        drawn = [
            vector[i] + noise * torch.randn(n, vector.shape[1], generator=g)
            for i, g in enumerate(generators)
        ]
        return torch.stack(drawn, 1)

    return Prediction(log_probs, vector, sampler)


ALONE = [
    name for name in collapse.names() if name != "mixing"
]  # which reads the body: see test_mixing.py
SPECS = [*ALONE, "nearest('cosine')", "nearest('dot')", "vote(20, 3)", "vote(1)"]


@pytest.mark.parametrize("spec", SPECS)
def test_every_collapse_of_a_certain_prediction_is_that_token(spec):
    embedding = torch.nn.functional.normalize(
        torch.randn(6, 9, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    probs = ask(spec, predicting(torch.eye(6).log(), embedding), embedding)
    torch.testing.assert_close(probs, torch.eye(6), atol=1e-6, rtol=0)
    for temperature in (0, 0.5, 1.0, 3.0):
        assert pick(probs, temperature, uniforms(6)).tolist() == list(range(6))


@pytest.mark.parametrize("spec", SPECS)
def test_every_collapse_gives_probabilities(spec):
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(6, 4, generator=generator)
    log_probs = torch.log_softmax(torch.randn(5, 6, generator=generator), -1)
    probs = ask(spec, predicting(log_probs, torch.randn(5, 4, generator=generator), 1.0), embedding)
    assert (probs >= 0).all()
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(-1), torch.ones(5))
    assert torch.equal(pick(probs, 0, uniforms(5)), probs.argmax(-1))


# -- nearest ----------------------------------------------------------------------------------------------------------


def test_nearest_agrees_with_loops_in_float64():
    generator = torch.Generator().manual_seed(0)
    vectors, embedding = (
        torch.randn(50, 5, generator=generator),
        torch.randn(9, 5, generator=generator),
    )
    distance = np.linalg.norm(
        vectors.double().numpy()[:, None] - embedding.double().numpy()[None], axis=-1
    )
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


@pytest.mark.parametrize("spec", collapse.names())
def test_a_collapse_works_without_vectors_or_says_that_it_needs_them(spec):
    prediction = Prediction(torch.zeros(1, 3).log_softmax(-1))
    try:
        probs = ask(spec, prediction, None)
    except ValueError as error:
        assert re.search(f'collapse "{spec}" needs a model that predicts .*vectors', str(error))
        assert spec not in ("softmax", "deferred")
    else:
        torch.testing.assert_close(probs.sum(-1), torch.ones(1))
        assert spec not in ("nearest", "barycentric", "vote", "mixing")


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_nearest_by_each_metric_agrees_with_loops_in_float64(metric):
    generator = torch.Generator().manual_seed(0)
    vectors, embedding = (
        torch.randn(50, 5, generator=generator),
        torch.randn(9, 5, generator=generator),
    )
    y, e = vectors.double().numpy(), embedding.double().numpy()
    cosine = y @ e.T / np.linalg.norm(y, axis=1)[:, None] / np.linalg.norm(e, axis=1)
    score = {"l2": -((y[:, None] - e) ** 2).sum(-1), "cosine": cosine, "dot": y @ e.T}[metric]
    probs = ask(
        f"nearest(metric={metric!r})",
        Prediction(torch.zeros(50, 9).log_softmax(-1), vectors),
        embedding,
    )
    assert torch.equal(probs, torch.eye(9)[torch.from_numpy(score.argmax(1))])


def test_nearest_metrics_differ_where_lengths_do():
    embedding = torch.tensor([[1.0, 0.0], [3.0, 3.0], [0.0, 0.5]])
    given = Prediction(torch.zeros(1, 3).log_softmax(-1), torch.tensor([[0.9, 0.3]]))
    chosen = [
        ask(f"nearest({metric!r})", given, embedding).argmax().item()
        for metric in ("l2", "cosine", "dot")
    ]
    assert chosen == [0, 0, 1]
    alike = Prediction(given.log_probs, torch.tensor([[0.0, 2.0]]))
    chosen = [
        ask(f"nearest({metric!r})", alike, embedding).argmax().item()
        for metric in ("l2", "cosine", "dot")
    ]
    assert chosen == [2, 2, 1]


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_every_metric_takes_the_smallest_id_of_ties_and_names_bad_rows(metric):
    embedding = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    log_probs = torch.zeros(2, 3).log_softmax(-1)
    probs = ask(
        f"nearest({metric!r})",
        Prediction(log_probs, torch.tensor([[0.0, 0.0], [2.0, 0.0]])),
        embedding,
    )
    assert probs.argmax(-1).tolist() == [0, 1]
    with pytest.raises(ValueError, match="soft token 1 holds NaN"):
        ask(
            f"nearest({metric!r})",
            Prediction(log_probs, torch.tensor([[0.0, 0.0], [math.nan, 0.0]])),
            embedding,
        )


# -- barycentric ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["orthonormal", "random", "random(sphere=False)"])
def test_barycentric_of_an_exact_mixture_is_its_weights(table):
    """V = 8 rows in R^8 are affinely independent."""
    embedding = make_table(table, 8, 8, torch.Generator().manual_seed(0)).weight.detach()
    weights = torch.softmax(3 * torch.randn(20, 8, generator=torch.Generator().manual_seed(1)), -1)
    probs = ask(
        "barycentric",
        Prediction(torch.zeros(20, 8).log_softmax(-1), weights @ embedding),
        embedding,
    )
    torch.testing.assert_close(probs, weights, atol=1e-5, rtol=0)


def test_barycentric_with_one_weight_left_is_the_nearest_row_at_any_temperature():
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(7, 3, generator=generator)
    given = Prediction(
        torch.zeros(300, 7).log_softmax(-1), 5 * torch.randn(300, 3, generator=generator)
    )
    probs = ask("barycentric", given, embedding)
    certain = probs.amax(-1) == 1
    assert 50 < certain.sum() < 300
    for temperature in (0, 0.5, 1.0, 1e6):
        chosen = pick(probs, temperature, uniforms(300))
        assert torch.equal(chosen[certain], nearest(given.vector, embedding)[certain])


# -- vote -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [1, 2, 3, 5, 9])
def test_vote_weighs_by_binomial_coefficients(least):
    """Counts known beforehand against math.comb, with the fall back to fewer, n -> n - 1."""
    counts = np.array([[9, 0, 0], [5, 3, 1], [3, 3, 3], [4, 4, 1], [0, 8, 1]])
    shown = torch.stack(
        [torch.arange(3).repeat_interleave(torch.tensor(row)) for row in counts], 1
    )  # (9, B)
    given = Prediction(
        torch.zeros(5, 3).log_softmax(-1), torch.zeros(5, 3), lambda n, _: torch.eye(3)[shown]
    )
    expected = []
    for row in counts:
        n = least
        while max(row) < n:
            n -= 1
        ways = np.array([math.comb(count, n) for count in row])
        expected.append(ways / ways.sum())
    np.testing.assert_allclose(ask(f"vote(9, {least})", given, torch.eye(3)), expected, atol=1e-6)


@pytest.mark.parametrize("least", [1, 2, 3])
def test_vote_approaches_p_to_the_power_of_least(least):
    """20,000 draws: a weight's standard error is below 0.004 least; 6 of them are a false alarm in
    10^8.
    """
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    given = Prediction(
        p.log()[None],
        torch.zeros(1, 4),
        lambda n, g: torch.eye(4)[p.multinomial(n, replacement=True, generator=g[0])][:, None],
    )
    expected = p**least / (p**least).sum()
    torch.testing.assert_close(
        ask(f"vote(20_000, {least})", given, torch.eye(4))[0], expected, atol=0.024 * least, rtol=0
    )


def test_vote_of_a_row_is_decided_by_its_seed_and_step():
    log_probs, embedding = torch.zeros(4, 5).log_softmax(-1), torch.eye(5)
    given = predicting(log_probs, torch.zeros(4, 5), 1.0)
    probs = ask("vote", given, embedding, (1, 1, 2, 1), (0, 1, 0, 0))
    assert torch.equal(probs[0], probs[3])
    assert len({tuple(row.tolist()) for row in probs}) == 3
    alone = ask("vote", predicting(log_probs[:1], torch.zeros(1, 5), 1.0), embedding, (2,), (0,))
    assert torch.equal(alone[0], probs[2])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vote(0)", "not 0 and 1"),
        ("vote(least=0)", "not 200 and 0"),
        ("vote(10, least=11)", "not 10 and 11"),
        ("vote(2.5)", "vote"),
        ("nearest('manhattan')", "unknown metric 'manhattan'; known: l2, dot, cosine"),
        ("barycentric(3)", "takes no arguments"),
    ],
)
def test_a_wrong_argument_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        collapse.resolve(spec)


@pytest.mark.parametrize(
    "strategy",
    [collapse.Nearest(), collapse.Nearest("dot"), collapse.Vote(50), collapse.Vote(50, 2)],
)
def test_collapses_are_what_their_spec_says(strategy):
    assert collapse.resolve(collapse.COLLAPSES.spec(strategy)) == strategy


def test_the_spec_of_nearest_says_how_it_measures():
    assert collapse.COLLAPSES.spec(collapse.resolve("nearest")) == "nearest('l2')"


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
@pytest.mark.parametrize(
    "probs", [[0, 0, 1, 0], [0, 0.5, 0.5, 0], [0, 1e-30, 1, 0], [0, 0.1, 0.2, 0]]
)
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


def test_a_collapse_says_which_models_it_suits(tiny):
    """Those that refuse a model, and no others, say that they do not suit it."""
    models = [tiny(), tiny(objective="mse"), tiny(objective="energy"), CountingModel.fit(["abab"])]
    for model in models:
        for name in collapse.names():
            try:
                generate(model, "ab", 1, collapse=name)
                able = True
            except ValueError:
                able = False
            assert collapse.resolve(name).suits(model) == able, name


def test_only_a_collapse_without_temperature_says_so(tiny):
    model = tiny(scale=0.3)
    for name in ("softmax", "nearest", "barycentric"):
        texts = {generate(model, "ab", 60, collapse=name, temperature=t).text for t in (0.2, 3)}
        assert collapse.resolve(name).one_symbol == (len(texts) == 1)
