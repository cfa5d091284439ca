"""WindowExplorer: resize a structured window; see each character's slot and the answers."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as w

from .. import plots
from ..data.languages.tales import question_parts
from ..evidence import masked
from ..metrics.window_answers import Answer, still_answers, token_slots
from ..models.soft_ar import SoftAR
from ..models.window_memory.layout import Window
from .panel import Panel
from .setting import NARROW, by_name, menu

WIDTH = w.Layout(width="400px")


def _slider(label: str, value: int, low: int, high: int) -> w.IntSlider:
    return w.IntSlider(value, min=low, max=high, description=label, style=NARROW, layout=WIDTH,
                       continuous_update=True)  # fmt: skip


class WindowExplorer(Panel):
    """A story of `tales` as a strip, coloured by slot, and a model's answers to its question.

    The sliders `aggregate`, `segments`, `stretch`, `hard` and `soft` set the window. The slider
    `read` sets how many characters of the story have been read in the picture.

    A model answers only where the memory slots are those it was trained with and the window fits
    its context. It answers twice: with its memory, and with that memory masked. Otherwise the panel
    displays only the strip, and the status line gives the reason. The status line also shows other
    errors, such as a story without a question.

    Args:
        models: one SoftAR with a window, or several by name; `explorer.model` chooses one.
        story: the story at the start, with its question and answer.

    Raises:
        ValueError: where a model has no window.
    """

    parts: Sequence[str] = ()  # what sits in each slot; nothing before a story is read

    def __init__(self, models: SoftAR | Mapping[str, SoftAR], story: str):
        super().__init__()
        self.models = by_name(models)
        for name, model in self.models.items():
            if model.config.layout is None:
                raise ValueError(f"{name} has no window: train it with ModelConfig(window=…)")
        self.answers: dict[str, Answer] = {}
        # 1) the controls
        self._make_controls(story)
        # 2) their places, above what they display
        sizes = w.HBox(
            [
                w.VBox([self.aggregate, self.segments, self.stretch]),
                w.VBox([self.hard, self.soft, self.read]),
            ]
        )
        self.boxes, self.strip, self.said = w.HTML(), w.HTML(), w.HTML()
        self.children = (
            self.model,
            self.story,
            sizes,
            self.status,
            self.boxes,
            self.strip,
            self.said,
        )
        # 3) every change of a control draws again
        self.story.observe(self._fit_read, "value")
        for control in (self.model, self.story, self.read, self.aggregate, self.segments, self.stretch, self.hard,
                        self.soft):  # fmt: skip
            control.observe(lambda _: self._changed(), "value")
        self.update()

    def _make_controls(self, story: str) -> None:
        """Make the menu, the story, and the sliders, which begin with the first model's window."""
        own = next(iter(self.models.values())).config
        most = max(one.config.context for one in self.models.values())
        self.model = menu("Model", list(self.models), next(iter(self.models)))
        self.story = w.Textarea(story, description="Story", continuous_update=False, style=NARROW,
                                layout=w.Layout(width="100%", height="84px"))  # fmt: skip
        layouts, soft = [one.config.layout for one in self.models.values()], min(8, own.tokens)
        self.read = _slider("Read", len(story), 0, len(story))
        for name, low, high in (("aggregate", 0, 1), ("segments", 0, 4), ("stretch", 4, 64)):
            sizes = [getattr(layout, name) for layout in layouts]
            control = _slider(
                name.capitalize(), getattr(own.layout, name), min(low, *sizes), max(high, *sizes)
            )
            setattr(self, name, control)
        self.hard = _slider("Hard", own.tokens - soft, 0, most)
        self.soft = _slider("Soft", soft, 0, most)

    @property
    def window(self) -> Window:
        """The window that the sliders describe.

        Raises:
            ValueError: where the window holds no token.
        """
        own = self.models[self.model.value].config.layout
        if self.hard.value + self.soft.value < 1:
            raise ValueError("a window holds at least one token: raise Hard or Soft")
        sizes = {
            name: getattr(self, name).value
            for name in ("aggregate", "segments", "stretch", "hard", "soft")
        }
        return replace(own, **sizes, keep=None, control=None)

    def update(self) -> dict[str, Answer]:
        """Apply the sliders now and wait.

        Returns:
            The answers by condition ("with its memory", "memory masked"); {} without answers.
        """
        self._run(self._show, self._begin())
        return self.answers

    def _fit_read(self, _: Any = None) -> None:
        """Let the slider `read` end where the story ends, and stay there if it stood there."""
        whole, length = self.read.value == self.read.max, len(self.story.value)
        self.read.max = length
        if whole:
            self.read.value = length

    def _changed(self) -> None:
        self._attempt(self._show_strip)  # at once; the answers follow
        self._run_in_background(self._show)

    def _show_strip(self) -> tuple[Window, int]:
        """Draw the boxes and the strip; return the window and its total number of slots."""
        with self._drawing:
            window, story = self.window, self.story.value
            context = window.memory + window.hard + window.soft
            read = min(self.read.value, len(story))
            self.parts = token_slots(window, context, read)
            counts = [("aggregate", window.aggregate)]
            counts += [(f"segment {i + 1}", 1) for i in range(window.segments)]
            self.boxes.value = plots.slots_html(
                [*counts, ("hard", window.hard), ("soft", window.soft)]
            )
            self.strip.value = plots.window_html(story, self.parts)
            lost = self.parts.count("lost")
            self.say(
                f"{read} characters read, {context} slots{f', {lost} characters lost' if lost else ''}"
            )
        return window, context

    def _show(self, stop: threading.Event) -> None:
        try:
            # 1) the strip, which needs no prediction
            window, context = self._show_strip()
            model, own = self.models[self.model.value], self.models[self.model.value].config
            story, said = self.story.value, {}
            truth = question_parts(story).answer.rstrip("\n")
            trained, silent = (
                own.layout,
                f"{len(self.parts)} characters read · no answer: the model",
            )

            # 2) the answers, if the model can work with this window
            if any(
                getattr(window, n) != getattr(trained, n)
                for n in ("aggregate", "segments", "stretch")
            ):
                memory = f"{trained.aggregate} aggregate and {trained.segments} segments of {trained.stretch}"
                self.say(f"{silent}'s memory is {memory}, and was trained as that")
            elif context > own.context:
                self.say(f"{silent}'s context has {own.context} slots, these are {context}")
            else:
                seen = {
                    "with its memory": window,
                    "memory masked": replace(window, control="masked"),
                }
                said = {
                    name: still_answers(model.with_window(one), story) for name, one in seen.items()
                }
        except ValueError:
            self.answers, self.said.value = {}, ""
            raise

        # 3) display them, unless newer work has begun
        if stop.is_set():
            return
        with self._drawing:
            self.answers = said
            rows = {name: (one.prob, one.text) for name, one in said.items()}
            self.said.value = plots.answers_html(rows, truth) if rows else ""

    def still(self):
        return (
            plots.draw_window(self.story.value, self.parts, self._title()) if self.parts else None
        )

    def _title(self) -> str:
        answers = "; ".join(
            f"{name}: {one.prob:.0%} for the true answer" for name, one in self.answers.items()
        )
        return answers or "where the characters sit"

    def __repr__(self) -> str:
        if not self.parts:
            return (
                f"WindowExplorer(nothing: {self.problem})" if self.problem else "WindowExplorer()"
            )
        sizes = ", ".join(
            f"{n}={getattr(self, n).value}"
            for n in ("aggregate", "segments", "stretch", "hard", "soft")
        )
        counts = {part: self.parts.count(part) for part in dict.fromkeys(self.parts)}
        where = ", ".join(f"{count} in {part}" for part, count in counts.items())
        said = "".join(
            f"; {name} {masked(f'{one.prob:.3f}')} {masked(repr(one.text))}"
            for name, one in self.answers.items()
        )
        return f"WindowExplorer({self.model.value}, {sizes}: {where}{said})"
