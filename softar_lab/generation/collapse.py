"""How does a soft token become a symbol (K3, K4)?

A collapse is a callable ``(prediction, embedding) -> probs (B, V)``: a distribution over symbols, from which `pick`
chooses. A new one is a function with a decorator (see CONTRIBUTING.md):

    @collapse.register("second")
    def second(prediction, embedding):
        ...
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..predictor import Prediction, check_finite
from ..registry import Registry

COLLAPSES = Registry("collapse")
register, names, resolve = COLLAPSES.register, COLLAPSES.names, COLLAPSES.resolve


@register("softmax")
def softmax(prediction: Prediction, embedding: Tensor | None) -> Float[Tensor, "B V"]:
    """The model's own p(w | prefix): for vector outputs what its readout says (K3)."""
    return prediction.probs


@register("nearest")
def nearest_row(prediction: Prediction, embedding: Tensor | None) -> Float[Tensor, "B V"]:
    """All weight on the row closest to the soft token (K3); temperature has no say here.

    Raises ValueError for a model without vectors.
    """
    if prediction.vector is None or embedding is None:
        raise ValueError('collapse "nearest" needs a model that predicts vectors')
    return F.one_hot(nearest(prediction.vector, embedding), len(embedding)).to(prediction.vector.dtype)


def nearest(vectors: Float[Tensor, "B m"], embedding: Float[Tensor, "V m"]) -> Int[Tensor, " B"]:
    """Collapse each soft token to the closest row of the table (K3).

    Shapes: vectors (B, m), embedding (V, m) -> token ids (B,). Distances in embedding units.
    Ties go to the smallest id, so the result does not depend on the device.
    Raises ValueError where vectors hold NaN or infinity, naming the first bad row.
    """
    return _distances(vectors, embedding).argmin(-1)


def nearest_distance(vectors: Float[Tensor, "B m"], embedding: Float[Tensor, "V m"]) -> Float[Tensor, " B"]:
    """How far each soft token lies from the closest row (B,), in embedding units."""
    return _distances(vectors, embedding).amin(-1)


def _distances(vectors: Tensor, embedding: Tensor) -> Tensor:
    check_finite(vectors)
    return torch.cdist(vectors, embedding, compute_mode="donot_use_mm_for_euclid_dist")  # (B, V)


def pick(probs: Float[Tensor, "B V"], temperature: float | int, uniform: Tensor) -> Int[Tensor, " B"]:
    """Choose a symbol a row: the most probable at temperature 0, else a draw from probs ** (1 / temperature).

    `uniform` (B,), float64 in [0, 1), decides the draw, so a row's choice does not depend on its neighbours.
    """
    if temperature == 0:
        return probs.argmax(-1)
    weights = probs
    if temperature != 1:
        log_probs = probs.double().log()
        best = log_probs.amax(-1, keepdim=True)  # taken off first: a tiny temperature must not overflow all of them
        weights = ((log_probs - best) / temperature).exp()
    if len(probs) == 1 and not probs.is_cuda:  # NumPy asks a third of PyTorch's price for a call
        return torch.tensor([pick_row(weights.numpy()[0], uniform.item())])
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    chosen = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    return chosen.squeeze(-1).clamp_max(probs.shape[-1] - 1)


def pick_row(weights: np.ndarray, uniform: float) -> int:
    """The same draw for one row of weights (V,), which need not sum to 1."""
    cumulative = weights.cumsum(dtype=np.float64)
    return min(int(cumulative.searchsorted(uniform * cumulative[-1], "right")), len(cumulative) - 1)
