"""train(): one loop for every objective, with exact resume after a kill (K1, K11).

Muon trains the matrices, AdamW the rest.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..core.store import held, vectors_to_bytes
from ..data.corpora import Corpus
from ..models.embedding_tables import effective_rank, mean_norm
from ..models.scoring import per_char, scored_windows, scores
from ..models.soft_ar import MANIFEST, SoftAR, pick_device
from .checkpoint import MOMENTS, PROGRESS, READOUT, flat_state, resume_run
from .config import TrainConfig
from .data import TrainingRows
from .soft_inputs import REFIT, SOFT_INPUTS, soft_rows


class TrainingDiverged(RuntimeError):
    """The loss or a weight is no longer a finite number; the message names the step.

    What was saved before stays as it was.
    """


@dataclass
class Run:
    """What training gave.

    Attributes:
        model: the trained model.
        history: one row per evaluation.
        interrupted: whether it was stopped early.
    """

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

    Ctrl-C or the notebook's stop button saves the run and returns.

    Args:
        model: a SoftAR with a tokenizer; it is changed.
        corpus: the texts.
        config: the recipe; None: its defaults.
        out: a folder in which the run is saved as it goes. The same call then continues the run
            exactly where it was; a finished run is returned as it is.
        seed: decides the rows and the noise.
        resume: False begins anew, whatever `out` holds.
        device: "auto": the GPU where there is one, else the CPU.
        progress: whether to show a progress bar.
        on_step: gets step, steps, train_loss, seconds and, after an evaluation, its figures, such
            as val_bits_per_char. The run is saved and returns where it returns True.

    Raises:
        TrainingDiverged: where the loss or a weight is not finite; the message names the step.
        CheckpointError: where `out` holds the run of another recipe or damaged files, or another
            process trains into it.
        StoreError: where `out` cannot be written, before the first step.
        ValueError: for a text shorter than one window, or a model without a tokenizer.
    """
    config = config or TrainConfig()
    if model.tokenizer is None:
        raise ValueError(
            "the model has no tokenizer: SoftAR(config, tokenizer=CharTokenizer.fit(corpus.train))"
        )
    # 1) the rows to train on, the windows to evaluate on, the optimizers
    model.to(pick_device(device))
    model.mixing = None  # it was fitted on the body as it was
    trainer, recipe = _Trainer(model, corpus, config, seed, out), _recipe(corpus, config, seed)
    with held(out) if out is not None else nullcontext():
        # 2) the saved run that it continues
        if resume:
            trainer.resume(recipe)
        model.card.update(recipe)
        # 3) the steps
        interrupted = _make_steps(trainer, progress, on_step)
    # 4) the figures of the last step
    if interrupted and not trainer.evaluated:
        trainer.evaluate()  # for the caller only; the saved run continues without it
    model.eval()
    return Run(model, pd.DataFrame(trainer.history), interrupted)


def _recipe(corpus: Corpus, config: TrainConfig, seed: int) -> dict[str, Any]:
    """What decides a run, except the model; JSON-able."""
    return {
        "train": asdict(config),
        "train_seed": seed,
        "corpus": {
            "name": corpus.name,
            "sha256": corpus.sha256,
            "floor_bits_per_char": corpus.floor_bits_per_char,
        },
    }


def _make_steps(
    trainer: "_Trainer", progress: bool, on_step: Callable[[dict[str, Any]], Any] | None
) -> bool:
    """Make the remaining steps; evaluate and save now and then.

    Returns:
        Whether the run was interrupted before its last step.
    """
    config, interrupted = trainer.config, False
    trainer.model.train()
    bar = tqdm(
        total=config.steps,
        initial=trainer.step,
        disable=not progress,
        unit="step",
        desc=f"train {trainer.corpus.name}",
    )
    with interruption() as stop, bar:
        while trainer.step < config.steps and not interrupted:
            # a) one step
            trainer.make_step()
            step, last = trainer.step, trainer.step == config.steps
            # b) report it
            event = {"step": step, "steps": config.steps}
            event |= {"train_loss": trainer.loss, "seconds": trainer.seconds}
            bar.update()
            bar.set_postfix_str(f"loss {trainer.loss:.3f}", refresh=False)
            # c) evaluate now and then, and at the end
            if last or (config.eval_every and step % config.eval_every == 0):
                event.update(trainer.evaluate())
            # d) ask whether to go on
            if on_step is not None and on_step(event) is True:
                stop.set()
            interrupted = stop.is_set() and not last
            # e) save now and then, and when the loop ends
            if last or interrupted or (config.save_every and step % config.save_every == 0):
                trainer.save()
    return interrupted


