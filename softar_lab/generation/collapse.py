"""Collapses: how a soft token becomes a symbol (K3, K4).

A collapse is a callable ``(prediction, embedding) -> probs (B, V)``. It gives a distribution over
symbols, from which `pick` chooses. A new one is a function with a decorator (see CONTRIBUTING.md):

    @collapse.register("second")
    def second(prediction, embedding):
        ...

A collapse that draws, or looks at more than the prediction, takes the step's context as a third
argument and declares it:

    @collapse.register("second")
    @collapse.with_context
    def second(prediction, embedding, context):
        ...

A collapse with settings is a frozen dataclass derived from `Collapse`.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..core.predictor import Prediction, Predictor
from ..core.registry import Adapted, Registry
from ..models.mixing import last_hidden, mixing_layer
from ..models.nearest import METRICS, nearest
from ..models.simplex import barycentric
from ..models.soft_ar import SoftAR
from ..models.state import SoftState
from .step_context import StepContext


class Collapse:
    """Base of the collapses with settings: what each of them declares.

    Attributes:
        needs_context: whether it is called with the step's context as a third argument.
        look: how many slots it decides together at most, by a method `revise` (see deferred.py);
            0: each slot by itself.
        one_symbol: whether all weight is on one symbol, so that no temperature has an effect.
    """

    needs_context: ClassVar[bool] = False
    look: ClassVar[int] = 0
    one_symbol: ClassVar[bool] = False

    def suits(self, model: Predictor) -> bool:
        """Whether it can read what this model predicts."""
        return True


@dataclass(frozen=True)
class FunctionCollapse(Adapted, Collapse):
    """A function, or any other callable, as a collapse."""

    needs_context: bool = False
    suited: Callable[[Predictor], bool] = lambda model: True

    def suits(self, model: Predictor) -> bool:
        return self.suited(model)


def with_context(function: Callable) -> FunctionCollapse:
    """Decorator: the collapse below it takes the step's context as a third argument."""
    return FunctionCollapse(function, needs_context=True)


def suiting(suited: Callable[[Predictor], bool]) -> Callable[[Callable], FunctionCollapse]:
    """Decorator: the collapse below it can read only the models for which `suited` is true."""

    def decorate(collapse: Callable) -> FunctionCollapse:
        one = collapse if isinstance(collapse, FunctionCollapse) else FunctionCollapse(collapse)
        return replace(one, suited=suited)

    return decorate


def has_vectors(model: Predictor) -> bool:
    """Whether the model predicts vectors among the rows of a table."""
    return model.embedding is not None


COLLAPSES = Registry(
    "collapse", lambda one: one if isinstance(one, Collapse) else FunctionCollapse(one)
)
register, names, resolve = COLLAPSES.register, COLLAPSES.names, COLLAPSES.resolve


def ask(
    collapse: Collapse,
    prediction: Prediction,
    embedding: Tensor | None,
    context: StepContext | None,
) -> Float[Tensor, "B V"]:
    """The distribution (B, V) of a collapse, called with the arguments that it needs."""
    return (
        collapse(prediction, embedding, context)
        if collapse.needs_context
        else collapse(prediction, embedding)
    )


def soft_tokens(who: str, prediction: Prediction, embedding: Tensor | None) -> Float[Tensor, "B m"]:
    """The predicted vectors (B, m).

    Raises:
        ValueError: for a model without vectors; it names `who` needs them.
    """
    if prediction.vector is None or embedding is None:
        raise ValueError(f"{who} needs a model that predicts vectors")
    return prediction.vector


@register("softmax")
def softmax(prediction: Prediction, embedding: Tensor | None) -> Float[Tensor, "B V"]:
    """The model's own p(w | prefix), which a readout gives where the outputs are vectors (K3)."""
    return prediction.probs


@register("nearest")
@dataclass(frozen=True)
class Nearest(Collapse):
    """All weight on the row closest to the soft token (K3), so temperature has no effect.

    Ties go to the smallest id.

    Args:
        metric: "l2" distance; "cosine", which ignores lengths; "dot" product, which prefers long
            rows.

    Raises:
        ValueError: for an unknown metric, or a model without vectors.
    """

    one_symbol: ClassVar[bool] = True
    metric: str = "l2"

    def __post_init__(self):
        if self.metric not in METRICS:
            raise ValueError(f"unknown metric {self.metric!r}; known: {', '.join(METRICS)}")

    def suits(self, model: Predictor) -> bool:
        return has_vectors(model)

    def __call__(self, prediction: Prediction, embedding: Tensor | None) -> Float[Tensor, "B V"]:
        vectors = soft_tokens('collapse "nearest"', prediction, embedding)
        return F.one_hot(nearest(vectors, embedding, self.metric), len(embedding)).to(vectors)


@register("barycentric")
@suiting(has_vectors)
def mixture_weights(prediction: Prediction, embedding: Tensor | None) -> Float[Tensor, "B V"]:
    """The weights of the mixture of rows that is closest to the soft token (K3).

    They are p itself where the vector is pE and no other mixture of rows gives it. Nothing is
    fitted and nothing is smoothed: most weights are 0. Where one row has all the weight, it is the
    nearest row.

    Raises:
        ValueError: for a model without vectors.
    """
    return barycentric(soft_tokens('collapse "barycentric"', prediction, embedding), embedding)


