"""Panels to play with. Each is a VBox whose controls can be set from Python too: ``panel.collapse.value = "nearest"``.

Long work runs in a worker thread with a Stop button; what goes wrong is said in the panel's status line. Every panel
carries a still picture and a `__repr__` that tells its state, for readers without a kernel.
"""

import base64
import html
import io
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as w

from . import plots
from .analysis.geometry import PCABasis
from .generation import Trajectory, collapse, feedback, generate
from .models.soft_ar import SoftAR
from .training import Run, TrainConfig, train

_NARROW = {"description_width": "86px"}


class Panel(w.VBox):
    """A VBox with a status line, one worker at a time, and a still picture for readers without a kernel."""

    def __init__(self):
        self.status = w.HTML()
        self.result = None
        self._turn = threading.Lock()  # held by whoever works
        self._stop = threading.Event()  # of the newest work; older work is told to stop
        super().__init__()

    def _run(self, work: Callable[[threading.Event], None]) -> None:
        """Do `work` after telling older work to stop; an error becomes the status line."""
        self._stop.set()
        stop = self._stop = threading.Event()
        with self._turn:
            if stop.is_set():
                return
            self._attempt(work, stop)

    def _attempt(self, action: Callable, *arguments: Any) -> None:
        """Call `action`; Lab hides what a callback raises, so an error becomes the status line."""
        try:
            action(*arguments)
        except Exception as error:
            self.say(str(error) or type(error).__name__, "error")

    def _run_in_background(self, work: Callable[[threading.Event], None]) -> threading.Thread:
        thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        thread.start()
        return thread

    def stop(self, *_: Any) -> None:
        """Tell the running work to stop; what it has done so far is shown."""
        self._stop.set()

    def say(self, text: str, kind: str = "info") -> None:
        """Show a line of status; `kind` "error" in red."""
        colour, mark = ("#b00020", "⚠ ") if kind == "error" else ("#5a606e", "")
        self.status.value = f'<span style="color:{colour}">{mark}{html.escape(text)}</span>'

    def still(self):
        """A matplotlib figure of what the panel shows, or None."""
        return None

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data["text/plain"] = repr(self)
        figure = self.still()
        if figure is not None:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=72)
            data["image/png"] = base64.b64encode(buffer.getvalue()).decode()
        return bundle


class _Setting(w.VBox):
    """The choices of one generation: which model, how to collapse, when, what to feed back, how warm."""

    def __init__(self, title: str, models: Mapping[str, SoftAR], schedules: list[str]):
        def choice(label: str, options: list[str], value: str) -> w.Dropdown:
            return w.Dropdown(options=options, value=value, description=label, style=_NARROW)

        self.model = choice("Model", list(models), next(iter(models)))
        self.collapse = choice("Collapse", collapse.names(), "softmax")
        self.schedule = choice("Schedule", schedules, "always")
        self.feedback = choice("Feedback", feedback.names(), "mixture")
        self.temperature = w.FloatSlider(
            0.8, min=0, max=2, step=0.05, description="Temperature", style=_NARROW, continuous_update=False
        )
        self.text, self.candidates = w.HTML(), w.HTML()
        self.figure = plots.path_figure()
        self.trajectory: Trajectory | None = None
        self.controls = (self.model, self.collapse, self.schedule, self.feedback, self.temperature)
        layout = w.Layout(min_width="0", flex="1 1 0%")
        heading = w.HTML(f"<b>{title}</b>")
        super().__init__([heading, *self.controls, self.text, self.figure, self.candidates], layout=layout)

    def values(self) -> dict[str, Any]:
        """The choices, as generate() takes them."""
        names = ("collapse", "schedule", "feedback", "temperature")
        return {name: getattr(self, name).value for name in names}


