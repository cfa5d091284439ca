"""The weights that mix a table's rows to the point closest to a vector: against scipy's NNLS,
exactly.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from softar_lab.models.embedding_tables import make_table
from softar_lab.models.simplex import barycentric, hull_distance, project_to_simplex


def by_nnls(vectors, table):
    """Row by row in float64; a heavy last coordinate makes the weights sum to 1."""
    table, vectors = table.double().numpy(), vectors.double().numpy()
    heavy = 1e5 * max(1.0, np.abs(table).max())
    matrix = np.vstack([table.T, np.full(len(table), heavy)])
    found = np.array([nnls(matrix, np.append(y, heavy), maxiter=100_000)[0] for y in vectors])
    return found / found.sum(-1, keepdims=True)


def problem(vocab_size, width, noise, seed, sphere=True, n=40):
    generator = torch.Generator().manual_seed(seed)
    table = make_table(f"random(sphere={sphere})", vocab_size, width, generator).weight.detach()
    weights = torch.softmax(4 * torch.randn(n, vocab_size, generator=generator), -1)
    return (
        weights @ table + noise * width**-0.5 * torch.randn(n, width, generator=generator),
        table,
        weights,
    )


def square(weights, vectors, table):
    return (
        (np.asarray(weights, np.float64) @ table.double().numpy() - vectors.double().numpy()) ** 2
    ).sum(-1)


@pytest.mark.parametrize(("vocab_size", "width"), [(65, 64), (65, 80), (20, 40), (2, 3), (33, 32)])
@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("sphere", [True, False])
def test_weights_are_those_of_nnls(vocab_size, width, noise, sphere):
    vectors, table, _ = problem(vocab_size, width, noise, vocab_size, sphere)
    np.testing.assert_allclose(barycentric(vectors, table), by_nnls(vectors, table), atol=1e-6)


@pytest.mark.parametrize(("vocab_size", "width"), [(65, 32), (65, 8), (30, 2), (5, 1)])
def test_the_mixture_is_the_closest_where_weights_are_not_unique(vocab_size, width):
    vectors, table, _ = problem(vocab_size, width, 0.3, width)
    weights = barycentric(vectors.double(), table)
    torch.testing.assert_close(weights.sum(-1), torch.ones(40).double())
    assert (weights >= 0).all()
    assert (
        square(weights, vectors, table) <= square(by_nnls(vectors, table), vectors, table) + 1e-8
    ).all()


@given(
    st.integers(1, 12), st.integers(1, 12), st.floats(0, 100), st.integers(0, 10**6), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_no_point_of_the_simplex_is_closer(vocab_size, width, noise, seed, sphere):
    """For a convex problem it is enough that no way towards a row leads down."""
    vectors, table, _ = problem(vocab_size, width, noise, seed, sphere, n=5)
    vectors, table = vectors.double(), table.double()
    weights = barycentric(vectors, table)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5).double())
    assert (weights >= 0).all()
    slope = (weights @ table - vectors) @ table.T  # (n, V)
    assert (slope.amin(-1) >= (slope * weights).sum(-1) - 1e-7 * (1 + noise)).all()


@pytest.mark.parametrize("table", ["random", "orthonormal", "random(sphere=False)"])
@pytest.mark.parametrize(("vocab_size", "width"), [(20, 20), (65, 65), (7, 40)])
def test_an_exact_mixture_gives_its_weights_back(vocab_size, width, table):
    generator = torch.Generator().manual_seed(1)
    rows = make_table(table, vocab_size, width, generator).weight.detach().double()
    weights = torch.rand(30, vocab_size, generator=generator).double() ** 8
    weights /= weights.sum(-1, keepdim=True)
    torch.testing.assert_close(barycentric(weights @ rows, rows), weights, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("vocab_size", "width"), [(65, 64), (65, 32), (5, 1)])
def test_distance_from_the_hull_is_that_of_nnls_and_zero_inside(vocab_size, width):
    vectors, table, weights = problem(vocab_size, width, 0.5, 3)
    expected = square(by_nnls(vectors, table), vectors, table) ** 0.5
    np.testing.assert_allclose(hull_distance(vectors, table), expected, atol=1e-5)
    assert (hull_distance(weights @ table, table) < 1e-5).all()
    assert hull_distance(torch.zeros(0, width), table).shape == (0,)


def test_a_row_itself_gives_one_hot_weights():
    table = make_table("random", 10, 32, torch.Generator().manual_seed(0)).weight
    torch.testing.assert_close(
        barycentric(table.detach(), table.detach()), torch.eye(10), atol=1e-6, rtol=0
    )


def test_of_equally_good_weights_the_evenest_are_chosen():
    table = torch.tensor([[1.0, 0], [1, 0], [0, 1], [-1, 0], [0, -1]])  # the first twice; 5 > m + 1
    weights = barycentric(torch.tensor([[1.0, 0], [0, 0]]), table)
    torch.testing.assert_close(weights[0], torch.tensor([0.5, 0.5, 0, 0, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        weights[1], torch.tensor([1 / 7, 1 / 7, 3 / 14, 2 / 7, 3 / 14]), atol=1e-5, rtol=0
    )


def test_a_table_whose_rows_are_all_alike_says_nothing_and_breaks_nothing():
    table = torch.ones(4, 3)
    weights = barycentric(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), table)
    torch.testing.assert_close(weights.sum(-1), torch.ones(6))
    assert barycentric(torch.zeros(2, 3), torch.zeros(4, 3)).sum(-1).allclose(torch.ones(2))


def test_projection_is_the_closest_point_of_the_simplex():
    points = 2 * torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(project_to_simplex(points), by_nnls(points, torch.eye(9)), atol=1e-6)
    np.testing.assert_allclose(
        barycentric(points, torch.eye(9)), by_nnls(points, torch.eye(9)), atol=1e-6
    )


def test_no_vectors_no_weights_and_bad_ones_are_named():
    table = torch.eye(3)
    assert barycentric(torch.zeros(0, 3), table[:2]).shape == (0, 2)
    with pytest.raises(ValueError, match="soft token 1 holds NaN or infinity"):
        barycentric(torch.tensor([[0.0, 0, 0], [0, torch.nan, 0]]), table)


@pytest.mark.parametrize(("count", "width"), [(3, 6), (6, 3), (9, 2), (12, 1)])
@pytest.mark.parametrize("copies", [False, True])
def test_a_point_inside_an_edge_is_reached_to_rounding(count, width, copies):
    """Also where several mixtures reach it, and where rows stand more than once."""
    generator = torch.Generator().manual_seed(count)
    for _ in range(30):
        table = torch.randn(count, width, generator=generator, dtype=torch.float64) + 100
        if copies:
            table = table[torch.randint(count, (count,), generator=generator)]
        share = torch.rand(20, 1, generator=generator, dtype=torch.float64)
        ends = table[torch.randint(count, (2, 20), generator=generator)]
        points = share * ends[0] + (1 - share) * ends[1]
        # a hundred roundings of numbers of about 100
        assert hull_distance(points, table).max() <= 100 * 100 * 2**-52
