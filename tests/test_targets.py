"""Where symbols lie: unit norms, orthogonality where promised, and frozen where promised."""

import pytest
import torch

from softar_lab.models.targets import TABLES, make_table


@pytest.mark.parametrize("name", TABLES.names())
@pytest.mark.parametrize(("vocab_size", "width"), [(5, 5), (5, 40), (1, 1)])
def test_make_table_has_unit_rows(name, vocab_size, width, rng):
    rows = make_table(name, vocab_size, width, rng()).weight
    assert rows.shape == (vocab_size, width)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(vocab_size))


@pytest.mark.parametrize("width", [20, 21, 64])
def test_orthonormal_rows_are_orthonormal_and_mixtures_tell_their_confidence(width, rng):
    rows = make_table("orthonormal", 20, width, rng()).weight.detach().double()
    torch.testing.assert_close(rows @ rows.T, torch.eye(20).double(), atol=1e-6, rtol=0)
    q = torch.rand(20, generator=rng(1)).double()
    torch.testing.assert_close((q @ rows).square().sum(), q.square().sum(), atol=1e-5, rtol=0)


def test_orthonormal_refuses_too_little_room(rng):
    with pytest.raises(ValueError, match="embedding_dim >= vocab_size, not 4 < 5"):
        make_table("orthonormal", 5, 4, rng())


@pytest.mark.parametrize("name", TABLES.names())
def test_make_table_depends_on_the_generator_alone(name, rng):
    torch.manual_seed(1)
    first = make_table(name, 5, 8, rng(3)).weight
    torch.manual_seed(2)
    assert torch.equal(first, make_table(name, 5, 8, rng(3)).weight)
    assert not torch.equal(first, make_table(name, 5, 8, rng(4)).weight)


def test_random_rows_point_everywhere(rng):
    """Uniform on the sphere: the mean of n rows has squared norm about 1/n; here below 3/n (odds under 1e-9)."""
    rows = make_table("random", 4000, 16, rng()).weight
    assert rows.mean(0).square().sum() < 3 / 4000
    second_moment = rows.T @ rows / len(rows)  # (m, m), in the limit the identity / m
    assert (second_moment - torch.eye(16) / 16).abs().max() < 0.01


def test_forward_looks_rows_up(rng):
    table = make_table("random", 6, 3, rng())
    token_ids = torch.tensor([[0, 5], [2, 2]])
    assert torch.equal(table(token_ids), table.weight[token_ids])


@pytest.mark.parametrize(("name", "moves"), [("joint", True), ("random", False), ("orthonormal", False)])
def test_make_table_is_trained_only_where_joint(name, moves, rng):
    assert make_table(name, 5, 8, rng()).weight.requires_grad is moves
