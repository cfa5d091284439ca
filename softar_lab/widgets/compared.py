"""One setting of a CollapseExplorer: it generates a text and marks how it differs from A."""

import html
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as w

from .. import plots
from ..core.predictor import Predictor
from ..generation import Trajectory, generate
from ..generation.redecode import can_redecode, path_is_free, redecode
from ..metrics.drift import drift
from ..metrics.texts import differing
from .setting import Setting, has_rows

NAMES = "ABCD"
# What decides the symbols alone, where a path does not depend on them (`path_is_free`).
_SYMBOLS = ("collapse", "temperature", "soft_temperature", "seed")


class Compared(Setting):
    """A setting with a name, a colour, a text with marked differences, and a note below the text.

    `asked` holds all values that determined the latest text. `problem` is the latest error, or "".
    `how` states whether the text was generated or read again, and how long it took.
    """

    def __init__(self, name: str, models: Mapping[str, Predictor], **chosen: Any):
        super().__init__(models, **chosen)
        self.name, self.colour, self.note = name, plots.SETTINGS[NAMES.index(name)], w.HTML()
        self.title.value = f'<b style="color:{self.colour};font-size:16px">{name}</b>'
        self.children = (*self.children, self.note)
        self.layout = w.Layout(flex="1 1 0%", min_width="0", overflow="hidden", padding="0 6px")
        self.asked: dict[str, Any] = {}
        self._measured: tuple[Trajectory | None, list[float]] = None, []
        self.problem = self.how = ""

    def wanted(self, **shared: Any) -> dict[str, Any]:
        """Return all values that determine the text: the choices and the `shared` values.

        The shared values are prompt, steps and seed.
        """
        return {"model": self.model.value, **shared, **self.values()}

    def has(self, wanted: Mapping[str, Any]) -> bool:
        """Whether the latest text was generated from `wanted`, and is complete."""
        return self.asked == wanted and self._complete()

    def _complete(self) -> bool:
        return self.trajectory is not None and len(self.trajectory) == self.asked["steps"]

    def write(self, model: Predictor, wanted: dict[str, Any], stopped: Callable[[], bool]) -> None:
        """Generate a text, or read the stored path again where that gives the same result.

        Args:
            model: the model that generates.
            wanted: all values that determine the text, from `wanted()`.
            stopped: returns True once the work should stop.
        """
        begin, stored = time.perf_counter(), self.trajectory
        choices, seed = {name: wanted[name] for name in self.values()}, wanted["seed"]

        # 1) can the stored path be read again?
        same = (
            self._complete()
            and has_rows(model)
            and all(self.asked[name] == wanted[name] for name in wanted if name not in _SYMBOLS)
        )
        again = same and path_is_free(wanted["schedule"], wanted["feedback"], wanted["collapse"])
        again = again and can_redecode(model, wanted["collapse"])

        # 2) read it again, or generate; an error is recorded, not raised
        try:
            if again:
                how = {name: wanted[name] for name in _SYMBOLS if name in wanted}
                found = redecode(model, stored, **how)
            else:
                found = generate(
                    model, wanted["prompt"], wanted["steps"], **choices, seed=seed, stop=stopped
                )
            self.written, self.problem = (wanted["model"], found), ""
        except Exception as error:
            if stopped():  # stopped before the first step: retain the previous text
                return
            self.written, self.problem = None, str(error) or type(error).__name__
        self.asked = wanted
        took = 1000 * (time.perf_counter() - begin)
        self.how = f"{self.name} {'read again' if again else 'written'} in {took:.0f} ms"

    @property
    def drift(self) -> list[float] | None:
        """The KL of the latest text at each step, in nats; None while it is not measured."""
        trajectory, kl = self._measured
        return kl if trajectory is not None and trajectory is self.trajectory else None

    def measure(self, models: Mapping[str, Predictor], judge: Predictor | None) -> None:
        """Measure the drift of the latest text.

        If a newer text is generated in the meantime, `drift` stays None for that text.
        """
        written = self.written  # other work may replace it meanwhile
        if written is None:
            return
        name, trajectory = written
        try:
            self._measured = trajectory, drift(trajectory, models[name], judge)["kl"].tolist()
        except ValueError as error:
            if self.trajectory is trajectory:
                self.problem = f"no drift: {error}"

    def show(self, first: "Compared", asked: bool) -> None:
        """Display the text and mark where it differs from the text of the `first` setting.

        `asked` is False where the text is an older one, because the work was stopped.
        """
        if self.trajectory is None:
            self.text.value = ""
            self.note.value = (
                f'<span style="color:#b00020">⚠ {html.escape(self.problem or "not written")}</span>'
            )
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
    return (
        f"differs from A at {count}, first at step {list(differs).index(True)}"
        if count
        else "the same text as A"
    )
