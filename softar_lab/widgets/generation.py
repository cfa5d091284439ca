"""GenerationPanel: generate with a model and see, step by step, what it held and what it chose."""

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
from .river import River
from .setting import CHOICES, NARROW, Beginning, Setting, by_name, has_rows


class _Column(Setting):
    """A setting with its text and, where asked for, its last steps in the plane of the table.

    `forced` holds the symbols that a reader has chosen in the place of the model: {step: symbol}.
    """

    def __init__(self, models: Mapping[str, Predictor], schedules: Sequence[str], **chosen: Any):
        super().__init__(models, schedules, **chosen)
        self.forced: dict[int, str] = {}
        self.figure = plots.plane_figure()
        self.plane = Picture(self.figure)
        self.layout = w.Layout(flex="1 1 0%", min_width="0", overflow="hidden")

    def show_plane(self, visible: bool) -> None:
        """Display the plane below the text, or the text alone."""
        base = (self.title, self.row, self.text)
        self.children = (*base, self.plane) if visible else base

    def copy_from(self, other: Setting) -> None:
        """Take the other's choices where this one still has those that every setting begins with."""
        for name, (first, _) in CHOICES.items():
            if getattr(self, name).value == first:
                getattr(self, name).value = getattr(other, name).value
        if self.model.value == self.model.options[0]:
            self.model.value = other.model.value


