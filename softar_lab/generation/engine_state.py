"""The running state of one generation, which the engine and its special paths share."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from ..core.predictor import Prediction, Predictor
from .config import GenerationConfig
from .recorder import FLUSH, Recorder
from .run_context import RunContext
from .schedule import Always
from .step_context import StepContext

KEPT = 16  # blocks of draws: a tail that looks ahead asks again for those behind


class EngineState:
    """The running state of one call of generate().

    Prompts may differ in length: while the shorter rows already write, the longer ones still read.
    """

    def __init__(self, model: Predictor, prompts: list[str | Tensor], config: GenerationConfig):
        self.model, self.config = model, config
        self.seeds = config.seeds(len(prompts))
        self.collapse, self.schedule = config.collapse, config.schedule
        self.feedback, self.temperature = config.feedback, config.temperature
        soft = config.soft_temperature
        self.soft_temperature = config.temperature if soft is None else soft
        self.embedding, self.device = model.embedding, model.device
        self.always = isinstance(self.schedule, Always)  # ordinary generation: every token is hard

        self.prompt_ids = [token_ids(model, one) for one in prompts]
        self.given = prompts
        lengths = [len(ids) for ids in self.prompt_ids]
        self.begin = min(lengths)
        self.first = [n - self.begin for n in lengths]  # each row's first step, after `begin`
        self.total = max(self.first) + config.steps  # positions to predict
        # What each row has to emit (steps, B); -1: nothing.
        own = config.forced_ids(model.tokenizer)
        last = max(own, default=-1) + 1
        self.forced = torch.full((max(self.first) + last, len(prompts)), -1)
        for row, (ids, first) in enumerate(zip(self.prompt_ids, self.first, strict=True)):
            # what is left of its prompt behind `begin`, and what the caller asks for
            self.forced[:first, row] = ids[self.begin :]
            for step, token_id in own.items():
                self.forced[first + step, row] = token_id
        self.forced = self.forced.to(self.device)
        self.uniform = Draws(self.first, self.seeds, self.device)
        self.steps = Steps(torch.tensor(self.first, device=self.device))

        look = self.collapse.look
        window = 0 if self.always or self.embedding is None else model.context or 0
        self.recorder = Recorder(self.embedding, window, look)
        self.run = RunContext(model, len(prompts), look)

    @cached_property
    def prompts(self) -> list[str]:
        """The prompts as texts."""
        decode = self.model.tokenizer.decode
        return [one if isinstance(one, str) else decode(one) for one in self.given]

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


def token_ids(model: Predictor, prompt: str | Tensor) -> Int[Tensor, " T"]:
    """The ids of a prompt, which is a text or these ids already."""
    return model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt


@dataclass(frozen=True)
class Steps:
    """Each row's own step (B,) at a position, counted from its first."""

    first: Int[Tensor, " B"]

    def __getitem__(self, t: int) -> Int[Tensor, " B"]:
        return t - self.first


class Draws:
    """The random numbers in [0, 1) that choose the symbols, (B,) at a position.

    A row's depend on its seed and its own step only. They are drawn as far as they are asked for;
    the latest blocks stay in memory.
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
