"""One setting of a panel: its controls, the text that it wrote last, and what that text is worth."""

import html
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as w
import torch
from torch import Tensor

from ..core.palette import COLOURS
from ..core.predictor import Predictor
from ..generation import Trajectory, joined, stream
from ..generation.redecode import can_redecode, path_is_free, redecode
from ..metrics.drift_readers import Readers
from .offers import complain
from .panel import note
from .plane import Plane
from .readers import PARTS, part_of_drift, readers_for
from .score import Scale
from .setting import CHOICES, Choices, has_rows

NAMES = "ABCD"
LEAST, MOST = 4, 128  # steps that are handed over together while a text is written,
WORK = 10**8  # as many as take about so many multiply-adds: a twentieth of a second
PAUSE = 0.15  # seconds between two pictures of an unfinished text
# What decides the symbols alone, where a path does not depend on them (`path_is_free`).
_SYMBOLS = ("collapse", "temperature", "soft_temperature", "seed")
STRIPS = {  # what the strip below the columns can show, and the question that it answers
    "distance": "distance to the nearest symbol",
    "entropy": "entropy (nats)",
    "surprise": "surprise (bits)",
    **PARTS,
}


class Setting(Choices):
    """The controls of a text, and the text.

    Args:
        name: "A", "B", "C" or "D".
        models: predictors by name.
        schedules: more of them for the menu.
        chosen: model and the initial values of `CHOICES`.

    Attributes:
        trajectory: what was written last; None where writing failed.
        asked: all values that decided it.
        displayed: the same trajectory, or, where writing failed, the one before.
        problem: the latest error, or "".
        forced: the symbols that a reader has put in the place of the model's: {step: symbol}.
        verdict: what the text is worth, in words; "" while that is not measured.
    """

    def __init__(
        self,
        name: str,
        models: Mapping[str, Predictor],
        schedules: Sequence[str] = (),
        **chosen: Any,
    ):
        super().__init__(models, schedules, **chosen)
        self.name, colour = name, COLOURS[NAMES.index(name)]
        self.title, self.notes, self.plane = w.HTML(), w.HTML(), None
        self._colour = colour
        self.layout.flex, self.layout.min_width = "1 1 240px", "200px"
        self.children = (self.title, *self.children, self.notes)
        self.trajectory: Trajectory | None = None
        self.displayed: tuple[Predictor, Trajectory] | None = None
        self.asked: dict[str, Any] = {}
        self.forced: dict[int, str] = {}
        self.problem = self.verdict = ""
        self._drift: tuple[Trajectory | None, dict[str, Tensor]] = None, {}
        self._readers: tuple[dict[str, Any], Readers | None] = {}, None

    # -- writing -----------------------------------------------------------------------------------

    def wanted(self, **shared: Any) -> dict[str, Any]:
        """Return all values that decide the text: the choices, and prompt, steps and seed."""
        return {**self.all_values(), **shared, "forced": dict(self.forced)}

    def has(self, wanted: Mapping[str, Any]) -> bool:
        """Whether the latest text was written from `wanted`, and is complete."""
        return self.asked == wanted and self._complete()

    def _complete(self) -> bool:
        return self.trajectory is not None and len(self.trajectory) == self.asked.get("steps")

    def write(
        self,
        wanted: dict[str, Any],
        stopped: Callable[[], bool],
        watch: Callable[[Trajectory], None],
    ) -> None:
        """Write a text, or read the stored path again where that gives the same.

        Args:
            wanted: all values that decide the text, from `wanted()`.
            stopped: returns True once the work should stop.
            watch: is called with the text so far.
        """
        model, stored = self.models[wanted["model"]], self.trajectory
        again = self._complete() and self._can_read_again(model, wanted)
        try:
            if complaint := complain(model.tokenizer, wanted["prompt"]):
                raise ValueError(complaint)
            if again:
                how = {name: wanted[name] for name in _SYMBOLS if name in wanted}
                found = redecode(model, stored, **how)
            else:
                found = _write(model, wanted, tuple(self.values()), stopped, watch)
            self.trajectory, self.problem = found, ""
            self.displayed = model, found
        except Exception as error:
            if stopped():  # before the first step: the text before stays
                return
            self.trajectory, self.problem = None, str(error) or type(error).__name__
        self.asked, self.verdict = wanted, ""

    def _can_read_again(self, model: Predictor, wanted: Mapping[str, Any]) -> bool:
        """Whether only what is read off the stored path has changed."""
        same = all(self.asked[name] == wanted[name] for name in wanted if name not in _SYMBOLS)
        free = path_is_free(wanted["schedule"], wanted["feedback"], wanted["collapse"])
        able = has_rows(model) and can_redecode(model, wanted["collapse"])
        return same and free and able and not wanted["forced"]

    def measure(self, judge: Predictor | None) -> None:
        """Find out what the latest text is worth."""
        model, trajectory = self._latest()
        if trajectory is not None and not self.verdict:
            verdict = Scale.of(model, judge).score(trajectory)
            if trajectory is self.trajectory:  # other work may have replaced it meanwhile
                self.verdict = verdict

    def _latest(self) -> tuple[Predictor | None, Trajectory | None]:
        """Who wrote the latest text, and the text; None where writing failed."""
        model, trajectory = self.displayed or (None, None)
        return (model, trajectory) if trajectory is self.trajectory else (None, None)

    # -- what is known of each step ----------------------------------------------------------------

    @property
    def drift(self) -> Tensor | None:
        """The KL of the latest text at each step (T,), in nats; None while it is not measured."""
        return self.part("drift")

    def part(self, kind: str) -> Tensor | None:
        """The drift, or a part of it, of the latest text at each step (T,), in nats.

        None while it is not measured.
        """
        trajectory, found = self._drift
        return found.get(kind) if trajectory is not None and trajectory is self.trajectory else None

    def measure_drift(self, judge: Predictor | None, kind: str = "drift") -> None:
        """Measure how far each prediction is from the judge's, or from the model's own on symbols.

        A newer text that is written in the meantime has no drift yet.

        Args:
            judge: the judge, if any.
            kind: one of `PARTS`. For a part, readers are fitted; they serve until a choice changes.
        """
        model, trajectory = self._latest()
        if trajectory is None:
            return
        try:
            readers = None if kind == "drift" else self._fitted(model, trajectory, judge)
            self._drift = trajectory, part_of_drift(kind, trajectory, model, judge, readers)
        except ValueError as error:
            if self.trajectory is trajectory:
                self.problem = f"no drift: {error}"

    def _fitted(self, model: Predictor, trajectory: Trajectory, judge: Predictor | None) -> Readers:
        """The readers for paths such as the latest text's."""
        recorded, prompt = trajectory.settings, trajectory.prompt
        options = {name: recorded[name] for name in CHOICES if name in recorded}
        wanted = {"model": model, "prompt": prompt, **options}
        before, readers = self._readers
        if readers is None or before != wanted:
            readers = readers_for(model, options, prompt, judge)
            self._readers = wanted, readers
        return readers

    def strip(self, kind: str) -> Tensor | None:
        """One of `STRIPS` for each step of the displayed text (T,); None: it is not known."""
        trajectory = self.displayed[1]
        if kind in PARTS:
            return self.part(kind) if trajectory is self.trajectory else None
        found = {"entropy": trajectory.entropy, "distance": trajectory.distance}
        return found[kind] if kind in found else -trajectory.log_probs / torch.log(torch.tensor(2))

    # -- showing -----------------------------------------------------------------------------------

    def show_title(self, first: "Setting", several: bool) -> None:
        """Show the name, and what differs from the first setting."""
        ours, theirs = self.all_values(), first.all_values()
        apart = [f"<b>{name}</b>" for name in ours if ours[name] != theirs[name]]
        told = f"only {apart[0]} differs" if len(apart) == 1 else f"{', '.join(apart)} differ"
        told = "" if self is first else told if apart else "the same choices as A"
        letter = f'<b style="color:{self._colour};font-size:16px">{self.name}</b>'
        self.title.value = f"{letter} <span class='softar-note'>{told}</span>" if several else ""

    def show_notes(self, current: bool = True) -> None:
        """Show what happens at each step, and how good the text is.

        `current` is False where the text is an older one, because the work was stopped.
        """
        lines = [html.escape(self.describe())]
        if self.trajectory is None:
            lines.append(
                f'<span class="softar-error">⚠ {html.escape(self.problem or "nothing yet")}</span>'
            )
        else:
            soft = int((~self.trajectory.collapsed).sum())
            size = f"{len(self.trajectory)} symbols, {soft} read back soft"
            old = "" if current else " · stopped before it was written anew"
            lines.append(html.escape(f"{size}{old} · {self.verdict or '…'}"))
        self.notes.value = note("<br>".join(lines))

    def show_plane(self, visible: bool, step: int) -> None:
        """Show the plane of a step below the notes, where the model has one, or hide it."""
        base = self.children[:3]
        if not visible or self.displayed is None or not has_rows(self.displayed[0]):
            self.children = base
            return
        self.plane = self.plane or Plane()
        model, trajectory = self.displayed
        self.plane.show(trajectory, model, min(step, len(trajectory) - 1))
        self.children = (*base, self.plane)

    def copy_from(self, other: Choices) -> None:
        """Take all choices of another setting."""
        for name, value in other.all_values().items():
            getattr(self, name).value = value


