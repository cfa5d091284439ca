"""Which whole text is the best one? Viterbi under a chain, beam search under any predictor (K4)."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..predictor import Predictor


@torch.no_grad()
def viterbi(
    log_probs: Float[Tensor, "T B V"], transition: Float[Tensor, "V V"], start: Float[Tensor, "B V"]
) -> Int[Tensor, "T B"]:
    """The best text of each row: max of sum_t log_probs[t, w_t] + start[w_0] + sum_{t>0} transition[w_{t-1}, w_t].

    Shapes: (T, B, V), (V, V) from row to column, (B, V) -> ids (T, B). Scores in nats; -inf forbids. Exact in float64.
    Of equally good texts the first in the order of their ids; all ids are 0 where no text is possible.
    Raises ValueError for NaN or +inf, and for shapes that do not fit.
    """
    for name, scores in (("log_probs", log_probs), ("transition", transition), ("start", start)):
        _check(name, scores)
    length, batch, size = log_probs.shape
    if transition.shape != (size, size) or start.shape != (batch, size):
        shapes = f"transition ({size}, {size}) and start ({batch}, {size})"
        raise ValueError(f"need {shapes}, not {tuple(transition.shape)} and {tuple(start.shape)}")
    log_probs, transition, start = log_probs.double(), transition.double(), start.double()
    ahead = torch.zeros_like(start)  # (B, V): the best that may still follow each symbol
    onward = []  # (B, V, V): each step's best from each symbol through each next one
    for t in range(length - 1, 0, -1):
        onward.append(transition + (log_probs[t] + ahead)[:, None])
        ahead = onward[-1].amax(-1)
    path = torch.empty(length, batch, dtype=torch.long, device=log_probs.device)
    if not length:
        return path
    whole = start + log_probs[0] + ahead
    path[0], rows = whole.argmax(-1), torch.arange(batch, device=path.device)
    for t in range(1, length):
        path[t] = onward[-t][rows, path[t - 1]].argmax(-1)
    return path.masked_fill(whole.amax(-1).isneginf(), 0)


@torch.no_grad()
def beam(
    log_probs: Float[Tensor, "T B V"], judge: Predictor, state: Any, width: int = 8, weight: float | int = 1.0
) -> Int[Tensor, "T B"]:
    """A good text for each row by sum_t log_probs[t, w_t] + weight · log judge(w_t | state, w_<t), ids (T, B).

    `state`: the judge's, of B rows, which it does not change. Each step keeps the `width` best beginnings of a row, so
    the text is the best one where width >= V^(T-1). Of equals, the first in the order of their ids; all ids are 0
    where no text is possible. Scores in nats; -inf forbids.
    Raises ValueError for NaN or +inf, a width below 1, a weight below 0, a judge of another vocabulary.
    """
    _check("log_probs", log_probs)
    length, batch, size = log_probs.shape
    if judge.vocab_size != size:
        raise ValueError(f"the judge knows {judge.vocab_size} symbols, log_probs has {size}; they must be equal")
    if not isinstance(width, int) or width < 1 or not 0 <= weight < math.inf:
        raise ValueError(f"width must be at least 1 and weight at least 0, not {width!r} and {weight!r}")
    device = log_probs.device
    score = torch.zeros(batch, 1, dtype=torch.float64, device=device)  # (B, K), beginnings in the order of their ids
    path = torch.empty(0, batch, 1, dtype=torch.long, device=device)
    for t in range(length):
        more = log_probs[t, :, None].double()  # (B, 1, V)
        opinion = None
        if weight:
            opinion = judge.predict(state).log_probs.to(score).view(batch, -1, size)
            more = more + weight * opinion
        # A beginning that is impossible stays so, whatever a judge may say after it.
        total = torch.where(score.isneginf()[..., None], -math.inf, score[..., None] + more).flatten(1)  # (B, K*V)
        _check("the judge's log_probs", total)
        kept = total.sort(dim=-1, descending=True, stable=True).indices[:, :width].sort().values  # in order again
        score, parent, token = total.gather(1, kept), kept // size, kept % size
        path = torch.cat([path.gather(2, parent.expand(t, *parent.shape)), token[None]])
        if weight and t + 1 < length:
            beginnings = torch.arange(batch, device=device)[:, None] * opinion.shape[1] + parent  # (B, K)
            said = opinion.gather(1, parent[..., None].expand(*parent.shape, size)).gather(2, token[..., None])
            likely = opinion.flatten(0, 1).argmax(-1)[beginnings]
            read = torch.where(said[..., 0].isneginf(), likely, token)  # no judge can read what it holds impossible
            state = judge.advance(state.select(beginnings.flatten()), token_ids=read.flatten())
    return path.gather(2, score.argmax(-1)[None, :, None].expand(length, batch, 1)).squeeze(2)


def _check(name: str, scores: Tensor) -> None:
    if scores.isnan().any() or scores.isposinf().any():
        raise ValueError(f"{name} must be log-probabilities, -inf or finite; found NaN or +infinity")
