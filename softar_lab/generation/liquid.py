"""The liquid tail (K5): the latest slots stay soft and are predicted again until they are emitted.

After Token Maturation (arXiv 2601.04854). A schedule that declares `has_tail` has a method
``open(engine) -> tail``. At every step the engine asks the tail for a prediction,
``tail.predict(state, t) -> Prediction``, instead of the model. The slots of the tail follow those
that the state has read; the state does not hold them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.checks import whole_number
from ..core.predictor import Prediction
from ..models.embedding_tables import mean_norm
from .collapse import ask, pick
from .engine_state import EngineState
from .schedule import Schedule, register
from .step_context import StepContext


@register("liquid")
@dataclass(frozen=True)
class Liquid(Schedule):
    """The last `tail` vectors stay soft and move, at every step, towards their new prediction.

    u <- u + rate (f - u) + noise |e| g. Here u is the vector of a slot; f is the feedback's vector
    for the slot, given the hard past and the tail before it; |e| is the mean length of the table's
    rows; g is normal. Then the oldest slot is collapsed, and its symbol is read as a hard token.
    The feedback's vector for the slot behind the tail enters at the end.

    The collapse gets u as the soft token ("nearest", "barycentric" use it). Its p(w) has matured in
    the same way, p <- (1 - rate) p + rate p_new, computed in logarithms, because not every
    objective reads p off a vector. Draws ("vote") come from the newest prediction. At rate 1
    without noise all this is "always": the oldest slot is predicted anew from a past that is all
    hard. A tail is no longer than the context.

    Args:
        tail: how many slots stay soft.
        rate: above 0, at most 1.
        noise: at least 0, in units of |e|.

    Raises:
        ValueError: for other numbers.
    """

    has_tail: ClassVar[bool] = True
    tail: int = 8
    rate: float | int = 0.5
    noise: float | int = 0.0

    def __post_init__(self):
        object.__setattr__(self, "tail", whole_number("liquid(tail)", self.tail))
        if not 0 < self.rate <= 1:
            raise ValueError(f"liquid(rate) must lie above 0 and be at most 1, not {self.rate!r}")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"liquid(noise) needs a number of at least 0, not {self.noise!r}")

    def __call__(self, context: StepContext) -> Bool[Tensor, " B"]:
        return torch.ones_like(context.step, dtype=torch.bool)

    def open(self, engine: EngineState) -> "Tail":
        """A tail for one call of generate().

        Raises:
            ValueError: for a model that cannot look ahead, because it reads no vectors.
        """
        if not engine.model.can_look_ahead:
            raise ValueError('schedule "liquid" needs a model that reads vectors, a SoftAR')
        return Tail(self, engine)


class Tail:
    """The K slots behind what was read, the oldest first.

    Attributes:
        vectors: their soft tokens (K, B, m).
        log_probs: their distributions (K, B, V), in nats.
    """

    def __init__(self, schedule: Liquid, engine: EngineState):
        self.schedule, self.engine, self.model = schedule, engine, engine.model
        self.size = min(schedule.tail, self.model.config.tokens)

    def predict(self, state: Any, t: int) -> Prediction:
        """Move all slots once more; the oldest one leaves the tail and is the prediction."""
        # 1) fill the tail of the rows that begin
        began = self.engine.steps[t] == 0
        if t == 0 or bool(began.any()):
            self._fill(state, t, began | (t == 0))
        # 2) predict every slot again, and one more behind them
        contexts = [
            self._context(state, t + i, hidden)
            for i, hidden in enumerate(self._hidden(state, self.vectors))
        ]
        aims = torch.stack([self.engine.feedback(context) for context in contexts])  # (K+1, B, m)
        says = torch.stack([context.prediction.log_probs for context in contexts])  # (K+1, B, V)
        # 3) move the slots
        vectors = torch.lerp(self.vectors, aims[:-1], self.schedule.rate)
        if self.schedule.noise:
            vectors = vectors + self._noise(contexts[0]).to(vectors)
        log_probs = mixed(self.log_probs, says[:-1], self.schedule.rate)
        # 4) the oldest leaves, the new one enters
        self.vectors = torch.cat([vectors[1:], aims[-1:]])
        self.log_probs = torch.cat([log_probs[1:], says[-1:]])
        return Prediction(log_probs[0], vectors[0], contexts[0].prediction.sampler)

    def _fill(self, state: Any, t: int, rows: Bool[Tensor, " B"]) -> None:
        """Begin the tail of some rows: each slot is what is predicted from those before it."""
        vectors, log_probs = [], []
        for i in range(self.size):
            context = self._context(state, t + i, self._hidden(state, vectors)[-1])
            vector, says = self.engine.feedback(context), context.prediction.log_probs
            vectors.append(
                vector if t == 0 else torch.where(rows[:, None], vector, self.vectors[i])
            )
            log_probs.append(
                says if t == 0 else torch.where(rows[:, None], says, self.log_probs[i])
            )
        self.vectors, self.log_probs = torch.stack(vectors), torch.stack(log_probs)

    def _hidden(self, state: Any, vectors: Sequence[Tensor] | Tensor) -> list[Float[Tensor, "B d"]]:
        """The hidden states (B, d) after the state and after each of n more slots: n + 1."""
        if not len(vectors):
            return [state.hidden]
        return [
            state.hidden,
            *self.model.lookahead(state, torch.stack(tuple(vectors), 1)).unbind(1),
        ]

    def _context(self, state: Any, t: int, hidden: Float[Tensor, "B d"]) -> StepContext:
        """The step context of the slot at t, as if it were collapsed now.

        Slots behind the end of the text, which change nothing before it, count as its last slot.
        """
        engine, here, t = self.engine, replace(state, hidden=hidden), min(t, self.engine.total - 1)
        prediction = self.model.predict(here)
        context = engine.context(t, prediction, here, engine.steps[t] > 0)
        probs = ask(engine.collapse, prediction, engine.embedding, context)
        token_ids = pick(probs, engine.soft_temperature, engine.uniform[t])
        return replace(context, collapsed_probs=probs, token_ids=token_ids)

    def _noise(self, context: StepContext) -> Float[Tensor, "K B m"]:
        """Normal numbers of the schedule's size, decided by the seed and the step of each row."""
        width = self.engine.embedding.shape[1]
        rows = [
            torch.randn(self.size, width, generator=one) for one in context.generators("schedule")
        ]
        return torch.stack(rows, 1) * self.schedule.noise * mean_norm(self.engine.embedding).cpu()


def mixed(
    old: Float[Tensor, "*n V"], new: Float[Tensor, "*n V"], rate: float | int
) -> Float[Tensor, "*n V"]:
    """log((1 - rate) p_old + rate p_new), of log-probabilities; exactly the new ones at rate 1."""
    if rate == 1:
        return new
    both = torch.stack([old + math.log1p(-rate), new + math.log(rate)])
    return torch.logsumexp(both, 0)  # logaddexp's rounding depends on the place in the tensor
