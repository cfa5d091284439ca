"""Embedding and target tables (K23, K39): where the symbols lie in R^m, and whether training may move them.

A table's name may carry options: "random(trained=True)", "joint(sphere=False)", "regularised(2.0)".
`sphere`: every row begins with norm 1. Without it norms are unequal, of mean 1, and the short rows are hubs: nearest
to vectors that mean another symbol. Trained rows are free to leave the sphere.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..registry import Registry

TABLES = Registry("table")
names = TABLES.names


class EmbeddingTable(nn.Module):
    """The table E (V, m), one row a symbol: read as input, aimed at as target. `penalty`: weight in the loss."""

    def __init__(self, rows: Float[Tensor, "V m"], trained: bool, penalty: float | int = 0):
        super().__init__()
        if not penalty >= 0:
            raise ValueError(f"penalty must be at least 0, not {penalty}")
        self.weight = nn.Parameter(rows, requires_grad=trained)
        self.penalty_weight = penalty

    def forward(self, token_ids: Tensor) -> Tensor:
        """Rows of the table: (...,) -> (..., m)."""
        return F.embedding(token_ids, self.weight)

    def penalty(self) -> Float[Tensor, ""] | float:
        """What the table itself adds to the training loss."""
        return self.penalty_weight * variance_covariance(self.weight) if self.penalty_weight else 0.0


def variance_covariance(table: Float[Tensor, "V m"]) -> Float[Tensor, ""]:
    """VICReg's penalty on the rows (arXiv 2105.04906): every coordinate should vary, and no two of them together.

    mean_j max(0, 1 - std_j) + sum_{i≠j} cov_ij² / m, in units where a unit row's coordinates have variance 1.
    """
    width = table.shape[1]
    centred = (table - table.mean(0)) * width**0.5
    covariance = centred.T @ centred / max(1, len(table) - 1)  # (m, m)
    deviation = (covariance.diagonal() + 1e-4).sqrt()
    off_diagonal = covariance - covariance.diagonal().diag()
    return F.relu(1 - deviation).mean() + off_diagonal.square().sum() / width


def effective_rank(table: Float[Tensor, "V m"]) -> float:
    """exp(entropy of the normalised singular values), in 1 … min(V, m): 1 where all rows lie on one line; 0 for zeros.

    NaN for a table that holds NaN or infinity. It does not see a table that shrinks as a whole: log `mean_norm` beside
    it. Source: Roy and Vetterli 2007.
    """
    if not torch.isfinite(table).all():
        return math.nan
    values = torch.linalg.svdvals(table.detach().double())
    share = values / values.sum().clamp_min(1e-300)
    return torch.special.entr(share).sum().exp().item() if values.sum() > 0 else 0.0


def mean_norm(table: Float[Tensor, "V m"]) -> Float[Tensor, ""]:
    """The mean length of the rows."""
    return table.norm(dim=-1).mean()


def make_table(name: str, vocab_size: int, embedding_dim: int, generator: torch.Generator) -> EmbeddingTable:
    """The table registered as `name`, of shape (vocab_size, embedding_dim)."""
    return TABLES.make(name, vocab_size, embedding_dim, generator)


def gaussian(vocab_size: int, embedding_dim: int, generator: torch.Generator, sphere: bool) -> Float[Tensor, "V m"]:
    """Independent directions, uniform on the unit sphere (V, m); norms all 1, or log-normal with mean 1."""
    rows = F.normalize(torch.randn(vocab_size, embedding_dim, generator=generator), dim=-1)
    if sphere:
        return rows
    norms = (0.5 * torch.randn(vocab_size, 1, generator=generator)).exp()
    return rows * norms / norms.mean()


def placed(rows: Float[Tensor, "V m"], sphere: bool) -> Float[Tensor, "V m"]:
    """Rows centred and scaled: each to norm 1, or all alike to mean norm 1."""
    rows = rows - rows.mean(0)
    return F.normalize(rows, dim=-1) if sphere else rows / mean_norm(rows).clamp_min(1e-12)


@TABLES.register("joint")
def joint(vocab_size, embedding_dim, generator, sphere: bool = True) -> EmbeddingTable:
    """Trained with everything else. Under a pure regression loss its best move is to collapse (K23)."""
    return EmbeddingTable(gaussian(vocab_size, embedding_dim, generator, sphere), trained=True)


@TABLES.register("random")
def random(vocab_size, embedding_dim, generator, trained: bool = False, sphere: bool = True) -> EmbeddingTable:
    """Frozen random rows."""
    return EmbeddingTable(gaussian(vocab_size, embedding_dim, generator, sphere), trained)


@TABLES.register("orthonormal")
def orthonormal(vocab_size, embedding_dim, generator, trained: bool = False) -> EmbeddingTable:
    """Frozen orthonormal rows: the squared norm of a mixture qE is then sum q², the confidence of q.

    Raises ValueError where embedding_dim < vocab_size: there is no room for that many orthogonal rows.
    """
    if embedding_dim < vocab_size:
        raise ValueError(f"an orthonormal table needs embedding_dim >= vocab_size, not {embedding_dim} < {vocab_size}")
    columns, _ = torch.linalg.qr(torch.randn(embedding_dim, vocab_size, generator=generator))
    return EmbeddingTable(columns.T.contiguous(), trained)


@TABLES.register("pca-anchor")
def pca_anchor(vocab_size, embedding_dim, generator, trained: bool = False, sphere: bool = True) -> EmbeddingTable:
    """The middle principal components shared by a random encoder table and a random decoder table (K23).

    Both tables side by side (V, 2m) have one set of components; neither the strongest nor the weakest are taken. There
    are at most V - 1, so a wider table holds all of them, turned at random into R^m.
    Raises ValueError for fewer than 2 symbols.
    """
    if vocab_size < 2:
        raise ValueError("a pca-anchor table needs at least 2 symbols")
    both = torch.randn(vocab_size, 2 * embedding_dim, generator=generator)  # encoder rows | decoder rows
    left, sizes, _ = torch.linalg.svd(both - both.mean(0), full_matrices=False)
    there = min(vocab_size - 1, 2 * embedding_dim)
    taken = min(embedding_dim, there)
    first = (there - taken) // 2
    turn, _ = torch.linalg.qr(torch.randn(embedding_dim, taken, generator=generator))
    rows = (left * sizes)[:, first : first + taken] @ turn.T  # (V, m)
    return EmbeddingTable(placed(rows, sphere), trained)


@TABLES.register("regularised")
def regularised(vocab_size, embedding_dim, generator, weight: float | int = 1.0, sphere: bool = True) -> EmbeddingTable:
    """`joint`, kept from collapsing by the variance-covariance penalty (K23)."""
    return EmbeddingTable(gaussian(vocab_size, embedding_dim, generator, sphere), trained=True, penalty=weight)


@TABLES.register("pretrained")
def pretrained(vocab_size, embedding_dim, generator, trained: bool = False) -> EmbeddingTable:
    """A place for rows given to the model, as by `pretrained_rows`: SoftAR(config, tokenizer, rows=rows)."""
    return EmbeddingTable(torch.zeros(vocab_size, embedding_dim), trained)
