"""Embedding algebra: sums against theory and brute force, analogies with a known answer, slots
rewritten later.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softar_lab.metrics.superposition import (
    Probe,
    balanced,
    by_mixture,
    by_product,
    draw_sets,
    most_by_mixture,
    nearest_rows,
    recovery_by_product,
    recovery_rate,
)
from softar_lab.models.embedding_tables import gaussian
from softar_studies.analogies import (
    analogy_questions,
    analogy_shares,
    answer_analogies,
    mean_states,
    offsets_agree,
)

# -- sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 4, 30])
def test_balanced_sums_are_as_large_for_many_items_as_for_few(rng, n):
    """Of rows drawn from one cloud the mean square length is the cloud's variance; 4,000 sums tell
    it within 3 %.
    """
    table = torch.randn(4000, 8, generator=rng()) + 3
    ids = torch.randint(4000, (4000, n), generator=rng(1))
    found = balanced(table[ids].sum(1), n, table).square().sum(-1).mean()
    assert found == pytest.approx(float((table - table.mean(0)).square().sum(-1).mean()), rel=0.08)


def test_balanced_takes_the_mean_row_off():
    table = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    assert torch.equal(balanced(table.sum(0), 2, table), torch.zeros(2))
    with pytest.raises(ValueError, match="at least 1 item, not 0"):
        balanced(table[0], 0, table)


def test_nearest_rows_are_by_cosine_best_first_and_leave_nothing_out_unasked():
    table = torch.tensor([[1.0, 0.0], [10.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    vectors = torch.tensor([[2.0, 0.0], [0.0, 0.1]])
    assert nearest_rows(vectors, table, 3).tolist() == [[0, 1, 2], [2, 1, 0]]
    assert nearest_rows(vectors, table, 1, exclude=torch.tensor([[0], [2]])).tolist() == [[1], [1]]
    assert nearest_rows(torch.zeros(1, 2), table).tolist() == [[0]]  # a tie: the smallest id
    with pytest.raises(ValueError, match="k must lie in 1 … 3"):
        nearest_rows(vectors, table, 4, exclude=torch.tensor([[0], [2]]))


def test_sets_are_distinct_and_every_item_is_as_likely(rng):
    """20,000 sets of 3 of 5: each item is in 0.6 of them, standard error 0.0035; a false alarm in a
    million runs.
    """
    ids = draw_sets(5, 3, 20_000, rng())
    assert (ids.sort(1).values.diff(dim=1) > 0).all()
    shares = torch.bincount(ids.flatten(), minlength=5) / 20_000
    assert (shares - 0.6).abs().max() < 5 * 0.0035
    for n in (0, 6):
        with pytest.raises(ValueError, match="n must lie in 1 … 5"):
            draw_sets(5, n, 1, rng())


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 12), st.data())
def test_orthonormal_rows_are_read_back_whatever_is_summed(V, data):
    n, seed = data.draw(st.integers(1, V)), data.draw(st.integers(0, 99))
    table = torch.linalg.qr(torch.randn(V, V, generator=torch.Generator().manual_seed(seed))).Q
    for reader in (by_product, by_mixture):
        assert recovery_rate(table, n, reader, trials=20, seed=seed) == 1


def test_what_the_mixture_reads_is_what_brute_force_over_all_sets_finds(rng):
    """Where only one set of 2 of 10 rows explains the sum, reading the mixture finds it."""
    table = gaussian(10, 6, rng(), sphere=True)
    pairs = torch.tensor([*itertools.combinations(range(10), 2)])
    sums = table[pairs].sum(1)
    assert torch.cdist(sums, sums).add(torch.eye(len(pairs))).min() > 0.05
    found = by_mixture(sums, 2, table).topk(2, dim=1).indices.sort(1).values
    assert (found == pairs).all(1).float().mean() > 0.95


@pytest.mark.parametrize(("m", "n"), [(16, 4), (16, 12), (32, 8), (32, 24), (48, 6), (64, 40)])
def test_share_by_product_is_what_sums_of_random_rows_give(rng, m, n):
    """The theory is an approximation. Mean of 8 tables of 64 rows, 100 sums each: their spread is
    below 0.01.
    """
    found = [recovery_rate(gaussian(64, m, rng(i), True), n, by_product, 100, i) for i in range(8)]
    assert np.mean(found) == pytest.approx(recovery_by_product(64, n, m), abs=0.04)


def test_limits_of_the_theories():
    assert recovery_by_product(64, 64, 4) == 1
    assert recovery_by_product(64, 1, 4096) == pytest.approx(1, abs=1e-6)
    assert recovery_by_product(4096, 64, 1) == pytest.approx(
        64 / 4096, abs=0.05
    )  # hardly more than chance
    assert most_by_mixture(64, 63) == 64
    assert most_by_mixture(64, 62) < 64
    limits = [most_by_mixture(64, m) for m in range(1, 63)]
    assert limits == sorted(limits)


@pytest.mark.parametrize("m", [16, 32, 48])
def test_weights_are_read_exactly_up_to_the_threshold_and_not_beyond(rng, m):
    """At 0.7 of the threshold nearly every mixture gives its weights, at 1.5 of it hardly any: 4
    tables, 50 each.
    """
    limit = most_by_mixture(64, m)

    def exact(n):
        shares = []
        for i in range(4):
            table, ids = gaussian(64, m, rng(i), True), draw_sets(64, n, 50, rng(i))
            weights = torch.zeros(50, 64).scatter(1, ids, 1 / n)
            found = by_mixture(table[ids].sum(1), n, table)
            shares.append(((found - weights).abs().max(1).values < 0.1 / n).double().mean())
        return np.mean(shares)

    assert exact(math.floor(0.7 * limit)) > 0.9
    assert exact(math.ceil(1.5 * limit)) < 0.1


def test_probe_learns_reads_better_than_products_and_is_reproducible(rng):
    table = gaussian(16, 8, rng(), True)
    probe = Probe(table, 4, steps=200, width=64)
    assert recovery_rate(table, 3, probe) > recovery_rate(table, 3, by_product) + 0.05
    again = Probe(table, 4, steps=200, width=64)
    assert all(
        torch.equal(one, other) for one, other in zip(probe.parameters(), again.parameters())
    )
    with pytest.raises(ValueError, match="most must lie in 1 … 16"):
        Probe(table, 17)


# -- analogies --------------------------------------------------------------------------------------------------------

PAIRS = torch.tensor([[0, 1], [2, 3], [4, 5]])
NAMES = "abcdefg"


def words(offset: float, noise: float = 0.0):
    """Three pairs whose second differs from the first by one direction, and a word besides."""
    role = 3 * torch.eye(8, dtype=torch.float64)[[0, 0, 1, 1, 2, 2, 3]]
    gender = (
        offset
        * torch.eye(8, dtype=torch.float64)[[4] * 7]
        * torch.tensor([0, 1, 0, 1, 0, 1, 0])[:, None]
    )
    return (
        role
        + gender
        + noise * torch.randn(7, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )


def test_questions_are_all_ordered_pairs_in_both_directions():
    asked = analogy_questions(PAIRS)
    assert len(asked) == len({tuple(one) for one in asked.tolist()}) == 12
    assert [0, 1, 2, 3] in asked.tolist()
    assert [3, 2, 5, 4] in asked.tolist()
    with pytest.raises(ValueError, match="at least 2 pairs, not 1"):
        analogy_questions(PAIRS[:1])


def test_one_direction_answers_every_question_in_every_variant_of_counting():
    shares = analogy_shares(answer_analogies(words(1.0), analogy_questions(PAIRS), NAMES))
    assert shares["all"] == shares["without"] == 1
    assert shares["asked"] == 0
    assert offsets_agree(words(1.0), PAIRS) == pytest.approx(1)


def test_where_the_partner_is_merely_near_only_leaving_words_out_is_right():
    """A direction smaller than the noise: b - a + c stays at c, and the partner is c's neighbour
    without arithmetic.
    """
    vectors = words(0.0, noise=0.1)
    shares = analogy_shares(answer_analogies(vectors, analogy_questions(PAIRS), NAMES))
    assert shares["control"] == 1
    assert shares["without"] == 1
    assert shares["all"] < 0.5
    assert shares["asked"] > 0.5
    assert abs(offsets_agree(vectors, PAIRS)) < 0.6


def test_answers_are_those_of_a_search_one_by_one():
    vectors = words(0.4, noise=0.3)
    answers = answer_analogies(vectors, analogy_questions(PAIRS), NAMES)
    centred = (vectors - vectors.mean(0)).numpy()
    for row in answers.itertuples(index=False):
        a, b, c = (NAMES.index(name) for name in row[:3])
        target = centred[b] - centred[a] + centred[c]

        def best(point, out=()):
            cosine = centred @ point / np.linalg.norm(centred, axis=1)
            return NAMES[
                max((i for i in range(7) if i not in out), key=lambda i, cosine=cosine: cosine[i])
            ]

        assert row[4:] == (best(target), best(target, (a, b, c)), best(centred[c], (a, b, c)))


def test_mean_states_are_means_over_places(tiny):
    model = tiny()
    rows = torch.tensor([[0, 1, 2], [1, 1, 0]])
    words = torch.tensor([[0, 1, -1], [1, 1, 0]])
    found = mean_states(model, rows, words, 3)
    states = model.hidden_states(rows)[:, 1:]
    torch.testing.assert_close(found[0], (states[0, 0] + states[1, 2]) / 2)
    torch.testing.assert_close(found[1], (states[0, 1] + states[1, 0] + states[1, 1]) / 3)
    assert found[2].isnan().all()
