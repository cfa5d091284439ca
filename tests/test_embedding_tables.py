"""Where symbols lie: unit norms, orthogonality where promised, and frozen where promised."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from softar_lab.external.pretrained.convert import pretrained_rows
from softar_lab.models.config import ModelConfig
from softar_lab.models.embedding_tables import (
    TABLES,
    effective_rank,
    make_table,
    mean_norm,
    variance_covariance,
)
from softar_lab.models.soft_ar import SoftAR

CHECKPOINTS = Path(__file__).parents[1] / "data" / "checkpoints"
DRAWN = [name for name in TABLES.names() if name != "pretrained"]


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize(("vocab_size", "width"), [(5, 5), (5, 40), (2, 2)])
def test_make_table_has_unit_rows(name, vocab_size, width, rng):
    rows = make_table(name, vocab_size, width, rng()).weight
    assert rows.shape == (vocab_size, width)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(vocab_size))


@pytest.mark.parametrize("name", ["joint", "random", "pca-anchor", "regularised"])
def test_rows_off_the_sphere_have_unequal_norms_of_mean_one(name, rng):
    norms = make_table(f"{name}(sphere=False)", 40, 16, rng()).weight.norm(dim=-1)
    assert norms.mean().item() == pytest.approx(1, abs=1e-5)
    assert norms.std() > 0.02


def test_a_short_row_off_the_sphere_is_a_hub_and_on_it_there_is_none(rng):
    """Half-way mixtures e_w / 2 + noise: how often the most frequent nearest row is named, where 2
    % would be fair.
    """
    share = {}
    for name in ("random", "random(sphere=False)"):
        rows = make_table(name, 50, 32, rng()).weight.detach()
        points = 0.5 * rows.repeat(40, 1) + 0.1 * torch.randn(2000, 32, generator=rng(1))
        nearest = torch.cdist(points, rows).argmin(-1)
        share[name] = torch.bincount(nearest, minlength=50).max().item() / 2000
    assert share["random"] < 0.05 < 0.1 < share["random(sphere=False)"]


@pytest.mark.parametrize("width", [20, 21, 64])
def test_orthonormal_rows_are_orthonormal_and_mixtures_tell_their_confidence(width, rng):
    rows = make_table("orthonormal", 20, width, rng()).weight.detach().double()
    torch.testing.assert_close(rows @ rows.T, torch.eye(20).double(), atol=1e-6, rtol=0)
    q = torch.rand(20, generator=rng(1)).double()
    torch.testing.assert_close((q @ rows).square().sum(), q.square().sum(), atol=1e-5, rtol=0)


def test_orthonormal_refuses_too_narrow_a_table(rng):
    with pytest.raises(ValueError, match="embedding_dim >= vocab_size, not 4 < 5"):
        make_table("orthonormal", 5, 4, rng())


@pytest.mark.parametrize("name", DRAWN)
def test_make_table_depends_on_the_generator_alone(name, rng):
    torch.manual_seed(1)
    first = make_table(name, 5, 8, rng(3)).weight
    torch.manual_seed(2)
    assert torch.equal(first, make_table(name, 5, 8, rng(3)).weight)
    assert not torch.equal(first, make_table(name, 5, 8, rng(4)).weight)


def test_random_rows_point_everywhere(rng):
    """Uniform on the sphere: the mean of n rows has squared norm about 1/n; here below 3/n (odds
    under 1e-9).
    """
    rows = make_table("random", 4000, 16, rng()).weight
    assert rows.mean(0).square().sum() < 3 / 4000
    second_moment = rows.T @ rows / len(rows)  # (m, m), in the limit the identity / m
    assert (second_moment - torch.eye(16) / 16).abs().max() < 0.01


def test_forward_looks_rows_up(rng):
    table = make_table("random", 6, 3, rng())
    token_ids = torch.tensor([[0, 5], [2, 2]])
    assert torch.equal(table(token_ids), table.weight[token_ids])


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        ("joint", True),
        ("regularised", True),
        *(
            (f"{name}(trained={moves})", moves)
            for name in TABLES.names()[1:]
            for moves in (True, False)
        ),
        *((name, False) for name in ("random", "orthonormal", "pca-anchor", "pretrained")),
    ],
)
def test_make_table_is_trained_where_it_says_so(name, moves, rng):
    if name.startswith("regularised("):
        with pytest.raises(ValueError, match="unexpected keyword argument 'trained'"):
            make_table(name, 5, 8, rng())
        return
    assert make_table(name, 5, 8, rng()).weight.requires_grad is moves


def test_pca_anchor_takes_the_middle_of_the_shared_components(rng):
    """Against numpy: the Gram matrix of the rows is that of the middle components of both tables
    side by side.
    """
    both = torch.randn(30, 16, generator=rng()).double().numpy()
    left, sizes, _ = np.linalg.svd(both - both.mean(0), full_matrices=False)
    middle = (left * sizes)[:, 4:12]  # 8 of 16
    rows = make_table("pca-anchor(sphere=False)", 30, 8, rng()).weight.detach().double().numpy()
    expected = middle @ middle.T / np.linalg.norm(middle, axis=-1).mean() ** 2
    np.testing.assert_allclose(rows @ rows.T, expected, atol=1e-5)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-6)


def test_pca_anchor_wider_than_the_vocabulary_spans_all_there_is(rng):
    rows = make_table("pca-anchor(sphere=False)", 6, 40, rng()).weight.detach()
    assert torch.linalg.matrix_rank(rows) == 5
    with pytest.raises(ValueError, match="at least 2 symbols"):
        make_table("pca-anchor", 1, 4, rng())


def test_variance_covariance_agrees_with_loops(rng):
    rows = (0.1 * torch.randn(9, 4, generator=rng())).requires_grad_()
    scaled = (
        2 * rows.detach().double().numpy()
    )  # in units where a unit row's 4 coordinates have variance 1
    covariance = np.cov(scaled.T)
    expected = np.mean([max(0, 1 - math.sqrt(covariance[i, i] + 1e-4)) for i in range(4)])
    expected += sum(covariance[i, j] ** 2 for i in range(4) for j in range(4) if i != j) / 4
    found = variance_covariance(rows)
    assert found.item() == pytest.approx(expected, abs=1e-6)
    found.backward()
    assert (rows.grad * (rows - rows.mean(0))).sum() < 0  # a step downhill spreads them


def test_penalty_is_that_of_regularised_tables_only(rng):
    assert make_table("joint", 5, 8, rng()).penalty() == 0
    table = make_table("regularised(3)", 5, 8, rng())
    torch.testing.assert_close(table.penalty(), 3 * variance_covariance(table.weight))
    with pytest.raises(ValueError, match="penalty must be at least 0, not -1"):
        make_table("regularised(-1)", 5, 8, rng())


@pytest.mark.parametrize("count", [1, 3, 8])
def test_effective_rank_counts_directions_of_equal_weight(count, rng):
    rows = torch.zeros(8, 20)
    rows[torch.arange(8), torch.arange(8) % count] = 2.0
    expected = {1: 1, 8: 8}.get(count)
    if expected is None:
        share = np.sqrt([3, 3, 2])
        share /= share.sum()
        expected = np.exp(-(share * np.log(share)).sum())
    assert effective_rank(rows) == pytest.approx(expected)
    assert effective_rank(0.001 * rows) == pytest.approx(expected)
    assert mean_norm(rows).item() == pytest.approx(2)
    assert effective_rank(0 * rows) == 0
    assert math.isnan(effective_rank(rows / 0))


@pytest.mark.parametrize("part", ["table", "head"])
@pytest.mark.parametrize("sphere", [True, False])
def test_pretrained_rows_are_those_of_the_checkpoint_centred_and_scaled(part, sphere):
    model = SoftAR.load(CHECKPOINTS / "mess3-hard", "cpu")
    raw = model.embedding if part == "table" else model.objective.head.weight.detach()
    rows, centred = pretrained_rows(CHECKPOINTS / "mess3-hard", part, sphere), raw - raw.mean(0)
    torch.testing.assert_close(torch.cosine_similarity(rows, centred), torch.ones(len(rows)))
    assert rows.norm(dim=-1).mean().item() == pytest.approx(1)
    assert (rows.norm(dim=-1).std() < 1e-6).item() is sphere
    if not sphere:
        torch.testing.assert_close(rows.mean(0), torch.zeros(rows.shape[1]), atol=1e-6, rtol=0)


def test_pretrained_rows_refuse_a_missing_part():
    for folder, part in (("mess3-hard", "body"), ("tales-soft", "head")):
        with pytest.raises(ValueError, match=f"part must be 'table', or 'head' of .* not '{part}'"):
            pretrained_rows(CHECKPOINTS / folder, part)


@pytest.mark.parametrize("name", ["pretrained", "pretrained(trained=True)"])
def test_a_model_takes_given_rows_and_keeps_them_on_disk(name, tmp_path, rng):
    config = ModelConfig(
        vocab_size=7, d_model=8, n_layers=1, objective="mse", table=name, embedding_dim=5
    )
    rows = torch.randn(7, 5, generator=rng())
    model = SoftAR(config, rows=rows)
    assert torch.equal(model.embedding, rows)
    model.save(tmp_path)
    assert torch.equal(SoftAR.load(tmp_path, "cpu").embedding, rows)
    assert torch.equal(model.with_readout("affine").embedding, rows)
    with pytest.raises(ValueError, match="needs rows"):
        SoftAR(config)
    with pytest.raises(ValueError, match=r"rows must be \(7, 5\) here, not \(7, 4\)"):
        SoftAR(config, rows=rows[:, :4])
