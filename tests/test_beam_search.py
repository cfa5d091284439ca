"""The best text, held against looking at all of them."""

import math
from itertools import product

import pytest
import torch

from conftest import LETTERS
from softar_lab.data.languages import Markov
from softar_lab.generation.beam_search import beam


def scores(*shape, seed=0, whole=False, forbid=0.0):
    """Random log-probabilities, or whole numbers (many ties), a share of them -inf."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(shape, generator=generator).log_softmax(-1)
    if whole:
        found = torch.randint(-2, 1, shape, generator=generator).float()
    return found.masked_fill(torch.rand(shape, generator=generator) < forbid, -math.inf)


def best_of_all(score, length, size):
    """The first of the best texts by `score(text)`, in the order of ids."""
    return list(max(product(range(size), repeat=length), key=score)) if length else []


def viterbi(log_probs, transition, start):
    """The oracle for long texts: the best one under a chain, (T, V), (V, V), (V,) -> T ids, the first of equals."""
    log_probs, transition = log_probs.double(), transition.double()
    ahead, onward = torch.zeros(len(start), dtype=torch.float64), []
    for scores_ in log_probs[1:].flip(0):
        onward.append(transition + scores_ + ahead)  # (V, V): the best through each next symbol
        ahead = onward[-1].amax(1)
    path = [int((start.double() + log_probs[0] + ahead).argmax())]
    for step in reversed(onward):
        path.append(int(step[path[-1]].argmax()))
    return path


CHAIN = [[0.5, 0.25, 0.25], [0.0, 0.5, 0.5], [0.4, 0.6, 0.0]]  # never a after b, nor c after c


def by_judge(log_probs, judge, state, row, weight):
    def score(text):
        here, total = state.select(torch.tensor([row])), 0.0
        for t, w in enumerate(text):
            said = judge.predict(here).log_probs[0, w].double()
            total += log_probs[t, row, w].double().item() + (
                weight * said.item() if weight else 0.0
            )
            if total == -math.inf:
                return total
            here = judge.advance(here, token_ids=torch.tensor([w])) if weight else here
        return total

    return score


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0, 0.5, 1, 3.0])
@pytest.mark.parametrize("forbid", [0.0, 0.3, 0.6])
def test_beam_wide_enough_is_the_first_of_the_best_of_all_texts(weight, forbid):
    """The judge is a language, which refuses to read what it holds impossible."""
    judge = Markov(CHAIN, "abc")
    state, log_probs = judge.start(12), scores(4, 12, 3, forbid=forbid)
    found = beam(log_probs, judge, state, 27, weight)
    for row in range(12):
        assert found[:, row].tolist() == best_of_all(
            by_judge(log_probs, judge, state, row, weight), 4, 3
        ), row
    assert torch.equal(found, beam(log_probs, judge, state, 10_000, weight))


@pytest.mark.parametrize("length", [1, 2, 6])
def test_beam_under_a_chain_finds_what_viterbi_finds(length):
    judge, log_probs = Markov(CHAIN, "abc"), scores(length, 4, 3, seed=5)
    state = judge.start(4)
    found = beam(log_probs, judge, state, 3**5)
    for row in range(4):
        start = judge.predict(state).log_probs[row]
        assert found[:, row].tolist() == viterbi(
            log_probs[:, row], torch.tensor(CHAIN).log(), start
        )


@pytest.mark.slow
def test_beam_under_a_transformer_is_the_best_of_all_texts(tiny):
    model = tiny(letters="abc")
    state = model.read(
        model.start(5), torch.randint(3, (5, 4), generator=torch.Generator().manual_seed(0))
    )
    before, log_probs = model.predict(state).log_probs.clone(), scores(4, 5, 3)
    found = beam(log_probs, model, state, 27)
    for row in range(5):
        score = by_judge(log_probs, model, state, row, 1)
        assert score(found[:, row].tolist()) == pytest.approx(
            score(best_of_all(score, 4, 3)), abs=1e-4
        )
    assert torch.equal(model.predict(state).log_probs, before)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_beam_of_a_width_is_beam_search_by_hand(tiny, width):
    model, log_probs = tiny(), scores(6, 3, len(LETTERS), seed=4)
    state = model.start(3)
    found = beam(log_probs, model, state, width, 0.7)
    for row in range(3):
        beams = [((), 0.0)]
        for t in range(6):
            grown = []
            for text, total in beams:
                here = model.read(model.start(1), torch.tensor([text])) if text else model.start(1)
                more = log_probs[t, row].double() + 0.7 * model.predict(here).log_probs[0].double()
                grown += [((*text, w), total + more[w].item()) for w in range(len(LETTERS))]
            beams = sorted(grown, key=lambda one: -one[1])[:width]
        assert found[:, row].tolist() == list(beams[0][0])


def test_beam_of_ties_takes_the_smallest_ids():
    judge = Markov([[0.5, 0.5], [0.5, 0.5]], "ab")
    assert beam(torch.zeros(5, 2, 2), judge, judge.start(2), 4).tolist() == [[0, 0]] * 5
    log_probs = torch.tensor([[0.0, 0.0], [-1.0, 0.0]])[:, None]
    assert beam(log_probs, judge, judge.start(1), 1).tolist() == [[0], [1]]


def test_beam_where_nothing_is_possible_is_all_zeros_and_its_neighbours_go_on():
    judge = Markov(CHAIN, "abc")
    log_probs = scores(4, 2, 3)
    expected = beam(log_probs, judge, judge.start(2), 4)[:, 1]
    log_probs[2, 0] = -math.inf
    found = beam(log_probs, judge, judge.start(2), 4)
    assert found[:, 0].tolist() == [0] * 4
    assert torch.equal(found[:, 1], expected)


def test_beam_of_one_symbol_and_of_nothing():
    judge = Markov([[1.0]], "a")
    assert beam(torch.zeros(3, 2, 1), judge, judge.start(2)).tolist() == [[0, 0]] * 3
    assert beam(torch.zeros(0, 2, 1), judge, judge.start(2)).shape == (0, 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"log_probs": torch.full((1, 1, 3), math.nan)}, "log_probs must be .* found NaN"),
        ({"log_probs": torch.full((1, 1, 3), math.inf)}, "log_probs must be .* found NaN or"),
        ({"log_probs": torch.zeros(1, 1, 4)}, "the judge knows 3 symbols, log_probs has 4"),
        ({"width": 0}, "not 0 and 1.0"),
        ({"weight": -1}, "not 8 and -1"),
        ({"weight": math.nan}, "not 8 and nan"),
    ],
)
def test_beam_says_what_is_wrong(wrong, message):
    judge = Markov(CHAIN, "abc")
    given = {
        "log_probs": torch.zeros(1, 1, 3),
        "judge": judge,
        "state": judge.start(1),
        "width": 8,
        "weight": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        beam(**{**given, **wrong})
