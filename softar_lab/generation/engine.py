"""The engine of generation: B rows, step by step, for every model and strategy (K2, K5, K16, K38).

Read `Engine.generate` first, then the loop that serves your choices: `_hard_steps` is ordinary
generation, `_soft_steps` everything else. What only some strategies need lives in files of their
own: `fast_path` and `numpy_path` (the same symbols, sooner), `liquid` (a tail that matures),
`deferred` (slots decided together), `grounding`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from . import drafting, fast_path, numpy_path
from .collapse import ask, pick
from .deferred import Runs
from .engine_state import EngineState
from .grounding import ground, split
from .step_context import StepContext


class Engine(EngineState):
    """One call of generate(), in the shortest of three forms of the same computation."""

    def generate(self, stop: Callable[[], bool] | None = None) -> Iterator[None]:
        """Read the prompts, then predict, collapse and feed back until every row has its steps.

        It yields whenever more steps are final; they stand in `recorder.blocks` and may be taken.
        """
        # 1) read the tokens that all prompts have
        state = self.model.start(len(self.seeds))
        heads = torch.stack([ids[: self.begin] for ids in self.prompt_ids])  # (B, begin)
        heads = heads.to(self.device)
        if self.begin:
            state = self.model.read(state, heads)

        # 2) write: in compiled code or in NumPy where these know the choices, else step by step
        if drafting.suits(self, state):
            yield from drafting.write(self, state, stop)
        elif fast_path.suits(self, state):
            yield from fast_path.write(self, state, stop)
        elif numpy_path.suits(self, state):
            yield from numpy_path.write(self, state, stop)
        else:
            stop = stop or (lambda: False)
            if self.always and not self.collapse.needs_context and not self.collapse.look:
                yield from self._hard_steps(state, stop)
            else:
                self.run.tokens += heads.unbind(1)
                yield from self._soft_steps(state, stop)
            self.recorder.flush()
            yield

    def _hard_steps(self, state: Any, stop: Callable[[], bool]) -> Iterator[None]:
        """Ordinary generation: every symbol is fed back as a hard token."""
        hard = torch.ones(len(self.seeds), dtype=torch.bool, device=self.device)
        for t in range(self.total):
            if stop():
                break
            # 1) predict, 2) collapse to a symbol, 3) but follow what is given: prompts that are longer
            prediction = self.model.predict(state)
            probs = ask(self.collapse, prediction, self.embedding, None)
            token_ids = pick(probs, self.temperature, self.uniform[t])
            token_ids, _ = self._lead(t, token_ids, hard)
            # 4) record, and hand over what is final
            if self.recorder.keep(prediction, token_ids, hard, None):
                yield
            # 5) read the symbol
            if t + 1 < self.total:
                state = self.model.advance(state, token_ids=token_ids)

    def _soft_steps(self, state: Any, stop: Callable[[], bool]) -> Iterator[None]:
        """Generation in which some slots are soft, now or until they are grounded."""
        run, recorder = self.run, self.recorder
        tail = self.schedule.open(self) if self.schedule.has_tail else None
        runs = Runs(self) if self.collapse.look else None
        hard = torch.full((len(self.seeds),), self.always, device=self.device)
        for t in range(self.total):
            if stop():
                break
            # 1) predict: the model itself, or a tail of slots that have matured
            prediction = tail.predict(state, t) if tail else self.model.predict(state)
            context = self.context(t, prediction, state, was_hard=hard & (self.steps[t] > 0))
            # 2) how: collapse the soft token to a distribution over symbols, and draw one
            probs = ask(self.collapse, prediction, self.embedding, context)
            token_ids = pick(probs, self.temperature, self.uniform[t])
            # 3) when: which of the latest slots, and of the next, are hard
            context = replace(context, collapsed_probs=probs, token_ids=token_ids)
            late, hard = split(self.schedule(context))
            if self.soft_temperature != self.temperature:
                soft_ids = pick(probs, self.soft_temperature, self.uniform[t])
                token_ids = torch.where(hard, token_ids, soft_ids)
            # 4) follow what is given: prompts that are longer, and forced symbols
            token_ids, hard = self._lead(t, token_ids, hard)
            # 5) decide slots together, and ground those that were read softly
            if runs:
                token_ids = runs.decide(t, probs, torch.cat([late, hard[:, None]], 1), token_ids)
            if late.shape[1]:
                state = ground(self, state, t, late)
            # 6) what goes back in
            inputs = (
                None if hard.all() else self._feed_back(replace(context, token_ids=token_ids), hard)
            )
            # 7) record, and hand over what is final
            if recorder.keep(prediction, token_ids, hard, inputs):
                yield
            run.tokens.append(token_ids)
            # 8) read on
            if t + 1 < self.total:
                state = self._advance(state, token_ids, inputs)
        if runs:
            runs.decide_rest()

    def _advance(self, state: Any, token_ids: Tensor, inputs: Tensor | None) -> Any:
        """The state after the symbols, or after the vectors `inputs` where some slots are soft."""
        if inputs is None:
            return self.model.advance(state, token_ids=token_ids)
        return self.model.advance(state, vectors=inputs)

    def _lead(
        self, t: int, token_ids: Tensor, hard: Tensor
    ) -> tuple[Int[Tensor, " B"], Bool[Tensor, " B"]]:
        """What some rows have to emit at position t, hard: the rest of a prompt, or what is forced."""
        if t >= len(self.forced):
            return token_ids, hard
        given = self.forced[t] >= 0
        return torch.where(given, self.forced[t], token_ids), hard | given

    def _feed_back(self, context: StepContext, hard: Bool[Tensor, " B"]) -> Float[Tensor, "B m"]:
        """The rows of the symbols where they are hard, the feedback's vectors elsewhere."""
        if self.embedding is None:
            raise ValueError('this model reads no vectors: only schedule "always" suits it')
        return torch.where(hard[:, None], self.embedding[context.token_ids], self.feedback(context))
