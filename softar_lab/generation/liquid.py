"""The liquid tail: the latest slots stay soft, and are predicted again until they must be said (K5).

After Token Maturation (arXiv 2601.04854). A schedule with a method ``open(writing) -> tail`` is asked at every step for
what its tail predicts, ``tail.predict(state, t) -> Prediction``, in place of the model. The tail lies behind the state,
which knows nothing of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..models.targets import mean_norm
from ..predictor import Prediction
from .collapse import pick
from .schedule import register
from .thought import Thought


@register("liquid")
@dataclass(frozen=True)
class Liquid:
    """The last `tail` vectors stay soft and move, at every step, by `rate` towards what is now predicted for them.

    u <- u + rate (f - u) + noise |e| g: f is the feedback's vector for the slot given the hard past and the tail before
    it, |e| the rows' mean length, g normal. Then the oldest is collapsed, and read as the hard token shown; the
    feedback's vector of what follows the tail enters at its end. What is collapsed has u as its vector (collapse
    "nearest", "barycentric"); its p(w) has matured alike, log-mixed p <- (1 - rate) p + rate p_new, as not every
    objective reads p off a vector; draws ("vote") are those of the newest prediction. At rate 1 without noise all this
    is "always": the oldest is predicted anew from a past that is all hard. A tail is no longer than the context.
    """

    tail: int = 8
    rate: float | int = 0.5
    noise: float | int = 0.0

    def __post_init__(self):
        if not isinstance(self.tail, int) or isinstance(self.tail, bool) or self.tail < 1:
            raise ValueError(f"liquid(tail) needs a whole number of at least 1, not {self.tail!r}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"liquid(rate) must lie above 0 and be at most 1, not {self.rate!r}")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"liquid(noise) needs a number of at least 0, not {self.noise!r}")

    def __call__(self, thought: Thought) -> Bool[Tensor, " B"]:
        return torch.ones_like(thought.step, dtype=torch.bool)

    def open(self, writing: Any) -> "Tail":
        """A tail for one call of generate(). Raises ValueError for a model that is not a SoftAR."""
        if not hasattr(writing.model, "foresee"):
            raise ValueError('schedule "liquid" needs a model that reads vectors, a SoftAR')
        return Tail(self, writing)


class Tail:
    """`vectors` (K, B, m) and `log_probs` (K, B, V) of the K slots behind what was read, the oldest first."""

    def __init__(self, schedule: Liquid, writing: Any):
        self.schedule, self.writing, self.model = schedule, writing, writing.model
        self.size = min(schedule.tail, self.model.config.tokens)

    def predict(self, state: Any, t: int) -> Prediction:
        """What the oldest slot has matured to, when all of them have moved once more; it then leaves the tail."""
        began = self.writing.steps[t] == 0
        if t == 0 or bool(began.any()):
            self._fill(state, t, began | (t == 0))
        thoughts = [self._think(state, t + i, hidden) for i, hidden in enumerate(self._hidden(state, self.vectors))]
        aims = torch.stack([self.writing.feedback(thought) for thought in thoughts])  # (K + 1, B, m): the last enters
        says = torch.stack([thought.prediction.log_probs for thought in thoughts])
        vectors = torch.lerp(self.vectors, aims[:-1], self.schedule.rate)
        if self.schedule.noise:
            vectors = vectors + self._noise(thoughts[0]).to(vectors)
        log_probs = mixed(self.log_probs, says[:-1], self.schedule.rate)
        self.vectors = torch.cat([vectors[1:], aims[-1:]])
        self.log_probs = torch.cat([log_probs[1:], says[-1:]])
        return Prediction(log_probs[0], vectors[0], thoughts[0].prediction.sampler)

    def _fill(self, state: Any, t: int, rows: Bool[Tensor, " B"]) -> None:
        """Let the tail of some rows begin: each slot is what is predicted from those before it."""
        vectors, log_probs = [], []
        for i in range(self.size):
            thought = self._think(state, t + i, self._hidden(state, vectors)[-1])
            vector, says = self.writing.feedback(thought), thought.prediction.log_probs
            vectors.append(vector if t == 0 else torch.where(rows[:, None], vector, self.vectors[i]))
            log_probs.append(says if t == 0 else torch.where(rows[:, None], says, self.log_probs[i]))
        self.vectors, self.log_probs = torch.stack(vectors), torch.stack(log_probs)

    def _hidden(self, state: Any, vectors: Sequence[Tensor] | Tensor) -> list[Float[Tensor, "B d"]]:
        """The model's output after the state and after each of n more slots (B, m): n + 1 of them."""
        if not len(vectors):
            return [state.hidden]
        return [state.hidden, *self.model.foresee(state, torch.stack(tuple(vectors), 1)).unbind(1)]

    def _think(self, state: Any, t: int, hidden: Float[Tensor, "B d"]) -> Thought:
        """The thought of the slot at t, were it said now. Slots behind the text's end change nothing before it."""
        writing, there, t = self.writing, replace(state, hidden=hidden), min(t, self.writing.total - 1)
        prediction = self.model.predict(there)
        thought = writing.think(t, prediction, there, writing.steps[t] > 0)
        probs = writing.distribution(prediction, thought)
        token_ids = pick(probs, writing.soft_temperature, writing.uniform[t])
        return replace(thought, collapsed_probs=probs, token_ids=token_ids)

    def _noise(self, thought: Thought) -> Float[Tensor, "K B m"]:
        """Normal numbers of the size asked for, decided by each row's seed and step."""
        width = self.writing.embedding.shape[1]
        rows = [torch.randn(self.size, width, generator=one) for one in thought.generators("schedule")]
        return torch.stack(rows, 1) * self.schedule.noise * mean_norm(self.writing.embedding).cpu()


def mixed(old: Float[Tensor, "*n V"], new: Float[Tensor, "*n V"], rate: float | int) -> Float[Tensor, "*n V"]:
    """log((1 - rate) p_old + rate p_new), of log-probabilities; exactly the new ones at rate 1."""
    if rate == 1:
        return new
    both = torch.stack([old + math.log1p(-rate), new + math.log(rate)])
    return torch.logsumexp(both, 0)  # (torch.logaddexp rounds a number by its place in the tensor)
