"""TrajectoryExplorer: follow a path of soft tokens, step by step."""

from typing import Any

import ipywidgets as w
import pandas as pd
import torch

from .. import plots
from ..core.predictor import Predictor
from ..evidence import masked
from ..generation import Trajectory, generate
from ..metrics.drift import detectors
from .panel import Panel
from .plane import Plane
from .river import River
from .setting import by_name, has_rows, question

DETECTORS = {  # columns of metrics.drift.detectors, and what they say
    "entropy": "entropy (nats)",
    "distance": "distance to the nearest symbol",
    "off_hull": "off the hull",
    "norm": "norm",
    "soft_run": "soft tokens in a row before",
}


class TrajectoryExplorer(Panel):
    """Step through a path and see the text, the candidates, the detectors and the plane.

    The plane places each soft token among the symbols, with spokes to its nearest mixture.
    `explorer.step` is the slider, `explorer.detector` the menu of what the strip shows.
    `explorer.show(trajectory)` displays another path of the same model. For a model without
    vectors, the panel displays only the text and the candidates, and the status line states what is
    missing.

    Args:
        model: the model that generated the trajectory, or that will generate it.
        trajectory: a trajectory of `model`, or a prompt to generate from.
        steps: how many symbols are generated from a prompt.
        options: further arguments of `generate()`.
    """

    trajectory: Trajectory | None = None  # the one on display

    def __init__(
        self, model: Predictor, trajectory: Trajectory | str = "", steps: int = 120, **options: Any
    ):
        super().__init__()
        self.model = by_name(model)["model"]
        self.trajectory: Trajectory | None = None
        self.detectors: pd.DataFrame | None = None
        self.step = w.IntSlider(0, min=0, max=0, description="Which step?")
        self.step.layout.flex, self.step.style.description_width = "1 1 300px", "initial"
        self.play = w.Play(min=0, max=0, interval=350)
        shown = [(text, name) for name, text in DETECTORS.items()]
        self.detector = question(
            w.Dropdown(options=shown, value="distance", description="What does the strip show?"),
            "a measure of each step that may warn of drift, from pale (small) to dark (large)",
        )
        self.river, self.plane = River(), Plane()
        self._link((self.step, "value"), (self.river, "step"), (self.play, "value"))
        walk = [self.play, self.step, *([self.detector] if has_rows(self.model) else [])]
        self.children = (
            self.look, self.status, self.river, w.HBox(walk, layout=w.Layout(align_items="flex-end")),
            *([self.plane] if has_rows(self.model) else []),
        )  # fmt: skip
        self.step.observe(lambda _: self._attempt(self._show_plane), "value")
        self.detector.observe(lambda _: self._attempt(self._show_river), "value")
        if isinstance(trajectory, Trajectory):
            self.show(trajectory)
        else:
            self._attempt(lambda: self.show(generate(self.model, trajectory, steps, **options)))

    def show(self, trajectory: Trajectory) -> None:
        """Display this trajectory from now on; errors go to the status line."""
        self._attempt(self._show, trajectory)

    def _show(self, trajectory: Trajectory) -> None:
        if not len(trajectory):
            raise ValueError("the trajectory has no step to be looked at")
        measures = detectors(trajectory, self.model) if has_rows(self.model) else None
        with self._drawing:
            self.trajectory, self.detectors = trajectory, measures
            self.step.max = self.play.max = len(trajectory) - 1
            self._show_river()
            self._show_plane()
        soft = int((~trajectory.collapsed).sum())
        missing = "" if has_rows(self.model) else " · this model predicts no vectors: no plane"
        self.say(f"{len(trajectory)} steps, {soft} of them left soft{missing}")

    def _show_river(self) -> None:
        with self._drawing:
            if self.trajectory is None:
                return
            strip, name = None, self.detector.value
            if self.detectors is not None:
                strip = {"": torch.from_numpy(self.detectors[name].to_numpy(copy=True))}
            self.river.show({"": self.trajectory}, strip, name.replace("_", " "))

    def _show_plane(self) -> None:
        with self._drawing:
            if self.trajectory is not None and has_rows(self.model):
                self.plane.show(self.trajectory, self.model, self.step.value)

    def still(self):
        if self.trajectory is None:
            return None
        begin = max(0, min(self.step.value - 20, len(self.trajectory) - 40))
        return plots.draw_river({"": self.trajectory}, begin=begin)

    def __repr__(self) -> str:
        if self.trajectory is None:
            return (
                f"TrajectoryExplorer(nothing: {self.problem})"
                if self.problem
                else "TrajectoryExplorer()"
            )
        one, step = self.trajectory, self.step.value
        options = ", ".join(
            f"{name}={value}"
            for name, value in one.settings.items()
            if name not in ("steps", "seed")
        )
        symbol = one.tokens[int(one.token_ids[step])]
        measures = {} if self.detectors is None else self.detectors.iloc[step]
        found = ", ".join(
            f"{name} {masked(f'{float(measures[name]):.3g}')}"
            for name in DETECTORS
            if name in measures
        )
        where = f"step {step} of {len(one)} shows {masked(repr(symbol))}{found and ': ' + found}"
        return f"TrajectoryExplorer(prompt={one.prompt!r}, {options} wrote {masked(repr(one.text))}; {where})"
