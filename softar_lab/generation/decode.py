"""The best sequence of symbols under one distribution a slot and a judge of what follows what."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..predictor import Predictor


def beam(
    log_probs: Float[Tensor, "T B V"], judge: Predictor, state: object, width: int = 8, weight: float | int = 1.0
) -> Int[Tensor, "T B"]:
    """The ids (T, B) that maximise sum log_probs + weight · log judge(w_t | state, w_<t), among `width` kept a step.

    Exact where `width` >= V^(T-1). `state`: the judge's, of B rows, before the first symbol.
    """
    length, batch, vocab_size = log_probs.shape
    score = torch.zeros(batch, 1, dtype=torch.float64, device=log_probs.device)
    paths = torch.zeros(batch, 1, 0, dtype=torch.long, device=log_probs.device)
    for t in range(length):
        judged = judge.predict(state).log_probs.to(score).view(batch, -1, vocab_size)
        judged = weight * judged if weight else torch.zeros_like(judged)
        found = score[..., None] + log_probs[t, :, None].to(score) + judged  # (B, beams, V)
        score, best = found.flatten(1).topk(min(width, found[0].numel()))  # (B, beams)
        beams, ids = best // vocab_size, best % vocab_size
        paths = torch.cat([paths.gather(1, beams[..., None].expand(-1, -1, t)), ids[..., None]], -1)
        if t + 1 < length:
            row = torch.arange(batch, device=beams.device)[:, None] * found.shape[1] + beams
            state = judge.advance(state.select(row.flatten()), token_ids=ids.flatten())
    return paths[:, 0].T
