"""Deferred collapse (K3): several slots are decided together, so later ones influence earlier ones.

A collapse takes part where it has `look` > 0 and a method ``revise(log_probs (L, n, V), rows (n,),
run, ago) -> token_ids (L, n)``.

A *run* of slots is what a row has written since its last hard slot, at most `look` slots. It ends
where the schedule makes one of its slots hard, now or late; where it has `look` slots; and with the
text. Then `revise` gets the distributions collapsed to (as logarithms), the batch rows concerned,
and how many of the run's symbols are already in `run.tokens`. Its symbols replace those emitted
before. A slot that is grounded takes the new symbol.
"""

from collections import defaultdict, deque
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.checks import whole_number
from ..core.predictor import Prediction, Predictor
from ..data.corpora import load_language
from .beam_search import beam
from .collapse import COLLAPSES, Collapse
from .engine_state import EngineState
from .run_context import RunContext


@COLLAPSES.register("deferred")
@dataclass(frozen=True)
class Deferred(Collapse):
    """p(w | prefix) first; then the likeliest run of up to `look` symbols by p and a judge (K3).

    When a run ends, a beam of `width` maximises sum log p(w_t) + weight · log judge(w_t | all
    symbols before). So temperature has no influence on what is decided.

    Args:
        look: how many symbols are decided together, at most.
        judge: any predictor with a tokenizer, the name of a built-in language, or None: the model
            itself, reading hard tokens.
        width: how many beginnings the beam saves.
        weight: of the judge's score.

    Raises:
        ValueError: where look or width is no whole number of at least 1, weight is below 0 or
            infinite, or judge is none of the above.
    """

    look: int = 8
    judge: Predictor | str | None = None
    width: int = 8
    weight: float | int = 1.0

    def __post_init__(self):
        for name in ("look", "width"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be a number of at least 0, not {self.weight!r}")
        if not isinstance(self._judge, Predictor | None):
            raise ValueError(
                f"judge must be a predictor, the name of a language or None, not {self.judge!r:.80}"
            )

    def __call__(self, prediction: Prediction, embedding: Tensor | None) -> Float[Tensor, "B V"]:
        return prediction.probs

    def revise(
        self, log_probs: Float[Tensor, "L n V"], rows: Int[Tensor, " n"], run: RunContext, ago: int
    ) -> Int[Tensor, "L n"]:
        judge = run.model if self._judge is None else self._judge
        state = run.aligned_state(judge, ago).select(rows)
        return beam(log_probs, run.aligned(judge), state, self.width, self.weight)

    @cached_property
    def _judge(self) -> Predictor | None:
        return load_language(self.judge) if isinstance(self.judge, str) else self.judge


class Runs:
    """The runs of one generation: where each row's run begins, and what is decided where it ends.

    Positions are counted from the engine's `begin`. A row has runs between its first step and its
    last.
    """

    def __init__(self, engine: EngineState):
        self.engine, self.look, self.begin = engine, engine.collapse.look, list(engine.first)
        self.last = [begin + engine.config.steps - 1 for begin in engine.first]
        # Logarithms of the distributions collapsed to (B, V), of the latest steps.
        self._latest: deque[Tensor] = deque(maxlen=self.look)

    def decide(
        self,
        t: int,
        probs: Float[Tensor, "B V"],
        hard: Bool[Tensor, "B n"],
        token_ids: Int[Tensor, " B"],
    ) -> Int[Tensor, " B"]:
        """Decide the runs that end with step t, which also changes recorded symbols.

        Args:
            t: the step; it is not recorded yet.
            probs: the distributions it collapsed to (B, V).
            hard: what the schedule decided for the latest n slots (B, n), this one last.
            token_ids: the symbols of the step so far (B,).

        Returns:
            The symbols of step t (B,).
        """
        self._latest.append(probs.log())
        for length, rows in self._ending(t, hard).items():
            where = torch.tensor(rows, device=token_ids.device)
            *before, now = self._revised(length, where, ago=length - 1)
            self._rewrite(before, where)
            token_ids = token_ids.index_copy(0, where, now)
        return token_ids

    def decide_rest(self) -> None:
        """Decide the runs that are still open when the text ends."""
        t = len(self.engine.run.tokens) - self.engine.begin
        ending = defaultdict(list)
        for row, begin in enumerate(self.begin):
            if begin < t <= self.last[row]:
                ending[t - begin].append(row)
        for length, rows in ending.items():
            where = torch.tensor(rows, device=self.engine.device)
            self._rewrite(self._revised(length, where, ago=length), where)

    def _ending(self, t: int, hard: Bool[Tensor, "B n"]) -> dict[int, list[int]]:
        """The rows whose run ends with step t, by its length; their next runs begin."""
        ending = defaultdict(list)
        for row, (begin, flags) in enumerate(zip(self.begin, hard.tolist(), strict=True)):
            length = t + 1 - begin
            # the newest hard slot; -1: none
            newest = max(
                (t + 1 - len(flags) + i for i, flag in enumerate(flags) if flag), default=-1
            )
            ends = newest >= begin or length == self.look or t == self.last[row]
            if not begin <= t <= self.last[row] or not ends:
                continue
            # The next run begins behind the newest hard slot; after the last step there is none.
            self.begin[row] = newest + 1 if begin <= newest and t < self.last[row] else t + 1
            ending[length].append(row)
        return ending

    def _revised(self, length: int, where: Int[Tensor, " n"], ago: int) -> list[Int[Tensor, " n"]]:
        """What the collapse decides for the latest `length` steps of some rows.

        `ago` of these steps are already recorded.
        """
        log_probs = torch.stack(list(self._latest)[-length:])[:, where]  # (L, n, V)
        decided = self.engine.collapse.revise(log_probs, where, self.engine.run, ago)
        return [*decided.to(self.engine.device)]

    def _rewrite(self, steps: list[Int[Tensor, " n"]], where: Int[Tensor, " n"]) -> None:
        """Replace the symbols of the latest recorded steps in some rows."""
        run = self.engine.run
        for ago, ids in zip(range(len(steps), 0, -1), steps, strict=True):
            if not torch.equal(ids, run.tokens[-ago][where]):
                run.revise(len(run.tokens) - ago, run.tokens[-ago].index_copy(0, where, ids))
                self.engine.recorder.revise(ago, run.tokens[-ago])
