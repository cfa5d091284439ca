"""One setting of a CollapseExplorer: it writes, or reads its stored path again, and says how it differs from A."""

import html
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as w

from .. import plots
from ..analysis.coherence import drift
from ..analysis.texts import differing
from ..generation import Trajectory, generate
from ..generation.recollapse import can_recollapse, path_is_free, recollapse
from ..predictor import Predictor
from .setting import Setting, has_rows

NAMES = "ABCD"
_PATH = ("model", "prompt", "steps", "schedule", "feedback")  # all that a path depends on which is free of its symbols


class Compared(Setting):
    """A setting with a name and a colour, its text with the differences marked, and a line about it.

    `asked`: all that decided what was written last; `problem`: what went wrong; `how`: how it was answered, how soon.
    """

    def __init__(self, name: str, models: Mapping[str, Predictor], schedules: tuple[str, ...], **chosen: Any):
        super().__init__(models, schedules, **chosen)
        self.name, self.colour, self.note = name, plots.SETTINGS[NAMES.index(name)], w.HTML()
        self.title.value = f'<b style="color:{self.colour};font-size:16px">{name}</b>'
        self.children = (*self.children, self.note)
        self.layout = w.Layout(flex="1 1 0%", min_width="0", overflow="hidden", padding="0 6px")
        self.asked: dict[str, Any] = {}
        self._measured: tuple[Trajectory | None, list[float]] = None, []
        self.problem = self.how = ""

    def wanted(self, **shared: Any) -> dict[str, Any]:
        """Everything that decides what is written: the choices, and what is `shared` (prompt, steps and seed)."""
        return {"model": self.model.value, **shared, **self.values()}

    def has(self, wanted: Mapping[str, Any]) -> bool:
        """Whether this is what was written last, to the end."""
        return self.asked == wanted and self._complete()

    def _complete(self) -> bool:
        return self.trajectory is not None and len(self.trajectory) == self.asked["steps"]

    def write(self, model: Predictor, wanted: dict[str, Any], stopped: Callable[[], bool]) -> None:
        """Read the stored path again where that says what generate() would; else write anew."""
        begin, stored = time.perf_counter(), self.trajectory
        choices, seed = {name: wanted[name] for name in self.values()}, wanted["seed"]
        same = self._complete() and has_rows(model) and all(self.asked[name] == wanted[name] for name in _PATH)
        again = same and path_is_free(wanted["schedule"], wanted["feedback"], wanted["collapse"])
        again = again and can_recollapse(model, wanted["collapse"])
        try:
            if again:
                found = recollapse(model, stored, wanted["collapse"], wanted["temperature"], seed)
            else:
                found = generate(model, wanted["prompt"], wanted["steps"], **choices, seed=seed, stop=stopped)
            self.written, self.problem = (wanted["model"], found), ""
        except Exception as error:
            if stopped():  # before the first step
                return
            self.written, self.problem = None, str(error) or type(error).__name__
        self.asked = wanted
        self.how = (
            f"{self.name} {'read again' if again else 'written'} in {1000 * (time.perf_counter() - begin):.0f} ms"
        )

    @property
    def drift(self) -> list[float] | None:
        """The KL of what was written last, in nats a step; None while it is not measured."""
        trajectory, kl = self._measured
        return kl if trajectory is not None and trajectory is self.trajectory else None

    def measure(self, models: Mapping[str, Predictor], judge: Predictor | None) -> None:
        """Measure the drift of what was written last; something newer may be written meanwhile, which then has none."""
        name, trajectory = self.written
        try:
            self._measured = trajectory, drift(trajectory, models[name], judge)["kl"].tolist()
        except ValueError as error:
            self.problem = f"no drift: {error}"

    def show(self, first: "Compared", asked: bool) -> None:
        """The text, what differs from the `first` setting's marked; `asked`: whether it is the one asked for."""
        if self.trajectory is None:
            self.text.value = ""
            self.note.value = f'<span style="color:#b00020">⚠ {html.escape(self.problem or "not written")}</span>'
            return
        said, differs = [self.summary()], [False] * len(self.trajectory)
        if self is not first and first.trajectory is not None:
            differs = differing(self.trajectory, first.trajectory)
            said.append(_difference(differs))
        if not asked:
            said.append("stopped before it was written anew")
        self.text.value = plots.difference_html(self.trajectory, differs, self.colour)
        self.note.value = f'<span style="color:#5a606e;font-size:12px">{" · ".join(said)}</span>'


def _difference(differs: Sequence[bool]) -> str:
    count = sum(differs)
    return f"differs from A at {count}, first at step {list(differs).index(True)}" if count else "the same text as A"
