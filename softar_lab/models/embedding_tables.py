"""Embedding tables (K23, K39): where the symbols lie in R^m, and whether training moves them.

One table serves as input and as target. Its name may carry options: "random(trained=True)",
"joint(sphere=False)", "regularised(2.0)". `sphere`: every row starts with norm 1. Without it the
norms are unequal, with mean 1, and the short rows become hubs: they are the nearest rows to vectors
that mean another symbol. Trained rows may leave the sphere.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.registry import Registry

TINY = 1e-30  # what shorter vectors would be divided by; shorter than any that float32 can square
TABLES = Registry("table")
names = TABLES.names


class EmbeddingTable(nn.Module):
    """The table E (V, m), one row per symbol. The model reads its rows and predicts towards them.

    Args:
        rows: the first values (V, m).
        trained: whether training changes them.
        penalty: the weight of `variance_covariance` in the loss.

    Raises:
        ValueError: where `penalty` is below 0.
    """

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
        """The term that the table itself adds to the training loss."""
        return (
            self.penalty_weight * variance_covariance(self.weight) if self.penalty_weight else 0.0
        )


def variance_covariance(table: Float[Tensor, "V m"]) -> Float[Tensor, ""]:
    """VICReg's penalty on the rows: every coordinate should vary, and no two should vary together.

    mean_j max(0, 1 - std_j) + sum_{i≠j} cov_ij² / m, in units in which the coordinates of a unit
    row have variance 1.

    Source:
        arXiv 2105.04906.
    """
    width = table.shape[1]
    centred = (table - table.mean(0)) * width**0.5
    covariance = centred.T @ centred / max(1, len(table) - 1)  # (m, m)
    deviation = (covariance.diagonal() + 1e-4).sqrt()
    off_diagonal = covariance - covariance.diagonal().diag()
    return F.relu(1 - deviation).mean() + off_diagonal.square().sum() / width


def effective_rank(table: Float[Tensor, "V m"]) -> float:
    """exp(entropy of the normalised singular values): 1 where all rows lie on one line.

    It does not notice a table that shrinks as a whole; log `mean_norm` beside it.

    Returns:
        A number in 1 … min(V, m); 0 for a table of zeros; NaN for a table that holds NaN or
        infinity.

    Source:
        Roy and Vetterli 2007.
    """
    if not torch.isfinite(table).all():
        return math.nan
    values = torch.linalg.svdvals(table.detach().double())
    share = values / values.sum().clamp_min(1e-300)
    return torch.special.entr(share).sum().exp().item() if values.sum() > 0 else 0.0


def mean_norm(table: Float[Tensor, "V m"]) -> Float[Tensor, ""]:
    """The mean norm of the rows."""
    return table.norm(dim=-1).mean()


def make_table(
    name: str, vocab_size: int, embedding_dim: int, generator: torch.Generator
) -> EmbeddingTable:
    """The table registered as `name`, of shape (vocab_size, embedding_dim)."""
    return TABLES.make(name, vocab_size, embedding_dim, generator)


def gaussian(
    vocab_size: int, embedding_dim: int, generator: torch.Generator, sphere: bool
) -> Float[Tensor, "V m"]:
    """Rows (V, m) in independent directions, uniform on the unit sphere.

    All norms are 1 with `sphere`; otherwise they are log-normal, scaled to mean 1.
    """
    rows = F.normalize(torch.randn(vocab_size, embedding_dim, generator=generator), dim=-1)
    if sphere:
        return rows
    norms = (0.5 * torch.randn(vocab_size, 1, generator=generator)).exp()
    return rows * norms / norms.mean()


def placed(rows: Float[Tensor, "V m"], sphere: bool) -> Float[Tensor, "V m"]:
    """Rows centred, then scaled: each to norm 1, or all by one factor to mean norm 1."""
    rows = rows - rows.mean(0)
    return F.normalize(rows, dim=-1) if sphere else rows / mean_norm(rows).clamp_min(1e-12)


@TABLES.register("joint")
def joint(vocab_size, embedding_dim, generator, sphere: bool = True) -> EmbeddingTable:
    """Rows trained together with the model.

    Under a pure regression loss the table collapses, because that lowers the loss most (K23).
    """
    return EmbeddingTable(gaussian(vocab_size, embedding_dim, generator, sphere), trained=True)


@TABLES.register("random")
def random(
    vocab_size, embedding_dim, generator, trained: bool = False, sphere: bool = True
) -> EmbeddingTable:
    """Random rows, frozen unless `trained`."""
    return EmbeddingTable(gaussian(vocab_size, embedding_dim, generator, sphere), trained)


@TABLES.register("orthonormal")
def orthonormal(vocab_size, embedding_dim, generator, trained: bool = False) -> EmbeddingTable:
    """Orthonormal rows, frozen unless `trained`.

    The squared norm of a mixture qE is then sum q², the confidence of q.

    Raises:
        ValueError: where embedding_dim < vocab_size; R^m has at most m orthogonal rows.
    """
    if embedding_dim < vocab_size:
        raise ValueError(
            f"an orthonormal table needs embedding_dim >= vocab_size, not {embedding_dim} < {vocab_size}"
        )
    columns, _ = torch.linalg.qr(torch.randn(embedding_dim, vocab_size, generator=generator))
    return EmbeddingTable(columns.T.contiguous(), trained)


@TABLES.register("pca-anchor")
def pca_anchor(
    vocab_size, embedding_dim, generator, trained: bool = False, sphere: bool = True
) -> EmbeddingTable:
    """The middle principal components that a random encoder and a random decoder table share (K23).

    Both tables side by side (V, 2m) have one set of components. The middle ones are taken, neither
    the strongest nor the weakest. At most V - 1 components exist, so a table wider than that holds
    all of them, rotated at random into R^m.

    Raises:
        ValueError: for fewer than 2 symbols.
    """
    if vocab_size < 2:
        raise ValueError("a pca-anchor table needs at least 2 symbols")
    # encoder rows | decoder rows, (V, 2m)
    both = torch.randn(vocab_size, 2 * embedding_dim, generator=generator)
    left, sizes, _ = torch.linalg.svd(both - both.mean(0), full_matrices=False)
    available = min(vocab_size - 1, 2 * embedding_dim)
    taken = min(embedding_dim, available)
    first = (available - taken) // 2
    turn, _ = torch.linalg.qr(torch.randn(embedding_dim, taken, generator=generator))
    rows = (left * sizes)[:, first : first + taken] @ turn.T  # (V, m)
    return EmbeddingTable(placed(rows, sphere), trained)


@TABLES.register("regularised")
def regularised(
    vocab_size, embedding_dim, generator, weight: float | int = 1.0, sphere: bool = True
) -> EmbeddingTable:
    """`joint` with the variance-covariance penalty, which stops it from collapsing (K23)."""
    return EmbeddingTable(
        gaussian(vocab_size, embedding_dim, generator, sphere), trained=True, penalty=weight
    )


@TABLES.register("pretrained")
def pretrained(vocab_size, embedding_dim, generator, trained: bool = False) -> EmbeddingTable:
    """Zeros, to be replaced by rows given to the model: SoftAR(config, tokenizer, rows=rows).

    For example, `pretrained_rows` reads such rows from a folder.
    """
    return EmbeddingTable(torch.zeros(vocab_size, embedding_dim), trained)
