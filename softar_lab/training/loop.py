"""train(): one loop for every objective, with exact resume after a kill (K1, K11)."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from ..core.checks import SEEDS, whole_number
from ..core.store import held
from ..data.corpora import Corpus
from ..models.device import pick_device
from ..models.soft_ar import SoftAR
from .config import TrainConfig
from .evaluation import EVAL_TOKENS, HeldOut
from .interruption import interruption
from .trainer import Trainer, TrainingDiverged

__all__ = ["Run", "TrainingDiverged", "train"]


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
    seed, eval_tokens = _checked(model, corpus, config, on_step, seed, eval_tokens)
    # 1) the rows to train on, the windows to evaluate on, the optimizers
    model.to(pick_device(device))
    model.mixing = None  # it was fitted on the body as it was
    held_out = HeldOut(model, corpus, eval_tokens)
    trainer = Trainer(model, corpus, config, seed, out, held_out)
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


def _checked(
    model: Any, corpus: Any, config: Any, on_step: Any, seed: Any, eval_tokens: Any
) -> tuple[int, int | None]:
    """Check the arguments of train(); returns the seed and how many tokens an evaluation reads.

    Raises:
        ValueError: where one of them is of another type, or out of range; the message names it.
    """
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
    return seed, eval_tokens


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
    trainer: Trainer, progress: bool, on_step: Callable[[dict[str, Any]], Any] | None
) -> bool:
    """Make the remaining steps; evaluate and save now and then.

    Returns:
        Whether the run was interrupted before its last step or evaluation.
    """
    config = trainer.config
    trainer.model.train()
    bar = _bar(trainer, progress)

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
            if not trainer.make_step(stop.breaking_off):
                if trainer.step:
                    trainer.save()
                return True
            # b) report it
            event = _event(trainer)
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


def _bar(trainer: Trainer, progress: bool) -> tqdm:
    return tqdm(
        total=trainer.config.steps,
        initial=trainer.step,
        disable=not progress,
        unit="step",
        desc=f"train {trainer.corpus.name}",
    )


def _event(trainer: Trainer) -> dict[str, Any]:
    """What `on_step` gets after a step."""
    return {
        "step": trainer.step,
        "steps": trainer.config.steps,
        "train_loss": trainer.loss,
        "seconds": trainer.seconds,
        "history": [*trainer.history],
    }
