"""What the panels that write have in common: where a text begins, the choices of one generation, and what it wrote."""

import math
from collections.abc import Mapping
from typing import Any

import ipywidgets as w

from ..evidence import masked
from ..generation import Trajectory
from ..generation.collapse import COLLAPSES
from ..generation.feedback import FEEDBACKS
from ..generation.schedule import SCHEDULES
from ..predictor import Predictor

NARROW = {"description_width": "86px"}
CHOICES = ("collapse", "schedule", "feedback", "temperature")  # as generate() takes them


def by_name(models: Predictor | Mapping[str, Predictor]) -> dict[str, Predictor]:
    """One predictor, or several by name, as a dictionary."""
    return dict(models) if isinstance(models, Mapping) else {"model": models}


def has_rows(model: Predictor) -> bool:
    """Whether its soft tokens have a place among its symbols."""
    return getattr(model, "embedding", None) is not None


class Beginning(w.HBox):
    """Where the texts begin and end, and what decides their draws: `prompt`, `steps`, `seed`."""

    def __init__(self, prompt: str, steps: int, seed: int):
        def width(share: int) -> w.Layout:
            return w.Layout(width=f"{share}%")

        self.prompt = w.Text(prompt, description="Prompt", continuous_update=False, style=NARROW, layout=width(60))
        self.steps = w.BoundedIntText(steps, min=1, max=2000, description="Length", style=NARROW, layout=width(18))
        self.seed = w.IntText(seed, description="Seed", style=NARROW, layout=width(18))
        super().__init__([self.prompt, self.steps, self.seed])


class Setting(w.VBox):
    """The choices of one generation: which model, how to collapse, when, what to feed back, how warm.

    `written`: which model wrote last, and what; `text`: where it is shown. Choices offered are those of the registries
    (but for feedback "other", which takes the soft tokens of another prompt) and of `schedules`, and what is `chosen`.
    Raises ValueError for an unknown model, collapse, schedule or feedback.
    """

    def __init__(
        self,
        models: Mapping[str, Predictor],
        schedules: tuple[str, ...],
        *,
        model: str | None = None,
        collapse: str = "softmax",
        schedule: str = "always",
        feedback: str = "mixture",
        temperature: float | int = 0.8,
    ):
        def choice(label: str, options: list[str], value: str) -> w.Dropdown:
            return w.Dropdown(options=list(dict.fromkeys([*options, value])), value=value, description=label,
                              style=NARROW)  # fmt: skip

        for registry, name in ((COLLAPSES, collapse), (SCHEDULES, schedule), (FEEDBACKS, feedback)):
            registry.resolve(name)
        if model is not None and model not in models:
            raise ValueError(f"unknown model {model!r}; known: {', '.join(models)}")
        self.model = choice("Model", list(models), next(iter(models)) if model is None else model)
        self.collapse = choice("Collapse", COLLAPSES.names(), collapse)
        self.schedule = choice("Schedule", list(schedules), schedule)
        self.feedback = choice("Feedback", [name for name in FEEDBACKS.names() if name != "other"], feedback)
        self.temperature = w.FloatSlider(
            temperature, min=0, max=2, step=0.05, description="Temperature", style=NARROW, continuous_update=False
        )
        self.controls = (self.model, self.collapse, self.schedule, self.feedback, self.temperature)
        for control in self.controls:
            control.layout.width = "235px"
        self.title, self.text = w.HTML(), w.HTML()
        self.row = w.HBox(self.controls, layout=w.Layout(flex_flow="row wrap"))
        self.written: tuple[str, Trajectory] | None = None
        super().__init__([self.title, self.row, self.text])

    @property
    def trajectory(self) -> Trajectory | None:
        """What was written last."""
        return self.written[1] if self.written else None

    def values(self) -> dict[str, Any]:
        """The choices, as generate() takes them."""
        return {name: getattr(self, name).value for name in CHOICES}

    def summary(self) -> str:
        """How long the text is, how much of it stayed soft, how it surprised its model."""
        bits = -float(self.trajectory.log_probs.mean()) / math.log(2)
        soft = int((~self.trajectory.collapsed).sum())
        return f"{len(self.trajectory)} steps, {soft} soft, {bits:.2f} bits a symbol"

    def tell(self, problem: str = "") -> str:
        """The choices and what they led to, digits and texts inside ⟨…⟩; for `__repr__`."""
        options = ", ".join(f"{name}={value}" for name, value in self.values().items())
        wrote = masked(repr(self.trajectory.text)) if self.trajectory else "nothing yet"
        return f"model={self.model.value}, {options} wrote {f'nothing: {problem}' if problem else wrote}"
