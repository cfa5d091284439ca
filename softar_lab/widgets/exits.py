"""ExitExplorer: drag the threshold; see which symbols leave early, and what that changes."""

from typing import Any

import ipywidgets as w
import torch

from ..evidence import masked
from ..generation import Trajectory, generate
from ..generation.exiting import share_saved
from ..models.exit_heads import exit_heads_of
from ..models.soft_ar import SoftAR
from .panel import Panel
from .river import River
from .setting import NARROW, Beginning

RULES = {  # by name: the least and the largest threshold, and the one at the start
    "entropy": (0.0, 2.0, 0.1),
    "margin": (0.0, 1.0, 0.9),
    "norm": (0.0, 1.0, 0.95),
}


class ExitExplorer(Panel):
    """Two texts of one seed: at full depth, and with exits where the layers are sure enough.

    The strip under each text is the layer that spoke, from pale (the first) to dark (the last).
    `explorer.threshold`, `.rule` and `.beginning` are the controls; `.full` and `.early` hold the
    two trajectories.

    Args:
        model: has exit heads (`train_exits`).
        prompt: how both texts begin.
        steps: how long they are.
        seed: of the draws.
        temperature: of the draws.

    Raises:
        ValueError: where the model has no exit heads.
    """

    full: Trajectory | None = None
    early: Trajectory | None = None

    def __init__(
        self,
        model: SoftAR,
        prompt: str,
        steps: int = 60,
        seed: int = 0,
        temperature: float | int = 0.8,
    ):
        exit_heads_of(model)
        super().__init__()
        self.model, self.temperature = model, temperature
        self.beginning = Beginning(prompt, steps, seed)
        self.rule = w.Dropdown(options=list(RULES), description="Sure by", style=NARROW)
        self.threshold = w.FloatSlider(description="Threshold", style=NARROW,
                                       continuous_update=False)  # fmt: skip
        self.river = River()
        self.children = (
            self.beginning, w.HBox([self.rule, self.threshold]), self.status, self.river,
        )  # fmt: skip
        begin = self.beginning
        for control in (begin.prompt, begin.steps, begin.seed, self.threshold):
            control.observe(self._changed, "value")
        self.rule.observe(self._chosen, "value")
        self._chosen()

    def _chosen(self, *_: Any) -> None:
        """Give the threshold the range of the rule, and its value at the start; write once."""
        self.threshold.unobserve(self._changed, "value")  # values on the way are not written
        least, most, value = RULES[self.rule.value]
        self.threshold.min, self.threshold.max = least, most
        self.threshold.step, self.threshold.value = (most - least) / 100, value
        self.threshold.observe(self._changed, "value")
        self._changed()

    def _changed(self, *_: Any) -> None:
        self._attempt(self.write)

    def write(self) -> None:
        """Write both texts anew, and show them."""
        begin = self.beginning
        choices: dict[str, Any] = {"temperature": self.temperature, "seed": begin.seed.value}
        text, steps = begin.prompt.value, begin.steps.value
        exit_ = f"{self.rule.value}({self.threshold.value})"
        full = generate(self.model, text, steps, **choices)
        early = generate(self.model, text, steps, exit=exit_, **choices)
        self.full, self.early = full, early  # both or neither
        depth = self.model.config.n_layers
        texts = {"every layer": self.full, "early exit": self.early}
        layers = {
            "every layer": torch.full((len(self.full),), float(depth)),
            "early exit": self.early.layers.float(),
        }
        self.river.show(texts, layers, "layer")
        self.say(self.summary())

    def summary(self) -> str:
        """What the exits save, and where the text begins to differ."""
        saved = share_saved(self.early, self.model.config.n_layers)
        differs = (self.full.token_ids != self.early.token_ids).nonzero()
        text = f"from symbol {int(differs[0])} on another text" if len(differs) else "the same text"
        return f"{saved:.0%} of the layers saved, {text}"

    def still(self):
        return self.river.still()

    def __repr__(self) -> str:
        if self.early is None:
            return f"ExitExplorer(nothing: {self.problem})"
        return (
            f"ExitExplorer({self.rule.value}({self.threshold.value:g}): {masked(self.summary())})"
        )
