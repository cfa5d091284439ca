"""How does a soft token become a symbol (K3, K4)?

A collapse is a callable ``(prediction, embedding) -> probs (B, V)``: a distribution over symbols, from which `pick`
chooses. A new one is a function with a decorator (see CONTRIBUTING.md):

    @collapse.register("second")
    def second(prediction, embedding):
        ...

One that draws, or looks further than the prediction, takes the step's `thought` as a third argument of that name.
"""

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..models.barycentric import barycentric
from ..models.by_row import product
from ..models.mixing import last_hidden, mixing_layer
from ..models.state import SoftState
from ..predictor import Prediction, check_finite
from ..registry import Registry
from .thought import Thought

LARGE = 4096  # rows of a table from which on not every distance is worth an exact computation
NEAREST = 16

COLLAPSES = Registry("collapse")
register, names, resolve = COLLAPSES.register, COLLAPSES.names, COLLAPSES.resolve


def takes_thought(collapse: Callable) -> bool:
    """Whether a collapse has a parameter `thought`."""
    return "thought" in inspect.signature(collapse).parameters


def soft_tokens(who: str, prediction: Prediction, embedding: Tensor | None) -> Float[Tensor, "B m"]:
    """The predicted vectors (B, m). Raises ValueError, naming who needs them, for a model without."""
    if prediction.vector is None or embedding is None:
        raise ValueError(f"{who} needs a model that predicts vectors")
    return prediction.vector


@register("softmax")
def softmax(prediction: Prediction, embedding: Tensor | None) -> Float[Tensor, "B V"]:
    """The model's own p(w | prefix): for vector outputs what its readout says (K3)."""
    return prediction.probs


@register("nearest")
@dataclass(frozen=True)
class Nearest:
    """All weight on the row closest to the soft token (K3); temperature has no say here.

    `metric`: "l2" distance; "cosine", which does not see lengths; "dot" product, which prefers long rows. Ties go to
    the smallest id. Raises ValueError for a model without vectors.
    """

    metric: str = "l2"

    def __post_init__(self):
        if self.metric not in _CLOSEST:
            raise ValueError(f"unknown metric {self.metric!r}; known: {', '.join(_CLOSEST)}")

    def __call__(self, prediction: Prediction, embedding: Tensor | None) -> Float[Tensor, "B V"]:
        vectors = soft_tokens('collapse "nearest"', prediction, embedding)
        return F.one_hot(_CLOSEST[self.metric](vectors, embedding), len(embedding)).to(vectors)


@register("barycentric")
def mixture_weights(prediction: Prediction, embedding: Tensor | None) -> Float[Tensor, "B V"]:
    """The weights of the mixture of rows closest to the soft token (K3): p itself where the vector is pE.

    Nothing is fitted and nothing is smoothed: most weights are 0, and where one row has all of them it is the nearest.
    Raises ValueError for a model without vectors.
    """
    return barycentric(soft_tokens('collapse "barycentric"', prediction, embedding), embedding)


@register("vote")
@dataclass(frozen=True)
class Vote:
    """Draw soft tokens; a symbol whose row is the nearest to c of them weighs C(c, least) (CALM, arXiv 2510.27688).

    That is p ** least, temperature 1 / least without a density, the better the more `draws`; at `least` 1 a symbol is
    one draw's nearest row. Where no symbol is seen `least` times, its largest count takes the place of `least`.
    The draws of a row are decided by its seed and step. Raises ValueError for a model that predicts one vector.
    """

    draws: int = 200
    least: int = 1

    def __post_init__(self):
        if not 1 <= self.least <= self.draws:
            raise ValueError(f"vote(draws, least) needs 1 <= least <= draws, not {self.draws!r} and {self.least!r}")

    def __call__(self, prediction: Prediction, embedding: Tensor | None, thought: Thought) -> Float[Tensor, "B V"]:
        if prediction.sampler is None or embedding is None:
            raise ValueError('collapse "vote" needs a model that predicts a distribution over vectors')
        vectors = prediction.sample_vectors(self.draws, thought.generators("collapse"))  # (S, B, m)
        rows = nearest(vectors.flatten(0, 1), embedding).view(vectors.shape[:2]).T  # (B, S)
        votes = torch.zeros(len(rows), len(embedding), dtype=torch.float64, device=rows.device)
        votes.scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float64))
        least = votes.amax(-1, keepdim=True).clamp_max(self.least)  # (B, 1)
        log_ways = (votes + 1).lgamma() - (votes - least + 1).lgamma()  # -inf below `least`, where lgamma has its poles
        return torch.softmax(log_ways, dim=-1).to(vectors)


