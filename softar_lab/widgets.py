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
from .predictor import Predictor
from .training import Run, TrainConfig, train

_NARROW = {"description_width": "86px"}


class Panel(w.VBox):
    """A VBox with a status line, one worker at a time, and a still picture for readers without a kernel."""

    def __init__(self):
        self.status = w.HTML()
        self.problem = ""  # what the status line says went wrong
        self._order, self._turn = threading.Lock(), threading.Lock()  # to begin work; held by whoever works
        self._drawing = threading.RLock()  # a slider moves while a worker draws
        self._stop = threading.Event()  # of the newest work; older work is told to stop
        super().__init__()

    def _begin(self) -> threading.Event:
        """The stop sign of new work; what was begun before is told to stop, even where it still waits for its turn."""
        with self._order:
            self._stop.set()
            self._stop = threading.Event()
            return self._stop

    def _run(self, work: Callable[[threading.Event], None], stop: threading.Event) -> None:
        """Do `work` once older work has stopped; an error becomes the status line."""
        with self._turn:
            if not stop.is_set():
                self._attempt(work, stop)

    def _attempt(self, action: Callable, *arguments: Any) -> None:
        """Call `action`; Lab hides what a callback raises, so an error becomes the status line."""
        try:
            action(*arguments)
        except Exception as error:
            self.say(str(error) or type(error).__name__, "error")

    def _run_in_background(self, work: Callable[[threading.Event], None]) -> threading.Thread:
        thread = threading.Thread(target=self._run, args=(work, self._begin()), daemon=True)
        thread.start()
        return thread

    def stop(self, *_: Any) -> None:
        """Tell the running work to stop; what it has done so far is shown."""
        self._stop.set()

    def say(self, text: str, kind: str = "info") -> None:
        """Show a line of status; `kind` "error" in red."""
        self.problem = text if kind == "error" else ""
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

    def __init__(self, title: str, models: Mapping[str, Predictor], schedules: list[str]):
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
        self.written: tuple[str, Trajectory] | None = None  # which model wrote last, and what
        self.controls = (self.model, self.collapse, self.schedule, self.feedback, self.temperature)
        for control in self.controls:
            control.layout.width = "235px"
        self._title = w.HTML()
        self._controls = w.HBox(self.controls, layout=w.Layout(flex_flow="row wrap"))
        self._picture = w.Box([self.figure, self.candidates])
        super().__init__([self._title, self._controls, self.text, self._picture])
        self.show(title, alone=True)

    def show(self, title: str, alone: bool) -> None:
        """Alone: the candidates stand beside the picture, and no title is needed; in company: below it."""
        self._title.value = "" if alone else f"<b>{title}</b>"
        self.layout = w.Layout(flex="1 1 0%", min_width="0", overflow="hidden")
        self._picture.layout = w.Layout(display="flex", flex_flow="row" if alone else "column", align_items="stretch")
        self.candidates.layout = w.Layout(width="290px" if alone else "auto", flex="0 0 auto", padding="8px")

    def show_picture(self, shown: bool) -> None:
        """Show the path, or the candidates alone."""
        self._picture.children = (self.figure, self.candidates) if shown else (self.candidates,)

    @property
    def trajectory(self) -> Trajectory | None:
        """What was written last."""
        return self.written[1] if self.written else None

    def values(self) -> dict[str, Any]:
        """The choices, as generate() takes them."""
        names = ("collapse", "schedule", "feedback", "temperature")
        return {name: getattr(self, name).value for name in names}


def _has_rows(model: Predictor) -> bool:
    """Whether its soft tokens have a place among its symbols."""
    return getattr(model, "embedding", None) is not None


