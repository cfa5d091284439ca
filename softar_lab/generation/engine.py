"""The engine of generation: B rows, step by step, for every model and strategy (K2, K5, K16, K38).

Read `Engine.generate` first, then the loop that serves your choices: `_hard_steps` is ordinary
generation, `_soft_steps` everything else. What only some strategies need lives in files of their
own: `fast_path` and `numpy_path` (the same symbols, sooner), `liquid` (a tail that matures),
`deferred` (slots decided together), `grounding`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from ..core.predictor import Prediction, Predictor
from . import fast_path, numpy_path
from .collapse import ask, pick
from .config import GenerationConfig
from .deferred import Runs
from .grounding import ground, split
from .recorder import FLUSH, Recorder
from .run_context import RunContext
from .schedule import Always
from .step_context import StepContext

KEPT = 16  # blocks of draws: a tail that looks ahead asks again for those behind


class Engine:
    """The running state of one call of generate().

    Prompts may differ in length: while the shorter rows already write, the longer ones still read.
    """

    def __init__(self, model: Predictor, prompts: list[str], config: GenerationConfig):
        self.model, self.prompts, self.config = model, prompts, config
        self.seeds = config.seeds(len(prompts))
        self.collapse, self.schedule = config.collapse, config.schedule
        self.feedback, self.temperature = config.feedback, config.temperature
        soft = config.soft_temperature
        self.soft_temperature = config.temperature if soft is None else soft
        self.embedding, self.device = model.embedding, model.device
        self.always = isinstance(self.schedule, Always)  # ordinary generation: every token is hard

        self.prompt_ids = [model.tokenizer.encode(text) for text in prompts]
        lengths = [len(ids) for ids in self.prompt_ids]
        self.begin = min(lengths)
        self.first = [n - self.begin for n in lengths]  # each row's first step, after `begin`
        self.total = max(self.first) + config.steps  # positions to predict
        # What is left of each prompt behind `begin` (steps, B); -1: nothing.
        self.forced = torch.full((max(self.first), len(prompts)), -1)
        for row, (ids, first) in enumerate(zip(self.prompt_ids, self.first, strict=True)):
            self.forced[:first, row] = ids[self.begin :]
        self.forced = self.forced.to(self.device)
        self.uniform = Draws(self.first, self.seeds, self.device)
        self.steps = Steps(torch.tensor(self.first, device=self.device))

        look = self.collapse.look
        window = 0 if self.always or self.embedding is None else model.context or 0
        self.recorder = Recorder(self.embedding, window, look)
        self.run = RunContext(model, len(prompts), look)

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
        if fast_path.suits(self, state):
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
            # 1) predict, 2) collapse to a symbol, 3) but follow prompts that are longer
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
            # 4) follow prompts that are longer
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
                read = {"token_ids": token_ids} if inputs is None else {"vectors": inputs}
                state = self.model.advance(state, **read)
        if runs:
            runs.decide_rest()

    def context(
        self, t: int, prediction: Prediction, state: Any, was_hard: Bool[Tensor, " B"]
    ) -> StepContext:
        """What strategies get to see at position t, before anything is collapsed."""
        return StepContext(
            self.steps[t],
            prediction,
            None,
            None,
            self.embedding,
            self.seeds,
            was_hard,
            state,
            self.run,
        )

    def _lead(
        self, t: int, token_ids: Tensor, hard: Tensor
    ) -> tuple[Int[Tensor, " B"], Bool[Tensor, " B"]]:
        """The prompt's own symbols, hard, in the rows whose prompt still goes on at position t."""
        if t >= len(self.forced):
            return token_ids, hard
        in_prompt = self.forced[t] >= 0
        return torch.where(in_prompt, self.forced[t], token_ids), hard | in_prompt

    def _feed_back(self, context: StepContext, hard: Bool[Tensor, " B"]) -> Float[Tensor, "B m"]:
        """The rows of the symbols where they are hard, the feedback's vectors elsewhere."""
        if self.embedding is None:
            raise ValueError('this model reads no vectors: only schedule "always" suits it')
        return torch.where(hard[:, None], self.embedding[context.token_ids], self.feedback(context))


@dataclass(frozen=True)
class Steps:
    """Each row's own step (B,) at a position, counted from its first."""

    first: Int[Tensor, " B"]

    def __getitem__(self, t: int) -> Int[Tensor, " B"]:
        return t - self.first


class Draws:
    """The numbers in [0, 1) that choose the symbols, (B,) at a position, decided by each row's seed
    and own step alone.

    Drawn as far as they are asked for; the latest are kept.
    """

    def __init__(self, first: list[int], seeds: tuple[int, ...], device: torch.device):
        self.first, self.device, self.blocks, self.done = first, device, {}, 0
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __getitem__(self, t: int) -> Float64[Tensor, " B"]:
        while t >= self.done:
            block = torch.zeros(FLUSH, len(self.first), dtype=torch.float64)
            for row, (first, generator) in enumerate(zip(self.first, self.generators)):
                skip = min(max(0, first - self.done), FLUSH)
                block[skip:, row] = torch.rand(
                    FLUSH - skip, generator=generator, dtype=torch.float64
                )
            self.blocks[self.done // FLUSH] = block.to(self.device)
            self.blocks.pop(self.done // FLUSH - KEPT, None)
            self.done += FLUSH
        return self.blocks[t // FLUSH][t % FLUSH]

    def of_row(self, total: int) -> Float64[Tensor, " T"]:
        """All of a single row."""
        return torch.rand(total, generator=self.generators[0], dtype=torch.float64)
