"""One call of generate(): B rows written step by step (K2, K5, K16, K38)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from ..evaluation import context_of
from ..predictor import Prediction, Predictor
from . import fast_path
from . import row as single
from .collapse import pick, takes_thought
from .deferred import Runs
from .record import FLUSH, Record
from .schedule import Always
from .session import Session
from .thought import Thought

KEPT = 16  # blocks of draws: a tail that looks ahead asks again for those behind


class Writing:
    """The running state of one call. Rows with longer prompts are led along theirs while shorter ones already write.

    A schedule or a collapse with a method of its own beside its call is asked as `schedule.py` and `deferred.py` say.
    """

    def __init__(
        self,
        model: Predictor,
        prompts: list[str],
        steps: int,
        seeds: list[int],
        strategies: tuple[Callable, Callable, Callable],
        temperature: float | int,
        soft_temperature: float | int,
    ):
        self.model, self.n_steps, self.seeds = model, steps, tuple(seeds)
        self.collapse, self.schedule, self.feedback = strategies
        self.temperature, self.soft_temperature = temperature, soft_temperature
        self.device = getattr(model, "device", torch.device("cpu"))
        self.embedding: Tensor | None = getattr(model, "embedding", None)
        self.prompt_ids = [model.tokenizer.encode(text) for text in prompts]
        lengths = [len(ids) for ids in self.prompt_ids]
        self.begin = min(lengths)
        self.first = [length - self.begin for length in lengths]  # each row's first step, counted from `begin`
        self.total = max(self.first) + steps  # positions to predict
        self.forced = torch.full((max(self.first), len(prompts)), -1)  # what is left of each prompt
        for row, (ids, first) in enumerate(zip(self.prompt_ids, self.first, strict=True)):
            self.forced[:first, row] = ids[self.begin :]
        self.forced = self.forced.to(self.device)
        self.uniform = Draws(self.first, seeds, self.device)
        self.steps = Steps(torch.tensor(self.first, device=self.device))
        self.look = getattr(self.collapse, "look", 0) if hasattr(self.collapse, "revise") else 0
        ordinary = isinstance(self.schedule, Always)
        window = 0 if ordinary or self.embedding is None else context_of(model) or 0
        self.record = Record(self.embedding, window, self.look)
        self.session = Session(model, len(prompts), self.look)
        self.ordinary, self.curious = ordinary, takes_thought(self.collapse)
        self.plain = ordinary and not self.curious and not self.look  # then a step needs no thought

    def run(self, stop: Callable[[], bool] | None = None) -> Iterator[None]:
        """Read what all prompts have, then predict, collapse and feed back until every row has its steps.

        Hands over whenever more steps are final and stand in `record.blocks`, from where they may be taken.
        """
        state = self.model.start(len(self.seeds))
        heads = torch.stack([ids[: self.begin] for ids in self.prompt_ids]).to(self.device)
        if self.begin:
            state = self.model.read(state, heads)
        if fast_path.suits(self, state):
            yield from fast_path.write(self, state, stop)
            return
        stop = stop or (lambda: False)
        if self.ordinary and single.suits(self.model, state, self.collapse, self.total):
            self._write_row(state, stop)
            yield
            return
        if not self.plain:
            self.session.shown += heads.unbind(1)
        yield from self._write(state, stop)
        self.record.flush()
        yield

    def _write_row(self, state: Any, stop: Callable[[], bool]) -> None:
        """`_write`, by the short way."""
        uniform = self.uniform.of_row(self.total)
        token_ids, hidden = single.write(self.model, state, uniform, self.temperature, stop)
        for ids, states in zip(token_ids.split(FLUSH), hidden.split(FLUSH), strict=True):
            prediction = self.model.objective.predict(states, self.embedding)
            ids = ids[:, None]
            self.record.reduce(prediction.log_probs[:, None], prediction.vector[:, None], ids)
            self.record.settle(ids, torch.ones_like(ids, dtype=torch.bool), self.embedding[ids])

    def _write(self, state: Any, stop: Callable[[], bool]) -> Iterator[None]:
        """The steps after the part of the prompts that all rows share in length."""
        model, session, leading = self.model, self.session, max(self.first)
        tail = self.schedule.open(self) if hasattr(self.schedule, "open") else None
        runs = Runs(self.look, self.first, self.n_steps) if self.look else None
        collapsed = torch.full((len(self.seeds),), self.ordinary, device=self.device)
        late, thought = collapsed[:, None][:, :0], None
        for t in range(self.total):
            if stop():
                break
            prediction = model.predict(state) if tail is None else tail.predict(state, t)
            if not self.plain:
                thought = self.think(t, prediction, state, collapsed & (self.steps[t] > 0))
            probs = self.distribution(prediction, thought)
            token_ids = pick(probs, self.temperature, self.uniform[t])
            if not self.ordinary:
                thought = replace(thought, collapsed_probs=probs, token_ids=token_ids)
                late, collapsed = split(self.schedule(thought))
                if self.soft_temperature != self.temperature:
                    soft_ids = pick(probs, self.soft_temperature, self.uniform[t])
                    token_ids = torch.where(collapsed, token_ids, soft_ids)
            if t < leading:
                in_prompt = self.forced[t] >= 0
                token_ids = torch.where(in_prompt, self.forced[t], token_ids)
                collapsed = collapsed | in_prompt
            if runs:
                ending = runs.ending(t, probs, torch.cat([late, collapsed[:, None]], 1))
                token_ids = self._decide(runs, ending, token_ids)
            if late.shape[1]:
                writes = (self.steps[t] < self.n_steps)[:, None]  # what a row has written it keeps
                state = self._ground(state, late[:, max(0, late.shape[1] - t) :] & writes)
            hard = self.ordinary or bool(collapsed.all())
            inputs = None
            if not hard:
                if self.embedding is None:
                    raise ValueError('this model reads no vectors: only schedule "always" suits it')
                soft = self.feedback(replace(thought, token_ids=token_ids))
                inputs = torch.where(collapsed[:, None], self.embedding[token_ids], soft)
            if self.record.keep(prediction, token_ids, collapsed, inputs):
                yield
            if not self.plain:
                session.shown.append(token_ids)
            if t + 1 < self.total:
                state = model.advance(state, token_ids=token_ids) if hard else model.advance(state, vectors=inputs)
        if runs:
            self._decide(runs, runs.left(len(session.shown) - self.begin))

    def think(self, t: int, prediction: Prediction, state: Any, was_hard: Bool[Tensor, " B"]) -> Thought:
        """The thought of the step at t, before anything is collapsed."""
        return Thought(self.steps[t], prediction, None, None, self.embedding, self.seeds, was_hard, state, self.session)

    def distribution(self, prediction: Prediction, thought: Thought | None) -> Tensor:
        """What the collapse says (B, V)."""
        seen = {"thought": thought} if self.curious else {}
        return self.collapse(prediction, self.embedding, **seen)

    def _decide(self, runs: Runs, ending: dict[int, list[int]], token_ids: Tensor | None = None) -> Tensor | None:
        """Let the collapse decide the runs that end, rows by length; `token_ids` are those of a step not shown yet."""
        session, now = self.session, int(token_ids is not None)
        for length, rows in ending.items():
            where = torch.tensor(rows, device=self.device)
            decided = self.collapse.revise(runs.log_probs(length)[:, where], where, session, length - now)
            for ago, ids in zip(range(length - now, -now, -1), decided.to(self.device), strict=True):
                if ago == 0:
                    token_ids = token_ids.index_copy(0, where, ids)
                elif not torch.equal(ids, session.shown[-ago][where]):
                    session.revise(len(session.shown) - ago, session.shown[-ago].index_copy(0, where, ids))
                    self.record.revise(ago, session.shown[-ago])
        return token_ids

    def _ground(self, state: Any, late: Bool[Tensor, "B n"]) -> Any:
        """The state in which those of the latest n slots that are soft hold the row of the symbol shown for them."""
        if not hasattr(self.model, "replace"):
            raise ValueError(
                "this schedule grounds slots that were read: it needs a model that reads vectors, a SoftAR"
            )
        n = min(late.shape[1], state.length)
        if n:
            late = late[:, -n:] & self.record.soft(n)
        if not n or not late.any():
            return state
        rows = self.embedding[torch.stack(self.session.shown[-n:], 1)]  # (B, n, m)
        skip = int(late.any(0).int().argmax())  # those before it stay what they are
        vectors = torch.where(late[..., None], rows, torch.cat(state.inputs, 1)[:, -n:])
        for i in range(skip, n):
            self.record.ground(n - i, late[:, i])
        return self.model.replace(state, state.end - n + skip, vectors[:, skip:])


@dataclass(frozen=True)
class Steps:
    """Each row's own step (B,) at a position, counted from its first."""

    first: Int[Tensor, " B"]

    def __getitem__(self, t: int) -> Int[Tensor, " B"]:
        return t - self.first


