"""train(): one loop for every objective, with exact resume after a kill (K1, K11).

Muon trains the matrices, AdamW the rest.
"""

import json
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..core.checks import SEEDS, whole_number
from ..core.store import held, vectors_to_bytes
from ..data.corpora import Corpus
from ..models.embedding_tables import effective_rank, mean_norm
from ..models.soft_ar import MANIFEST, SoftAR, pick_device
from .checkpoint import MOMENTS, PROGRESS, READOUT, flat_state, resume_run
from .config import TrainConfig
from .data import TrainingRows
from .evaluation import EVAL_TOKENS, HeldOut
from .soft_inputs import REFIT, SOFT_INPUTS, soft_rows


class TrainingDiverged(RuntimeError):
    """The loss or a weight is no longer a finite number; the message names the step.

    What was saved before stays as it was.
    """


@dataclass(repr=False)
class Run:
    """What training gave.

    Attributes:
        model: the trained model.
        history: one row per evaluation; `val_chars` is how many characters it scored.
        interrupted: whether it was stopped early.
        chars: how many characters of the validation text can be scored.
    """

    model: SoftAR
    history: pd.DataFrame
    interrupted: bool = False
    chars: int | None = None

    @property
    def val_bits_per_char(self) -> float:
        """Bits per character on the validation text, or its sample, at the last evaluation."""
        return float(self.history["val_bits_per_char"].iloc[-1])

    def __repr__(self) -> str:
        last = self.history.iloc[-1]
        read = int(last.get("val_chars", self.chars or 0))
        of = f"{read:,}" if read == self.chars else f"a sample of {read:,} of {self.chars:,}"
        ended = ", interrupted" if self.interrupted else ""
        return (
            f"Run({self.val_bits_per_char:.4f} bits per character on {of} characters, "
            f"step {int(last['step'])}{ended})"
        )


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
    eval_tokens: int | None = EVAL_TOKENS,
    on_step: Callable[[dict[str, Any]], Any] | None = None,
) -> Run:
    """Train `model` on `corpus.train` and evaluate it on `corpus.val`.

    Ctrl-C or the notebook's stop button saves the run and returns, also during an evaluation. The
    model is then evaluated on the first windows only.

    A call with more `steps` prolongs a saved run. All that depends on the share of steps done (the
    learning rates, soft inputs that are scheduled) then follows the new number of steps: the
    learning rates rise again. So the result is not that of one run with as many steps; the model's
    card says under "prolonged" at which step it was prolonged, and what `steps` had been.

    Args:
        model: a SoftAR with a tokenizer; it is changed.
        corpus: the texts.
        config: the recipe; None: its defaults.
        out: a folder in which the run is saved as it goes. The same call then continues the run
            exactly where it was; a finished run is returned as it is. The corpus may have another
            name, and `save_every` may differ.
        seed: decides the rows and the noise.
        resume: False begins anew, whatever `out` holds.
        device: "auto": the GPU where there is one, else the CPU.
        progress: whether to show a progress bar.
        eval_tokens: how many validation tokens an evaluation reads at most; None: all. Of a longer
            text it reads a sample that lies evenly in it; the history says of how many characters.
        on_step: gets step, steps, train_loss, seconds, history (the evaluations before) and, after
            an evaluation, its figures, such as val_bits_per_char. The run is saved and returns
            where it returns True.

    Raises:
        TrainingDiverged: where the loss or a weight is not finite, or the validation loss is no
            number; the message names the step.
        CheckpointError: where `out` holds the run of another recipe or damaged files, or another
            process trains into it.
        StoreError: where `out` cannot be written, before the first step.
        ValueError: for a text shorter than one window, or a model without a tokenizer.
    """
    config = TrainConfig() if config is None else config
    for name, value, kind in (
        ("model", model, SoftAR),
        ("corpus", corpus, Corpus),
        ("config", config, TrainConfig),
    ):
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be a {kind.__name__}, not {value!r:.80}")
    if on_step is not None and not callable(on_step):
        raise ValueError(f"on_step must be None or a function of one event, not {on_step!r:.80}")
    seed = whole_number("seed", seed, *SEEDS)
    if model.tokenizer is None:
        raise ValueError(
            "the model has no tokenizer: SoftAR(config, tokenizer=CharTokenizer.fit(corpus.train))"
        )
    if eval_tokens is not None:
        eval_tokens = whole_number("eval_tokens", eval_tokens)
    # 1) the rows to train on, the windows to evaluate on, the optimizers
    model.to(pick_device(device))
    model.mixing = None  # it was fitted on the body as it was
    held_out = HeldOut(model, corpus, eval_tokens)
    trainer = _Trainer(model, corpus, config, seed, out, held_out)
    recipe = _recipe(corpus, config, seed)
    with held(out) if out is not None else nullcontext():
        # 2) the saved run that it continues
        model.card.pop("prolonged", None)
        if resume:
            trainer.resume(recipe)
        model.card.update(recipe)
        # 3) the steps
        interrupted = _make_steps(trainer, progress, on_step)
    # 4) the figures of the last step
    if interrupted and not trainer.evaluated:
        trainer.evaluate(brief=True)  # for the caller only; the saved run continues without it
    model.eval()
    return Run(model, pd.DataFrame(trainer.history), interrupted, held_out.chars)


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
        Whether the run was interrupted before its last step or evaluation.
    """
    config = trainer.config
    trainer.model.train()
    bar = tqdm(
        total=config.steps,
        initial=trainer.step,
        disable=not progress,
        unit="step",
        desc=f"train {trainer.corpus.name}",
    )

    def going_on(share: float) -> bool:
        bar.set_postfix_str(f"evaluated {share:.0%}")
        return not stop.is_set()

    with interruption() as stop, bar:
        # a saved run that was interrupted in an evaluation makes up for it
        if trainer.due and trainer.evaluate(going_on, stop.breaking_off) and trainer.finished:
            trainer.save()
        interrupted = trainer.due
        while not trainer.finished and not interrupted:
            # a) one step
            trainer.make_step()
            # b) report it
            event = {"step": trainer.step, "steps": config.steps, "train_loss": trainer.loss}
            event |= {"seconds": trainer.seconds, "history": [*trainer.history]}
            bar.update()
            bar.set_postfix_str(f"loss {trainer.loss:.3f}", refresh=False)
            # c) evaluate now and then, and at the end
            if trainer.due:
                event |= trainer.evaluate(going_on, stop.breaking_off) or {}
            # d) ask whether to go on
            if on_step is not None and on_step(event) is True:
                stop.set()
            interrupted = stop.is_set() and (trainer.due or not trainer.finished)
            # e) save now and then, and when the loop ends
            if trainer.finished or interrupted or trainer.at(config.save_every):
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
        held_out: HeldOut,
    ):
        self.model, self.corpus, self.config, self.out = model, corpus, config, out
        self.held_out = held_out
        self.rows = TrainingRows(model, corpus, config, seed)
        if model.memory is not None and model.memory.prior is not None:
            counts = torch.bincount(self.rows.ids, minlength=model.vocab_size)
            model.memory.prior.copy_(counts / counts.sum())
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
        state, self.readout = resume_run(self.model, self.optimizers, recipe, Path(self.out))
        self.step, self.history = state["step"], state["history"]
        last = self.history[-1] if self.history else {}
        self.seconds = state.get("seconds", last.get("seconds", 0.0))
        self.loss = state.get("loss", math.nan)

    def make_step(self) -> None:
        """Update the weights once.

        Raises:
            TrainingDiverged: where the loss is not finite.
        """
        begin = time.perf_counter()
        if self.config.soft_inputs:
            self._fit_for_soft_inputs()
        try:
            self.loss = update(self.model, self.rows, self.step, self.optimizers, self.config)
        except (RuntimeError, ValueError) as error:
            if self._finite and not re.search("overflow|finite", str(error)):
                raise
            raise self._diverged(f"step broke off ({error})") from error
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
            self._check_finite()
            self.rows.calibrate(self.model)
            self.readout = {name: one.clone() for name, one in fitted.state_dict().items()}

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.step == self.config.steps

    def at(self, every: int) -> bool:
        """Whether the number of steps done is a multiple of `every`; 0: never."""
        return bool(every) and self.step % every == 0

    @property
    def evaluated(self) -> bool:
        """Whether the model was evaluated after the last step."""
        return bool(self.history) and self.history[-1]["step"] == self.step

    @property
    def due(self) -> bool:
        """Whether the model is to be evaluated after the last step, and is not yet."""
        when = self.finished or self.at(self.config.eval_every)
        return self.step > 0 and when and not self.evaluated

    def evaluate(
        self,
        going_on: Callable[[float], bool] = lambda share: True,
        breaking_off: Callable[[], AbstractContextManager] = nullcontext,
        brief: bool = False,
    ) -> dict[str, Any] | None:
        """Add a row of figures to the history, and return it; None where it was to end before.

        Args:
            going_on, brief: as in `HeldOut.score`.
            breaking_off: what surrounds the reading; it may end it at any moment.
        """
        # 1) fit the readout, and read the validation text
        self._check_finite()
        model = self.model
        model.eval()
        self.rows.calibrate(model)
        score = None
        with breaking_off():
            score = self.held_out.score(model, going_on, brief)
        model.train()
        if score is None:
            return None
        if math.isnan(score.nats_per_char):
            raise self._diverged("validation loss is nan")
        # 2) the figures
        table = model.embedding
        self.history.append(
            {
                "step": self.step,
                "train_loss": self.loss,
                "val_nats_per_char": score.nats_per_char,
                "embedding_rank": effective_rank(table),
                "embedding_norm": mean_norm(table).item(),
                "val_bits_per_char": score.nats_per_char / math.log(2),
                "val_chars": score.chars,
                "seconds": round(self.seconds, 3),
            }
        )
        return self.history[-1]

    def save(self) -> None:
        """Save the run in `out`, if any.

        Raises:
            TrainingDiverged: where a weight is not finite; nothing is saved then.
        """
        self._check_finite()
        if self.out is None:
            return
        # 1) the figures on the model's card
        self.model.card["steps_done"] = self.step
        if self.history:
            self.model.card["val_bits_per_char"] = self.history[-1]["val_bits_per_char"]
        # 2) what resuming needs
        state = {"step": self.step, "loss": self.loss, "seconds": self.seconds}
        state["history"] = self.history
        moments = {
            f"{i}.{name}": tensor
            for i, optimizer in enumerate(self.optimizers)
            for name, tensor in flat_state(optimizer).items()
        }
        if self.config.soft_inputs:
            moments |= {f"{READOUT}.{name}": one.cpu() for name, one in self.readout.items()}
        files = {PROGRESS: json.dumps(state).encode(), MOMENTS: vectors_to_bytes(moments)}
        self.model.save(self.out, **files)

    @property
    def _finite(self) -> bool:
        return all(torch.isfinite(parameter).all() for parameter in self.model.parameters())

    def _check_finite(self) -> None:
        if not self._finite:
            raise self._diverged("weights hold NaN or infinity")

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


class _BrokenOff(KeyboardInterrupt):
    """Ctrl-C within `Interruption.breaking_off`."""


class Interruption(threading.Event):
    """Ctrl-C as an event."""

    breaks_off = False

    @contextmanager
    def breaking_off(self) -> Iterator[None]:
        """End the block at once where Ctrl-C is pressed in it: for work that changes nothing."""
        self.breaks_off = True
        with suppress(_BrokenOff):
            yield
        self.breaks_off = False


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Turn Ctrl-C (and the notebook's stop button) into an event: no step is left half done.

    A second Ctrl-C raises KeyboardInterrupt at once. Outside the main thread nothing is caught.
    """
    stop = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handler(signum, frame):
        if stop.is_set():  # the second time: stop now
            raise KeyboardInterrupt
        stop.set()
        if stop.breaks_off:
            raise _BrokenOff

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
