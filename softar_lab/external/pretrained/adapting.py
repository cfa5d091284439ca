"""adapt(): train low-rank adapters on a frozen model, on hard or soft inputs (K32)."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from ...core.cells import differences
from ...core.checks import SEEDS, whole_number
from ...core.fingerprint import fingerprint
from ...core.predictor import Predictor
from ...core.store import CheckpointError, held, load_vectors, save_vectors
from ...training.checkpoint import flat_state
from ...training.interruption import interruption
from ...training.loop import TrainingDiverged
from .adapt_config import AdaptConfig
from .adapt_texts import Texts
from .low_rank import Adapted, attach
from .soft_reading import check_trainable, log_probs, soft_tokens, states

PROGRESS = "training.safetensors"
EVAL_ROWS = 16  # of held-out text that an evaluation reads at most


@dataclass(repr=False)
class Adaptation:
    """What adapting gave.

    Attributes:
        model: the adapted model. A pretrained one has its adapters beside its weights; those of a
            SoftAR are added to its weights.
        history: one row per evaluation, in nats per token.
        losses: the loss of each step made in this call.
        interrupted: whether it was stopped early.
        adapters: what was trained; `adapters.save(folder)` writes it as peft does.
    """

    model: Predictor
    history: pd.DataFrame
    losses: list[float]
    interrupted: bool
    adapters: Adapted

    def __repr__(self) -> str:
        number = sum(one.numel() for one in self.adapters.weights.values())
        ended = ", interrupted" if self.interrupted else ""
        return f"Adaptation({number:,} trained weights{ended})"


class AdaptingRun:
    """A run in progress: the adapters, how far they are trained, and how that is saved."""

    def __init__(
        self,
        model: Predictor,
        text: str | Sequence[str],
        config: AdaptConfig,
        held_out: str | Sequence[str] | None,
        seed: int,
    ):
        check_trainable(model)
        if config.window > model.context:
            raise ValueError(
                f"AdaptConfig.window {config.window} is more than the model's context {model.context}"
            )
        self.config, self.seed = config, seed
        self.texts = Texts(model, text, config.window)
        self.held_out = None if held_out is None else Texts(model, held_out, config.window)
        self.adapted = attach(model, config, seed)
        # held by their names, in one order
        self.weights = dict(sorted(self.adapted.weights.items()))
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=config.learning_rate, weight_decay=0.0
        )
        self.step, self.seconds, self.loss = 0, 0.0, math.nan
        self.history: list[dict[str, Any]] = []
        self.recipe = {
            "adapt": {**asdict(config), "save_every": None},
            "seed": seed,
            "text": self.texts.digest,
            "held_out": self.held_out and self.held_out.digest,
            "base": fingerprint(model),
        }

    # -- one step ----------------------------------------------------------------------------------

    def generator(self, stream: int) -> torch.Generator:
        """The random numbers of this step: stream 0 chooses rows, 1 what is soft and how.

        Rows are chosen on the CPU, where their texts are; noise is drawn where the model computes.
        """
        mixed = self.seed * 1_000_003 + self.step + 1 + stream * 2**30
        return torch.Generator(self.texts.device if stream else "cpu").manual_seed(mixed % 2**32)

    def make_step(self) -> None:
        """Update the adapters once.

        Raises:
            TrainingDiverged: where the loss or a weight is not finite; such a step is not saved.
        """
        begin = time.perf_counter()
        config = self.config
        self.optimizer.param_groups[0]["lr"] = config.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss_of(*self.texts.batch(config.batch_size, self.generator(0)))
        self.loss = loss.item()
        if not math.isfinite(self.loss):
            raise self._diverged(f"the loss is {self.loss}")
        loss.backward()
        self.optimizer.step()
        if not all(one.isfinite().all() for one in self.weights.values()):
            raise self._diverged("a weight is not finite")
        self.step += 1
        self.seconds += time.perf_counter() - begin

    def _diverged(self, what: str) -> TrainingDiverged:
        rate = self.config.learning_rate
        return TrainingDiverged(f"{what} at step {self.step}: lower learning_rate ({rate})")

    def loss_of(self, ids: Int[Tensor, "B T"], exists: Bool[Tensor, "B T"]) -> Tensor:
        """The mean loss of the tokens 1 … T-1 of a batch, in nats, with gradients."""
        model, frozen, config = self.adapted.model, self.adapted.frozen, self.config
        read, due = ids[:, :-1], exists[:, 1:]
        distil = config.goal == "distil"
        # 1) what is read: hard tokens, or soft ones from a first pass
        vectors, hidden = F.embedding(read, model.embedding), None
        if config.soft_inputs or distil:
            generator = self.generator(1)
            chosen = (
                torch.rand(read.shape, generator=generator, device=read.device) < config.soft_share
            )
            chosen = chosen & exists[:, :-1] & bool(config.soft_inputs)
            chosen[:, 0] = False  # nothing predicts the first token
            made = frozen if distil else model
            how = config.soft_inputs or "scheduled(0.0)"
            done = self.step / config.steps
            vectors, hidden = soft_tokens(made, read, chosen, how, done, generator)
        # 2) what is predicted
        found = log_probs(model, states(model, vectors)[:, 1:][due])  # (n, V)
        if not distil:
            return F.nll_loss(found, ids[:, 1:][due])
        with torch.no_grad():
            wanted = log_probs(frozen, hidden[:, 1:][due])
        return F.kl_div(found, wanted, log_target=True, reduction="batchmean")

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Add a row to the history: nats per token of held-out text, read as symbols.

        Without such text, one row of the training text is read to see that the model still predicts.

        Raises:
            TrainingDiverged: where what it predicts is not finite.
        """
        held_out, model = self.held_out, self.adapted.model
        total, count = 0.0, 0
        for ids, _ in self.texts.first(1) if held_out is None else held_out.first(EVAL_ROWS):
            vectors = F.embedding(ids[:, :-1], model.embedding)
            found = log_probs(model, states(model, vectors)[:, 1:])
            total -= float(found.gather(-1, ids[:, 1:, None]).sum())
            count += ids.shape[1] - 1
        if not math.isfinite(total):
            raise self._diverged(f"the model gives a text {total} nats")
        row = {"step": self.step, "train_loss": self.loss, "seconds": round(self.seconds, 3)}
        row |= {} if held_out is None else {"held_out_nats": total / count}
        self.history.append(row)
        return row

    # -- on disk -----------------------------------------------------------------------------------

    def save(self, out: str | Path) -> None:
        """Save the run; one file decides how far it is, and peft's files follow it."""
        arrays = {f"weight.{name}": one for name, one in self.weights.items()}
        arrays |= {f"adam.{name}": one for name, one in flat_state(self.optimizer).items()}
        about = {"recipe": self.recipe, "step": self.step, "history": self.history}
        about |= {"seconds": self.seconds, "loss": self.loss}
        save_vectors(Path(out, PROGRESS), arrays, about)
        self.adapted.save(out)

    def resume(self, out: str | Path) -> None:
        """Go on with the run that is saved, if any.

        Raises:
            CheckpointError: where it is another run.
        """
        if not Path(out, PROGRESS).exists():
            return
        arrays, about = load_vectors(Path(out, PROGRESS))
        if "recipe" not in about:
            raise CheckpointError(f"{Path(out, PROGRESS)} holds something else than an adaptation")
        if different := differences(self.recipe, about["recipe"]):
            raise CheckpointError(
                f"{out} holds another run ({different}): choose another folder or resume=False"
            )
        nested: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for name, one in arrays.items():
                kind, _, rest = name.partition(".")
                if kind == "weight":
                    self.weights[rest].copy_(one)
                else:
                    index, field = rest.split(".")
                    nested.setdefault(int(index), {})[field] = one.clone()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": nested, "param_groups": groups})
        self.step, self.history, self.loss = about["step"], about["history"], about["loss"]
        self.seconds = about["seconds"]