class GenerationPanel(Panel):
    """Write with a model and watch it think: the text, how surprised it was, and the path of its soft tokens.

    `models`: one SoftAR or several by name. Every change of a control writes anew; `generate()` does so from Python.
    `panel.first` and `panel.second` are the two settings side by side (the second shows once `compare` is ticked);
    `panel.collapse` and the like are the first one's.
    """

    def __init__(
        self,
        models: SoftAR | Mapping[str, SoftAR],
        prompt: str = "",
        steps: int = 80,
        seed: int = 0,
        schedules: tuple[str, ...] = ("always", "never", "every(2)", "every(4)", "every(8)"),
    ):
        super().__init__()
        self.models = dict(models) if isinstance(models, Mapping) else {"model": models}
        self._bases = {name: PCABasis.fit(model.embedding) for name, model in self.models.items()}
        self.prompt = w.Text(prompt, description="Prompt", continuous_update=False, style=_NARROW,
                             layout=w.Layout(width="60%"))  # fmt: skip
        self.steps = w.BoundedIntText(steps, min=1, max=2000, description="Length", style=_NARROW,
                                      layout=w.Layout(width="18%"))  # fmt: skip
        self.seed = w.IntText(seed, description="Seed", style=_NARROW, layout=w.Layout(width="18%"))
        self.button = w.Button(description="Generate", button_style="primary", icon="play")
        self.stop_button = w.Button(description="Stop", icon="stop")
        self.compare = w.ToggleButton(False, description="Compare", tooltip="two settings side by side")
        self.view = w.ToggleButtons(options=["2-D", "3-D"], style={"button_width": "50px"})
        self.step = w.IntSlider(0, min=0, max=steps - 1, description="Step", style=_NARROW,
                                layout=w.Layout(width="60%"))  # fmt: skip
        self.play = w.Play(min=0, max=steps - 1, interval=350)
        w.jslink((self.play, "value"), (self.step, "value"))
        self.first = _Setting("A", self.models, list(schedules))
        self.second = _Setting("B", self.models, list(schedules))
        for name in ("model", "collapse", "schedule", "feedback", "temperature"):
            setattr(self, name, getattr(self.first, name))
        self._columns = w.HBox([self.first])
        self.children = (
            w.HBox([self.prompt, self.steps, self.seed]),
            w.HBox([self.button, self.stop_button, self.compare, self.view]),
            self.status,
            self._columns,
            w.HBox([self.play, self.step]),
        )
        self.generate()
        self._connect()

    def _connect(self) -> None:
        self.button.on_click(lambda _: self._run_in_background(self._write))
        self.stop_button.on_click(self.stop)
        for control in (self.prompt, self.steps, self.seed, *self.first.controls, *self.second.controls):
            control.observe(lambda _: self._run_in_background(self._write), "value")
        self.compare.observe(self._show_columns, "value")
        self.view.observe(lambda _: self._attempt(self._show_paths), "value")
        self.step.observe(lambda _: self._attempt(self._show_step), "value")

    @property
    def trajectory(self) -> Trajectory | None:
        """What setting A wrote last."""
        return self.first.trajectory

    def generate(self) -> Trajectory | None:
        """Write with the present settings and show it; errors go to the status line."""
        self._run(self._write)
        return self.trajectory

    def _active(self) -> list[_Setting]:
        """The settings that are shown."""
        return [self.first, self.second] if self.compare.value else [self.first]

    def _written(self) -> list[_Setting]:
        """The settings that are shown and have written something."""
        return [setting for setting in self._active() if setting.trajectory is not None]

    def _write(self, stop: threading.Event) -> None:
        self.say("writing …")
        for setting in self._active():
            model, options = self.models[setting.model.value], setting.values()
            prompt, steps, seed = self.prompt.value, self.steps.value, self.seed.value
            setting.trajectory = generate(model, prompt, steps, **options, seed=seed, stop=stop.is_set)
        length = max(len(setting.trajectory) for setting in self._active())
        self.step.max = self.play.max = length - 1
        self._show_paths()
        self.say(" · ".join(self._summary(setting) for setting in self._active()))

    def _show_columns(self, _: Any) -> None:
        self._columns.children = tuple(self._active())
        self._run_in_background(self._write)

    def _show_paths(self) -> None:
        for setting in self._written():
            model = self.models[setting.model.value]
            three = self.view.value == "3-D"
            plots.update_path(
                setting.figure, setting.trajectory, self._bases[setting.model.value], model.embedding, three
            )
        self._show_step()

    def _show_step(self) -> None:
        for setting in self._written():
            step = min(self.step.value, len(setting.trajectory) - 1)
            basis = self._bases[setting.model.value]
            plots.update_now(setting.figure, setting.trajectory, basis, step, self.view.value == "3-D")
            setting.text.value = plots.text_html(setting.trajectory, step)
            setting.candidates.value = plots.candidates_html(setting.trajectory, step)

    def _summary(self, setting: _Setting) -> str:
        trajectory = setting.trajectory
        bits = -float(trajectory.log_probs.mean()) / math.log(2)
        soft = int((~trajectory.collapsed).sum())
        return f"{len(trajectory)} steps, {soft} soft, {bits:.2f} bits a symbol"

    def still(self):
        if self.trajectory is None:
            return None
        name = self.first.model.value
        return plots.draw_path(self.trajectory, self._bases[name], self.models[name].embedding)

    def __repr__(self) -> str:
        parts = []
        for setting in self._active() if hasattr(self, "first") else []:
            options = ", ".join(f"{k}={v}" for k, v in setting.values().items())
            wrote = f"⟨{setting.trajectory.text!r}⟩" if setting.trajectory else "nothing yet"
            parts.append(f"model={setting.model.value}, {options} wrote {wrote}")
        return f"GenerationPanel(prompt={self.prompt.value!r}: {'; '.join(parts)})" if parts else "GenerationPanel()"


