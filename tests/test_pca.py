"""One plane a table: numpy's own singular vectors are the oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softar_lab.metrics.pca import PCABasis


def table(rows=30, width=8, seed=0):
    """Rows whose principal directions are far apart."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, width, generator=generator) * 2.0 ** -torch.arange(width)
    return mixed @ torch.linalg.qr(torch.randn(width, width, generator=generator)).Q + 1


def by_svd(rows, k):
    """Mean, directions (signs: the entry of largest size is positive), shares of the variance, by
    numpy.
    """
    rows = rows.double().numpy()
    _, sizes, directions = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    directions = directions[:k]
    signs = [np.sign(max(row, key=abs)) for row in directions]
    return rows.mean(0), directions * np.array(signs)[:, None], (sizes**2 / (sizes**2).sum())[:k]


@pytest.mark.parametrize(("rows", "width", "k"), [(30, 8, 3), (5, 8, 4), (8, 3, 3), (2, 2, 1)])
def test_fit_is_what_numpy_finds(rows, width, k):
    basis, found = PCABasis.fit(table(rows, width), k), by_svd(table(rows, width), k)
    for mine, oracle in zip((basis.mean, basis.components, basis.explained), found, strict=True):
        np.testing.assert_allclose(mine.numpy(), oracle, atol=1e-5)


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_fit_makes_the_largest_entry_positive(seed):
    basis = PCABasis.fit(table(seed=seed))
    largest = basis.components.abs().argmax(1, keepdim=True)
    assert (basis.components.gather(1, largest) > 0).all()
    mirrored = PCABasis.fit(-table(seed=seed))
    torch.testing.assert_close(mirrored.components, basis.components, atol=1e-5, rtol=0)


def test_fit_finds_orthonormal_directions_in_falling_order():
    basis = PCABasis.fit(table(), 8)
    torch.testing.assert_close(basis.components @ basis.components.T, torch.eye(8))
    assert (basis.explained.diff() < 0).all()
    assert float(basis.explained.sum()) == pytest.approx(1)


def test_explained_is_the_share_of_variance_along_each_direction():
    rows = table()
    basis = PCABasis.fit(rows)
    torch.testing.assert_close(basis.explained, basis.transform(rows).var(0) / rows.var(0).sum())


def test_fit_again_gives_the_same_basis():
    first, second = PCABasis.fit(table()), PCABasis.fit(table().requires_grad_())
    for name in ("mean", "components", "explained"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_fit_does_not_mind_the_order_of_rows():
    basis, shuffled = PCABasis.fit(table()), PCABasis.fit(table().flip(0))
    torch.testing.assert_close(basis.components, shuffled.components, atol=1e-5, rtol=0)


def test_transform_of_all_directions_keeps_distances():
    rows = table()
    torch.testing.assert_close(torch.cdist(PCABasis.fit(rows, 8).transform(rows), torch.zeros(1, 8)).squeeze(),
                               (rows - rows.mean(0)).norm(dim=1))  # fmt: skip


@settings(deadline=None)
@given(st.floats(-2, 3))
def test_transform_keeps_straight_lines(share):
    basis, (one, other) = PCABasis.fit(table()), table(2, seed=1)
    between = basis.transform(share * one + (1 - share) * other)
    expected = share * basis.transform(one) + (1 - share) * basis.transform(other)
    torch.testing.assert_close(between, expected, atol=1e-5, rtol=1e-5)


def test_transform_takes_any_leading_shape_and_puts_the_mean_at_the_origin():
    basis, vectors = PCABasis.fit(table()), table(24, seed=1)
    for shape in ((24,), (4, 6), (2, 3, 4), (0,), ()):
        count = int(np.prod(shape))
        coordinates = basis.transform(vectors[:count].view(*shape, 8))
        assert coordinates.shape == (*shape, 3)
        torch.testing.assert_close(coordinates.view(count, 3), basis.transform(vectors)[:count])
    torch.testing.assert_close(basis.transform(basis.mean), torch.zeros(3))


def test_transform_gives_float32_without_gradient():
    coordinates = PCABasis.fit(table()).transform(table().double().requires_grad_())
    assert coordinates.dtype == torch.float32
    assert not coordinates.requires_grad


@pytest.mark.parametrize("shape", [(2, 8), (8, 2)])
def test_directions_that_a_small_table_has_not_are_zero(shape):
    rows = table(*shape)
    basis, two = PCABasis.fit(rows), PCABasis.fit(rows, 2)
    assert basis.components.shape == (3, shape[1])
    assert torch.equal(basis.transform(rows)[:, 2], torch.zeros(len(rows)))
    assert basis.explained[2] == 0
    torch.testing.assert_close(basis.transform(rows)[:, :2], two.transform(rows))


def test_fit_of_rows_that_are_all_alike_says_so():
    with pytest.raises(ValueError, match="alike"):
        PCABasis.fit(torch.ones(5, 4))


def test_fit_of_what_is_not_finite_says_so():
    rows = table()
    rows[3, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        PCABasis.fit(rows)
