"""GenerationPanel: generate with a model and watch the path of its soft tokens."""

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as w

from .. import plots
from ..core.predictor import Predictor
from ..generation import Trajectory, generate
from ..metrics.pca import PCABasis
from .panel import Panel
from .picture import Picture
from .setting import CHOICES, NARROW, Beginning, Setting, by_name, has_rows


class _Column(Setting):
    """A setting with its text, the picture of its path, and the candidates of one step."""

    def __init__(self, title: str, models: Mapping[str, Predictor], schedules: Sequence[str]):
        super().__init__(models, schedules)
        self.candidates = w.HTML()
        self.figure = plots.path_figure()
        self._path = Picture(self.figure)
        self._picture = w.Box([self._path, self.candidates])
        self.children = (*self.children, self._picture)
        self.show(title, alone=True)

    def show(self, title: str, alone: bool) -> None:
        """Set the layout of the column.

        If it is `alone`, the candidates are beside the picture and the title is empty. Otherwise
        they are below the picture.
        """
        self.title.value = "" if alone else f"<b>{title}</b>"
        self.layout = w.Layout(flex="1 1 0%", min_width="0", overflow="hidden")
        self._picture.layout = w.Layout(
            display="flex", flex_flow="row" if alone else "column", align_items="stretch"
        )
        self.candidates.layout = w.Layout(
            width="290px" if alone else "auto", flex="0 0 auto", padding="8px"
        )

    def draw(self) -> None:
        """Send the path as it is now to the browser."""
        self._path.draw()

    def show_picture(self, shown: bool) -> None:
        """Display the path and the candidates, or only the candidates."""
        self._picture.children = (self._path, self.candidates) if shown else (self.candidates,)


