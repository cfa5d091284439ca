"""CollapseExplorer: the same beginning under several settings, side by side."""

import html
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as w
import torch

from .. import plots
from ..analysis.coherence import drift
from ..analysis.geometry import PCABasis
from ..analysis.texts import differing
from ..generation import Trajectory, generate
from ..generation.recollapse import path_is_free, recollapse
from ..predictor import Predictor
from .panel import Panel
from .setting import Beginning, Setting, by_name, has_rows

NAMES = "ABCD"
SCHEDULES = (
    "always",
    "never",
    "every(2)",
    "every(4)",
    "every(8)",
    "entropy",
    "distance",
    "off-hull",
    "random",
    "oracle",
)


class _Column(Setting):
    """A setting, its text with the differences marked, and a line about it."""

    def __init__(self, name: str, models: Mapping[str, Predictor], schedules: tuple[str, ...], **chosen: Any):
        super().__init__(models, schedules, **chosen)
        self.name, self.colour = name, plots.SETTINGS[NAMES.index(name)]
        self.title.value = f'<b style="color:{self.colour};font-size:16px">{name}</b>'
        self.note = w.HTML()
        self.children = (*self.children, self.note)
        self.layout = w.Layout(flex="1 1 0%", min_width="0", overflow="hidden", padding="0 6px")
        self.asked: dict[str, Any] = {}  # what was to be written when it was last tried
        self.problem, self.drift, self.how = "", None, ""

    def path_of(self, wanted: dict[str, Any]) -> list[Any]:
        """What a path depends on where it is free of what is read off it."""
        return [wanted.get(name) for name in ("model", "prompt", "steps", "schedule", "feedback")]


