"""The controls of one generation, as questions; and the start that several of them share."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from typing import Any

import ipywidgets as w
import traitlets

from ..core.checks import real_number, whole_number
from ..core.predictor import Predictor
from ..data.corpora import tales_words
from ..evidence import masked
from ..generation import Retro
from ..generation.collapse import COLLAPSES
from ..generation.feedback import FEEDBACKS, Hidden
from ..generation.schedule import SCHEDULES, Threshold
from ..models.soft_ar import SoftAR

LONGEST = 2000  # symbols that a panel writes at most
NARROW = {"description_width": "initial"}
REGISTRIES = {"collapse": COLLAPSES, "schedule": SCHEDULES, "feedback": FEEDBACKS}
TIPS = {  # what a control decides, and the argument of generate() behind it
    "model": "Which of the models predicts the next symbol.",
    "collapse": "How a soft token becomes a symbol (collapse).",
    "schedule": "When a symbol is read back instead of the soft token (schedule).",
    "feedback": "What is read back where no choice is made (feedback).",
    "temperature": "0 takes the most probable symbol; above 0 it is drawn, the more daringly the "
    "higher (temperature).",
}


def menu(label: str, options: list[Any], value: Any) -> w.Dropdown:
    """A dropdown of `options`, and of `value` where it is none of them."""
    options = list(dict.fromkeys([*options, value]))
    return question(always_chosen(w.Dropdown(options=options, value=value, description=label)))


def always_chosen(dropdown: w.Dropdown) -> w.Dropdown:
    """The dropdown, which returns to the last choice where somebody chooses nothing."""

    def restore(change: dict[str, Any]) -> None:
        if dropdown.index is None:
            with suppress(traitlets.TraitError):  # the last choice is not offered any more
                dropdown.value = change["old"]

    dropdown.observe(restore, "value")
    return dropdown


def slider(label: str, least: float | int, most: float | int, value: float | int) -> w.FloatSlider:
    """A slider that reports its value when it is released.

    Raises:
        ValueError: for a value outside, which the slider alone would move to its end.
    """
    real_number(label, value, f"in [{least}, {most}]", lambda one: least <= one <= most)
    return question(
        w.FloatSlider(
            value, min=least, max=most, step=0.05, description=label, continuous_update=False
        )
    )


def question(control: w.DOMWidget, tip: str = "", width: str = "190px") -> w.DOMWidget:
    """The control with its label above it, as wide as there is space for."""
    control.style.description_width = "initial"
    control.layout.flex, control.layout.width = f"1 1 {width}", "auto"
    control.layout.min_width, control.layout.max_width = "120px", "300px"
    control.tooltip = tip or control.description
    control.add_class("softar-question")
    return control


def schedules() -> list[str]:
    """Every registered schedule, "every" with three values of k."""
    names = SCHEDULES.names()
    some = [f"every({k})" for k in (2, 4, 8)]
    return [*names[:2], *some, *(name for name in names[2:] if name != "every")]


def feedbacks() -> list[str]:
    """Every registered feedback but those that read another row: a panel writes one text."""
    return [name for name in FEEDBACKS.names() if not FEEDBACKS.resolve(name).needs_batch]


# The arguments of generate() that a panel offers: the value a control begins with, and the control.
CHOICES: dict[str, tuple[Any, Callable[[Any], w.Widget]]] = {
    "collapse": (
        "softmax",
        lambda value: menu("How is a symbol picked?", COLLAPSES.names(), value),
    ),
    "schedule": ("always", lambda value: menu("When must it choose?", schedules(), value)),
    "feedback": ("mixture", lambda value: menu("Else what is read back?", feedbacks(), value)),
    "temperature": (0.8, lambda value: slider("How daring? (temperature)", 0, 2, value)),
}


def by_name(models: Predictor | Mapping[str, Predictor]) -> dict[str, Predictor]:
    """Return one predictor (as "model"), or several by name, as a dictionary.

    A model of "tales-words" reads and writes words instead of the letters that stand for them.

    Raises:
        ValueError: where there is none, or something else is among them.
    """
    named = models if isinstance(models, Mapping) else {"model": models}
    if not named:
        raise ValueError("a panel needs at least one model")
    for name, model in named.items():
        if not isinstance(model, Predictor):
            raise ValueError(f"{name!r} must be a model, such as a SoftAR, not {model!r:.60}")
    return {name: _of_words(model) for name, model in named.items()}


def corpus_name(model: Predictor) -> str:
    """The name of the corpus that a SoftAR was trained on; "" where it says none."""
    card = model.card if isinstance(model, SoftAR) else {}
    return str(card.get("corpus", {}).get("name", ""))


def _of_words(model: Predictor) -> Predictor:
    if corpus_name(model) != "tales-words" or model.tokenizer.tokens == tales_words().words:
        return model
    model = copy(model)  # it shares the weights
    model.tokenizer = tales_words().tokenizer()
    return model


def has_rows(model: Predictor) -> bool:
    """Whether the model has an embedding table, in which its soft tokens have a position."""
    return model.embedding is not None


def suits(name: str, spec: str, model: Predictor) -> bool:
    """Whether a model can do what a collapse, schedule or feedback asks of it.

    Args:
        name: "collapse", "schedule" or "feedback".
        spec: what it is called, such as "every(4)".
        model: the model that would write with it.
    """
    strategy = REGISTRIES[name].resolve(spec)
    if name == "collapse":
        return strategy.suits(model)
    if name == "schedule":
        soft = has_rows(model) and (model.can_look_ahead or not strategy.has_tail)
        soft = soft and (model.can_replace or not isinstance(strategy, Retro))
        return strategy.always_hard or soft
    linear = isinstance(model, SoftAR) or model.reads_hidden_states
    return has_rows(model) and (linear or not isinstance(strategy, Hidden))


class Beginning(w.HBox):
    """The controls `prompt`, `steps` and `seed`: start, length and random draws of the texts.

    Raises:
        ValueError: for more than LONGEST steps, or fewer than one.
    """

    def __init__(self, prompt: str, steps: int, seed: int):
        steps = whole_number("steps", steps, 1, LONGEST)
        self.prompt = question(
            w.Text(prompt, description="How does the text begin?", continuous_update=False),
            "What is read before the first step (prompt).",
        )
        self.prompt.layout.flex, self.prompt.layout.max_width = "4 1 300px", "none"
        self.steps = question(
            w.BoundedIntText(steps, min=1, max=LONGEST, description="How many symbols?"),
            "How many symbols are written (steps).",
            "130px",
        )
        self.seed = question(
            w.IntText(seed, description="Which draw? (seed)"),
            "Another seed draws other symbols; it has no effect where nothing is drawn.",
            "130px",
        )
        row = w.Layout(flex_flow="row wrap")
        super().__init__([self.prompt, self.steps, self.seed], layout=row)


class Choices(w.VBox):
    """The options of one generation: the model, and one control for each of `CHOICES`.

    The menus offer what is registered and the model can do, and the initial choice. A control that
    has no effect is grey.

    Args:
        models: predictors by name; the first one is the default.
        schedules: more of them for the menu, such as "entropy(0.3)".
        model: the initial model.
        chosen: the initial value of some of `CHOICES`.

    Raises:
        ValueError: where the model, collapse, schedule or feedback is unknown, or the model cannot
            do what is chosen.
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
        self.models, name = models, next(iter(models)) if model is None else model
        _check(models, name, schedules, chosen)
        self.model = menu("Which model writes?", list(models), name)
        for choice, (value, control) in CHOICES.items():
            setattr(self, choice, control(chosen.get(choice, value)))
        self.schedule.options = list(dict.fromkeys([*self.schedule.options, *schedules]))
        self._all = {choice: self._control(choice).options for choice in REGISTRIES}
        self.controls = (self.model, *(self._control(choice) for choice in CHOICES))
        for choice, control in zip(("model", *CHOICES), self.controls, strict=True):
            control.tooltip = TIPS.get(choice, control.description)
            control.observe(self._adapt, "value")
        if len(models) == 1:
            self.model.layout.display = "none"
        super().__init__([w.HBox(self.controls, layout=w.Layout(flex_flow="row wrap"))])
        self._adapt()

    def _control(self, choice: str) -> w.Widget:
        return getattr(self, choice)

    def values(self) -> dict[str, Any]:
        """Return the present choices as keyword arguments of generate()."""
        return {choice: self._control(choice).value for choice in CHOICES}

    def all_values(self) -> dict[str, Any]:
        """Return the present choices, and the name of the model."""
        return {"model": self.model.value, **self.values()}

    def changed(self) -> dict[str, Any]:
        """Return what differs from what every panel begins with, and which of several models."""
        found = {"model": self.model.value} if len(self.model.options) > 1 else {}
        return found | {k: v for k, v in self.values().items() if v != CHOICES[k][0]}

    def draws(self) -> bool:
        """Whether the seed may have an effect."""
        collapse, schedule, feedback = self._strategies()
        extra = {self._control(choice).value for choice in CHOICES if choice not in TIPS}
        drawn = not collapse.one_symbol and (self.temperature.value > 0 or extra - {None, 0})
        return bool(
            drawn
            or collapse.needs_context
            or not (schedule.by_step or isinstance(schedule, Threshold | Retro))
            or (not self.feedback.disabled and feedback.needs_symbol)
        )

    def describe(self) -> str:
        """Return what happens at each step, in one line."""
        names = self.values()
        warmth = "" if self.temperature.disabled else f" at temperature {self.temperature.value:g}"
        picked = f"At each step: predict → {names['collapse']}{warmth} picks a symbol → show it → "
        _, schedule, _ = self._strategies()
        if schedule.always_hard:
            return f"{picked}read back that symbol's own vector."
        if schedule.has_tail:
            return f"{picked}its {names['feedback']} matures ({names['schedule']}), then the symbol is read."
        if names["schedule"] == "never":
            return f"{picked}but read back the {names['feedback']}, never the symbol."
        return (
            f"{picked}read back its own vector where {names['schedule']} says so, else the "
            f"{names['feedback']}."
        )

    def _strategies(self) -> tuple[Any, Any, Any]:
        return tuple(
            registry.resolve(self._control(choice).value) for choice, registry in REGISTRIES.items()
        )

    def _adapt(self, _: Any = None) -> None:
        """Offer what the model can do, and grey what has no effect."""
        model = self.models[self.model.value]
        for choice, options in self._all.items():
            control, value = self._control(choice), self._control(choice).value
            able = tuple(one for one in options if suits(choice, one, model)) or options[:1]
            if able != control.options:
                control.options = able
                control.value = value if value in able else able[0]
        collapse, schedule, _ = self._strategies()
        idle = schedule.always_hard or not has_rows(model)
        self.feedback.disabled, self.temperature.disabled = idle, collapse.one_symbol

    def tell(self, text: str | None, problem: str = "") -> str:
        """Return what was changed and the resulting text (masked inside ⟨…⟩), for `__repr__`.

        Values that every panel begins with are left out, so a new control changes no stored output.
        """
        options = ", ".join(f"{name}={value}" for name, value in self.changed().items())
        wrote = "nothing yet" if text is None else masked(repr(text))
        return f"{options} wrote {f'nothing: {problem}' if problem else wrote}".strip()


def _check(
    models: Mapping[str, Predictor], model: str, schedules: Sequence[str], chosen: Mapping[str, Any]
) -> None:
    """Raise where a choice is unknown, or is one that the model cannot do."""
    if unknown := chosen.keys() - CHOICES:
        raise TypeError(f"no control {min(unknown)!r}; there are: {', '.join(CHOICES)}")
    if model not in models:
        raise ValueError(f"unknown model {model!r}; known: {', '.join(models)}")
    for schedule in schedules:
        SCHEDULES.resolve(schedule)
    for choice in REGISTRIES:
        REGISTRIES[choice].resolve(chosen.get(choice, CHOICES[choice][0]))
        if choice in chosen and not suits(choice, chosen[choice], models[model]):
            raise ValueError(f"{choice} {chosen[choice]!r} asks what model {model!r} cannot do")
