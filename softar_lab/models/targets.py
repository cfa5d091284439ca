"""Embedding and target tables (K23, K39): where the symbols lie in R^m, and whether training may move them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..registry import Registry

TABLES = Registry("table")
names = TABLES.names


class EmbeddingTable(nn.Module):
    """The table E (V, m), one row a symbol: read as input, aimed at as target. Rows start with norm 1."""

    def __init__(self, rows: Float[Tensor, "V m"], trained: bool):
        super().__init__()
        self.weight = nn.Parameter(rows, requires_grad=trained)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Rows of the table: (...,) -> (..., m)."""
        return nn.functional.embedding(token_ids, self.weight)


def make_table(name: str, vocab_size: int, embedding_dim: int, generator: torch.Generator) -> EmbeddingTable:
    """The table registered as `name`, of shape (vocab_size, embedding_dim)."""
    return TABLES.get(name)(vocab_size, embedding_dim, generator)


def on_sphere(vocab_size: int, embedding_dim: int, generator: torch.Generator) -> Float[Tensor, "V m"]:
    """Independent directions, uniform on the unit sphere (V, m): equal norms, so that no symbol is a hub."""
    return nn.functional.normalize(torch.randn(vocab_size, embedding_dim, generator=generator), dim=-1)


@TABLES.register("joint")
def joint(vocab_size: int, embedding_dim: int, generator: torch.Generator) -> EmbeddingTable:
    """Trained with everything else. Under a pure regression loss its best move is to collapse (K23)."""
    return EmbeddingTable(on_sphere(vocab_size, embedding_dim, generator), trained=True)


@TABLES.register("random")
def random(vocab_size: int, embedding_dim: int, generator: torch.Generator) -> EmbeddingTable:
    """Frozen random unit rows."""
    return EmbeddingTable(on_sphere(vocab_size, embedding_dim, generator), trained=False)


@TABLES.register("orthonormal")
def orthonormal(vocab_size: int, embedding_dim: int, generator: torch.Generator) -> EmbeddingTable:
    """Frozen orthonormal rows: the squared norm of a mixture qE is then sum q², the confidence of q.

    Raises ValueError where embedding_dim < vocab_size: there is no room for that many orthogonal rows.
    """
    if embedding_dim < vocab_size:
        raise ValueError(f"an orthonormal table needs embedding_dim >= vocab_size, not {embedding_dim} < {vocab_size}")
    columns, _ = torch.linalg.qr(torch.randn(embedding_dim, vocab_size, generator=generator))
    return EmbeddingTable(columns.T.contiguous(), trained=False)
