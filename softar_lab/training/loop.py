"""train(): one loop for every objective, with exact resume after a kill (K1, K11).

Muon trains the matrices, AdamW the rest.
"""

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
from tqdm.auto import tqdm

from ..core.store import vectors_to_bytes
from ..data.corpora import Corpus
from ..models.embedding_tables import effective_rank, mean_norm
from ..models.scoring import per_char, scored_windows, scores
from ..models.soft_ar import MANIFEST, SoftAR, pick_device
from .checkpoint import MOMENTS, PROGRESS, flat_state, resume_run
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
        CheckpointError: where `out` holds the run of another recipe, or damaged files.
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
    rows = TrainingRows(model, corpus, config, seed)
    if model.memory is not None and model.memory.prior is not None:
        counts = torch.bincount(rows.ids, minlength=model.vocab_size)
        model.memory.prior.copy_(counts / counts.sum())
    held_out = scored_windows(model, corpus.val, corpus.separator, "validation")
    optimizers = make_optimizers(model, config)
    # 2) the recipe, and the saved run that it continues
    recipe = {
        "train": asdict(config),
        "train_seed": seed,
        "corpus": {"name": corpus.name, "sha256": corpus.sha256},
    }
    recipe["corpus"]["floor_bits_per_char"] = corpus.floor_bits_per_char
    step, history = 0, []
    if out is not None and resume and (Path(out) / MANIFEST).exists():
        step, history = resume_run(model, optimizers, recipe, Path(out))
    model.card.update(recipe)

    # 3) what the loop calls now and then
    def save() -> None:
        if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
            raise diverged("weights hold NaN or infinity")
        if out is not None:
            model.card["steps_done"] = step
            if history:
                model.card["val_bits_per_char"] = history[-1]["val_bits_per_char"]
            state = {"step": step, "history": history}
            moments = {
                f"{i}.{k}": v for i, o in enumerate(optimizers) for k, v in flat_state(o).items()
            }
            model.save(
                out, **{PROGRESS: json.dumps(state).encode(), MOMENTS: vectors_to_bytes(moments)}
            )

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
        history.append(
            {**row, "val_bits_per_char": nats / math.log(2), "seconds": round(seconds, 3)}
        )
        model.train()
        return history[-1]

    # 4) the loop
    seconds = history[-1]["seconds"] if history else 0.0
    interrupted = False
    model.train()
    bar = tqdm(
        total=config.steps,
        initial=step,
        disable=not progress,
        unit="step",
        desc=f"train {corpus.name}",
    )
    with interruption() as stop, bar:
        while step < config.steps and not interrupted:
            # a) one step; soft inputs need a readout that fits the weights as they are by now
            begin = time.perf_counter()
            if config.soft_inputs and step % REFIT == 0:
                rows.calibrate(model)
            loss = update(model, rows, step, optimizers, config)
            seconds += time.perf_counter() - begin
            if not math.isfinite(loss):
                raise diverged(f"loss is {loss}")
            # b) report it
            step += 1
            event = {"step": step, "steps": config.steps, "train_loss": loss, "seconds": seconds}
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            # c) evaluate now and then, and at the end
            last = step == config.steps
            if last or (config.eval_every and step % config.eval_every == 0):
                event.update(evaluate_now(loss))
            # d) ask whether to go on
            if on_step is not None and on_step(event) is True:
                stop.set()
            interrupted = stop.is_set() and not last
            # e) save now and then, and when the loop ends
            if last or interrupted or (config.save_every and step % config.save_every == 0):
                save()
    # 5) the figures of the last step
    if interrupted and (not history or history[-1]["step"] != step):
        evaluate_now(loss)  # for the caller only; the saved run continues without it
    model.eval()
    return Run(model, pd.DataFrame(history), interrupted)


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