def adapt(
    model: Predictor,
    text: str | Sequence[str],
    config: AdaptConfig | None = None,
    *,
    held_out: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    resume: bool = True,
    progress: bool = True,
    on_step: Callable[[dict[str, Any]], Any] | None = None,
) -> Adaptation:
    """Train low-rank adapters on a frozen model; the model itself does not change (K32).

    Ctrl-C or the notebook's stop button saves the run and returns. A finished run is returned as it
    is.

    Args:
        model: a pretrained model, in NF4 too, or a SoftAR that predicts by likelihood.
        text: one running text, or texts that are read from their beginnings.
        config: the recipe; None: its defaults.
        held_out: text for the evaluations, which read symbols; None: no figure of it.
        out: a folder in which the run is saved, and from which the same call goes on, bit by bit.
            It holds the adapters as peft saves them.
        seed: decides the first weights, the rows and the noise.
        resume: False begins anew, whatever `out` holds.
        progress: whether to show a progress bar.
        on_step: gets step, steps, train_loss and seconds, and after an evaluation its figures. The
            run is saved and returns where it returns True.

    Raises:
        ValueError: where the model cannot be adapted, or the text is too short.
        PretrainedError: where peft is missing.
        CheckpointError: where `out` holds another run, or another process writes into it.
        TrainingDiverged: where the loss, a weight or what the model predicts is not finite.
    """
    config = AdaptConfig() if config is None else config
    if not isinstance(config, AdaptConfig):
        raise ValueError(f"config must be an AdaptConfig, not {config!r:.60}")
    seed = whole_number("seed", seed, *SEEDS)
    run = AdaptingRun(model, text, config, held_out, seed)
    with held(out) if out is not None else nullcontext():
        if out is not None and resume:
            run.resume(out)
        losses, interrupted = _make_steps(run, out, progress, on_step)
    return Adaptation(
        run.adapted.finished(), pd.DataFrame(run.history), losses, interrupted, run.adapted
    )


def _make_steps(
    run: AdaptingRun, out: str | Path | None, progress: bool, on_step: Callable | None
) -> tuple[list[float], bool]:
    """Make the remaining steps; returns their losses, and whether the run was stopped early."""
    config, losses = run.config, []
    bar = tqdm(
        total=config.steps, initial=run.step, disable=not progress, unit="step", desc="adapt"
    )
    with interruption() as stop, bar:
        while run.step < config.steps and not stop.is_set():
            # 1) one step
            run.make_step()
            losses.append(run.loss)
            bar.update()
            bar.set_postfix_str(f"loss {run.loss:.3f}", refresh=False)
            # 2) evaluate now and then, and at the end
            event = {"step": run.step, "steps": config.steps, "train_loss": run.loss}
            event |= {"seconds": run.seconds}
            if run.step == config.steps or _at(run.step, config.eval_every):
                event |= run.evaluate()
            # 3) report it, and save
            if on_step is not None and on_step(event) is True:
                stop.set()
            last = run.step == config.steps or stop.is_set()
            if out is not None and (last or _at(run.step, config.save_every)):
                run.save(out)
    return losses, run.step < config.steps


def _at(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
