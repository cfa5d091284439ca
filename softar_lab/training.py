"""train(): one loop for every objective. Muon for matrices, AdamW for the rest; exact resume after a kill (K1, K11)."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from .evaluation import calibrate, document_begins, encode, per_char, scored_windows, scores, separator_id
from .models.soft_ar import MANIFEST, SoftAR, pick_device
from .models.targets import effective_rank, mean_norm
from .resuming import MOMENTS, PROGRESS, flat_state, resume_run
from .soft_inputs import REFIT, SOFT_INPUTS, soft_rows
from .sources.corpora import Corpus
from .store import vectors_to_bytes


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number; the message names the step. What was saved before stays as it was."""


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


@dataclass
class Run:
    """What training gave: the model, its history (one row an evaluation) and whether it was stopped early."""

    model: SoftAR
    history: pd.DataFrame
    interrupted: bool = False

    @property
    def val_bits_per_char(self) -> float:
        """Bits per character on the whole validation split, at the last evaluation."""
        return float(self.history["val_bits_per_char"].iloc[-1])


def train(
    model: SoftAR,
    corpus: Corpus,
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    seed: int = 0,
    resume: bool = True,
    device: str = "auto",
    progress: bool = True,
    on_step: Callable[[dict[str, Any]], Any] | None = None,
) -> Run:
    """Train `model` on `corpus.train` and evaluate it on the whole of `corpus.val`.

    With `out` the run is saved there as it goes; the same call continues it exactly where it was (a finished run is
    returned as it is). `resume=False` begins anew. Ctrl-C or the stop button saves and returns; so does an `on_step`
    that returns True (it gets step, train_loss, seconds and, after an evaluation, val_bits_per_char).

    Raises TrainingDiverged naming the step; CheckpointError where `out` holds another recipe's run or damaged files;
    ValueError for a text shorter than one window.
    """
    config = config or TrainConfig()
    if model.tokenizer is None:
        raise ValueError("the model has no tokenizer: SoftAR(config, tokenizer=CharTokenizer.fit(corpus.train))")
    model.to(pick_device(device))
    model.mixing = None  # fitted on the body as it was
    rows = TrainingRows(model, corpus, config, seed)
    if model.memory is not None and hasattr(model.memory, "prior"):
        counts = torch.bincount(rows.ids, minlength=model.vocab_size)
        model.memory.prior.copy_(counts / counts.sum())
    held_out = scored_windows(model, corpus.val, corpus.separator, "validation")
    optimizers = make_optimizers(model, config)
    recipe = {"train": asdict(config), "train_seed": seed, "corpus": {"name": corpus.name, "sha256": corpus.sha256}}
    recipe["corpus"]["floor_bits_per_char"] = corpus.floor_bits_per_char
    step, history = 0, []
    if out is not None and resume and (Path(out) / MANIFEST).exists():
        step, history = resume_run(model, optimizers, recipe, Path(out), asdict(TrainConfig()))
    model.card.update(recipe)

    def save() -> None:
        if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
            raise diverged("weights hold NaN or infinity")
        if out is not None:
            model.card["steps_done"] = step
            if history:
                model.card["val_bits_per_char"] = history[-1]["val_bits_per_char"]
            state = {"step": step, "history": history}
            moments = {f"{i}.{k}": v for i, o in enumerate(optimizers) for k, v in flat_state(o).items()}
            model.save(out, **{PROGRESS: json.dumps(state).encode(), MOMENTS: vectors_to_bytes(moments)})

    def diverged(what: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"the {what} at step {step}: lower muon_learning_rate ({config.muon_learning_rate}) or "
            f"adam_learning_rate ({config.adam_learning_rate})"
        )

    def evaluate_now(train_loss: float) -> dict[str, Any]:
        model.eval()
        rows.calibrate(model)
        nats = -per_char(model, held_out[0], scores(model, *held_out)).double().mean().item()
        row = {"step": step, "train_loss": train_loss, "val_nats_per_char": nats}
        table = model.embedding
        row |= {"embedding_rank": effective_rank(table), "embedding_norm": mean_norm(table).item()}
        history.append({**row, "val_bits_per_char": nats / math.log(2), "seconds": round(seconds, 3)})
        model.train()
        return history[-1]

    seconds = history[-1]["seconds"] if history else 0.0
    interrupted = False
    model.train()
    bar = tqdm(total=config.steps, initial=step, disable=not progress, unit="step", desc=f"train {corpus.name}")
    with interruption() as stop, bar:
        while step < config.steps and not interrupted:
            begin = time.perf_counter()
            if config.soft_inputs and step % REFIT == 0:
                rows.calibrate(model)
            loss = update(model, rows, step, optimizers, config)
            seconds += time.perf_counter() - begin
            if not math.isfinite(loss):
                raise diverged(f"loss is {loss}")
            step += 1
            event = {"step": step, "steps": config.steps, "train_loss": loss, "seconds": seconds}
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            last = step == config.steps
            if last or (config.eval_every and step % config.eval_every == 0):
                event.update(evaluate_now(loss))
            if on_step is not None and on_step(event) is True:
                stop.set()
            interrupted = stop.is_set() and not last
            if last or interrupted or (config.save_every and step % config.save_every == 0):
                save()
    if interrupted and (not history or history[-1]["step"] != step):
        evaluate_now(loss)  # for the caller; the saved run goes on without it
    model.eval()
    return Run(model, pd.DataFrame(history), interrupted)


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


def make_optimizers(model: SoftAR, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between input and head, AdamW for the table, the head, the norms and the start."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = name.startswith(("input", "body.blocks")) and parameter.ndim == 2
            (matrices if is_matrix else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay),
        torch.optim.AdamW(rest, lr=config.adam_learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)),
    ]


def _share(config: TrainConfig, step: int) -> float:
    """The share of the full learning rate at a step: a linear rise, then a linear fall to zero."""
    rise = max(1, round(config.warmup * config.steps))
    return min((step + 1) / rise, (config.steps - step) / max(1, config.steps - rise))


def update(
    model: SoftAR, rows: TrainingRows, step: int, optimizers: list[torch.optim.Optimizer], config: TrainConfig
) -> float:
    """Step `step` of every optimizer; returns the mean loss."""
    batch, noise = rows.batch(step), rows.generator(step, stream=1)
    with autocast(model.device, config.precision):
        read, memory = {"token_ids": batch[:, :-1]}, rows.memory(model, step)
        if config.soft_inputs:
            how, soft = SOFT_INPUTS.make(config.soft_inputs), rows.generator(step, stream=2)
            read = {"vectors": soft_rows(model, batch[:, :-1], how, step / config.steps, soft, memory)}
        hidden = model.hidden_states(**read, memory=memory)
    loss = model.objective.loss(hidden.float(), batch, model.table.weight, noise) + model.table.penalty()
    loss.backward()
    share = _share(config, step)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("full_lr", group["lr"])
            group["lr"] = share * group["full_lr"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 for matrix products where it helps (or where it is asked for)."""
    if precision == "auto":
        has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported if device.type == "cpu" else torch.cuda.is_bf16_supported
        precision = "bf16" if has_bf16() else "fp32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """Turn Ctrl-C (and the notebook's stop button) into an event, so that no step is left half done."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handler(signum, frame):
        if stop.is_set():  # asked twice: now
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