class GenerationPanel(Panel):
    """Write with a model and watch it think: the text, how surprised it was, and the path of its soft tokens.

    `models`: one predictor or several by name; counts and true languages have no vectors, so no path. Every change of
    a control writes anew; `generate()` does so from Python. `panel.first` and `panel.second` are the two settings side
    by side (the second shows once `compare` is ticked); `panel.collapse` and the like are the first one's.
    """

    def __init__(
        self,
        models: Predictor | Mapping[str, Predictor],
        prompt: str = "",
        steps: int = 80,
        seed: int = 0,
        schedules: tuple[str, ...] = ("always", "never", "every(2)", "every(4)", "every(8)"),
    ):
        super().__init__()
        self.models = dict(models) if isinstance(models, Mapping) else {"model": models}
        self._bases = {name: PCABasis.fit(model.embedding) for name, model in self.models.items() if _has_rows(model)}
        self.prompt = w.Text(prompt, description="Prompt", continuous_update=False, style=_NARROW,
                             layout=w.Layout(width="60%"))  # fmt: skip
        self.steps = w.BoundedIntText(steps, min=1, max=2000, description="Length", style=_NARROW,
                                      layout=w.Layout(width="18%"))  # fmt: skip
        self.seed = w.IntText(seed, description="Seed", style=_NARROW, layout=w.Layout(width="18%"))
        self.button = w.Button(description="Generate", button_style="primary", icon="play")
        self.stop_button = w.Button(description="Stop", icon="stop")
        self.compare = w.ToggleButton(False, description="Compare", tooltip="two settings side by side")
        self.view = w.ToggleButtons(options=["2-D", "3-D"], style={"button_width": "50px"})
        self.step = w.IntSlider(0, min=0, max=self.steps.value - 1, description="Step", style=_NARROW,
                                layout=w.Layout(width="60%"))  # fmt: skip
        self.play = w.Play(min=0, max=self.steps.value - 1, interval=350)
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
            w.HBox([self.play, self.step]),
            self._columns,
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
        self._run(self._write, self._begin())
        return self.trajectory

    def _active(self) -> list[_Setting]:
        """The settings that are shown."""
        return [self.first, self.second] if self.compare.value else [self.first]

    def _written(self) -> list[_Setting]:
        """The settings that are shown and have written something."""
        return [setting for setting in self._active() if setting.trajectory is not None]

    def _write(self, stop: threading.Event) -> None:
        self.say("writing …")
        done: list[_Setting] = []
        for setting in self._active():
            if done and stop.is_set():
                break
            name, options = setting.model.value, setting.values()
            prompt, steps, seed = self.prompt.value, self.steps.value, self.seed.value
            trajectory = generate(self.models[name], prompt, steps, **options, seed=seed, stop=stop.is_set)
            setting.written = name, trajectory
            done.append(setting)
            self._show_path(setting)
        self.step.max = self.play.max = max(len(setting.trajectory) for setting in done) - 1
        self.say(" · ".join(self._summary(setting) for setting in done))

    def _show_columns(self, _: Any) -> None:
        for title, setting in zip("AB", self._active(), strict=False):
            setting.show(title, alone=not self.compare.value)
        self._columns.children = tuple(self._active())
        self._run_in_background(self._write)

    def _show_paths(self) -> None:
        for setting in self._written():
            self._show_path(setting)

    def _show_path(self, setting: _Setting) -> None:
        with self._drawing:
            name, trajectory = setting.written
            three, basis = self.view.value == "3-D", self._bases.get(name)
            setting.show_picture(basis is not None)
            if basis:
                plots.update_path(setting.figure, trajectory, basis, self.models[name].embedding, three)
            self._show_step_of(setting)

    def _show_step(self) -> None:
        for setting in self._written():
            self._show_step_of(setting)

    def _show_step_of(self, setting: _Setting) -> None:
        with self._drawing:
            name, trajectory = setting.written
            step = min(self.step.value, len(trajectory) - 1)
            if basis := self._bases.get(name):
                plots.update_now(setting.figure, trajectory, basis, step, self.view.value == "3-D")
            setting.text.value = plots.text_html(trajectory, step)
            setting.candidates.value = plots.candidates_html(trajectory, step)

    def _summary(self, setting: _Setting) -> str:
        trajectory = setting.trajectory
        bits = -float(trajectory.log_probs.mean()) / math.log(2)
        soft = int((~trajectory.collapsed).sum())
        return f"{len(trajectory)} steps, {soft} soft, {bits:.2f} bits a symbol"

    def still(self):
        if self.first.written is None:
            return None
        name, trajectory = self.first.written
        if name not in self._bases:
            return plots.draw_bits(trajectory.text, {"surprise": (-trajectory.log_probs / math.log(2)).numpy()})
        return plots.draw_path(trajectory, self._bases[name], self.models[name].embedding)

    def __repr__(self) -> str:
        parts = []
        for setting in self._active() if hasattr(self, "first") else []:
            options = ", ".join(f"{k}={v}" for k, v in setting.values().items())
            wrote = f"⟨{setting.trajectory.text!r}⟩" if setting.trajectory else "nothing yet"
            wrote = f"nothing: {self.problem}" if self.problem else wrote
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
        self._run(self._work, self._begin())
        return self.run

    def _work(self, stop: threading.Event) -> None:
        self._losses, self._scores, self.run = [], [], None

        def on_step(event: dict[str, Any]) -> bool:
            self._show(event)
            return stop.is_set()

        self.run = train(self.model, self.corpus, self.config, progress=False, on_step=on_step, **self.options)
        history = self.run.history
        self._scores = list(zip(history["step"], history["val_bits_per_char"]))
        self.bar.value = self._scores[-1][0]
        self._draw()
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
        self._draw()

    def _draw(self) -> None:
        with self.figure.batch_update():
            for trace, points in zip(self.figure.data, (self._losses, self._scores), strict=True):
                trace.x, trace.y = [x for x, _ in points], [y for _, y in points]

    def still(self):
        return plots.draw_history({"validation": self.run.history}) if self.run else None

    def __repr__(self) -> str:
        if self.run is None:
            state = f"not trained: {self.problem}" if self.problem else "not trained yet"
            return f"TrainingMonitor({self.corpus.name}, {self.config.steps} steps: {state})"
        bits = f"⟨{self.run.val_bits_per_char:.3f}⟩ bits per character"
        return f"TrainingMonitor({self.corpus.name}, {self.config.steps} steps: {bits})"
