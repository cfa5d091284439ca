"""GenerationPanel: one to four texts of one prompt, and step by step what the models held in mind."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as w

from .. import plots
from ..core.predictor import Predictor
from ..generation import Trajectory
from . import plane
from .offers import Offers
from .panel import Panel
from .readers import PARTS
from .river import River
from .setting import CHOICES, Beginning, by_name, question
from .written import NAMES, STRIPS, Setting, river_names

HINT = (
    "Click a letter or a column to see its candidates; ← and → walk on. Click a candidate that "
    "lost: it is forced, and the model writes on from there."
)


class GenerationPanel(Panel):
    """Generate under one to four settings; see the texts, and a river of what each step held.

    Every change of a control generates again; `generate()` does the same from Python and waits.
    `panel.settings` are the settings on display, A first; `panel.collapse` and so on are the
    controls of A. `add()` appends a copy of A, `remove()` removes the last one. A click on a
    candidate that lost forces it, and the model writes on from there; the next change of a control
    forgets that.

    A text is measured by the words that exist and the bits under a judge: the true language where
    the model's corpus has one, else the `judge`, else the writer itself; the panel says which.

    Args:
        models: one predictor, or several by name.
        prompt: the prompt of all settings.
        steps: how many symbols each setting generates.
        seed: the seed of all settings.
        schedules: more schedules for the menus, such as "entropy(0.3)".
        settings: what each setting begins with, any of model, collapse, schedule, feedback and
            temperature, such as [{"temperature": 0}, {"temperature": 0, "schedule": "never"}].
        judge: a language or another model that judges the texts and the drift; None: see above.
        strip: what is shown below the columns: "distance", "entropy", "surprise", or "drift", how
            far each prediction is from the judge's, or from the model's own after hard tokens;
            "misread" and "forgotten", the part of the drift that a reader takes back which is
            fitted on other such paths, and the part that it does not (`metrics.drift_readers`).

    Raises:
        ValueError: for an unknown model, collapse, schedule, feedback or strip; for a choice that
            the model is not made for; unless there are 1 to 4 settings.
        TypeError: for a choice that has no control.
    """

    columns: w.HBox | None = None  # the settings side by side, once they are made

    def __init__(
        self,
        models: Predictor | Mapping[str, Predictor],
        prompt: str = "",
        steps: int = 80,
        seed: int = 0,
        schedules: Sequence[str] = (),
        settings: Sequence[Mapping[str, Any]] = ({},),
        judge: Predictor | None = None,
        strip: str = "distance",
    ):
        if not 1 <= len(settings) <= len(NAMES):
            raise ValueError(f"a panel has 1 to {len(NAMES)} settings, not {len(settings)}")
        if strip not in STRIPS:
            raise ValueError(f"unknown strip {strip!r}; known: {', '.join(STRIPS)}")
        super().__init__()
        self._measuring = threading.Lock()  # held while texts are measured
        self.models, self.judge, self._schedules = by_name(models), judge, schedules
        # 1) the controls, the settings, and their rivers
        beginning = Beginning(prompt, steps, seed)
        self.prompt, self.steps, self.seed = beginning.children
        self._make_controls(strip)
        self.columns = w.HBox(layout=w.Layout(flex_flow="row wrap", align_items="stretch"))
        for chosen in settings:
            self._append(**chosen)
        for name in ("model", *CHOICES):
            setattr(self, name, getattr(self.first, name))
        self.river, self.offers = River(), Offers(self._replace_prompt)
        self.river.on_force(self._force)
        self._link((self.step, "value"), (self.river, "step"), (self.play, "value"))
        # 2) their places
        buttons = [self.button, self.stop_button, self.add_button, self.remove_button, self.plane]
        walk = w.HBox([self.play, self.step, self.strip], layout=w.Layout(align_items="flex-end"))
        row = w.Layout(flex_flow="row wrap", margin="4px 0")
        self.children = (
            self.look, beginning, self.columns, w.HBox(buttons, layout=row), self.status,
            self.offers, self.river, walk,
        )  # fmt: skip
        # 3) the first texts
        self.generate()
        self._connect()

    def _make_controls(self, strip: str) -> None:
        """Make the buttons, the slider of steps, and the menu of the strip."""
        self.button = w.Button(description="Generate", button_style="primary", icon="play")
        self.button.tooltip = "write again with what is chosen"
        self.stop_button = w.Button(description="Stop", icon="stop", tooltip="keep what is written")
        self.add_button = w.Button(description="Compare", icon="plus")
        self.add_button.tooltip = "one more setting, a copy of A, on the same axis"
        self.remove_button = w.Button(
            description="Remove", icon="minus", tooltip="the last setting"
        )
        first = next(iter(self.models.values()))
        self.plane = w.ToggleButton(
            plane.suits(first), description="Plane", tooltip="the last steps among the symbols"
        )
        last = self.steps.value - 1
        self.step = w.IntSlider(0, min=0, max=last, description="Which step?")
        self.step.layout.flex, self.step.style.description_width = "1 1 300px", "initial"
        self.step.tooltip = "the step whose candidates are listed"
        self.play = w.Play(min=0, max=last, interval=350)
        shown = [(text, kind) for kind, text in STRIPS.items()]
        self.strip = question(
            w.Dropdown(options=shown, value=strip, description="What does the strip show?"),
            "the coloured strip below the columns, from pale (small) to dark (large)",
        )

    def _connect(self) -> None:
        self.button.on_click(lambda _: self._press())
        self.stop_button.on_click(self.stop)
        self.add_button.on_click(lambda _: self._attempt(self.add))
        self.remove_button.on_click(lambda _: self._attempt(self.remove))
        for control in (self.prompt, self.steps, self.seed):
            control.observe(lambda _: self._change(), "value")
        self.strip.observe(lambda _: self._run_in_background(self._write), "value")
        for control in (self.plane, self.step):
            control.observe(lambda _: self._attempt(self._show_planes), "value")

    # -- settings ----------------------------------------------------------------------------------

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings on display, A first, each with its controls and its `trajectory`."""
        return self.columns.children if self.columns else ()

    @property
    def first(self) -> Setting:
        """Setting A."""
        return self.settings[0]

    @property
    def trajectory(self) -> Trajectory | None:
        """What setting A wrote last; None where it failed."""
        return self.first.trajectory

    @property
    def trajectories(self) -> list[Trajectory | None]:
        """What each setting wrote last, A first; None where one failed."""
        return [setting.trajectory for setting in self.settings]

    def add(self, **chosen: Any) -> None:
        """Append a copy of A, with some other choices, and write.

        Raises:
            ValueError: where four settings are on display already; for a choice as in the class.
        """
        if len(self.settings) == len(NAMES):
            raise ValueError(f"there are {len(NAMES)} settings: no more can be told apart")
        self._append(**{**self.first.all_values(), **chosen})
        self._run_in_background(self._write)

    def remove(self) -> None:
        """Remove the last setting.

        Raises:
            ValueError: where only A is left.
        """
        if len(self.settings) == 1:
            raise ValueError("only one setting is left")
        self.columns.children = self.settings[:-1]
        self._offer()
        self._run_in_background(self._write)

    def _append(self, **chosen: Any) -> None:
        setting = Setting(NAMES[len(self.settings)], self.models, self._schedules, **chosen)
        for control in setting.controls:
            control.observe(lambda _: self._change(setting), "value")
        self.columns.children = (*self.settings, setting)
        self._offer()

    def _offer(self) -> None:
        """Grey what has no effect, and name what differs."""
        settings = self.settings
        self.add_button.disabled = len(settings) == len(NAMES)
        self.remove_button.disabled = len(settings) == 1
        self.seed.disabled = not any(setting.draws() for setting in settings)
        self.plane.disabled = not any(
            self.models[setting.model.value].embedding is not None for setting in settings
        )
        for setting in settings:
            setting.show_title(settings[0], len(settings) > 1)

    # -- writing -----------------------------------------------------------------------------------

    def generate(self) -> Trajectory | None:
        """Generate what has changed, or all where nothing has, and wait until it is measured.

        Returns:
            What setting A wrote; None where it failed, and `status` then shows the error. The other
            settings' are in `trajectories`.
        """
        self._forget(*self.settings)
        self._run(self._write_again, self._begin())
        return self.trajectory

    def _change(self, *settings: Setting) -> None:
        """Generate anew, in the background; what was forced in these settings (all) is forgotten."""
        self._forget(*(settings or self.settings))
        self._offer()
        self._run_in_background(self._write)

    def _press(self) -> None:
        """What `generate()` does, in the background."""
        self._forget(*self.settings)
        self._run_in_background(self._write_again)

    def _forget(self, *settings: Setting) -> None:
        for setting in settings:
            setting.forced = {}

    def _replace_prompt(self, prompt: str) -> None:
        self.prompt.value = prompt

    def _force(self, name: str, step: int, symbol: str) -> None:
        """Generate the text again whose candidate was clicked: what was forced before it stays."""
        setting = self._displayed()[list(self.river.trajectories).index(name)]
        before = {at: chosen for at, chosen in setting.forced.items() if at < step}
        setting.forced = {**before, step: symbol}
        self._run_in_background(self._write)

    def _wanted(self, setting: Setting) -> dict[str, Any]:
        shared = {"prompt": self.prompt.value, "steps": self.steps.value, "seed": self.seed.value}
        return setting.wanted(**shared)

    def _write_again(self, stop: threading.Event) -> None:
        """Write what has changed, or all where nothing has: the model may have learned meanwhile."""
        if all(one.has(self._wanted(one)) for one in self.settings):
            for setting in self.settings:
                setting.asked = {}
        self._write(stop)

    def _write(self, stop: threading.Event) -> None:
        """Write and show the texts of all settings that have changed."""
        settings = self.settings
        wanted = {setting: self._wanted(setting) for setting in settings}
        anew = [one for one in settings if not one.has(wanted[one])]
        self.say("writing …")
        for setting in anew:
            if stop.is_set():
                break
            setting.write(
                wanted[setting], stop.is_set, lambda text, of=setting: self._show_rivers(of, text)
            )
        self._show_rivers()
        self._show_planes()
        for setting in settings:
            setting.show_notes(setting.asked == wanted[setting])
        self._show_problems(settings)

    def _run(self, work: Any, stop: threading.Event) -> None:
        """Generate first, then measure; newer work can start during the measurement."""
        super()._run(work, stop)
        with self._measuring:
            self._attempt(self._measure, stop)

    def _measure(self, stop: threading.Event) -> None:
        """Find out what the texts are worth, and their drift where it is shown."""
        settings, kind = self.settings, self.strip.value
        for setting in settings:
            if stop is not self._stop:
                return  # newer work will measure its own texts
            setting.measure(self.judge)
            setting.show_notes(setting.asked == self._wanted(setting))
            if kind in PARTS and setting.part(kind) is None:
                setting.measure_drift(self.judge, kind)
        if kind in PARTS:
            self._show_problems(settings)
            self._show_rivers()

    # -- showing -----------------------------------------------------------------------------------

    def _displayed(self) -> list[Setting]:
        """The settings that have a text to show."""
        return [setting for setting in self.settings if setting.displayed is not None]

    def _rivers(self) -> dict[str, Trajectory]:
        """The texts on display, by their letter and what sets them apart."""
        settings = self._displayed()
        texts = [setting.displayed[1] for setting in settings]
        return dict(zip(river_names(settings), texts, strict=True))

    def _show_rivers(
        self, writing: Setting | None = None, so_far: Trajectory | None = None
    ) -> None:
        """Show all texts; of the setting that is `writing`, what it has written so far."""
        with self._drawing:
            settings, kind = self._displayed(), self.strip.value
            if so_far is not None and writing not in settings:
                writing.displayed = writing.models[writing.model.value], so_far
                settings = self._displayed()
            names, rivers = river_names(settings), self._rivers()
            strips, stale = {}, set()
            for name, setting in zip(names, settings, strict=True):
                if setting is writing:
                    rivers[name] = so_far
                elif (strip := setting.strip(kind)) is not None:
                    strips[name] = strip
                if setting.trajectory is None and setting is not writing:
                    stale.add(name)
            self.river.show(rivers, strips, kind, writing is not None, stale)
            last = max((len(one) for one in rivers.values()), default=1) - 1
            self.step.max = self.play.max = last

    def _show_problems(self, settings: Sequence[Setting]) -> None:
        """Put what went wrong into the status line, and offer what may stand for it."""
        several, prompt = len(settings) > 1, self.prompt.value
        told = [
            f"{setting.name}: {setting.problem}" if several else setting.problem
            for setting in settings
            if setting.problem
        ]
        if len({setting.problem for setting in settings}) == 1:
            told = told[:1] and [settings[0].problem]
        failed = next((one for one in settings if one.trajectory is None and one.problem), None)
        if failed is None:
            self.offers.clear()
        else:
            self.offers.offer(self.models[failed.model.value].tokenizer, prompt)
        self.say(" · ".join(told), "error") if told else self.say(HINT)

    def _show_planes(self) -> None:
        with self._drawing:
            for setting in self.settings:
                setting.show_plane(self.plane.value, self.step.value)

    def still(self):
        """Return the rivers of what was written last as a matplotlib figure, or None."""
        return plots.draw_river(self._rivers()) if any(self.trajectories) else None

    def __repr__(self) -> str:
        told = [
            one.tell(one.trajectory.text if one.trajectory else None, one.problem)
            for one in self.settings
        ]
        inside = f"prompt={self.prompt.value!r}: {'; '.join(told)}" if told else ""
        return f"{type(self).__name__}({inside})"
