"""Rows of a table near a vector: nearest, hull distance, barycentric weights, sums read back."""

from fractions import Fraction
from itertools import combinations
from unittest import mock

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracles.cases import cases, fractions, points, tables
from softar_lab.metrics.superposition import by_product, nearest_rows
from softar_lab.models import compiled
from softar_lab.models import nearest as nearest_module
from softar_lab.models.nearest import METRICS, nearest, nearest_distance
from softar_lab.models.simplex import barycentric, hull_distance


def dot(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


def far(y, row, metric):
    """What orders the rows by a metric, in fractions; a cosine by its square and its sign."""
    if metric == "l2":
        return sum((a - b) ** 2 for a, b in zip(y, row, strict=True))
    if metric == "dot":
        return -dot(y, row)
    square = dot(row, row)
    return -dot(y, row) * abs(dot(y, row)) / square if square else Fraction(0)


def closest(vectors, table, metric):
    rows = fractions(table)
    return [
        min(range(len(rows)), key=lambda i: far(y, rows[i], metric)) for y in fractions(vectors)
    ]


@given(tables(), st.sampled_from(METRICS), st.booleans())
@cases("nearest")
def test_nearest(case, metric, with_kernels):
    table, rng = case
    vectors = points(table, rng)
    expected = closest(vectors, table, metric)
    if with_kernels:
        found = nearest(vectors, table, metric)
    else:
        with compiled.switched_off():
            found = nearest(vectors, table, metric)
    assert found.tolist() == expected
    assert nearest(vectors.double(), table.double(), metric).tolist() == expected
    assert nearest(vectors.repeat(12, 1), table, metric).tolist() == 12 * expected
    if metric == "l2":
        exact = [float(far(y, fractions(table)[i], metric)) ** 0.5
                 for y, i in zip(fractions(vectors), expected, strict=True)]  # fmt: skip
        found = nearest_distance(vectors, table).double()
        torch.testing.assert_close(found, torch.tensor(exact).double(), rtol=2**-23, atol=0)


@given(tables(most_rows=200), st.sampled_from(METRICS), st.integers(4, 20))
@cases("nearest in groups")
def test_nearest_of_many_vectors_in_groups_of_rows(case, metric, count):
    """Several groups of rows, the last one short; some products are taken of many vectors at once."""
    table, rng = case
    vectors = points(table, rng, count)
    with mock.patch.multiple(nearest_module, MANY=1, LARGE=1, CHUNK=256):
        assert nearest(vectors, table, metric).tolist() == closest(vectors, table, metric)


def test_nearest_by_dot_of_rows_whose_squares_are_no_normal_numbers():
    table = 1e-24 * torch.randn(70, 3, generator=torch.Generator().manual_seed(0))
    vectors = torch.cat([table[:8] * 1e24, table[:8]])
    assert nearest(vectors, table, "dot").tolist() == closest(vectors, table, "dot")


def on_the_hull(rows, y):
    """The distance from y (m,) to the closest mixture, over every set of rows that may carry it."""
    best = np.inf
    for size in range(1, min(len(rows), rows.shape[1] + 1) + 1):
        for chosen in combinations(range(len(rows)), size):
            some = rows[list(chosen)]
            if size == 1:
                p = np.ones(1)
            else:  # the closest point of the flat through these rows
                more = np.linalg.lstsq((some[1:] - some[0]).T, y - some[0], rcond=None)[0]
                p = np.concatenate([[1 - more.sum()], more])
            if p.min() >= -1e-12:
                best = min(best, np.linalg.norm(p @ some - y))
    return best


@given(tables(most_rows=6, most_width=3))
@cases("hull")
def test_hull(case):
    """The oracle's own rounding is that of float64 least squares on rows of length `size`."""
    table, rng = case
    vectors = points(table, rng)
    rows, size = table.double().numpy(), max(1e-30, float(table.double().norm(dim=-1).max()))
    p = barycentric(vectors.double(), table.double()).numpy()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-12)
    assert p.min() >= 0
    for weights, y, found in zip(
        p, vectors.double().numpy(), hull_distance(vectors, table).tolist(), strict=True
    ):
        reach = size + np.linalg.norm(y)
        expected = on_the_hull(rows / reach, y / reach) * reach
        # rows that coincide to 1e-6 may share weights anyhow: it is the mixture that counts
        assert abs(np.linalg.norm(weights @ rows - y) - expected) < 1e-6 * reach
        assert abs(found - expected) < 1e-6 * reach


@given(tables(most_rows=6, most_width=3))
@cases("hull")
def test_a_point_inside_an_edge_is_found_to_rounding(case):
    """Where rows are affinely dependent, a ridge of 1e-12 may move it by 1e-6 of a distance."""
    table, rng = case
    a, b = (table[rng.integers(len(table))].double() for _ in range(2))
    share = float(rng.choice([0.25, 0.5, 0.75]))
    point = (share * a + (1 - share) * b)[None]
    size = table.double().norm(dim=-1).max()
    exactly = len(table) <= table.shape[1] + 1
    assert hull_distance(point, table.double()) <= (1e-13 if exactly else 2e-6) * size


@given(tables(most_rows=7, most_width=4), st.integers(1, 3))
@cases("recovery")
def test_recovery(case, n):
    """The rows with the largest cosine, and the products with a sum, in float64 by loops."""
    table, rng = case
    n = min(n, len(table))
    vectors = points(table, rng)
    rows = table.double().numpy()
    scale = float(np.linalg.norm(rows, axis=1).max()) or 1.0
    for y, ids in zip(vectors.double().numpy(), nearest_rows(vectors, table, n), strict=True):
        cosines = [
            row @ y / (np.linalg.norm(row) * np.linalg.norm(y)) if row.any() and y.any() else 0.0
            for row in rows
        ]
        best = sorted(cosines, reverse=True)[:n]
        np.testing.assert_allclose([cosines[i] for i in ids.tolist()], best, atol=1e-12)
    chosen = rng.choice(len(table), size=n, replace=False)
    total = rows[chosen].sum(0)
    mean = rows.mean(0)
    expected = [(row - mean) @ (total - n * mean) / n**0.5 for row in rows]
    found = by_product(torch.from_numpy(total)[None], n, table.double())[0]
    np.testing.assert_allclose(found, expected, atol=1e-12 * scale**2)
