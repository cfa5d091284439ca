"""A run in progress: what it trains and reads, how far it is, and how it is saved."""

import json
import math
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.store import vectors_to_bytes
from ..data.corpora import Corpus
from ..models.embedding_tables import effective_rank, mean_norm
from ..models.soft_ar import MANIFEST, SoftAR
from .checkpoint import MOMENTS, PROGRESS, READOUT, flat_state, resume_run
from .config import TrainConfig
from .data import TrainingRows
from .evaluation import HeldOut
from .soft_inputs import REFIT
from .update import make_optimizers, update


class TrainingDiverged(RuntimeError):
    """The loss or a weight is no longer a finite number; the message names the step.

    What was saved before stays as it was.
    """


class Trainer:
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

    def make_step(self, breaking_off: Callable[[], AbstractContextManager] = nullcontext) -> bool:
        """Update the weights once; False where it was broken off before it changed any.

        Args:
            breaking_off: what surrounds the fitting of a readout; it may end it at any moment.

        Raises:
            TrainingDiverged: where the loss is not finite.
        """
        begin = time.perf_counter()
        if self.config.soft_inputs and not self._fit_for_soft_inputs(breaking_off):
            return False
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
        return True

    def _fit_for_soft_inputs(self, breaking_off: Callable[[], AbstractContextManager]) -> bool:
        """Fit a readout to the weights as they are by now, or take the one fitted for training."""
        fitted = self.model.objective.readout
        if self.readout:
            fitted.load_state_dict(self.readout)
        if self.step % REFIT == 0:
            self._check_finite()
            if not self._unless_broken_off(breaking_off, self.rows.calibrate, self.model):
                return False
            self.readout = {name: one.clone() for name, one in fitted.state_dict().items()}
        return True

    def _unless_broken_off(
        self, breaking_off: Callable[[], AbstractContextManager], work: Callable, *given: Any
    ) -> bool:
        """Do work that fits readouts; where it is broken off, they are as before: False."""
        fitted = [self.model.objective.readout, self.model.levels]
        fitted = [one for one in fitted if one is not None]
        before = [deepcopy(one.state_dict()) for one in fitted]
        done = False
        with breaking_off():
            work(*given)
            done = True
        if not done:
            for module, state in zip(fitted, before, strict=True):
                module.load_state_dict(state)
        return done

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
            breaking_off: what surrounds the fit and the reading; it may end them at any moment.
        """
        # 1) fit the readout, and read the validation text
        self._check_finite()
        model, scores = self.model, []

        def read() -> None:
            self.rows.calibrate(model)
            scores.append(self.held_out.score(model, going_on, brief))

        model.eval()
        done = self._unless_broken_off(breaking_off, read)
        model.train()
        score = scores[0] if done else None
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
