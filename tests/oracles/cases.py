"""How many cases each oracle sees, and the awkward numbers that they are made of."""

from fractions import Fraction

import numpy as np
import torch
from amount import total
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

TOTAL = total(600)
# Percent of the cases.
SHARES = {
    "nearest": 12, "nearest in groups": 3, "hull": 10, "pick": 8, "vote": 3, "markov": 9, "hidden markov": 7, "urn": 6,
    "recall": 2, "grammar": 7, "counting": 9, "beam": 7, "memory": 5, "generation": 2,
    "scoring": 3, "recovery": 3, "estimate": 4,
}  # fmt: skip
SCALES = (1e-12, 1e-6, 1e-3, 1.0, 1.0, 1.0, 7.0, 1e3, 1e6, 1e12)


def cases(oracle: str) -> settings:
    """The decorator that gives an oracle its share of the cases."""
    return settings(max_examples=max(2, TOTAL * SHARES[oracle] // 100), deadline=None)


@st.composite
def tables(draw, most_rows: int = 7, most_width: int = 4) -> tuple[Tensor, np.random.Generator]:
    """A table (V, m) in float32: ordinary, whole numbers that tie, copies, near copies, zeros, far
    from the origin; one row, width 1; any scale. And a generator for what else the case needs.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, width = draw(st.integers(1, most_rows)), draw(st.integers(1, most_width))
    kind = draw(st.sampled_from(("normal", "whole", "copies", "near", "zeros", "far")))
    table = rng.normal(size=(rows, width))
    if kind == "whole":
        table = rng.integers(-2, 3, size=(rows, width)).astype(float)
    if kind in ("copies", "near"):
        table = table[rng.integers(rows, size=rows)]
    if kind == "near":
        table = table + 1e-6 * rng.normal(size=table.shape)
    if kind == "zeros":
        table[rng.random(rows) < 0.5] = 0
    if kind == "far":
        table = table + 1000
    return torch.from_numpy(table * draw(st.sampled_from(SCALES))).float(), rng


def points(table: Tensor, rng: np.random.Generator, count: int = 3) -> Tensor:
    """Vectors (count, m) near a table: a row, a point half-way between two, a mixture, noise."""
    rows, (n, width) = table.double().numpy(), table.shape
    scale = np.abs(rows).max() or 1.0
    found = []
    for _ in range(count):
        kind, a, b = rng.integers(5), rows[rng.integers(n)], rows[rng.integers(n)]
        noise = scale * rng.normal(size=width)
        found.append((a, (a + b) / 2, rng.dirichlet(np.ones(n)) @ rows, noise, 0 * noise)[kind])
    return torch.from_numpy(np.array(found)).float()


def fractions(numbers: Tensor | np.ndarray | list) -> list:
    """The same numbers, exactly, in nested lists."""
    numbers = numbers if isinstance(numbers, list) else numbers.tolist()
    return [fractions(one) if isinstance(one, list) else Fraction(one) for one in numbers]


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Whole numbers at least 0, some of them 0 and some far apart, as probabilities need them."""
    size = 10.0 ** rng.choice([0, 0, 0, 3, 9], size=shape)
    return np.floor(rng.integers(1, 9, size=shape) * size) * (rng.random(shape) < 0.8)
