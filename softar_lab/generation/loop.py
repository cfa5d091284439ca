"""generate(): one loop for every model and every choice of collapse, schedule and feedback (K2, K16, K38)."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from threadpoolctl import ThreadpoolController
from torch import Tensor

from ..models.soft_ar import pick_device
from ..predictor import Prediction, Predictor
from . import collapse as collapses
from . import feedback as feedbacks
from . import row as single
from . import schedule as schedules
from .session import Session
from .thought import Thought
from .trajectory import Trajectory

CANDIDATES = 8
_FLUSH = 128  # steps whose full distributions are held at once


def generate(
    model: Predictor,
    prompt: str | Sequence[str],
    steps: int = 200,
    *,
    collapse: Any = "softmax",
    schedule: Any = "always",
    feedback: Any = "mixture",
    window: Any = None,
    temperature: float | int = 1.0,
    seed: int | Sequence[int] = 0,
    device: str = "auto",
    stop: Callable[[], bool] | None = None,
) -> Trajectory | list[Trajectory]:
    """Let `model` write `steps` symbols after `prompt`; a list of prompts gives a list of trajectories.

    `collapse` (how a soft token becomes the symbol shown), `schedule` (when the symbol is fed back) and `feedback`
    (what is fed back otherwise) are names or instances. `temperature` 0 takes the most probable symbol; above 0 it is
    a draw decided by `seed` (one for all prompts or one each), so a batch writes what its prompts write one by one.
    An empty prompt starts from nothing. `window`: only the plain one (None). `device` "auto" is where the model is.
    `stop` is asked at every step; where it says True, the steps done so far are returned.

    Raises ValueError for an unknown name, steps below 1, a negative or infinite temperature, an unknown character or
    a prompt longer than the context.
    """
    how, when, what = collapses.resolve(collapse), schedules.resolve(schedule), feedbacks.resolve(feedback)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    _check(model, prompts, steps, window, temperature)
    if device != "auto":
        model.to(pick_device(device))
    seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one seed, or one a prompt")
    settings = {
        "collapse": collapses.COLLAPSES.spec(how),
        "schedule": schedules.SCHEDULES.spec(when),
        "feedback": feedbacks.FEEDBACKS.spec(what),
        "temperature": temperature,
        "steps": steps,
    }
    with torch.inference_mode(), few_threads(len(prompts)):
        record = _Record(model, prompts, steps, seeds, temperature)
        record.run(how, when, what, stop or (lambda: False))
    trajectories = record.trajectories(settings)
    return trajectories[0] if isinstance(prompt, str) else trajectories


def _check(model: Predictor, prompts: list[str], steps: int, window: Any, temperature: float | int) -> None:
    if not prompts:
        raise ValueError("no prompt given; an empty string starts from nothing")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, not {steps!r}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0 (greedy) or above, not {temperature!r}")
    if window is not None:
        raise ValueError(f"unknown window {window!r}; known: None, the plain one")
    if getattr(model, "tokenizer", None) is None:
        raise ValueError("the model has no tokenizer, so it can neither read a prompt nor write a text")
    context = getattr(getattr(model, "config", None), "context", math.inf)
    for text in prompts:
        if len(text) > context:
            raise ValueError(
                f"the prompt has {len(text)} characters, the model's context holds {context}: shorten the prompt"
            )


class _Record:
    """The running state of one call. Rows with longer prompts are led along theirs while shorter ones already write."""

    def __init__(self, model: Predictor, prompts: list[str], steps: int, seeds: list[int], temperature: float | int):
        self.model, self.prompts, self.steps, self.temperature = model, prompts, steps, temperature
        self.seeds = tuple(seeds)
        self.device = getattr(model, "device", torch.device("cpu"))
        self.embedding: Tensor | None = getattr(model, "embedding", None)
        self.prompt_ids = [model.tokenizer.encode(text) for text in prompts]
        lengths = [len(ids) for ids in self.prompt_ids]
        self.begin, self.lengths = min(lengths), torch.tensor(lengths)
        self.total = max(lengths) + steps - self.begin  # positions to predict
        self.forced = torch.full((self.total, len(prompts)), -1)  # what is left of each prompt
        self.uniform = torch.zeros(self.total, len(prompts), dtype=torch.float64)
        for row, (ids, seed) in enumerate(zip(self.prompt_ids, seeds, strict=True)):
            rest = len(ids) - self.begin
            self.forced[:rest, row] = ids[self.begin :]
            draws = torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            self.uniform[rest : rest + steps, row] = draws
        self.forced, self.uniform = self.forced.to(self.device), self.uniform.to(self.device)
        self.pending: list[tuple] = []
        self.blocks: list[dict[str, Tensor]] = []

    def run(self, collapse: Callable, schedule: Callable, feedback: Callable, stop: Callable[[], bool]) -> None:
        """Read what all prompts have, then predict, collapse and feed back until every row has its steps."""
        state = self.model.start(len(self.prompts))
        if self.begin:
            heads = torch.stack([ids[: self.begin] for ids in self.prompt_ids])
            state = self.model.read(state, heads.to(self.device))
        if isinstance(schedule, schedules.Always) and single.suits(self.model, state, collapse, self.total):
            self._write_row(state, stop)
        else:
            self._write(state, collapse, schedule, feedback, stop)
            self._flush()

    def _write_row(self, state: Any, stop: Callable[[], bool]) -> None:
        """`_write`, by the short way."""
        token_ids, hidden = single.write(self.model, state, self.uniform[:, 0], self.temperature, stop)
        for ids, states in zip(token_ids.split(_FLUSH), hidden.split(_FLUSH), strict=True):
            prediction = self.model.objective.predict(states, self.embedding)
            vectors, inputs = prediction.vector, self.embedding[ids]
            columns = (prediction.log_probs, vectors, ids, torch.ones_like(ids, dtype=torch.bool), inputs)
            self._reduce(*(column[:, None] for column in columns))

    def _write(
        self, state: Any, collapse: Callable, schedule: Callable, feedback: Callable, stop: Callable[[], bool]
    ) -> None:
        """The steps after the part of the prompts that all rows share in length."""
        model, session = self.model, Session(self.model, len(self.prompts))
        steps = (torch.arange(self.begin, self.begin + self.total)[:, None] - self.lengths).to(self.device)
        leading = int(self.lengths.max()) - self.begin  # positions at which some row is still in its prompt
        ordinary, curious = isinstance(schedule, schedules.Always), collapses.takes_thought(collapse)
        plain = ordinary and not curious  # then a step needs no thought
        collapsed = torch.full((len(self.prompts),), ordinary, device=self.device)
        if not plain:
            session.shown += torch.stack([ids[: self.begin] for ids in self.prompt_ids], 1).to(self.device)
        for t in range(self.total):
            if stop():
                break
            prediction = model.predict(state)
            if not plain:
                was_hard = collapsed & (steps[t] > 0)
                thought = Thought(
                    steps[t], prediction, None, None, self.embedding, self.seeds, was_hard, state, session
                )
            seen = {"thought": thought} if curious else {}
            probs = collapse(prediction, self.embedding, **seen)
            token_ids = collapses.pick(probs, self.temperature, self.uniform[t])
            if not ordinary:
                thought = replace(thought, collapsed_probs=probs, token_ids=token_ids)
                collapsed = schedule(thought)
            if t < leading:
                in_prompt = self.forced[t] >= 0
                token_ids = torch.where(in_prompt, self.forced[t], token_ids)
                collapsed = collapsed | in_prompt
            hard = ordinary or bool(collapsed.all())
            inputs = None
            if not hard:
                if self.embedding is None:
                    raise ValueError('this model reads no vectors: only schedule "always" suits it')
                inputs = torch.where(collapsed[:, None], self.embedding[token_ids], feedback(thought))
            self._keep(prediction, token_ids, collapsed, inputs)
            if not plain:
                session.shown.append(token_ids)
            if t + 1 < self.total:
                state = model.advance(state, token_ids=token_ids) if hard else model.advance(state, vectors=inputs)

    def _keep(self, prediction: Prediction, token_ids: Tensor, collapsed: Tensor, inputs: Tensor | None) -> None:
        vector = torch.zeros(len(token_ids), 0) if self.embedding is None else prediction.vector
        self.pending.append((prediction.log_probs, vector, token_ids, collapsed, inputs))
        if len(self.pending) == _FLUSH:
            self._flush()

    def _flush(self) -> None:
        """Reduce what has piled up."""
        if not self.pending:
            return
        *columns, fed = zip(*self.pending, strict=True)
        log_probs, vectors, token_ids, collapsed = map(torch.stack, columns)
        inputs = vectors.clone() if self.embedding is None else self.embedding[token_ids]
        for t, soft in enumerate(fed):
            if soft is not None:
                inputs[t] = soft
        self.pending = []
        self._reduce(log_probs, vectors, token_ids, collapsed, inputs)

    def _reduce(
        self,
        log_probs: Float[Tensor, "S B V"],
        vectors: Float[Tensor, "S B m"],
        token_ids: Int[Tensor, "S B"],
        collapsed: Bool[Tensor, "S B"],
        inputs: Float[Tensor, "S B m"],
    ) -> None:
        """Reduce the distributions of S steps to what a trajectory keeps."""
        prediction = Prediction(log_probs.flatten(0, 1))
        shape = token_ids.shape
        top_probs, top_ids = prediction.probs.topk(min(CANDIDATES, log_probs.shape[-1]))
        distance = torch.full(shape, math.nan)
        if self.embedding is not None:
            distance = collapses.nearest_distance(vectors.flatten(0, 1), self.embedding).view(shape)
        block = {
            "token_ids": token_ids,
            "vectors": vectors.float(),
            "inputs": inputs.float(),
            "log_probs": log_probs.gather(-1, token_ids[..., None]).squeeze(-1),
            "entropy": prediction.entropy.view(shape),
            "distance": distance,
            "collapsed": collapsed,
            "top_ids": top_ids.view(*shape, -1),
            "top_probs": top_probs.view(*shape, -1),
        }
        self.blocks.append({name: tensor.cpu() for name, tensor in block.items()})

    def trajectories(self, settings: dict[str, Any]) -> list[Trajectory]:
        """One trajectory a prompt, its own steps only."""
        if not self.blocks:
            raise ValueError("stopped before the first step")
        joined = {name: torch.cat([block[name] for block in self.blocks]) for name in self.blocks[0]}
        tokenizer, result = self.model.tokenizer, []
        for row, prompt in enumerate(self.prompts):
            first = int(self.lengths[row]) - self.begin
            arrays = {name: tensor[first : first + self.steps, row].clone() for name, tensor in joined.items()}
            text = tokenizer.decode(arrays["token_ids"])
            result.append(Trajectory(prompt, text, tuple(tokenizer.tokens), **arrays, settings=settings))
        return result


@contextmanager
def few_threads(batch_size: int) -> Iterator[None]:
    """One processor thread for small batches: handing such small products round costs more than it gains."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if batch_size <= 8 else before)
    try:
        with _numpy_threads().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@cache
def _numpy_threads() -> ThreadpoolController:
    """The thread pools behind NumPy, which decodes single rows; looking for them takes milliseconds."""
    return ThreadpoolController()