class _Trainer:
    """A run in progress: what it trains and reads, how far it is, and how it is saved.

    Attributes:
        step: how many steps are done.
        seconds: how long they took.
        loss: the loss of the last one; NaN before the first.
        history: one row per evaluation.
        readout: the fitted readout through which soft inputs are made. An evaluation fits the
            model's readout anew; so this one stands apart, and to evaluate changes no weight.
    """

    def __init__(
        self,
        model: SoftAR,
        corpus: Corpus,
        config: TrainConfig,
        seed: int,
        out: str | Path | None,
    ):
        self.model, self.corpus, self.config, self.out = model, corpus, config, out
        self.rows = TrainingRows(model, corpus, config, seed)
        if model.memory is not None and model.memory.prior is not None:
            counts = torch.bincount(self.rows.ids, minlength=model.vocab_size)
            model.memory.prior.copy_(counts / counts.sum())
        self.held_out = scored_windows(model, corpus.val, corpus.separator, "validation")
        self.optimizers = make_optimizers(model, config)
        self.step, self.seconds, self.loss = 0, 0.0, math.nan
        self.history: list[dict[str, Any]] = []
        self.readout: dict[str, Tensor] = {}

    def resume(self, recipe: dict[str, Any]) -> None:
        """Continue the run that is saved in `out`, if any.

        Raises:
            CheckpointError: where it is the run of another recipe, or its files are damaged.
        """
        if self.out is None or not (Path(self.out) / MANIFEST).exists():
            return
        self.step, self.history, self.readout = resume_run(
            self.model, self.optimizers, recipe, Path(self.out)
        )
        if self.history:
            self.seconds = self.history[-1]["seconds"]

    def make_step(self) -> None:
        """Update the weights once.

        Raises:
            TrainingDiverged: where the loss is not finite.
        """
        begin = time.perf_counter()
        if self.config.soft_inputs:
            self._fit_for_soft_inputs()
        self.loss = update(self.model, self.rows, self.step, self.optimizers, self.config)
        self.seconds += time.perf_counter() - begin
        if not math.isfinite(self.loss):
            raise self._diverged(f"loss is {self.loss}")
        self.step += 1

    def _fit_for_soft_inputs(self) -> None:
        """Fit a readout to the weights as they are by now, or take the one fitted for training."""
        fitted = self.model.objective.readout
        if self.readout:
            fitted.load_state_dict(self.readout)
        if self.step % REFIT == 0:
            self.rows.calibrate(self.model)
            self.readout = {name: one.clone() for name, one in fitted.state_dict().items()}

    @property
    def evaluated(self) -> bool:
        """Whether the model was evaluated after the last step."""
        return bool(self.history) and self.history[-1]["step"] == self.step

    def evaluate(self) -> dict[str, Any]:
        """Add a row of figures to the history, and return it."""
        # 1) fit the readout, and read the validation text
        model = self.model
        model.eval()
        self.rows.calibrate(model)
        log_probs = per_char(model, self.held_out[0], scores(model, *self.held_out))
        nats = -log_probs.double().mean().item()
        # 2) the figures
        table = model.embedding
        self.history.append(
            {
                "step": self.step,
                "train_loss": self.loss,
                "val_nats_per_char": nats,
                "embedding_rank": effective_rank(table),
                "embedding_norm": mean_norm(table).item(),
                "val_bits_per_char": nats / math.log(2),
                "seconds": round(self.seconds, 3),
            }
        )
        model.train()
        return self.history[-1]

    def save(self) -> None:
        """Save the run in `out`, if any.

        Raises:
            TrainingDiverged: where a weight is not finite; nothing is saved then.
        """
        if not all(torch.isfinite(parameter).all() for parameter in self.model.parameters()):
            raise self._diverged("weights hold NaN or infinity")
        if self.out is None:
            return
        # 1) the figures on the model's card
        self.model.card["steps_done"] = self.step
        if self.history:
            self.model.card["val_bits_per_char"] = self.history[-1]["val_bits_per_char"]
        # 2) what resuming needs
        state = {"step": self.step, "history": self.history}
        moments = {
            f"{i}.{name}": tensor
            for i, optimizer in enumerate(self.optimizers)
            for name, tensor in flat_state(optimizer).items()
        }
        if self.config.soft_inputs:
            moments |= {f"{READOUT}.{name}": one.cpu() for name, one in self.readout.items()}
        files = {PROGRESS: json.dumps(state).encode(), MOMENTS: vectors_to_bytes(moments)}
        self.model.save(self.out, **files)

    def _diverged(self, what: str) -> TrainingDiverged:
        config = self.config
        return TrainingDiverged(
            f"the {what} at step {self.step}: lower muon_learning_rate "
            f"({config.muon_learning_rate}) or adam_learning_rate ({config.adam_learning_rate})"
        )


