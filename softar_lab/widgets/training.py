"""TrainingMonitor: train a model and watch its loss."""

import threading
from typing import Any

import ipywidgets as w

from .. import plots
from ..evidence import masked
from ..models.soft_ar import SoftAR
from ..training.config import TrainConfig
from ..training.loop import Run, train
from .panel import Panel
from .picture import Picture


class TrainingMonitor(Panel):
    """Train a model and watch its loss; the Stop button ends the run early.

    `train()` does the same from Python and waits for the end.

    Args:
        model: the model to train.
        corpus: the training and validation texts.
        config: the training recipe; None is the default `TrainConfig()`.
        options: further arguments of `softar_lab.training.loop.train`. With `out`, the run is
            saved in that folder, also after Stop.
    """

    def __init__(
        self, model: SoftAR, corpus: Any, config: TrainConfig | None = None, **options: Any
    ):
        super().__init__()
        self.model, self.corpus, self.config, self.options = (
            model,
            corpus,
            config or TrainConfig(),
            options,
        )
        self.run: Run | None = None
        self.button = w.Button(description="Train", button_style="primary", icon="play")
        self.stop_button = w.Button(description="Stop", icon="stop")
        self.bar = w.IntProgress(0, min=0, max=self.config.steps, layout=w.Layout(width="50%"))
        floor = self.corpus.floor_bits_per_char
        self.figure = plots.history_figure(self.config.steps, floor)
        self._picture = Picture(self.figure)
        self._losses: list[tuple[int, float]] = []
        self._scores: list[tuple[int, float]] = []
        self.button.on_click(lambda _: self._run_in_background(self._work))
        self.stop_button.on_click(self.stop)
        self.children = (
            w.HBox([self.button, self.stop_button, self.bar]),
            self.status,
            self._picture,
        )

    def train(self) -> Run | None:
        """Train with the panel's recipe and wait for the end.

        Returns:
            The run, or None where it failed; the status line then shows the error.
        """
        self._run(self._work, self._begin())
        return self.run

    def _work(self, stop: threading.Event) -> None:
        self.run, before = None, self._losses
        self._losses, self._scores = [], []

        def on_step(event: dict[str, Any]) -> bool:
            if not self._losses:  # the steps before a saved run goes on
                self._recall(event, before)
            self._show(event)
            return stop.is_set()  # True ends the training

        self.run = train(
            self.model, self.corpus, self.config, progress=False, on_step=on_step, **self.options
        )
        history = self.run.history
        self._scores = list(zip(history["step"], history["val_bits_per_char"]))
        self._losses = self._losses or list(zip(history["step"], history["train_loss"]))
        self.bar.value = self._scores[-1][0]
        self._draw()
        if "out" not in self.options:  # else a finished run is read again, not trained further
            self.button.description = "Train on"
            self.button.tooltip = "another run, from the weights that are trained now"
        ended = "stopped" if self.run.interrupted else "done"
        self.say(
            f"{ended}: {self.run.val_bits_per_char:.3f} bits per character on the validation text"
        )

    def _recall(self, event: dict[str, Any], before: list[tuple[int, float]]) -> None:
        """Begin the curves of a run that goes on with the steps before its first new one.

        `before`: the losses that the panel has drawn last.
        """
        first = event["step"]
        losses = {row["step"]: row["train_loss"] for row in event["history"]}
        if losses or first > 1:
            losses |= {step: loss for step, loss in before if step < first}
        self._losses = sorted(losses.items())
        self._scores = [(row["step"], row["val_bits_per_char"]) for row in event["history"]]

    def _show(self, event: dict[str, Any]) -> None:
        step, steps = event["step"], event["steps"]
        self._losses.append((step, event["train_loss"]))
        if "val_bits_per_char" in event:
            self._scores.append((step, event["val_bits_per_char"]))
        if step % max(1, steps // 50) and step != steps:
            return  # draw about 50 times per run
        left = event["seconds"] / step * (steps - step)
        self.bar.value = step
        self.say(f"step {step} of {steps}, loss {event['train_loss']:.3f}, about {left:.0f} s left")
        self._draw()

    def _draw(self) -> None:
        for trace, points in zip(self.figure.data, (self._losses, self._scores), strict=True):
            trace.x, trace.y = [x for x, _ in points], [y for _, y in points]
        self._picture.draw()

    def still(self):
        return plots.draw_history({"validation": self.run.history}) if self.run else None

    def __repr__(self) -> str:
        if self.run is None:
            state = f"not trained: {self.problem}" if self.problem else "not trained yet"
            return f"TrainingMonitor({self.corpus.name}, {self.config.steps} steps: {state})"
        bits = f"{masked(self.run.val_bits_per_char)} bits per character"
        return f"TrainingMonitor({self.corpus.name}, {self.config.steps} steps: {bits})"