@register("mixing")
def mixing(prediction: Prediction, embedding: Tensor | None, thought: Thought) -> Float[Tensor, "B V"]:
    """What the model's mixing layer reads off the last hidden states of the window (K4); hard and soft tokens alike.

    Raises ValueError for a model without a fitted layer: `softar_lab.train_mixing(model, corpus)` fits one.
    """
    soft_tokens('collapse "mixing"', prediction, embedding)
    layer = mixing_layer(thought.session and thought.session.model, 'collapse "mixing"')
    return layer.log_probs(_remembered_hidden(thought, layer.window), embedding)[:, -1].exp()


def _remembered_hidden(thought: Thought, window: int) -> Float[Tensor, "B n d"]:
    """`last_hidden` of the thought's state, gathered step by step while each state holds the one before and a slot."""
    state, memory = thought.state, thought.session.memory
    before, hidden = memory.get("mixing", (None, None))
    if state is not before:
        if before is not None and _follows(state, before):
            hidden = torch.cat([hidden, state.hidden[:, None]], 1)[:, -window:]
        else:  # the first step, or a window that was renewed or rewritten
            hidden = last_hidden(thought.session.model, state, window)
        memory["mixing"] = state, hidden
    return hidden


def _follows(state: SoftState, before: SoftState) -> bool:
    """Whether `state` is `before` and one more slot."""
    longer = (state.length - before.length, len(state.inputs) - len(before.inputs)) == (1, 1)
    return longer and all(map(operator.is_, state.inputs, before.inputs))


def nearest(vectors: Float[Tensor, "B m"], embedding: Float[Tensor, "V m"]) -> Int[Tensor, " B"]:
    """Collapse each soft token to the closest row of the table (K3).

    Shapes: vectors (B, m), embedding (V, m) -> token ids (B,). Distances in embedding units.
    Ties go to the smallest id, so the result does not depend on the device.
    Raises ValueError where vectors hold NaN or infinity, naming the first bad row.
    """
    return _closest(vectors, embedding)[1]


def nearest_distance(vectors: Float[Tensor, "B m"], embedding: Float[Tensor, "V m"]) -> Float[Tensor, " B"]:
    """How far each soft token lies from the closest row (B,), in embedding units."""
    return _closest(vectors, embedding)[0]


def _closest(vectors: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
    """The distance to the closest row and its id, (B,) each.

    Of a large table each vector's `NEAREST` rows are found by one matrix product, which rounds; among these the
    distances are exact.
    """
    check_finite(vectors)
    if len(embedding) <= LARGE:
        found = torch.cdist(vectors, embedding, compute_mode="donot_use_mm_for_euclid_dist").min(-1)
        return found.values, found.indices
    squares, parts = embedding.norm(dim=-1).square(), []  # the square of the whole table would be as large as it
    for some in vectors.split(512):
        near = torch.addmm(squares, some, embedding.T, alpha=-2).topk(NEAREST, largest=False).indices.sort(-1).values
        exact = (embedding[near] - some[:, None]).norm(dim=-1)  # (b, NEAREST), ids ascending
        least = exact.min(-1)
        parts.append((least.values, near.gather(1, least.indices[:, None]).squeeze(1)))
    distances, rows = zip(*parts, strict=True)
    return torch.cat(distances), torch.cat(rows)


def _largest(vectors: Tensor, embedding: Tensor) -> Tensor:
    check_finite(vectors)
    return product(vectors, embedding.T).argmax(-1)


_CLOSEST: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2": nearest,
    "cosine": lambda vectors, embedding: _largest(vectors, F.normalize(embedding, dim=-1)),
    "dot": _largest,
}


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