@register("vote")
@dataclass(frozen=True)
class Vote(Collapse):
    """Draws soft tokens; a symbol whose row is the nearest to c of them weighs C(c, least).

    This estimates p ** least, which is temperature 1 / least, without a density. It is the better
    the more `draws` there are. At `least` 1 a symbol is the row nearest to one draw. Where no
    symbol has `least` draws, the largest count takes the place of `least`. The seed and the step of
    a row decide its draws.

    Raises:
        ValueError: for a model that predicts one vector, or unless 1 <= least <= draws.

    Source: CALM (arXiv 2510.27688).
    """

    needs_context: ClassVar[bool] = True
    draws: int = 200
    least: int = 1

    def __post_init__(self):
        if not 1 <= self.least <= self.draws:
            raise ValueError(
                f"vote(draws, least) needs 1 <= least <= draws, not {self.draws!r} and {self.least!r}"
            )

    def suits(self, model: Predictor) -> bool:
        return model.draws_vectors

    def __call__(
        self, prediction: Prediction, embedding: Tensor | None, context: StepContext
    ) -> Float[Tensor, "B V"]:
        if prediction.sampler is None or embedding is None:
            raise ValueError(
                'collapse "vote" needs a model that predicts a distribution over vectors'
            )
        # 1) count for each symbol how many draws are nearest to its row
        vectors = prediction.sample_vectors(self.draws, context.generators("collapse"))  # (S, B, m)
        rows = nearest(vectors.flatten(0, 1), embedding).view(vectors.shape[:2]).T  # (B, S)
        votes = torch.zeros(len(rows), len(embedding), dtype=torch.float64, device=rows.device)
        votes.scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float64))
        # 2) weigh the counts
        least = votes.amax(-1, keepdim=True).clamp_max(self.least)  # (B, 1)
        # log C(votes, least) up to a constant; -inf below `least`, where lgamma has its poles
        log_combinations = (votes + 1).lgamma() - (votes - least + 1).lgamma()
        return torch.softmax(log_combinations, dim=-1).to(vectors)


@register("mixing")
@suiting(lambda model: isinstance(model, SoftAR) and model.mixing is not None)
@with_context
def mixing(
    prediction: Prediction, embedding: Tensor | None, context: StepContext
) -> Float[Tensor, "B V"]:
    """What the model's mixing layer reads off the last hidden states of the window (K4).

    Slots with hard and with soft tokens are read alike.

    Raises:
        ValueError: for a model without vectors or without a fitted layer, which
            `softar_lab.train_mixing(model, corpus)` fits.
    """
    soft_tokens('collapse "mixing"', prediction, embedding)
    layer = mixing_layer(context.run and context.run.model, 'collapse "mixing"')
    return layer.log_probs(_remembered_hidden(context, layer.window), embedding)[:, -1].exp()


def _remembered_hidden(context: StepContext, window: int) -> Float[Tensor, "B n d"]:
    """`last_hidden` of the step's state, gathered step by step while each state adds one slot."""
    state, memory = context.state, context.run.scratch
    before, hidden = memory.get("mixing", (None, None))
    if state is not before:
        if before is not None and _follows(state, before):
            hidden = torch.cat([hidden, state.hidden[:, None]], 1)[:, -window:]
        else:  # the first step, or a renewed or rewritten window
            hidden = last_hidden(context.run.model, state, window)
        memory["mixing"] = state, hidden
    return hidden


def _follows(state: SoftState, before: SoftState) -> bool:
    """Whether `state` is `before` with one more slot."""
    longer = (state.length - before.length, len(state.inputs) - len(before.inputs)) == (1, 1)
    return longer and all(map(operator.is_, state.inputs, before.inputs))


def pick(
    probs: Float[Tensor, "B V"], temperature: float | int, uniform: Tensor
) -> Int[Tensor, " B"]:
    """Choose one symbol per row: the most probable one at temperature 0, else a draw.

    Args:
        probs: weights of the symbols (B, V).
        temperature: the draw is from probs ** (1 / temperature).
        uniform: float64 numbers in [0, 1), (B,). They decide the draws, so the choice of a row does
            not depend on its neighbours.

    Returns:
        Token ids (B,).
    """
    if temperature == 0:
        return probs.argmax(-1)
    weights = probs
    if temperature != 1:
        log_probs = probs.double().log()
        # the largest is subtracted first: a tiny temperature must not overflow every symbol
        best = log_probs.amax(-1, keepdim=True)
        weights = ((log_probs - best) / temperature).exp()
    if len(probs) == 1 and not probs.is_cuda:  # a call to NumPy costs a third of one to PyTorch
        return torch.tensor([pick_row(weights.numpy()[0], uniform.item())])
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    chosen = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    return chosen.squeeze(-1).clamp_max(probs.shape[-1] - 1)


def pick_row(weights: np.ndarray, uniform: float) -> int:
    """The same draw for one row of weights (V,), which need not sum to 1."""
    cumulative = weights.cumsum(dtype=np.float64)
    return min(int(cumulative.searchsorted(uniform * cumulative[-1], "right")), len(cumulative) - 1)
