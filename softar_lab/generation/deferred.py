"""A collapse may decide several slots at once, when it must (K3): later slots have their say in what earlier ones say.

Any collapse with `look` and a method ``revise(log_probs (L, n, V), rows (n,), session, ago) -> token_ids (L, n)`` is
asked so. A *run* are the slots of a row since the last hard one, at most `look`; it ends where the schedule makes one
of them hard, now or late, where `look` slots are reached, and with the text. Then `revise` gets the distributions
collapsed to, which of the rows it is about, and how many of the symbols in `session.shown` belong to the run. Its
answer is shown in place of what was shown before; what is grounded takes the new symbol.
"""

from collections import defaultdict, deque
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..predictor import Prediction, Predictor
from ..sources.corpora import load_language
from .collapse import COLLAPSES
from .decode import beam
from .session import Session


@COLLAPSES.register("deferred")
@dataclass(frozen=True)
class Deferred:
    """p(w | prefix) first; then the likeliest run of up to `look` symbols by p and a judge, together (K3).

    The run maximises sum log p(w_t) + weight · log judge(w_t | all shown before), by a beam of `width`; so temperature
    has no say in what is decided. `judge`: any predictor with a tokenizer, the name of a built-in language, or None:
    the model itself, reading hard tokens.
    """

    look: int = 8
    judge: Predictor | str | None = None
    width: int = 8
    weight: float | int = 1.0

    def __post_init__(self):
        for name in ("look", "width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be a number of at least 0, not {self.weight!r}")
        if not isinstance(self._judge, Predictor | None):
            raise ValueError(f"judge must be a predictor, the name of a language or None, not {self.judge!r:.80}")

    def __call__(self, prediction: Prediction, embedding: Tensor | None) -> Float[Tensor, "B V"]:
        return prediction.probs

    def revise(
        self, log_probs: Float[Tensor, "L n V"], rows: Int[Tensor, " n"], session: Session, ago: int
    ) -> Int[Tensor, "L n"]:
        judge = session.model if self._judge is None else self._judge
        state = session.read_by(judge, ago).select(rows)
        return beam(log_probs, session.reader(judge), state, self.width, self.weight)

    @cached_property
    def _judge(self) -> Predictor | None:
        return load_language(self.judge) if isinstance(self.judge, str) else self.judge


class Runs:
    """Where each row's run begins, in steps of the loop: at `first`, its first one, and no later than its last."""

    def __init__(self, look: int, first: list[int], steps: int):
        self.look, self.begin = look, list(first)
        self.last = [begin + steps - 1 for begin in first]
        self._seen: deque[Tensor] = deque(maxlen=look)

    def log_probs(self, length: int) -> Float[Tensor, "L B V"]:
        """The latest distributions collapsed to."""
        return torch.stack(list(self._seen)[-length:])

    def ending(self, t: int, probs: Float[Tensor, "B V"], hard: Bool[Tensor, "B n"]) -> dict[int, list[int]]:
        """The rows whose run ends with step t, by its length; `hard`: what the schedule says of the latest n slots."""
        self._seen.append(probs.log())
        ending = defaultdict(list)
        for row, (begin, flags) in enumerate(zip(self.begin, hard.tolist(), strict=True)):
            length = t + 1 - begin
            newest = max((t + 1 - len(flags) + i for i, flag in enumerate(flags) if flag), default=-1)
            if not begin <= t <= self.last[row] or not (newest >= begin or length == self.look or t == self.last[row]):
                continue
            self.begin[row] = newest + 1 if begin <= newest and t < self.last[row] else t + 1
            ending[length].append(row)
        return ending

    def left(self, t: int) -> dict[int, list[int]]:
        """The rows whose run has not ended when the text does, before step t, by its length."""
        ending = defaultdict(list)
        for row, begin in enumerate(self.begin):
            if begin < t <= self.last[row]:
                ending[t - begin].append(row)
        return ending
