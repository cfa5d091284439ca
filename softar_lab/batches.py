"""What a training run reads: its recipe, and the rows of a corpus that the recipe, a seed and a step decide."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .evaluation import calibrate, document_begins, encode, separator_id
from .models.soft_ar import SoftAR
from .soft_inputs import SOFT_INPUTS
from .sources.corpora import Corpus


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The recipe. The defaults are the best one found for the lab's small models (benchmarks/README.md).

    `window`: tokens a training row holds (None: the model's context). `precision`: "auto" is bf16 where the
    processor has it, else "fp32". `save_every` and `eval_every` count steps; 0: only at the end.
    `soft_inputs`: None, hard tokens only, or a member of soft_inputs.py such as "scheduled(0.5)".
    `history`: in running text, the most characters before a row that a model's memory (ModelConfig.window) holds.
    """

    steps: int = 400
    batch_size: int = 16
    window: int | None = None
    muon_learning_rate: float | int = 0.02
    adam_learning_rate: float | int = 3e-3
    weight_decay: float | int = 0.0
    warmup: float | int = 0.05
    precision: str = "auto"
    soft_inputs: str | None = None
    history: int = 1024
    eval_every: int = 100
    save_every: int = 100

    def __post_init__(self):
        for name, least in (("steps", 1), ("batch_size", 1), ("history", 0), ("eval_every", 0), ("save_every", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"TrainConfig.{name} must be a whole number of at least {least}, not {value!r}")
        if self.window is not None and (not isinstance(self.window, int) or self.window < 1):
            raise ValueError(f"TrainConfig.window must be None or at least 1, not {self.window!r}")
        for name in ("muon_learning_rate", "adam_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"TrainConfig.{name} must be above 0, not {getattr(self, name)!r}")
        if not 0 <= self.weight_decay < math.inf or not 0 <= self.warmup < 1:
            raise ValueError("TrainConfig.weight_decay must be at least 0, warmup a share of the steps in [0, 1)")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ValueError(f"TrainConfig.precision must be auto, bf16 or fp32, not {self.precision!r}")
        if self.soft_inputs is not None:
            SOFT_INPUTS.make(self.soft_inputs)


class TrainingRows:
    """The batches of a run: batch `step` depends on the seed and the step alone, so that resuming needs no state.

    In a corpus of documents every row begins where a document begins, as every evaluated window does. With a structured
    window it begins where any window does that generation would come to, and its memory holds the document up to there;
    in running text, anywhere, with a stretch of text before it that is as often short as long (log-uniform).
    """

    def __init__(self, model: SoftAR, corpus: Corpus, config: TrainConfig, seed: int):
        self.seed, self.size, self.device = seed, config.batch_size, model.device
        length, most = (config.window or model.config.tokens) + 1, model.config.tokens
        if length > most + 1:
            raise ValueError(f"TrainConfig.window {length - 1} is more than the model's context {most}")
        self.ids = encode(model, corpus.train, "training")
        if len(self.ids) < length:
            raise ValueError(
                f"the training text has {len(self.ids)} tokens, one window needs {length}: give a longer text or "
                f"a model with a shorter context"
            )
        self.stride, self.history = most + 1 - model.config.kept, config.history
        begins = torch.arange(len(self.ids))
        self.since: Tensor | None = None  # where the document of each row begins
        if corpus.separator:
            begins = document_begins(self.ids, separator_id(model, corpus.separator))
            if model.config.layout:
                begins, self.since = self._windows(begins)
        fits = begins <= len(self.ids) - length
        self.begins, self.since = begins[fits], self.since if self.since is None else self.since[fits]
        if not len(self.begins):
            raise ValueError(f"no document of the training text begins {length} tokens before its end")
        self.offsets = torch.arange(length)

    def _windows(self, begins: Int[Tensor, " D"]) -> tuple[Int[Tensor, " W"], Int[Tensor, " W"]]:
        """Where the windows of documents begin, and where the document of each does."""
        ends = torch.cat([begins[1:], torch.tensor([len(self.ids)])])
        each = -(-(ends - begins) // self.stride)
        since = begins.repeat_interleave(each)
        depth = torch.arange(len(since)) - (each.cumsum(0) - each).repeat_interleave(each)
        return since + depth * self.stride, since

    def batch(self, step: int) -> Int[Tensor, "B T"]:
        """The rows of one step (B, window+1)."""
        chosen = self.begins[torch.randint(len(self.begins), (self.size,), generator=self.generator(step))]
        return self.ids[chosen[:, None] + self.offsets].to(self.device)

    def before(self, step: int) -> tuple[Int[Tensor, "B n"], Bool[Tensor, "B n"]]:
        """What stands before the rows of a step in their streams, ending at the row, and which of it is there."""
        generator = self.generator(step)
        row = torch.randint(len(self.begins), (self.size,), generator=generator)
        chosen = self.begins[row]
        if self.since is not None:
            n = chosen - self.since[row]
        else:
            most = torch.minimum(chosen, torch.tensor(self.history)) // self.stride  # windows that may lie before
            n = torch.rand(self.size, generator=generator, dtype=torch.float64)
            n = ((most + 2).double().log() * n).exp().long().sub(1) * self.stride  # 0 … most of them
        ages = torch.arange(int(n.max()), 0, -1)
        there = ages <= n[:, None]
        return (self.ids[(chosen[:, None] - ages) * there] * there).to(self.device), there.to(self.device)

    def memory(self, model: SoftAR, step: int) -> Float[Tensor, "B M d"] | None:
        """The memory slots before the rows of a step; None for a model without any."""
        if model.memory is None:
            return None
        before, there = self.before(step)
        return model.recall(model.fold(self.size, before, there=there))

    def generator(self, step: int, stream: int = 0) -> torch.Generator:
        """The random numbers of one step; stream 0 chooses its rows, 1 is the objective's noise, 2 the soft inputs'.

        Of a seed, torch's generator for the CPU takes the lower 32 bits alone.
        """
        return torch.Generator().manual_seed((self.seed * 1_000_003 + step + 1 + stream * 2**30) % 2**32)

    def calibration(self, tokens: int) -> Int[Tensor, "B T"]:
        """Other draws than the steps': as many batches as it takes to hold so many tokens, at most 64."""
        return torch.cat([self.batch(-1 - i) for i in range(self._batches(tokens))])

    def calibrate(self, model: SoftAR) -> None:
        """Fit the model's reading of vectors on such draws."""
        tokens = model.objective.readout.tokens
        with torch.no_grad():
            memory = [self.memory(model, -1 - i) for i in range(self._batches(tokens))]
        calibrate(model, self.calibration(tokens), None if None in memory else torch.cat(memory))

    def _batches(self, tokens: int) -> int:
        return min(64, -(-tokens // (self.size * len(self.offsets))))
