"""When a soft token becomes hard."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from test_predictor import Bigram

from softar_lab.core.predictor import Prediction
from softar_lab.data.corpora import load_language
from softar_lab.data.languages import Markov
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.generation import Always, EveryK, Never, generate, schedule
from softar_lab.generation.run_context import RunContext
from softar_lab.generation.step_context import StepContext


def context(*steps):
    n = len(steps)
    prediction = Prediction(torch.zeros(n, 3).log_softmax(-1), torch.zeros(n, 2))
    return StepContext(
        torch.tensor(steps), prediction, prediction.probs, torch.zeros(n).long(), torch.zeros(3, 2)
    )


@pytest.mark.parametrize(
    ("spec", "hard"),
    [
        ("always", [1, 1, 1, 1, 1, 1, 1]),
        ("never", [0, 0, 0, 0, 0, 0, 0]),
        ("every", [0, 0, 0, 1, 0, 0, 0]),
        ("every(3)", [0, 0, 1, 0, 0, 1, 0]),
        ("every(k=1)", [1, 1, 1, 1, 1, 1, 1]),
        ("every(100)", [0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_schedule_says_which_of_seven_steps_are_hard(spec, hard):
    assert schedule.resolve(spec)(context(*range(7))).int().tolist() == hard


def test_every_counts_each_row_for_itself():
    assert EveryK(2)(context(0, 1, 5, 6)).tolist() == [False, True, True, False]


@pytest.mark.parametrize("strategy", [Always(), Never(), EveryK(3)])
def test_schedules_are_what_their_spec_says(strategy):
    assert schedule.resolve(schedule.SCHEDULES.spec(strategy)) == strategy


@pytest.mark.parametrize(
    "spec", ["every(0)", "every(-2)", "every(1.5)", "every('a')", "every(None)", "every(True)"]
)
def test_every_names_a_wrong_k(spec):
    with pytest.raises(ValueError, match="every.*"):
        schedule.resolve(spec)


def test_unknown_schedule_lists_the_known():
    with pytest.raises(
        ValueError, match="unknown schedule 'sometimes'; known: always, never, every"
    ):
        schedule.resolve("sometimes")


def test_retro_grounds_the_slot_k_steps_back():
    assert schedule.resolve("retro(2)")(context(0, 5)).int().tolist() == [[1, 0, 0]] * 2
    assert schedule.SCHEDULES.spec(schedule.Retro()) == "retro(4)"


@pytest.mark.parametrize("spec", ["retro(0)", "retro(-2)", "retro(1.5)", "retro(True)"])
def test_retro_names_a_wrong_k(spec):
    with pytest.raises(ValueError, match="retro.*"):
        schedule.resolve(spec)


# -- by a measure of the step -----------------------------------------------------------------------------------------

ROWS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
PROBS = torch.tensor(
    [[1.0, 0, 0], [0.5, 0.5, 0], [0.9, 0.05, 0.05], [1 / 3, 1 / 3, 1 / 3]]
)  # entropy 0, 0.69, 0.39, 1.10
POINTS = torch.tensor([[0.0, 0.1], [0.5, 0.5], [1.0, 1.0], [-0.6, 0.8]])
FROM_ROWS = [0.1, 0.5**0.5, 1.0, 0.4**0.5]
FROM_HULL = [0.0, 0.0, 0.5**0.5, 0.6]


def measured(was_hard=(0, 0, 0, 0)):
    prediction = Prediction(PROBS.log(), POINTS)
    hard = torch.tensor(was_hard, dtype=torch.bool)
    return StepContext(
        torch.arange(4), prediction, PROBS, torch.zeros(4).long(), ROWS, (0,) * 4, hard
    )


@pytest.mark.parametrize(
    ("spec", "hard"),
    [
        ("entropy(0.5)", [0, 1, 0, 1]),
        ("entropy(above=0.7)", [0, 0, 0, 1]),
        ("entropy(0)", [0, 1, 1, 1]),
        ("entropy(1.2)", [0, 0, 0, 0]),
        ("distance(0.5)", [0, 1, 1, 1]),
        ("distance(0.65)", [0, 1, 1, 0]),
        ("distance(above=0.05)", [1, 1, 1, 1]),
        ("off-hull(1e-6)", [0, 0, 1, 1]),
        ("off-hull(above=0.65)", [0, 0, 1, 0]),
        ("off-hull(2)", [0, 0, 0, 0]),
    ],
)
def test_a_threshold_says_where_its_measure_is_larger(spec, hard):
    assert schedule.resolve(spec)(measured()).int().tolist() == hard


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("entropy", [0, math.log(2), 0.394398, math.log(3)]),
        ("distance", FROM_ROWS),
        ("off-hull", FROM_HULL),
    ],
)
def test_measures_by_hand(name, expected):
    found = schedule.resolve(name).measure(measured())
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("spec", "was_hard", "hard"),
    [
        ("entropy(above=1.0, until=0.5)", [0, 0, 0, 0], [0, 0, 0, 1]),
        ("entropy(above=1.0, until=0.5)", [1, 1, 1, 1], [0, 1, 0, 1]),
        ("entropy(above=1.0, until=0.3)", [1, 0, 1, 0], [0, 0, 1, 1]),
        ("entropy(above=1.0, until=1.0)", [1, 1, 1, 1], [0, 0, 0, 1]),
        (
            "entropy(above=1.0, until=0)",
            [1, 0, 0, 0],
            [1, 0, 0, 1],
        ),  # until it falls below 0: for good
        ("distance(above=0.9, until=0.65)", [1, 1, 0, 1], [0, 1, 1, 0]),
        ("off-hull(above=0.65, until=0.5)", [1, 1, 1, 1], [0, 0, 1, 1]),
    ],
)
def test_hysteresis_stays_hard_until_the_measure_falls_below(spec, was_hard, hard):
    assert schedule.resolve(spec)(measured(was_hard)).int().tolist() == hard


@pytest.mark.parametrize("name", ["distance", "off-hull"])
def test_a_schedule_of_vectors_needs_them(name):
    given = StepContext(
        torch.zeros(1).long(), Prediction(torch.zeros(1, 3).log_softmax(-1)), None, None, None
    )
    with pytest.raises(ValueError, match=f'schedule "{name}" needs a model that predicts vectors'):
        schedule.resolve(name)(given)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("entropy(-0.1)", r"above must be a number of at least 0, not -0\.1"),
        ("distance(1e999)", "above must be .* not inf"),
        (
            "off-hull(above=0.1, until=0.2)",
            r"until must be None or lie in 0 … above = 0\.1, not 0\.2",
        ),
        ("entropy(1, until=-1)", "until must be .* not -1"),
        ("entropy('a')", "entropy"),
        ("random(1.5)", r"a probability, not 1\.5"),
        ("random(-1)", "a probability, not -1"),
        ("oracle(-1)", "above must be"),
        ("oracle(truth='tale')", "no language 'tale'; known: chain, mess3"),
        ("oracle(truth=3)", "oracle"),
    ],
)
def test_a_wrong_argument_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        schedule.resolve(spec)


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("entropy(1.5, 0.5)", "entropy(above=1.5, until=0.5)"),
        ("entropy(1.5)", "entropy(above=1.5, until=None)"),
        ("every", "every(4)"),
        ("oracle(0.2, truth='mess3')", "oracle(above=0.2, until=None, truth='mess3')"),
    ],
)
def test_a_spec_holds_every_parameter(spec, shown):
    assert schedule.SCHEDULES.spec(schedule.resolve(spec)) == shown
    assert schedule.resolve(shown) == schedule.resolve(spec)


# -- random -----------------------------------------------------------------------------------------------------------


def steps_of(seed, n):
    return StepContext(torch.arange(n), PREDICTION, None, None, None, (seed,) * n)


PREDICTION = Prediction(torch.zeros(1, 3).log_softmax(-1))


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_random_keeps_its_rate_and_remembers_nothing(rate):
    """20 seeds of 1,000 steps, two exact binomial tests: of hard steps, and of hard ones after a
    hard one. Other seeds would raise a false alarm twice in a million."""
    hard = np.array([schedule.Random(rate)(steps_of(seed, 1000)).numpy() for seed in range(20)])
    assert binomtest(int(hard.sum()), hard.size, rate).pvalue > 1e-6
    after = hard[:, 1:][hard[:, :-1]]
    assert binomtest(int(after.sum()), after.size, rate).pvalue > 1e-6


@pytest.mark.parametrize(("rate", "expected"), [(0, False), (1, True)])
def test_random_at_its_ends_is_certain(rate, expected):
    assert (schedule.Random(rate)(steps_of(3, 500)) == expected).all()


def test_random_depends_on_seed_and_step_and_not_on_the_neighbours():
    together = schedule.Random(0.5)(
        StepContext(torch.arange(40) % 20, PREDICTION, None, None, None, (1,) * 20 + (2,) * 20)
    ).tolist()
    assert together == [
        *schedule.Random(0.5)(steps_of(1, 20)).tolist(),
        *schedule.Random(0.5)(steps_of(2, 20)).tolist(),
    ]
    assert together[:20] != together[20:]


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**40 + 7, -5])
def test_the_axes_draw_different_numbers_and_none_those_of_the_symbols(seed):
    """In the 32 bits that torch reads of a seed: the first 500 numbers of each stream share
    none.
    """
    streams = [
        steps_of(seed, 500).uniform(1, name).squeeze(1).tolist()
        for name in ("feedback", "schedule", "collapse")
    ]
    hard = schedule.Random(0.5)(steps_of(seed, 500)).tolist()
    assert (
        hard == [number < 0.5 for number in streams[1]] != [number < 0.5 for number in streams[0]]
    )
    symbols = torch.rand(
        500, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).tolist()
    assert len({*symbols, *streams[0], *streams[1], *streams[2]}) == 2000


# -- oracle -----------------------------------------------------------------------------------------------------------

TRUTH = Markov(
    [[0.0, 0.5, 0.5], [0.2, 0.0, 0.8], [0.9, 0.1, 0.0]], "abc"
)  # no symbol twice running


def at(run, log_probs):
    """The thought of a model that says log_probs (B, V) once the session has come this far."""
    n = len(log_probs)
    return StepContext(
        torch.zeros(n).long(), Prediction(log_probs), None, None, None, (0,) * n, None, None, run
    )


def session_of(*texts, letters="abcd"):
    """Texts of one length, shown by a model whose symbols are `letters`."""
    model = Bigram()
    model.tokenizer = CharTokenizer.fit(letters)
    run = RunContext(model, len(texts))
    run.tokens += torch.stack([model.tokenizer.encode(text) for text in texts], 1)
    return run


def test_oracle_measures_the_divergence_from_the_truth_in_nats():
    p = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.4, 0.4, 0.1, 0.1], [0.0, 0.3, 0.3, 0.4]])
    found = schedule.Oracle(truth=TRUTH).measure(at(session_of("aba", "abc", "cac"), p.log()))
    by_hand = [
        0.5 * math.log(0.5 / 0.25) * 2,
        0.9 * math.log(0.9 / 0.4) + 0.1 * math.log(0.1 / 0.4),
        math.inf,  # the truth gives a 0.9, the model nothing
    ]
    np.testing.assert_allclose(found, by_hand)
    hard = schedule.Oracle(above=0.65, truth=TRUTH)(at(session_of("aba", "abc", "cac"), p.log()))
    assert hard.tolist() == [True, False, True]


def test_oracle_of_the_truth_itself_never_collapses():
    run = session_of("ab", "ca", "bc", letters="abc")
    truth = TRUTH.predict(
        TRUTH.read(TRUTH.start(3), torch.tensor([[0, 1], [2, 0], [1, 2]]))
    ).log_probs
    assert not schedule.Oracle(above=1e-12, truth=TRUTH)(at(run, truth)).any()


def test_oracle_is_lost_for_good_where_the_impossible_was_emitted():
    """Row 0: b after b; row 1: d, which the truth does not know; row 2 goes on as ever."""
    run, oracle = session_of("ab", "ab", "ab"), schedule.Oracle(above=100, truth=TRUTH)
    even = torch.full((3, 4), 0.25).log()
    assert oracle(at(run, even)).tolist() == [False, False, False]
    for shown, hard in (((1, 3, 2), [True, True, False]), ((2, 0, 0), [True, True, False])):
        run.tokens.append(torch.tensor(shown))
        assert oracle(at(run, even)).tolist() == hard
    expected = schedule.Oracle(truth=TRUTH).measure(at(session_of("abca"), even[:1]))
    torch.testing.assert_close(oracle.measure(at(run, even))[2:], expected)


def test_oracle_reads_each_symbol_once_however_often_it_is_asked(monkeypatch):
    read, advance = [], TRUTH.advance
    monkeypatch.setattr(
        TRUTH, "advance", lambda state, token_ids: read.append(1) or advance(state, token_ids)
    )
    run, oracle = session_of("abc"), schedule.Oracle(truth=TRUTH)
    for _ in range(3):
        oracle(at(run, torch.full((1, 4), 0.25).log()))
    assert len(read) == 3
    run.tokens.append(torch.tensor([0]))
    oracle(at(run, torch.full((1, 4), 0.25).log()))
    assert len(read) == 4


def test_oracle_knows_languages_by_name():
    run = session_of("AB", letters="ABC")
    by_name, by_hand = (schedule.Oracle(truth=truth) for truth in ("mess3", load_language("mess3")))
    even = torch.full((1, 3), 1 / 3).log()
    torch.testing.assert_close(by_name.measure(at(run, even)), by_hand.measure(at(run, even)))


def test_oracle_names_a_truth_that_cannot_read_along():
    even = torch.full((1, 2), 0.5).log()
    with pytest.raises(ValueError, match="could write 'c', which the model cannot"):
        schedule.Oracle(truth=TRUTH)(at(session_of("ab", letters="ab"), even))
    with pytest.raises(ValueError, match="needs a tokenizer"):
        schedule.Oracle(truth=Bigram())(at(session_of("ab", letters="ab"), even))


# -- once -----------------------------------------------------------------------------------------


def test_once_is_hard_for_good_from_the_first_sure_step_on():
    """By hand: rows of entropy 0, 0.69, 0.39 and 1.10 nats (PROBS)."""
    given = StepContext(torch.full((4,), 5), Prediction(PROBS.log(), POINTS), None,
                        None, ROWS, was_hard=torch.tensor([False, False, False, True]))  # fmt: skip
    once = schedule.resolve("once(0.5)")
    assert once(given).tolist() == [True, False, True, True]
    assert schedule.resolve("once(0.5, 6)")(given).tolist() == [False, False, False, True]
    assert schedule.resolve("once(0.5, 6, 6)")(given).tolist() == [False, False, False, True]
    assert schedule.resolve("once(0, 1, 5)")(given).tolist() == [True] * 4
    assert schedule.SCHEDULES.spec(once) == "once(below=0.5, least=1, most=None)"


def test_once_never_goes_back(tiny):
    model = tiny(objective="ce")
    paths = generate(model, ["ab", "", "cdc"], 30, schedule="once(2.2, 3, 20)", seed=range(3))
    for path in paths:
        switched = path.collapsed.int()
        assert (switched.diff() >= 0).all()
        assert not path.collapsed[:3].any()
        assert path.collapsed[20:].all()
        first = int(switched.argmax())
        assert first == 20 or path.entropy[first] < 2.2
        assert (path.entropy[3:first] >= 2.2).all()


@pytest.mark.parametrize("spec", ["once(-1)", "once(0.5, -1)", "once(0.5, 4, 3)"])
def test_once_names_a_wrong_argument(spec):
    with pytest.raises(ValueError, match=r"once\((below|least|most)\) must be"):
        schedule.resolve(spec)