def make_optimizers(model: SoftAR, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between input and head; AdamW for table, head, norms and start."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = name.startswith(("input", "body.blocks")) and parameter.ndim == 2
            (matrices if is_matrix else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay),
        torch.optim.AdamW(
            rest, lr=config.adam_learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
        ),
    ]


def _share(config: TrainConfig, step: int) -> float:
    """The share of the full learning rate at a step: a linear rise, then a linear fall to zero."""
    rise = max(1, round(config.warmup * config.steps))
    return min((step + 1) / rise, (config.steps - step) / max(1, config.steps - rise))


def update(
    model: SoftAR,
    rows: TrainingRows,
    step: int,
    optimizers: list[torch.optim.Optimizer],
    config: TrainConfig,
) -> float:
    """Make step `step` with every optimizer; returns the mean loss."""
    # 1) the rows of this step
    batch, noise = rows.batch(step), rows.generator(step, stream=1)
    with autocast(model.device, config.precision):
        # 2) what the body reads: hard tokens, or soft ones made from them
        read, memory = {"token_ids": batch[:, :-1]}, rows.memory(model, step)
        if config.soft_inputs:
            how, soft = SOFT_INPUTS.make(config.soft_inputs), rows.generator(step, stream=2)
            read = {
                "vectors": soft_rows(model, batch[:, :-1], how, step / config.steps, soft, memory)
            }
        hidden = model.hidden_states(**read, memory=memory)  # (B, T+1, d)
    # 3) the loss, in float32, and its gradient
    loss = (
        model.objective.loss(hidden.float(), batch, model.table.weight, noise)
        + model.table.penalty()
    )
    loss.backward()
    # 4) one step of each optimizer, at its learning rate of this step
    share = _share(config, step)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("full_lr", group["lr"])
            group["lr"] = share * group["full_lr"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 for matrix products where it helps ("auto"), or where it is asked for."""
    if precision == "auto":
        has_bf16 = (
            torch.ops.mkldnn._is_mkldnn_bf16_supported
            if device.type == "cpu"
            else torch.cuda.is_bf16_supported
        )
        precision = "bf16" if has_bf16() else "fp32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """Turn Ctrl-C (and the notebook's stop button) into an event: no step is left half done.

    A second Ctrl-C raises KeyboardInterrupt at once. Outside the main thread nothing is caught.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handler(signum, frame):
        if stop.is_set():  # the second time: stop now
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
