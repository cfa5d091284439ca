"""Beam search: a good whole text under two scores, one per slot and one of a judge (K4)."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.predictor import Predictor


@torch.no_grad()
def beam(
    log_probs: Float[Tensor, "T B V"],
    judge: Predictor,
    state: Any,
    width: int = 8,
    weight: float | int = 1.0,
) -> Int[Tensor, "T B"]:
    """A good text for each row, by the sum of two scores.

    It maximises sum_t log_probs[t, w_t] + weight · log judge(w_t | state, w_<t). Each step keeps the
    `width` best beginnings of a row, so the text is the best one where width >= V^(T-1). Of equal
    texts it takes the first in the order of their ids. All ids are 0 where no text is possible, or
    where none of the beginnings that were kept can go on.

    Args:
        log_probs: the score of each symbol at each step (T, B, V), in nats; -inf forbids it.
        judge: a predictor of the same V symbols.
        state: the judge's state of B rows; it is not changed.
        width: how many beginnings are kept.
        weight: of the judge's score.

    Returns:
        Token ids (T, B).

    Raises:
        ValueError: for NaN or +inf, a width below 1, a weight below 0, another vocabulary.
    """
    _check_arguments(log_probs, judge, width, weight)
    length, batch, size = log_probs.shape
    device = log_probs.device
    # Beginnings stand in the order of their ids: scores (B, K), tokens (t, B, K).
    score = torch.zeros(batch, 1, dtype=torch.float64, device=device)
    path = torch.empty(0, batch, 1, dtype=torch.long, device=device)
    for t in range(length):
        # 1) score every symbol behind every beginning
        more = log_probs[t, :, None].double()  # (B, 1, V)
        opinion = None
        if weight:
            opinion = judge.predict(state).log_probs.to(score).view(batch, -1, size)
            more = more + weight * opinion
        # A beginning that is impossible stays so, whatever a judge may say after it.
        impossible = score.isneginf()[..., None]
        total = torch.where(impossible, -math.inf, score[..., None] + more).flatten(1)  # (B, K*V)
        _check("the judge's log_probs", total)
        # 2) keep the best ones, in the order of their ids again
        order = total.sort(dim=-1, descending=True, stable=True).indices
        best = order[:, :width].sort().values
        score, parent, token = total.gather(1, best), best // size, best % size
        path = torch.cat([path.gather(2, parent.expand(t, *parent.shape)), token[None]])
        # 3) let the judge read them
        if weight and t + 1 < length:
            state = _read_on(judge, state, opinion, parent, token)
    best = path.gather(2, score.argmax(-1)[None, :, None].expand(length, batch, 1)).squeeze(2)
    return best.masked_fill(score.amax(-1).isneginf(), 0)


def _read_on(
    judge: Predictor,
    state: Any,
    opinion: Float[Tensor, "B J V"],
    parent: Int[Tensor, "B K"],
    token: Int[Tensor, "B K"],
) -> Any:
    """The judge's state of B*K rows, after each beginning's last symbol.

    It cannot read a symbol that it holds impossible; it reads its own best one instead.

    Args:
        judge: as in `beam`.
        state: the judge's state of B*J rows, one per beginning of the step before.
        opinion: its log-probabilities in that state.
        parent: which of the J beginnings each of the K new ones continues.
        token: the symbol with which it does so.
    """
    batch, before, size = opinion.shape
    rows = torch.arange(batch, device=opinion.device)[:, None] * before + parent  # (B, K)
    of_parents = opinion.gather(1, parent[..., None].expand(*parent.shape, size))
    refused = of_parents.gather(2, token[..., None])[..., 0].isneginf()
    read = torch.where(refused, opinion.flatten(0, 1).argmax(-1)[rows], token)
    return judge.advance(state.select(rows.flatten()), token_ids=read.flatten())


def _check_arguments(
    log_probs: Float[Tensor, "T B V"], judge: Predictor, width: int, weight: float | int
) -> None:
    _check("log_probs", log_probs)
    _, _, size = log_probs.shape
    if judge.vocab_size != size:
        raise ValueError(
            f"the judge knows {judge.vocab_size} symbols, log_probs has {size}; they must be equal"
        )
    if not isinstance(width, int) or width < 1 or not 0 <= weight < math.inf:
        raise ValueError(
            f"width must be at least 1 and weight at least 0, not {width!r} and {weight!r}"
        )


def _check(name: str, scores: Tensor) -> None:
    if scores.isnan().any() or scores.isposinf().any():
        raise ValueError(
            f"{name} must be log-probabilities, -inf or finite; found NaN or +infinity"
        )
