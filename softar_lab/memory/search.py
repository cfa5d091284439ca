"""The rows closest to queries, exactly: float32 says where they may be, float64 which they are.

All parts are read once, in blocks. A block's scores are one matrix product, of which only the least
of every `GROUP` rows is held. A group whose least score is certainly more than k others is passed
by. The rows of the groups that are left, the most promising first, are ordered without rounding
(`exact`).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from .exact import closest
from .parts import GROUP, Part, errors, prepared, scores

MOST = 128  # queries that are searched together
_BUFFER = 2**20  # scores of a block
_ROWS = 2**16  # rows that are compared in float64 at once

Masks = Sequence[Bool[Tensor, " _"] | None]  # for each part, which rows may be found; None: all


def search(
    parts: Sequence[Part], masks: Masks, queries: Float32[Tensor, "Q m"], k: int, metric: str
) -> tuple[Int64[Tensor, "Q k"], Float64[Tensor, "Q k"]]:
    """The k closest rows to each query, exactly; equal ones in the order of their ids.

    Neither the batch nor the order of additions has a say in it.

    Args:
        parts: the rows; their ids ascend from part to part.
        masks: which of them may be found.
        queries: finite vectors (Q, m).
        k: how many rows per query, at most as many as may be found.
        metric: a member of `METRICS`.

    Returns:
        Ids (Q, k) and scores (Q, k), which are what `METRICS` says: the squared distance, the inner
        product or the cosine.
    """
    ids = torch.empty(len(queries), k, dtype=torch.int64)
    values = torch.empty(len(queries), k, dtype=torch.float64)
    if not k:
        return ids, values
    for begin in range(0, len(queries), MOST):
        some = queries[begin : begin + MOST]
        least, error = _screen(parts, masks, some, metric)
        for i, query in enumerate(some.numpy(), begin):
            found = _closest(parts, masks, query, k, metric, least[i - begin], error[i - begin])
            ids[i], values[i] = (torch.from_numpy(one) for one in found)
    return ids, values if metric == "l2" else -values + 0.0


def _screen(
    parts: Sequence[Part], masks: Masks, queries: Float32[Tensor, "Q m"], metric: str
) -> tuple[Float32[Tensor, "Q G"], Float32[Tensor, "Q G"]]:
    """The least score in each group of all parts, and how far it may be off (Q, G).

    It is infinite where nothing may be found; an infinite error says that nothing is known.
    """
    wanted = queries.double()
    if metric == "cosine":
        lengths = wanted.norm(dim=-1, keepdim=True)
        wanted = torch.where(lengths > 0, wanted / lengths, 0)
    total = sum(len(part.reach) for part in parts)
    least, error = torch.empty(2, len(queries), total)
    step = max(_BUFFER // len(queries) // GROUP, 1) * GROUP
    buffer, at = torch.empty(len(queries) * step), 0
    for part, mask in zip(parts, masks):
        moved, lengths, offset = prepared(part, wanted, metric)
        here = slice(at, at + len(part.reach))
        for begin in range(0, len(part), step):
            end = min(begin + step, len(part))
            found = scores(part, moved, begin, end, metric, buffer)  # (Q, n)
            if mask is not None:
                found.masked_fill_(~mask[begin:end], torch.inf)
            if rest := -(end - begin) % GROUP:
                found = torch.nn.functional.pad(found, (0, rest), value=torch.inf)
            groups = slice(at + begin // GROUP, at - (-end // GROUP))
            torch.amin(found.view(len(queries), -1, GROUP), -1, out=least[:, groups])
        middle = least[:, here].double() + offset[:, None]
        least[:, here] = middle
        # the least score is rounded once more, and so is the error itself
        off = errors(part, lengths, offset, metric)
        off += torch.where(middle.isfinite(), middle.abs() * 2.0**-24, 0)
        error[:, here] = off * (1 + 2.0**-20)
        at += len(part.reach)
    return least, error


def _closest(
    parts: Sequence[Part],
    masks: Masks,
    query: np.ndarray,
    k: int,
    metric: str,
    least: Float32[Tensor, " G"],
    error: Float32[Tensor, " G"],
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the k closest rows to one query (m,) and their scores, the less the closer."""
    # 1) the groups that may hold one of them, the most promising first
    certain = error < torch.inf
    low = torch.where(certain, least.double() - error, -torch.inf)
    high = torch.where(certain, least.double() + error, torch.inf)
    limit = high.kthvalue(k).values if k <= len(high) else torch.tensor(torch.inf).double()
    groups = ((low <= limit) & (low < torch.inf)).nonzero().flatten()
    groups = groups[low[groups].argsort(stable=True)]
    # 2) their rows, until the next group is certainly farther than k rows
    rows, ids = np.empty((0, len(query)), np.float32), np.empty(0, np.int64)
    for some in groups.split(_ROWS // GROUP):
        if low[some[0]] > limit:
            break
        more, names = _rows(parts, masks, some)
        rows, ids = np.concatenate([rows, more]), np.concatenate([ids, names])
        order, values, slack = closest(rows, ids, query, k, metric)
        rows, ids = rows[order], ids[order]
        if len(order) == k:
            limit = min(limit, float((values + slack).max()))
    return ids, values


def _rows(
    parts: Sequence[Part], masks: Masks, groups: Int64[Tensor, " g"]
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of some groups that may be found, and their ids."""
    firsts = np.cumsum([0, *(len(part.reach) for part in parts)])
    numbers = np.searchsorted(firsts, groups.numpy(), side="right") - 1
    rows, ids = [], []
    for number in np.unique(numbers):
        part, mask = parts[number], masks[number]
        mine = torch.from_numpy(groups.numpy()[numbers == number] - firsts[number])
        places = (mine[:, None] * GROUP + torch.arange(GROUP)).flatten()
        places = places[places < len(part)]
        if mask is not None:
            places = places[mask[places]]
        rows.append(part.rows[places].numpy())
        ids.append(part.ids[places].numpy())
    return np.concatenate(rows), np.concatenate(ids)