class Draws:
    """The numbers in [0, 1) that choose the symbols, (B,) a position, decided by each row's seed and own step alone.

    Drawn as far as they are asked for; the latest are kept.
    """

    def __init__(self, first: list[int], seeds: list[int], device: torch.device):
        self.first, self.device, self.blocks, self.done = first, device, {}, 0
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __getitem__(self, t: int) -> Float64[Tensor, " B"]:
        while t >= self.done:
            block = torch.zeros(FLUSH, len(self.first), dtype=torch.float64)
            for row, (first, generator) in enumerate(zip(self.first, self.generators)):
                skip = min(max(0, first - self.done), FLUSH)
                block[skip:, row] = torch.rand(FLUSH - skip, generator=generator, dtype=torch.float64)
            self.blocks[self.done // FLUSH] = block.to(self.device)
            self.blocks.pop(self.done // FLUSH - KEPT, None)
            self.done += FLUSH
        return self.blocks[t // FLUSH][t % FLUSH]

    def of_row(self, total: int) -> Float64[Tensor, " T"]:
        """All of a single row."""
        return torch.rand(total, generator=self.generators[0], dtype=torch.float64)


def split(hard: Bool[Tensor, "B *n"]) -> tuple[Bool[Tensor, "B late"], Bool[Tensor, " B"]]:
    """What a schedule says of the slots already read, the latest last, and of the one to be read now."""
    return (hard[:, :-1], hard[:, -1]) if hard.ndim == 2 else (hard[:, None][:, :0], hard)