class GenerationPanel(Panel):
    """Generate with a model and see the text, its surprise, and the path of its soft tokens.

    Every change of a control generates again; `generate()` does the same from Python. `panel.first`
    and `panel.second` are two settings side by side; the second one appears when `compare` is on.
    `panel.collapse` and so on are the controls of the first setting.

    Args:
        models: one predictor, or several by name. Count models and true languages have no vectors,
            so the panel draws no path for them.
        prompt: the prompt of both settings.
        steps: how many symbols each setting generates.
        seed: the seed of both settings.
        schedules: more schedules for the menus, such as "entropy(0.3)".
    """

    first: _Column | None = None  # setting A, once it is made

    def __init__(
        self,
        models: Predictor | Mapping[str, Predictor],
        prompt: str = "",
        steps: int = 80,
        seed: int = 0,
        schedules: Sequence[str] = (),
    ):
        super().__init__()
        self.models = by_name(models)
        self._bases = {
            name: PCABasis.fit(model.embedding)
            for name, model in self.models.items()
            if has_rows(model)
        }
        # 1) the controls, and the columns of both settings
        beginning = Beginning(prompt, steps, seed)
        self.prompt, self.steps, self.seed = beginning.children
        self._make_controls()
        self.first = _Column("A", self.models, schedules)
        self.second = _Column("B", self.models, schedules)
        for name in ("model", *CHOICES):
            setattr(self, name, getattr(self.first, name))
        # 2) their places
        self._columns = w.HBox([self.first])
        self.children = (
            beginning,
            w.HBox([self.button, self.stop_button, self.compare, self.view]),
            self.status,
            w.HBox([self.play, self.step]),
            self._columns,
        )
        # 3) the first text
        self.generate()
        self._connect()

    def _make_controls(self) -> None:
        """Make the buttons and the slider of steps."""
        self.button = w.Button(description="Generate", button_style="primary", icon="play")
        self.stop_button = w.Button(description="Stop", icon="stop")
        self.compare = w.ToggleButton(
            False, description="Compare", tooltip="two settings side by side"
        )
        self.view = w.ToggleButtons(options=["2-D", "3-D"], style={"button_width": "50px"})
        self.step = w.IntSlider(0, min=0, max=self.steps.value - 1, description="Step", style=NARROW,
                                layout=w.Layout(width="60%"))  # fmt: skip
        self.play = w.Play(min=0, max=self.steps.value - 1, interval=350)
        w.jslink((self.play, "value"), (self.step, "value"))

    def _connect(self) -> None:
        self.button.on_click(lambda _: self._run_in_background(self._write))
        self.stop_button.on_click(self.stop)
        for control in (
            self.prompt,
            self.steps,
            self.seed,
            *self.first.controls,
            *self.second.controls,
        ):
            control.observe(lambda _: self._run_in_background(self._write), "value")
        self.compare.observe(self._show_columns, "value")
        self.view.observe(lambda _: self._attempt(self._show_paths), "value")
        self.step.observe(lambda _: self._attempt(self._show_step), "value")

    @property
    def trajectory(self) -> Trajectory | None:
        """The trajectory that setting A generated last."""
        return self.first.trajectory

    def generate(self) -> Trajectory | None:
        """Generate with the present settings and display it; errors go to the status line."""
        self._run(self._write, self._begin())
        return self.trajectory

    def _active(self) -> list[_Column]:
        """Return the settings that are displayed."""
        return [self.first, self.second] if self.compare.value else [self.first]

    def _written(self) -> list[_Column]:
        """Return the displayed settings that have a trajectory."""
        return [setting for setting in self._active() if setting.trajectory is not None]

    def _write(self, stop: threading.Event) -> None:
        self.say("writing …")
        done: list[_Column] = []
        for setting in self._active():
            if done and stop.is_set():
                break
            name, options = setting.model.value, setting.values()
            prompt, steps, seed = self.prompt.value, self.steps.value, self.seed.value
            trajectory = generate(
                self.models[name], prompt, steps, **options, seed=seed, stop=stop.is_set
            )
            setting.written = name, trajectory
            done.append(setting)
            self._show_path(setting)
        self.step.max = self.play.max = max(len(setting.trajectory) for setting in done) - 1
        self.say(" · ".join(setting.summary() for setting in done))

    def _show_columns(self, _: Any) -> None:
        for title, setting in zip("AB", self._active(), strict=False):
            setting.show(title, alone=not self.compare.value)
        self._columns.children = tuple(self._active())
        self._run_in_background(self._write)

    def _show_paths(self) -> None:
        for setting in self._written():
            self._show_path(setting)

    def _show_path(self, setting: _Column) -> None:
        with self._drawing:
            name, trajectory = setting.written
            three, basis = self.view.value == "3-D", self._bases.get(name)
            setting.show_picture(basis is not None)
            if basis:
                plots.update_path(
                    setting.figure, trajectory, basis, self.models[name].embedding, three
                )
            self._show_step_of(setting)

    def _show_step(self) -> None:
        for setting in self._written():
            self._show_step_of(setting)

    def _show_step_of(self, setting: _Column) -> None:
        with self._drawing:
            name, trajectory = setting.written
            step = min(self.step.value, len(trajectory) - 1)
            if basis := self._bases.get(name):
                plots.update_now(setting.figure, trajectory, basis, step, self.view.value == "3-D")
                setting.draw()
            setting.text.value = plots.text_html(trajectory, step)
            setting.candidates.value = plots.candidates_html(trajectory, step)

    def still(self):
        if self.first.written is None:
            return None
        name, trajectory = self.first.written
        if name not in self._bases:
            symbols = [  # a symbol may be longer than one character
                trajectory.tokens[i] for i in trajectory.token_ids.tolist()
            ]
            return plots.draw_bits(
                symbols, {"surprise": (-trajectory.log_probs / math.log(2)).numpy()}
            )
        return plots.draw_path(trajectory, self._bases[name], self.models[name].embedding)

    def __repr__(self) -> str:
        told = [setting.tell(self.problem) for setting in self._active()] if self.first else []
        return (
            f"GenerationPanel(prompt={self.prompt.value!r}: {'; '.join(told)})"
            if told
            else "GenerationPanel()"
        )
