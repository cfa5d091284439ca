"""How symbols are chosen, and how sure a mean is: in fractions, and by trying every text."""

import math
import statistics
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracles.cases import SCALES, cases, points, tables, weights
from oracles.test_geometry import closest
from softar_lab.core.estimates import Estimate, interval
from softar_lab.core.predictor import Prediction, Predictor
from softar_lab.generation import collapse
from softar_lab.generation.beam_search import beam
from softar_lab.generation.step_context import StepContext

seeds = st.integers(0, 2**32 - 1)
mpmath.mp.dps = 40


@given(
    seeds, st.integers(1, 6), st.sampled_from([0, 1, 0.5, 2, 1e-3, 1e-40, 1e12]),
    st.sampled_from([0.0, 0.25, 0.5, 1 - 2**-53, None]),
)  # fmt: skip
@cases("pick")
def test_pick(seed, v, temperature, uniform):
    """The chosen symbol's share of the line from 0 to 1 holds the draw, up to float64 rounding."""
    rng = np.random.default_rng(seed)
    probs = weights(rng, 2, v)
    probs[probs.sum(1) == 0] = 1
    probs = torch.from_numpy(probs / probs.sum(1, keepdims=True)).float()
    draws = torch.from_numpy(rng.random(2) if uniform is None else np.full(2, uniform))
    found = collapse.pick(probs, temperature, draws).tolist()
    for row, u, chosen in zip(probs.tolist(), draws.tolist(), found, strict=True):
        assert row[chosen] > 0
        if temperature == 0:
            assert chosen == row.index(max(row))
            continue
        ratio = [mpmath.mpf(p) / max(row) for p in row]
        shares = [one ** (1 / mpmath.mpf(temperature)) if one else mpmath.mpf(0) for one in ratio]
        # a power is off by eps for each unit of its exponent, a sum by eps for each term
        away = [abs(mpmath.log(one)) / temperature if one else 0 for one in ratio]
        eps = 2.0**-51
        slack = sum(w * (v + 4 + 2 * n) for w, n in zip(shares, away, strict=True)) * eps
        at = mpmath.mpf(u) * sum(shares)
        assert sum(shares[:chosen]) - slack <= at <= sum(shares[: chosen + 1]) + slack
    alone = [int(collapse.pick(probs[i : i + 1], temperature, draws[i : i + 1])) for i in (0, 1)]
    assert alone == found


@given(tables(), st.integers(1, 12), st.integers(1, 4))
@cases("vote")
def test_vote(case, draws, least):
    table, rng = case
    least = min(least, draws)
    vectors = points(table, rng, draws)
    log_probs = torch.zeros(1, len(table))
    given_draws = Prediction(log_probs, vectors[:1], lambda n, generator: vectors[:n, None])
    context = StepContext(torch.zeros(1).long(), given_draws, None, None, table)
    found = collapse.resolve(f"vote({draws}, {least})")(given_draws, table, context)[0]
    counts = [closest(vectors, table, "l2").count(i) for i in range(len(table))]
    ways = [math.comb(c, min(least, max(counts))) for c in counts]
    expected = [one / sum(ways) for one in ways]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)


@dataclass(frozen=True)
class Read:
    last: torch.Tensor

    def select(self, rows):
        return Read(self.last[rows])


class Judge(Predictor):
    """log p is a whole number that depends on the symbol before; so sums are exact, and may tie."""

    def __init__(self, scores):
        self.scores, self.vocab_size = scores, scores.shape[1]

    def start(self, batch_size=1):
        return Read(torch.full((batch_size,), self.vocab_size))

    def predict(self, state):
        return Prediction(self.scores[state.last])

    def advance(self, state, token_ids=None, vectors=None):
        assert not self.scores[state.last, token_ids].isneginf().any()
        return Read(token_ids)


def forbidding(rng, shape, share):
    """Whole scores from -2 to 0, and -inf at some places."""
    scores = rng.integers(-2, 1, size=shape).astype(float)
    scores[rng.random(shape) < share] = -np.inf
    return scores


def best_text(scores, judge, weight, width):
    """By lists: the best `width` beginnings after every symbol, equal ones in the order of ids."""
    length, v = scores.shape
    kept = [((), 0.0)]
    for t in range(length):
        more = []
        for text, score in kept:
            for w in range(v):
                opinion = weight * judge[text[-1] if text else v, w] if weight else 0.0
                more.append(((*text, w), score + scores[t, w] + opinion))
        kept = sorted(sorted(more), key=lambda one: -one[1])[:width]
    text, score = min(sorted(kept), key=lambda one: -one[1])
    return list(text) if score > -np.inf else [0] * length


@given(
    seeds, st.integers(1, 3), st.integers(1, 4), st.sampled_from([0, 0.5, 1]),
    st.sampled_from([1, 2, 1000]), st.sampled_from([0.0, 0.3, 0.7]),
)  # fmt: skip
@cases("beam")
def test_beam(seed, v, length, weight, width, share):
    rng = np.random.default_rng(seed)
    scores, judge = forbidding(rng, (length, 2, v), share), forbidding(rng, (v + 1, v), share)
    judge[np.isneginf(judge).all(1), 0] = 0  # something always comes next
    model = Judge(torch.from_numpy(judge))
    found = beam(torch.from_numpy(scores), model, model.start(2), width, weight)
    for row in range(2):
        assert found[:, row].tolist() == best_text(scores[:, row], judge, weight, width)
    if width < 1000:
        return
    for row in range(2):  # every text
        totals = {}
        for text in product(range(v), repeat=length):
            before = (v, *text)
            totals[text] = sum(
                scores[t, row, w] + (weight * judge[before[t], w] if weight else 0)
                for t, w in enumerate(text)
            )
        best = max(totals.values())
        first = min(text for text, total in totals.items() if total == best)
        assert found[:, row].tolist() == (list(first) if best > -np.inf else [0] * length)


@given(seeds, st.integers(1, 9), st.sampled_from(SCALES), st.sampled_from([0, 1, 1e6]))
@cases("estimate")
def test_estimate(seed, n, scale, offset):
    """float64: a deviation from the mean is off by the mean's own rounding."""
    rng = np.random.default_rng(seed)
    values = scale * (offset + rng.integers(-2, 3, size=n) * rng.choice([0.0, 1.0, 0.1]))
    exact = [Fraction(one) for one in values.tolist()]
    mean = sum(exact) / n
    size = float(max(map(abs, exact)))
    tolerance = 16 * n * 2.0**-53 * size
    found, numbers = Estimate.mean(values), interval(values)
    assert found == pytest.approx(float(mean), rel=0, abs=tolerance)
    if n == 1:
        assert math.isnan(found.standard_error)
        assert math.isnan(numbers["low"])
        assert math.isnan(numbers["high"])
        return
    error = statistics.stdev(exact) / math.sqrt(n)
    assert found.standard_error == pytest.approx(error, rel=1e-12, abs=tolerance)
    assert numbers["seeds"] == n
    if error > 1000 * tolerance:  # Student's t has 97.5 % below the quantile, by its integral
        quantile = (numbers["high"] - numbers["low"]) / 2 / error
        x = (n - 1) / (n - 1 + mpmath.mpf(quantile) ** 2)
        below = 1 - mpmath.betainc((n - 1) / 2, 0.5, 0, x, regularized=True) / 2
        assert float(below) == pytest.approx(0.975, abs=1e-4 * tolerance / error + 1e-6)
