"""CollapseExplorer: the same prompt under several settings, side by side."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as w
import torch

from .. import plots
from ..core.predictor import Predictor
from ..generation import Trajectory
from ..metrics.pca import PCABasis
from .compared import NAMES, Compared
from .panel import Panel
from .picture import Picture
from .setting import NARROW, Beginning, by_name, has_rows


class CollapseExplorer(Panel):
    """Two to four settings continue the same prompt with the same seed; compare the results.

    The panel displays their texts, paths and drift side by side. Every change of a control redraws
    them; `generate()` does the same from Python and waits. The controls are
    `explorer.settings[1].collapse` and so on; `add()` and `remove()` do what the buttons do.

    Some paths do not depend on the symbols that are read off them (schedule "never"). After a
    change of collapse, temperature or seed, the panel then reads the stored path again.

    Args:
        models: one predictor, or several by name.
        prompt: the prompt of all settings.
        steps: how many symbols each setting generates.
        seed: the seed of all settings.
        judge: the drift is measured against its predictions. It reads the emitted symbols as hard
            tokens. A language, another model, or None: the generating model itself.
        settings: the initial choices of each setting, any of model, collapse, schedule, feedback
            and temperature.

    Raises:
        ValueError: where the number of settings is not 2 to 4, or where a choice is unknown.
    """

    columns: w.HBox | None = None  # the settings side by side, once they are made

    def __init__(
        self,
        models: Predictor | Mapping[str, Predictor],
        prompt: str = "",
        steps: int = 120,
        seed: int = 0,
        judge: Predictor | None = None,
        settings: Sequence[Mapping[str, Any]] = ({"collapse": "softmax"}, {"collapse": "nearest"}),
    ):
        if not 2 <= len(settings) <= len(NAMES):
            raise ValueError(f"settings must be 2 to {len(NAMES)}, not {len(settings)}")
        super().__init__()
        self._measuring = threading.Lock()  # held while the drift is measured
        self.models, self.judge = by_name(models), judge
        self._plane, self._basis = self._fit_plane()
        # 1) the parts
        self._make_controls(prompt, steps, seed)
        self._make_pictures()
        self.columns = w.HBox(layout=w.Layout(align_items="stretch"))
        for chosen in settings:
            self._append(**chosen)
        # 2) their places
        buttons = w.HBox([self.button, self.stop_button, self.add_button, self.remove_button])
        picture = (
            [self.legend, self.shown, self._pictures[0], self.missing]
            if self._basis
            else [self.legend]
        )
        below = [w.HTML(_drift_title(judge)), self._pictures[1]]
        self.children = (self.beginning, buttons, self.status, self.columns, *picture, *below)
        # 3) the first texts
        self.generate()
        self._connect()

    def _make_controls(self, prompt: str, steps: int, seed: int) -> None:
        """Make the controls that all settings share."""
        self.beginning = Beginning(prompt, steps, seed)
        self.prompt, self.steps, self.seed = self.beginning.children
        self.button = w.Button(description="Generate", button_style="primary", icon="play")
        self.stop_button = w.Button(description="Stop", icon="stop")
        self.add_button = w.Button(description="Add setting", icon="plus")
        self.remove_button = w.Button(
            description="Remove", icon="minus", tooltip="the last setting"
        )
        self.shown = w.IntRangeSlider(value=(0, 40), min=0, max=max(40, steps), description="Steps drawn", style=NARROW,
                                      layout=w.Layout(width="60%"))  # fmt: skip

    def _make_pictures(self) -> None:
        """Make the empty pictures of paths and drift, and the notes on them."""
        self.legend, self.missing = w.HTML(_LEGEND), w.HTML()
        self.figure, self.drift_figure = plots.together_figure(), plots.drift_figure()
        if self._basis:
            plots.update_symbols(
                self.figure, self._basis, self._plane.embedding, self._plane.tokenizer.tokens
            )
        self._pictures = Picture(self.figure), Picture(self.drift_figure)

    def _fit_plane(self) -> tuple[Predictor | None, PCABasis | None]:
        """Return the first model with vectors, and the plane in which its rows vary most."""
        plane = next((model for model in self.models.values() if has_rows(model)), None)
        return plane, None if plane is None else PCABasis.fit(plane.embedding, 2)

    def _connect(self) -> None:
        self.button.on_click(self._changed)
        self.stop_button.on_click(self.stop)
        self.add_button.on_click(lambda _: self._attempt(self.add))
        self.remove_button.on_click(lambda _: self._attempt(self.remove))
        for control in self.beginning.children:
            control.observe(self._changed, "value")
        self.shown.observe(lambda _: self._attempt(self._show_paths), "value")

    def _changed(self, _: Any = None) -> None:
        self._run_in_background(self._write)

    # -- settings ----------------------------------------------------------------------------------

    @property
    def settings(self) -> tuple[Compared, ...]:
        """The compared settings, each with its controls, its `trajectory` and its `drift`."""
        return self.columns.children

    def add(self) -> None:
        """Append a copy of the last setting.

        Raises:
            ValueError: where four settings are displayed already.
        """
        if len(self.settings) == len(NAMES):
            raise ValueError(
                f"{len(NAMES)} settings are shown already: no more than these can be told apart"
            )
        last = self.settings[-1]
        self._append(model=last.model.value, **last.values())
        self._changed()

    def remove(self) -> None:
        """Remove the last setting.

        Raises:
            ValueError: where only two settings are left.
        """
        if len(self.settings) == 2:
            raise ValueError("two settings are left: there is nothing to compare one with")
        self.columns.children = self.settings[:-1]
        self._offer()
        self._changed()

    def _append(self, **chosen: Any) -> None:
        column = Compared(NAMES[len(self.settings)], self.models, **chosen)
        for control in column.controls:
            control.observe(self._changed, "value")
        self.columns.children = (*self.settings, column)
        self._offer()

    def _offer(self) -> None:
        self.add_button.disabled = len(self.settings) == len(NAMES)
        self.remove_button.disabled = len(self.settings) == 2

    # -- generation and measurement ----------------------------------------------------------------

    def generate(self) -> list[Trajectory | None]:
        """Generate for all settings that have changed, and wait.

        Returns:
            One trajectory per setting, or None where it failed; `status` then shows the error.
        """
        self._run(self._write, self._begin())
        return [setting.trajectory for setting in self.settings]

    def _write(self, stop: threading.Event) -> None:
        """Generate and draw the texts and paths of all settings that have changed."""
        settings, first_is_new = self.settings, False
        shared = {"prompt": self.prompt.value, "steps": self.steps.value, "seed": self.seed.value}
        self.say("writing …")

        # 1) clear the curves of settings that were removed
        for which in range(len(settings), len(NAMES)):
            self._clear(which)

        # 2) generate; a new A redraws all others, because their differences from A are marked
        for setting in settings:
            wanted = setting.wanted(**shared)
            new = not setting.has(wanted)
            if new and not stop.is_set():
                setting.write(self.models[wanted["model"]], wanted, stop.is_set)
                first_is_new |= setting is settings[0]
            if new or first_is_new:
                setting.show(settings[0], asked=setting.asked == wanted)
                self._show_path(setting)

        # 3) update the slider and the notes
        self._fit_slider(settings)
        self._show_missing(settings)
        self._tell(settings, "measuring the drift …")

    def _run(self, work: Callable[[threading.Event], None], stop: threading.Event) -> None:
        """Generate first, then measure the drift; newer work can start during the measurement."""
        super()._run(work, stop)
        with self._measuring:
            self._attempt(self._measure, stop)

    def _measure(self, stop: threading.Event) -> None:
        """Measure and draw the drift of all settings that have none yet."""
        settings = self.settings
        for setting in settings:
            if setting.trajectory is not None and setting.drift is None and not stop.is_set():
                setting.measure(self.models, self.judge)
                self._show_drift(setting)
        if self._stop is stop:  # otherwise newer work sets the status line
            self._tell(settings)

    def _show_drift(self, setting: Compared) -> None:
        with self._drawing:
            if setting in self.settings:  # it may have been removed while it was measured
                plots.update_drift(self.drift_figure, NAMES.index(setting.name), setting.drift)
                self._draw()

    # -- display -----------------------------------------------------------------------------------

    def _show_paths(self) -> None:
        for setting in self.settings:
            self._show_path(setting)

    def _show_path(self, setting: Compared) -> None:
        """Draw the soft tokens of one setting, for the steps that the slider selects.

        The drift curve is removed while it is not yet measured.
        """
        with self._drawing:
            which = NAMES.index(setting.name)
            if setting.trajectory is None:
                self._clear(which)
                return
            path = setting.trajectory if self._in_plane(setting) else None
            embedding = None if path is None else self._plane.embedding
            part = slice(*self.shown.value)
            plots.update_together(self.figure, which, path, self._basis, embedding, part)
            if (
                path is not None and len(embedding) >= plots.MANY
            ):  # a large table: draw only the symbols that the paths emitted
                drawn = [
                    one.trajectory
                    for one in self.settings
                    if one.trajectory and self._in_plane(one)
                ]
                plots.update_symbols(self.figure, self._basis, embedding, path.tokens, drawn)
            if setting.drift is None:
                plots.update_drift(self.drift_figure, which, None)
            self._draw()

    def _draw(self) -> None:
        for picture in self._pictures:
            picture.draw()

    def _clear(self, which: int) -> None:
        with self._drawing:
            plots.update_together(self.figure, which, None, None, None)
            plots.update_drift(self.drift_figure, which, None)
            self._draw()

    def _fit_slider(self, settings: Sequence[Compared]) -> None:
        """Set the maximum of the slider to the length of the longest text."""
        if lengths := [len(setting.trajectory) for setting in settings if setting.trajectory]:
            self.shown.max = max(lengths)

    def _in_plane(self, setting: Compared) -> bool:
        """Whether the setting's model has the table of the drawn plane.

        A path of a model with another table cannot be drawn in this plane.
        """
        model = self.models[setting.written[0]]
        same = (
            self._plane is not None
            and has_rows(model)
            and model.embedding.shape == self._plane.embedding.shape
        )
        return same and torch.equal(model.embedding.cpu(), self._plane.embedding.cpu())

    def _show_missing(self, settings: Sequence[Compared]) -> None:
        absent = [
            setting.name for setting in settings if setting.written and not self._in_plane(setting)
        ]
        said = (
            f"Not in the picture, which is the plane of another table: {', '.join(absent)}."
            if absent
            else ""
        )
        self.missing.value = (
            f'<span style="color:#5a606e;font-size:12px">{said if self._basis else ""}</span>'
        )

    def _tell(self, settings: Sequence[Compared], more: str = "") -> None:
        if problems := [
            f"{setting.name}: {setting.problem}" for setting in settings if setting.problem
        ]:
            self.say(" · ".join(problems), "error")
        else:
            self.say(
                " · ".join(
                    [setting.how for setting in settings if setting.how] + ([more] if more else [])
                )
            )

    def still(self):
        written = [setting for setting in self.settings if setting.written]
        if not written:
            return None
        paths = {
            setting.name: setting.trajectory
            for setting in written
            if self._basis and self._in_plane(setting)
        }
        drifts = {setting.name: setting.drift for setting in written if setting.drift is not None}
        return plots.draw_together(
            paths,
            self._basis,
            self._basis and self._plane.embedding,
            drifts,
            slice(*self.shown.value),
        )

    def __repr__(self) -> str:
        told = (
            [f"{one.name}: {one.tell(one.problem)}" for one in self.settings]
            if self.columns
            else []
        )
        return (
            f"CollapseExplorer(prompt={self.prompt.value!r}: {'; '.join(told)})"
            if told
            else "CollapseExplorer()"
        )


_LEGEND = (
    '<span style="font-size:13px"><span style="font-weight:bold;border-bottom:2px solid #5a606e;background:#5a606e2e">'
    "Bold and underlined</span>: where a symbol is not the one that A shows at the same step. In the picture a dot is "
    "a soft token, and a dotted line leads from it to the symbol that was read off it.</span>"
)


def _drift_title(judge: Predictor | None) -> str:
    who = (
        "the model itself, reading what is shown as hard tokens," if judge is None else "the judge"
    )
    return (
        f'<span style="font-size:13px"><b>Drift</b>: how far each prediction is from what {who} would predict there. '
        "Above the dashed line it has gone astray; a gap: the judge holds what was shown for impossible.</span>"
    )
