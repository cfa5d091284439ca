"""Sums of vectors (K6): the nearest tokens, and how many items one vector of width m can hold.

An item is held if it can be read back from the sum.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from scipy.optimize import brentq, minimize_scalar
from scipy.special import ndtr
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.estimates import Estimate
from ..models.by_row import largest
from ..models.embedding_tables import TINY
from ..models.simplex import barycentric

Reader = Callable[[Tensor, int, Tensor], Tensor]
"""(sums (N, m), items a sum n, table (V, m)) -> scores (N, V), the largest for what is thought to be in the sum."""


def balanced(
    sums: Float[Tensor, "*N m"], n: int, table: Float[Tensor, "V m"]
) -> Float[Tensor, "*N m"]:
    """Sums of n rows minus n mean rows, divided by √n: their size does not depend on n.

    Raises:
        ValueError: where n is below 1.
    """
    if n < 1:
        raise ValueError(f"a sum has at least 1 item, not {n}")
    return (sums - n * table.mean(0)) / math.sqrt(n)


def nearest_rows(
    vectors: Float[Tensor, "N m"],
    table: Float[Tensor, "V m"],
    k: int = 1,
    exclude: Int[Tensor, "N _"] | None = None,
) -> Int[Tensor, "N k"]:
    """The ids of the k rows with the largest cosine to each vector, best first.

    Args:
        vectors: (N, m).
        table: (V, m).
        k: number of rows to return.
        exclude: (N, _), ids that must not be returned, per vector; None excludes nothing.

    Returns:
        Ids (N, k). Ties go to the smallest id.

    Raises:
        ValueError: where fewer than k rows may be returned.
    """
    left = len(table) - (0 if exclude is None else exclude.shape[1])
    if not 1 <= k <= left:
        raise ValueError(f"k must lie in 1 … {left}, the rows that may answer, not {k}")
    units = [F.normalize(one.double(), dim=-1, eps=TINY) for one in (vectors, table)]
    scores = units[0] @ units[1].T  # (N, V)
    if exclude is not None:
        scores = scores.scatter(1, exclude, -math.inf)
    return scores.argsort(dim=-1, descending=True, stable=True)[:, :k]


# -- how many items can be read back from their sum ------------------------------------------------


def by_product(
    sums: Float[Tensor, "N m"], n: int, table: Float[Tensor, "V m"]
) -> Float[Tensor, "N V"]:
    """Matched filter: score every row by its product with the sum, both without the mean row."""
    return balanced(sums, n, table) @ (table - table.mean(0)).T


def by_mixture(
    sums: Float[Tensor, "N m"], n: int, table: Float[Tensor, "V m"]
) -> Float[Tensor, "N V"]:
    """Score every row by its weight in the closest mixture to the mean of the items (K3)."""
    return barycentric(sums / n, table)


class Probe(nn.Module):
    """A small trained network that detects the rows in a sum, from the balanced sum and log n (K6).

    Every training step uses fresh sums of n distinct rows, n in 1 … `most`, so it cannot memorize
    them.

    Args:
        table: (V, m), the rows.
        most: the largest number of rows in a sum.
        steps: training steps, with 256 sums each.
        width: width of the hidden layers.
        seed: decides everything random.

    Raises:
        ValueError: where the table has fewer rows than `most`, or `most` is below 1.
    """

    def __init__(
        self,
        table: Float[Tensor, "V m"],
        most: int,
        steps: int = 600,
        width: int = 256,
        seed: int = 0,
    ):
        super().__init__()
        if not 1 <= most <= len(table):
            raise ValueError(f"most must lie in 1 … {len(table)}, the rows there are, not {most}")
        generator = torch.Generator().manual_seed(seed)
        # 1) the network; its initial weights leave the global random state untouched
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inputs, outputs = table.shape[1] + 1, len(table)
            self.layers = nn.Sequential(
                *(
                    nn.Linear(inputs, width),
                    nn.GELU(),
                    nn.Linear(width, width),
                    nn.GELU(),
                    nn.Linear(width, outputs),
                )
            )
        # 2) train on fresh sums, with a learning rate that falls linearly to 0
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        for _ in range(steps):
            n = int(torch.randint(1, most + 1, (), generator=generator))
            ids = draw_sets(len(table), n, 256, generator)
            present = torch.zeros(len(ids), len(table)).scatter(1, ids, 1.0)
            F.binary_cross_entropy_with_logits(self(present @ table, n, table), present).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            falling.step()
        self.requires_grad_(False)

    def forward(
        self, sums: Float[Tensor, "N m"], n: int, table: Float[Tensor, "V m"]
    ) -> Float[Tensor, "N V"]:
        """Log odds (N, V) that each row is in each sum: a `Reader`."""
        size = torch.full((len(sums), 1), math.log(n))
        return self.layers(
            torch.cat([balanced(sums, n, table) * math.sqrt(table.shape[1]), size], 1)
        )


def draw_sets(
    vocab_size: int, n: int, count: int, generator: torch.Generator
) -> Int[Tensor, "N n"]:
    """`count` sets of n distinct ids, all equally likely, (count, n).

    Raises:
        ValueError: where n is below 1 or above vocab_size.
    """
    if not 1 <= n <= vocab_size:
        raise ValueError(f"n must lie in 1 … {vocab_size}, the ids there are, not {n}")
    return torch.rand(count, vocab_size, generator=generator).topk(n, dim=1).indices


def recovery_rate(
    table: Float[Tensor, "V m"],
    n: int,
    reader: Reader = by_mixture,
    trials: int = 200,
    seed: int = 0,
) -> Estimate:
    """Share of the n rows of a sum that are among the n best scores, over random sets.

    1: all are read back; n / V: chance.

    Args:
        table: (V, m).
        n: number of distinct rows in a sum.
        reader: scores the rows.
        trials: number of random sets.
        seed: decides the sets.

    Raises:
        ValueError: where there are more items than rows.
    """
    ids = draw_sets(len(table), n, trials, torch.Generator().manual_seed(seed))
    found = largest(reader(table[ids].sum(1), n, table), n)  # (N, n)
    right = (found[:, :, None] == ids[:, None, :]).any(-1)
    return Estimate.mean(right.double().mean(1))


def recovery_by_product(vocab_size: int, n: int, m: int) -> float:
    """Share in (0, 1] that `by_product` reads back from random rows of length 1, in theory.

    A row's product with the sum is taken as normal. Its mean is 1 - (n-1)/(V-1) if the row is in
    the sum, and -n/(V-1) if not; its variance is k/m (1 - k/(V-1)), where k other rows are in the
    sum. The threshold is set so that n rows are expected to pass. The approximation is off by up to
    0.15 for very few items, and by up to 0.03 from four on (m ≥ 16).

    Source: superposition capacity (Plate 2003; Frady et al., arXiv 1803.00412), here for items
        drawn without replacement.
    """
    if n == vocab_size:
        return 1.0
    spread = lambda k: math.sqrt(max(k / m * (1 - k / (vocab_size - 1)), 1e-12))  # noqa: E731
    # the shares of the rows in the sum, and of the others, whose product is above the limit
    present = lambda limit: ndtr((1 - (n - 1) / (vocab_size - 1) - limit) / spread(n - 1))  # noqa: E731
    absent = lambda limit: ndtr((-n / (vocab_size - 1) - limit) / spread(n))  # noqa: E731
    surplus = lambda limit: n * present(limit) + (vocab_size - n) * absent(limit) - n  # noqa: E731
    return float(present(brentq(surplus, -20 * math.sqrt(n), 20 * math.sqrt(n))))


def most_by_mixture(vocab_size: int, m: int) -> int:
    """Largest n such that the sum of n of V random rows of width m has one mixture only, in theory.

    Beyond it, other mixtures give the same vector. The limit is where the statistical dimension of
    the weights' descent cone, V · min over t of [r (1+t²) + (1-r) E(g-t)₊²] with r = n/V, exceeds
    m + 1 (the sum of the weights is known). All V rows where m ≥ V - 1.

    Source: Donoho and Tanner (PNAS 2005); Amelunxen et al. (arXiv 1303.6672).
    """
    if m >= vocab_size - 1:
        return vocab_size

    def dimension(n: int) -> float:
        return (
            vocab_size
            * minimize_scalar(_cone, bounds=(0, 10), args=(n / vocab_size,), method="bounded").fun
        )

    return max((n for n in range(1, vocab_size) if dimension(n) <= m + 1), default=0)


def _cone(t: float, share: float) -> float:
    """The function of t minimized in `most_by_mixture`.

    For a normal g, E(g-t)₊² = (1+t²) P(g > t) - t φ(t).
    """
    tail = (1 + t * t) * math.erfc(t / math.sqrt(2)) / 2 - t * math.exp(-t * t / 2) / math.sqrt(
        2 * math.pi
    )
    return share * (1 + t * t) + (1 - share) * tail