def _write(
    model: Predictor,
    wanted: Mapping[str, Any],
    choices: Sequence[str],
    stopped: Callable[[], bool],
    watch: Callable[[Trajectory], None],
) -> Trajectory:
    """What generate() writes; `watch` sees it grow."""
    options = {name: wanted[name] for name in (*choices, "seed")}
    forced = {at: symbol for at, symbol in wanted["forced"].items() if at < wanted["steps"]}
    piece = max(LEAST, min(MOST, WORK // max(1, model.work)))
    pieces, seen = [], time.monotonic()
    for part in stream(
        model,
        wanted["prompt"],
        wanted["steps"],
        **options,
        forced=forced,
        stop=stopped,
        piece=piece,
    ):
        pieces.append(part)
        if time.monotonic() - seen > PAUSE:
            watch(joined(model, pieces))
            seen = time.monotonic()
    if not pieces:
        raise ValueError("stopped before the first step")
    return joined(model, pieces)


def river_names(settings: Sequence[Setting]) -> list[str]:
    """A name for the river of each setting: its letter, and the choices that set them apart."""
    if len(settings) < 2:
        return [""] * len(settings)
    columns = zip(*(one.all_values().values() for one in settings), strict=True)
    apart = [values for values in columns if len(set(values)) > 1]
    return [
        " ".join([one.name, *(str(values[i]) for values in apart)])
        for i, one in enumerate(settings)
    ]