class GenerationPanel(Panel):
    """Generate with a model and see the text, its surprise, and a river of what each step held.

    Every change of a control generates again; `generate()` does the same from Python. `panel.first`
    and `panel.second` are two settings side by side, their rivers on one axis; the second one
    appears when `compare` is on, as a copy of the first. `panel.collapse` and so on are the
    controls of the first setting. A click on a candidate that lost forces it, and the model writes
    on from there; the next change of a control forgets that.

    Args:
        models: one predictor, or several by name. Count models and true languages have no vectors,
            so the panel offers no plane for them.
        prompt: the prompt of both settings.
        steps: how many symbols each setting generates.
        seed: the seed of both settings.
        schedules: more schedules for the menus, such as "entropy(0.3)".
        settings: the choices that one or two settings begin with, such as
            [{"temperature": 0}, {"temperature": 0, "schedule": "never"}]; of two, both are shown.

    Raises:
        ValueError: for an unknown model, collapse, schedule or feedback; for more than two settings.
        TypeError: for a choice that has no control.
    """

    first: _Column | None = None  # setting A, once it is made

    def __init__(
        self,
        models: Predictor | Mapping[str, Predictor],
        prompt: str = "",
        steps: int = 80,
        seed: int = 0,
        schedules: Sequence[str] = (),
        settings: Sequence[Mapping[str, Any]] = ({},),
    ):
        if not 1 <= len(settings) <= 2:
            raise ValueError(f"a panel has one or two settings, not {len(settings)}")
        super().__init__()
        self.models = by_name(models)
        self._bases = {
            name: PCABasis.fit(model.embedding)
            for name, model in self.models.items()
            if has_rows(model)
        }
        # 1) the controls, the columns of both settings, and their rivers
        beginning = Beginning(prompt, steps, seed)
        self.prompt, self.steps, self.seed = beginning.children
        self._make_controls()
        both = (*settings, {})[:2]
        self.first, self.second = (_Column(self.models, schedules, **one) for one in both)
        for name in ("model", *CHOICES):
            setattr(self, name, getattr(self.first, name))
        self.river = River()
        self.river.on_force(self._force)
        w.jslink((self.step, "value"), (self.river, "step"))
        # 2) their places
        self.compare.value = len(settings) == 2
        self._columns = w.HBox()
        self._place_columns()
        self.children = (
            beginning,
            w.HBox([self.button, self.stop_button, self.compare, self.plane]),
            self.status,
            self._columns,
            w.HBox([self.play, self.step]),
            self.river,
        )
        # 3) the first text
        self.generate()
        self._connect()

    def _make_controls(self) -> None:
        """Make the buttons and the slider of steps."""
        self.button = w.Button(description="Generate", button_style="primary", icon="play")
        self.stop_button = w.Button(description="Stop", icon="stop", tooltip="keep what is written")
        self.compare = w.ToggleButton(
            False, description="Compare", tooltip="two settings, their rivers on one axis"
        )
        self.plane = w.ToggleButton(
            False,
            description="Plane",
            disabled=not self._bases,
            tooltip="the last steps among the symbols, in the plane that holds most of the table",
        )
        self.step = w.IntSlider(0, min=0, max=self.steps.value - 1, description="Step", style=NARROW,
                                layout=w.Layout(width="60%"))  # fmt: skip
        self.play = w.Play(min=0, max=self.steps.value - 1, interval=350)
        w.jslink((self.play, "value"), (self.step, "value"))

    def _connect(self) -> None:
        self.button.on_click(lambda _: self._change())
        self.stop_button.on_click(self.stop)
        for control in (
            self.prompt,
            self.steps,
            self.seed,
            *self.first.controls,
            *self.second.controls,
        ):
            control.observe(lambda _: self._change(), "value")
        self.compare.observe(self._show_columns, "value")
        self.plane.observe(lambda _: self._attempt(self._show_planes), "value")
        self.step.observe(lambda _: self._attempt(self._show_planes), "value")

    @property
    def trajectory(self) -> Trajectory | None:
        """The trajectory that setting A generated last."""
        return self.first.trajectory

    def generate(self) -> Trajectory | None:
        """Generate with the present settings and display it; errors go to the status line."""
        self._forget()
        self._run(self._write, self._begin())
        return self.trajectory

    # -- writing -----------------------------------------------------------------------------------

    def _change(self) -> None:
        """Generate anew, in the background, from the present settings alone."""
        self._forget()
        self._run_in_background(self._write)

    def _forget(self) -> None:
        self.first.forced, self.second.forced = {}, {}

    def _force(self, name: str, step: int, symbol: str) -> None:
        """Generate the text again whose candidate was clicked: what was forced before it stays."""
        setting = self._written()[list(self.river.trajectories).index(name)]
        before = {at: chosen for at, chosen in setting.forced.items() if at < step}
        setting.forced = {**before, step: symbol}
        self._run_in_background(self._write)

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
            forced = {at: symbol for at, symbol in setting.forced.items() if at < steps}
            trajectory = generate(
                self.models[name],
                prompt,
                steps,
                **options,
                seed=seed,
                forced=forced,
                stop=stop.is_set,
            )
            setting.written = name, trajectory
            done.append(setting)
            with self._drawing:
                setting.text.value = plots.text_html(trajectory)
                self.river.show(self._rivers())
                self._show_plane(setting)
        longest = max(len(setting.trajectory) for setting in self._written())
        self.step.max = self.play.max = longest - 1
        self.say(" · ".join(setting.summary() for setting in done))

    def _rivers(self) -> dict[str, Trajectory]:
        """The trajectories on display, by their letter and what sets them apart."""
        columns = self._written()
        names = {"model": [one.model.value for one in columns]}
        names |= {name: [one.values()[name] for one in columns] for name in CHOICES}
        apart = [values for values in names.values() if len(set(values)) > 1]
        found = {}
        for i, setting in enumerate(columns):
            letter = "AB"[self._active().index(setting)]
            found[" ".join([letter, *(str(values[i]) for values in apart)])] = setting
        if len(found) == 1:
            return {"": columns[0].trajectory}
        return {name: setting.trajectory for name, setting in found.items()}

    # -- showing -----------------------------------------------------------------------------------

    def _show_columns(self, _: Any) -> None:
        if self.compare.value:
            self.second.copy_from(self.first)
        self._place_columns()
        self._change()

    def _place_columns(self) -> None:
        """Display the active settings, each under its letter where there are two."""
        for letter, setting in zip("AB", self._active(), strict=False):
            setting.title.value = f"<b>{letter}</b>" if self.compare.value else ""
        self._columns.children = tuple(self._active())

    def _show_planes(self) -> None:
        for setting in self._written():
            with self._drawing:
                self._show_plane(setting)

    def _show_plane(self, setting: _Column) -> None:
        name, trajectory = setting.written
        basis = self._bases.get(name)
        visible = self.plane.value and basis is not None
        setting.show_plane(visible)
        if visible:
            step = min(self.step.value, len(trajectory) - 1)
            plots.update_plane(setting.figure, trajectory, basis, self.models[name].embedding, step)
            setting.plane.draw()

    def still(self):
        """Return the rivers of what was written last as a matplotlib figure, or None."""
        return plots.draw_river(self._rivers()) if self._written() else None

    def __repr__(self) -> str:
        if self.first is None:
            return "GenerationPanel()"
        described = "; ".join(setting.tell(self.problem) for setting in self._active())
        return f"GenerationPanel(prompt={self.prompt.value!r}: {described})"
