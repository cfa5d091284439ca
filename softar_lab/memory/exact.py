"""The order of a few rows, exactly: in float64, and in whole numbers where that cannot tell."""

from fractions import Fraction

import numpy as np

_ONE = 2**149  # every float32 is a whole multiple of 1/_ONE


def values(rows: np.ndarray, query: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores in float64, the less the closer, and how far each may be off.

    NumPy sums each row by itself, in an order that depends on its width only.

    Args:
        rows: the rows (n, m), float32.
        query: one query (m,), float32.
        metric: "l2", "dot" or "cosine", where a row or a query of zeros has cosine 0.
    """
    x, q = rows.astype(np.float64), query.astype(np.float64)
    unit = (rows.shape[1] + 8) * 2.0**-53
    if metric == "l2":
        found = np.square(x - q).sum(-1)
        return found, unit * found
    found = -(x * q).sum(-1)
    lengths = np.sqrt(np.square(x).sum(-1)) * np.sqrt(np.square(q).sum())
    if metric == "dot":
        return found, unit * lengths
    found = np.divide(found, lengths, out=np.zeros_like(found), where=lengths > 0)
    return found, np.where(lengths > 0, unit, 0.0)


def closest(
    rows: np.ndarray, ids: np.ndarray, query: np.ndarray, k: int, metric: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k closest of some rows, exactly; equal ones in the order of their ids.

    Args:
        rows: the rows (n, m), float32.
        ids: their ids (n,), in any order.
        query: one query (m,).
        k: how many are wanted.
        metric: as for `values`.

    Returns:
        Where in `rows` they stand (at most k,), their scores, and how far these may be off.
    """
    found, slack = values(rows, query, metric)
    order = np.lexsort((ids, found))
    # 1) runs of rows that float64 cannot tell apart
    low, high = (found - slack)[order], np.maximum.accumulate((found + slack)[order])
    begins = np.concatenate([[True], low[1:] > high[:-1]])
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(order))
    # 2) each run that reaches into the first k, in whole numbers
    for begin, end in zip(starts, ends):
        if begin >= k:
            break
        if end - begin > 1:
            run = order[begin:end]
            order[begin:end] = run[_exact_order(rows[run], ids[run], query, metric)]
    order = order[:k]
    return order, found[order], slack[order]


def _exact_order(rows: np.ndarray, ids: np.ndarray, query: np.ndarray, metric: str) -> list[int]:
    """The order of rows by their exact scores, then by their ids."""
    names = [row.tobytes() for row in rows]
    distinct = dict(zip(names, rows))
    if len(distinct) == 1:
        return np.argsort(ids).tolist()
    wanted = _whole(query)
    scores = {name: _score(wanted, _whole(row), metric) for name, row in distinct.items()}
    return sorted(range(len(rows)), key=lambda i: (scores[names[i]], ids[i]))


def _whole(numbers: np.ndarray) -> list[int]:
    """float32 numbers as whole multiples of the smallest one."""
    ratios = (number.as_integer_ratio() for number in numbers.tolist())
    return [above * (_ONE // below) for above, below in ratios]


def _score(q: list[int], x: list[int], metric: str) -> int | Fraction:
    """A number that orders rows as the metric does, without rounding."""
    if metric == "l2":
        return sum((a - b) ** 2 for a, b in zip(x, q, strict=True))
    product = sum(a * b for a, b in zip(x, q, strict=True))
    if metric == "dot":
        return -product
    square = sum(a * a for a in x)
    return Fraction(-product * abs(product), square) if square else Fraction(0)