class TrainingMonitor(Panel):
    """Train a model and watch its loss fall; Stop saves and returns. `train()` does so from Python and waits."""

    def __init__(self, model: SoftAR, corpus: Any, config: TrainConfig | None = None, **options: Any):
        super().__init__()
        self.model, self.corpus, self.config, self.options = model, corpus, config or TrainConfig(), options
        self.run: Run | None = None
        self.button = w.Button(description="Train", button_style="primary", icon="play")
        self.stop_button = w.Button(description="Stop", icon="stop")
        self.bar = w.IntProgress(0, min=0, max=self.config.steps, layout=w.Layout(width="50%"))
        self.figure = plots.history_figure()
        self._losses: list[tuple[int, float]] = []
        self._scores: list[tuple[int, float]] = []
        self.button.on_click(lambda _: self._run_in_background(self._work))
        self.stop_button.on_click(self.stop)
        self.children = (w.HBox([self.button, self.stop_button, self.bar]), self.status, self.figure)

    def train(self) -> Run | None:
        """Train with the panel's recipe and wait for the end; None where it failed (the status line says why)."""
        self._run(self._work)
        return self.run

    def _work(self, stop: threading.Event) -> None:
        self._losses, self._scores = [], []

        def on_step(event: dict[str, Any]) -> bool:
            self._show(event)
            return stop.is_set()

        self.run = train(self.model, self.corpus, self.config, progress=False, on_step=on_step, **self.options)
        ended = "stopped" if self.run.interrupted else "done"
        self.say(f"{ended}: {self.run.val_bits_per_char:.3f} bits per character on the validation text")

    def _show(self, event: dict[str, Any]) -> None:
        step, steps = event["step"], event["steps"]
        self._losses.append((step, event["train_loss"]))
        if "val_bits_per_char" in event:
            self._scores.append((step, event["val_bits_per_char"]))
        if step % max(1, steps // 50) and step != steps:
            return
        left = event["seconds"] / step * (steps - step)
        self.bar.value = step
        self.say(f"step {step} of {steps}, loss {event['train_loss']:.3f}, about {left:.0f} s left")
        with self.figure.batch_update():
            for trace, points in zip(self.figure.data, (self._losses, self._scores), strict=True):
                trace.x, trace.y = [x for x, _ in points], [y for _, y in points]

    def still(self):
        return plots.draw_history({"validation": self.run.history}) if self.run else None

    def __repr__(self) -> str:
        if self.run is None:
            return f"TrainingMonitor({self.corpus.name}, {self.config.steps} steps: not trained yet)"
        bits = f"⟨{self.run.val_bits_per_char:.3f}⟩ bits per character"
        return f"TrainingMonitor({self.corpus.name}, {self.config.steps} steps: {bits})"