class CollapseExplorer(Panel):
    """Two to four settings write on from the same prompt with the same seed: texts, paths and drift side by side.

    `models`: one predictor or several by name. `settings`: the choices each begins with, any of model, collapse,
    schedule, feedback and temperature. `judge`: whose predictions the drift is measured against, after it has read
    what is shown: a language, another model, or None, the model itself reading the symbols as hard tokens.

    Every change of a control redraws; `generate()` does so from Python, and waits. `explorer.settings[1].collapse` and
    the like are the controls; `add()` and `remove()` what the buttons do. Where a path does not depend on the symbols
    read off it (schedule "never"), another collapse, temperature or seed reads the stored path again.

    Raises ValueError for fewer than two settings or more than four, or a choice that is unknown.
    """

    def __init__(
        self,
        models: Predictor | Mapping[str, Predictor],
        prompt: str = "",
        steps: int = 120,
        seed: int = 0,
        judge: Predictor | None = None,
        settings: Sequence[Mapping[str, Any]] = ({"collapse": "softmax"}, {"collapse": "nearest"}),
        schedules: tuple[str, ...] = SCHEDULES,
    ):
        if not 2 <= len(settings) <= len(NAMES):
            raise ValueError(f"settings must be 2 to {len(NAMES)}, not {len(settings)}")
        super().__init__()
        self.models, self.judge, self.schedules = by_name(models), judge, schedules
        self._plane, self._basis = self._fit_plane()
        self.beginning = Beginning(prompt, steps, seed)
        self.prompt, self.steps, self.seed = self.beginning.children
        self.button = w.Button(description="Generate", button_style="primary", icon="play")
        self.stop_button = w.Button(description="Stop", icon="stop")
        self.add_button = w.Button(description="Add setting", icon="plus")
        self.remove_button = w.Button(description="Remove", icon="minus", tooltip="the last setting")
        self.legend, self.missing = w.HTML(_LEGEND), w.HTML()
        self.figure, self.drift_figure = plots.together_figure(), plots.drift_figure()
        if self._basis:
            plots.update_symbols(self.figure, self._basis, self._plane.embedding, self._plane.tokenizer.tokens)
        self.columns = w.HBox(layout=w.Layout(align_items="stretch"))
        for chosen in settings:
            self._append(**chosen)
        buttons = w.HBox([self.button, self.stop_button, self.add_button, self.remove_button])
        drift_title = w.HTML(f'<span style="font-size:13px">{_drift_title(judge)}</span>')
        self.children = (self.beginning, buttons, self.status, self.columns, self.legend,
                         *((self.figure,) if self._basis else ()), self.missing, drift_title, self.drift_figure)  # fmt: skip
        self.generate()
        self._connect()

    def _fit_plane(self) -> tuple[Predictor | None, PCABasis | None]:
        """The first model that has vectors, and the plane in which its table spreads most."""
        plane = next((model for model in self.models.values() if has_rows(model)), None)
        return plane, None if plane is None else PCABasis.fit(plane.embedding, 2)

    def _connect(self) -> None:
        self.button.on_click(self._changed)
        self.stop_button.on_click(self.stop)
        self.add_button.on_click(lambda _: self._attempt(self.add))
        self.remove_button.on_click(lambda _: self._attempt(self.remove))
        for control in self.beginning.children:
            control.observe(self._changed, "value")

    def _changed(self, _: Any = None) -> None:
        self._run_in_background(self._write)

    # -- the settings -------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> tuple[_Column, ...]:
        """The settings that are compared; each has its controls, its `trajectory` and its `drift`."""
        return self.columns.children

    def add(self) -> None:
        """One more setting, the same as the last, to be changed."""
        if len(self.settings) == len(NAMES):
            raise ValueError(f"{len(NAMES)} settings are shown already: no more than these can be told apart")
        last = self.settings[-1]
        self._append(model=last.model.value, **last.values())
        self._changed()

    def remove(self) -> None:
        """Take the last setting away."""
        if len(self.settings) == 2:
            raise ValueError("two settings are left: there is nothing to compare one with")
        self.columns.children = self.settings[:-1]
        self._offer()
        self._changed()

    def _append(self, **chosen: Any) -> None:
        column = _Column(NAMES[len(self.settings)], self.models, self.schedules, **chosen)
        for control in column.controls:
            control.observe(self._changed, "value")
        self.columns.children = (*self.settings, column)
        self._offer()

    def _offer(self) -> None:
        self.add_button.disabled = len(self.settings) == len(NAMES)
        self.remove_button.disabled = len(self.settings) == 2

    def _wanted(self, setting: _Column) -> dict[str, Any]:
        """Everything that decides what a setting writes."""
        shared = {"prompt": self.prompt.value, "steps": self.steps.value, "seed": self.seed.value}
        return {"model": setting.model.value, **shared, **setting.values()}

    # -- the work -----------------------------------------------------------------------------------------------------

    def generate(self) -> list[Trajectory | None]:
        """Write what the present settings ask for and has not been written; None where it failed, `status` says why."""
        self._run(self._write, self._begin())
        return [setting.trajectory for setting in self.settings]

    def _write(self, stop: threading.Event) -> None:
        """First the texts and paths of all settings that were changed, then their drift."""
        settings, first_is_new = self.settings, False
        self.say("writing …")
        for name in NAMES[len(settings) :]:
            self._clear(name)
        for setting in settings:
            wanted = self._wanted(setting)
            complete = setting.trajectory is not None and len(setting.trajectory) == wanted["steps"]
            new = setting.asked != wanted or not complete
            if new and not stop.is_set():
                self._answer(setting, wanted, stop)
                first_is_new |= setting is settings[0]
            if new or first_is_new:
                self._show(setting, settings[0], setting.asked == wanted)
        self._show_missing(settings)
        self._tell(settings, "measuring the drift …")
        for setting in settings:
            if not stop.is_set():
                self._measure(setting)
        self._tell(settings)

    def _answer(self, setting: _Column, wanted: dict[str, Any], stop: threading.Event) -> None:
        """Read the stored path again where that says what generate() would; else write anew."""
        model, choices = self.models[wanted["model"]], setting.values()
        begin, stored = time.perf_counter(), setting.trajectory
        free = stored is not None and len(stored) == wanted["steps"] and has_rows(model)
        free = free and setting.path_of(setting.asked) == setting.path_of(wanted)
        again = free and path_is_free(choices["schedule"], choices["feedback"])
        try:
            if again:
                found = recollapse(model, stored, choices["collapse"], choices["temperature"], wanted["seed"])
            else:
                found = generate(
                    model, wanted["prompt"], wanted["steps"], **choices, seed=wanted["seed"], stop=stop.is_set
                )
            setting.written, setting.problem = (wanted["model"], found), ""
        except Exception as error:
            if stop.is_set():  # before the first step, or on the way to something else
                return
            setting.written, setting.problem = None, str(error) or type(error).__name__
        setting.asked, setting.drift = wanted, None
        took = f"{1000 * (time.perf_counter() - begin):.0f} ms"
        setting.how = f"{setting.name} {'read again' if again else 'written'} in {took}"

    def _measure(self, setting: _Column) -> None:
        """The drift of one setting, once."""
        if setting.trajectory is None or setting.drift is not None:
            return
        try:
            setting.drift = drift(setting.trajectory, self.models[setting.written[0]], self.judge)["kl"].tolist()
        except ValueError as error:
            setting.problem = f"no drift: {error}"
        with self._drawing:
            plots.update_drift(self.drift_figure, NAMES.index(setting.name), setting.drift)

    # -- what is seen -------------------------------------------------------------------------------------------------

    def _show(self, setting: _Column, first: _Column, current: bool) -> None:
        """Text and path of one setting; its drift follows."""
        if setting.trajectory is None:
            setting.text.value = ""
            setting.note.value = f'<span style="color:#b00020">⚠ {html.escape(setting.problem or "not written")}</span>'
            self._clear(setting.name)
            return
        trajectory = setting.trajectory
        differs = differing(trajectory, first.trajectory) if first.trajectory else [False] * len(trajectory)
        old = "" if current else " · stopped before it was written anew"
        compared = "" if setting is first else f" · {_difference(differs)}"
        setting.text.value = plots.difference_html(trajectory, differs, setting.colour)
        setting.note.value = f'<span style="color:#5a606e;font-size:12px">{setting.summary()}{compared}{old}</span>'
        with self._drawing:
            which = NAMES.index(setting.name)
            path = trajectory if self._in_plane(setting) else None
            plots.update_together(self.figure, which, path, self._basis, path and self._plane.embedding)
            if setting.drift is None:
                plots.update_drift(self.drift_figure, which, None)

    def _clear(self, name: str) -> None:
        with self._drawing:
            plots.update_together(self.figure, NAMES.index(name), None, None, None)
            plots.update_drift(self.drift_figure, NAMES.index(name), None)

    def _in_plane(self, setting: _Column) -> bool:
        """Whether the setting's model has the table whose plane is drawn: paths of another have no place in it."""
        model = self.models[setting.written[0]]
        same = has_rows(model) and model.embedding.shape == self._plane.embedding.shape
        return same and torch.equal(model.embedding.cpu(), self._plane.embedding.cpu())

    def _show_missing(self, settings: Sequence[_Column]) -> None:
        absent = [setting.name for setting in settings if setting.written and not self._in_plane(setting)]
        said = f"Not in the picture, which is the plane of another table: {', '.join(absent)}." if absent else ""
        self.missing.value = f'<span style="color:#5a606e;font-size:12px">{said if self._basis else ""}</span>'

    def _tell(self, settings: Sequence[_Column], more: str = "") -> None:
        if problems := [f"{setting.name}: {setting.problem}" for setting in settings if setting.problem]:
            self.say(" · ".join(problems), "error")
        else:
            self.say(" · ".join([setting.how for setting in settings if setting.how] + ([more] if more else [])))

    def still(self):
        written = [setting for setting in self.settings if setting.written]
        if not written:
            return None
        paths = {setting.name: setting.trajectory for setting in written if self._basis and self._in_plane(setting)}
        drifts = {setting.name: setting.drift for setting in written if setting.drift is not None}
        return plots.draw_together(paths, self._basis, self._basis and self._plane.embedding, drifts)

    def __repr__(self) -> str:
        told = [f"{one.name}: {one.tell(one.problem)}" for one in self.settings] if hasattr(self, "columns") else []
        return f"CollapseExplorer(prompt={self.prompt.value!r}: {'; '.join(told)})" if told else "CollapseExplorer()"


_LEGEND = (
    '<span style="font-size:13px"><span style="font-weight:bold;border-bottom:2px solid #5a606e;background:#5a606e2e">'
    "Bold and underlined</span>: where a symbol is not the one that A shows at the same step. In the picture a dot is "
    "a soft token, and a dotted line leads from it to the symbol that was read off it.</span>"
)


def _drift_title(judge: Predictor | None) -> str:
    who = "the model itself, reading the symbols shown as hard tokens" if judge is None else "the judge"
    return (f"<b>Drift</b>: how far each prediction is from what {who} would predict there. Above the dashed line it has "
            "gone astray; gaps are steps at which the judge holds the text for impossible.")  # fmt: skip


def _difference(differs: Sequence[bool]) -> str:
    count = sum(differs)
    return f"differs from A at {count}, first at step {list(differs).index(True)}" if count else "the same text as A"
