"""Parts that the generating panels share: prompt, length and seed, and the options of one run."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ipywidgets as w
import traitlets

from ..core.predictor import Predictor
from ..evidence import masked
from ..generation import Trajectory
from ..generation.collapse import COLLAPSES
from ..generation.feedback import FEEDBACKS
from ..generation.schedule import SCHEDULES

NARROW = {"description_width": "86px"}


def menu(label: str, options: list[Any], value: Any) -> w.Dropdown:
    """A dropdown of `options`, and of `value` where it is none of them."""
    options = list(dict.fromkeys([*options, value]))
    return always_chosen(w.Dropdown(options=options, value=value, description=label, style=NARROW))


def always_chosen(dropdown: w.Dropdown) -> w.Dropdown:
    """The dropdown, which returns to the last choice where somebody chooses nothing."""

    def restore(change: dict[str, Any]) -> None:
        if dropdown.index is None:
            with suppress(traitlets.TraitError):  # the last choice is not offered any more
                dropdown.value = change["old"]

    dropdown.observe(restore, "value")
    return dropdown


def slider(label: str, least: float | int, most: float | int, value: float | int) -> w.FloatSlider:
    """A slider that reports its value when it is released."""
    return w.FloatSlider(
        value, min=least, max=most, step=0.05, description=label, style=NARROW,
        continuous_update=False,
    )  # fmt: skip


def schedules() -> list[str]:
    """Every registered schedule, "every" with three values of k."""
    names = SCHEDULES.names()
    some = [f"every({k})" for k in (2, 4, 8)]
    return [*names[:2], *some, *(name for name in names[2:] if name != "every")]


def feedbacks() -> list[str]:
    """Every registered feedback but "other", which takes the soft tokens of another prompt."""
    return [name for name in FEEDBACKS.names() if name != "other"]


# The arguments of generate() that a panel offers: the value a control begins with, and the control.
CHOICES: dict[str, tuple[Any, Callable[[Any], w.Widget]]] = {
    "collapse": ("softmax", lambda value: menu("Collapse", COLLAPSES.names(), value)),
    "schedule": ("always", lambda value: menu("Schedule", schedules(), value)),
    "feedback": ("mixture", lambda value: menu("Feedback", feedbacks(), value)),
    "temperature": (0.8, lambda value: slider("Temperature", 0, 2, value)),
}


def by_name(models: Predictor | Mapping[str, Predictor]) -> dict[str, Predictor]:
    """Return one predictor (as "model"), or several by name, as a dictionary."""
    return dict(models) if isinstance(models, Mapping) else {"model": models}


def has_rows(model: Predictor) -> bool:
    """Whether the model has an embedding table, in which its soft tokens have a position."""
    return model.embedding is not None


class Beginning(w.HBox):
    """The controls `prompt`, `steps` and `seed`: start, length and random draws of the texts."""

    def __init__(self, prompt: str, steps: int, seed: int):
        def width(share: int) -> w.Layout:
            return w.Layout(width=f"{share}%")

        self.prompt = w.Text(
            prompt, description="Prompt", continuous_update=False, style=NARROW, layout=width(60)
        )
        self.steps = w.BoundedIntText(
            steps, min=1, max=2000, description="Length", style=NARROW, layout=width(18)
        )
        self.seed = w.IntText(seed, description="Seed", style=NARROW, layout=width(18))
        super().__init__([self.prompt, self.steps, self.seed])


class Setting(w.VBox):
    """The options of one generation: the model, and one control for each of `CHOICES`.

    `written` holds the name of the model that generated last, and its trajectory. `text` displays
    that trajectory. The menus offer what is registered, and the initial choice.

    Args:
        models: predictors by name; the first one is the default.
        schedules: more of them for the menu, such as "entropy(0.3)".
        model: the initial model.
        chosen: the initial value of some of `CHOICES`.

    Raises:
        ValueError: where the model, collapse, schedule or feedback is unknown.
        TypeError: for a choice that is not among `CHOICES`.
    """

    def __init__(
        self,
        models: Mapping[str, Predictor],
        schedules: Sequence[str] = (),
        *,
        model: str | None = None,
        **chosen: Any,
    ):
        if unknown := chosen.keys() - CHOICES:
            raise TypeError(f"no control {min(unknown)!r}; there are: {', '.join(CHOICES)}")
        for name, registry in (
            ("collapse", COLLAPSES), ("schedule", SCHEDULES), ("feedback", FEEDBACKS),
        ):  # fmt: skip
            registry.resolve(chosen.get(name, CHOICES[name][0]))
        for schedule in schedules:
            SCHEDULES.resolve(schedule)
        if model is not None and model not in models:
            raise ValueError(f"unknown model {model!r}; known: {', '.join(models)}")
        self.model = menu("Model", list(models), next(iter(models)) if model is None else model)
        for name, (value, control) in CHOICES.items():
            setattr(self, name, control(chosen.get(name, value)))
        self.schedule.options = list(dict.fromkeys([*self.schedule.options, *schedules]))
        self.controls = (self.model, *(getattr(self, name) for name in CHOICES))
        for control in self.controls:
            control.layout.width = "235px"
        self.temperature.layout.width = "320px"  # 41 positions want room
        self.title, self.text = w.HTML(), w.HTML()
        self.row = w.HBox(self.controls, layout=w.Layout(flex_flow="row wrap"))
        self.written: tuple[str, Trajectory] | None = None
        super().__init__([self.title, self.row, self.text])

    @property
    def trajectory(self) -> Trajectory | None:
        """The trajectory that was generated last."""
        return self.written[1] if self.written else None

    def values(self) -> dict[str, Any]:
        """Return the present choices as keyword arguments of generate()."""
        return {name: getattr(self, name).value for name in CHOICES}

    def summary(self) -> str:
        """Return the number of steps, how many stayed soft, and the mean surprise in bits."""
        bits = -float(self.trajectory.log_probs.mean()) / math.log(2)
        soft = int((~self.trajectory.collapsed).sum())
        return f"{len(self.trajectory)} steps, {soft} soft, {bits:.2f} bits a symbol"

    def tell(self, problem: str = "") -> str:
        """Return what was changed and the resulting text (masked inside ⟨…⟩), for `__repr__`.

        Values that every panel begins with are left out, so a new control changes no stored output.
        """
        changed = {"model": self.model.value} if len(self.model.options) > 1 else {}
        changed |= {k: v for k, v in self.values().items() if v != CHOICES[k][0]}
        options = ", ".join(f"{name}={value}" for name, value in changed.items())
        wrote = masked(repr(self.trajectory.text)) if self.trajectory else "nothing yet"
        return f"{options} wrote {f'nothing: {problem}' if problem else wrote}".strip()
