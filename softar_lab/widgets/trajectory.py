"""TrajectoryExplorer: follow a path of soft tokens, step by step."""

from typing import Any

import ipywidgets as w

from .. import plots
from ..core.predictor import Predictor
from ..evidence import masked
from ..generation import Trajectory, generate
from ..metrics.drift import detectors
from ..metrics.pca import PCABasis
from ..models.simplex import barycentric
from .panel import Panel
from .picture import Picture
from .setting import NARROW, has_rows


class TrajectoryExplorer(Panel):
    """Step through a path and see the text, the candidates, the detectors and the hull.

    The picture places each soft token relative to the hull of the embedding rows. `explorer.step`
    is the slider. `explorer.show(trajectory)` displays another path of the same model. For a model
    without vectors, the panel displays only the text and the candidates, and the status line states
    what is missing.

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
        self.model, self.trajectory, self.detectors, self._weights = model, None, None, None
        self._basis = PCABasis.fit(model.embedding, 2) if has_rows(model) else None
        self.step = w.IntSlider(
            0, min=0, max=0, description="Step", style=NARROW, layout=w.Layout(width="60%")
        )
        self.play = w.Play(min=0, max=0, interval=350)
        w.jslink((self.play, "value"), (self.step, "value"))
        self.text, self.candidates, self.mixture = w.HTML(), w.HTML(), w.HTML()
        self.figure, self.curves = plots.hull_figure(), plots.curves_figure()
        self._pictures = Picture(self.figure), Picture(self.curves)
        left, right = (
            w.Layout(flex="1 1 0%", min_width="0"),
            w.Layout(flex="0 0 330px", padding="0 8px"),
        )
        plane = w.VBox([self._pictures[0], self.mixture] if self._basis else [], layout=left)
        side = w.VBox(
            [self.candidates, *([self._pictures[1]] if self._basis else [])], layout=right
        )
        self.children = (
            w.HBox([self.play, self.step]),
            self.status,
            self.text,
            w.HBox([plane, side]),
        )
        self.step.observe(lambda _: self._attempt(self._show_step), "value")
        if isinstance(trajectory, Trajectory):
            self.show(trajectory)
        else:
            self._attempt(lambda: self.show(generate(model, trajectory, steps, **options)))

    def show(self, trajectory: Trajectory) -> None:
        """Display this trajectory from now on; errors go to the status line."""
        self._attempt(self._show, trajectory)

    def _show(self, trajectory: Trajectory) -> None:
        if not len(trajectory):
            raise ValueError("the trajectory has no step to be looked at")
        measures = weights = None
        if self._basis:
            measures = detectors(trajectory, self.model)
            weights = barycentric(trajectory.vectors, self.model.embedding.cpu())  # (T, V)
        with self._drawing:
            self.trajectory, self.detectors, self._weights = trajectory, measures, weights
            self.step.max = self.play.max = len(trajectory) - 1
            if self._basis:
                plots.update_curves(self.curves, measures)
            self._show_step()
        soft = int((~trajectory.collapsed).sum())
        missing = (
            ""
            if self._basis
            else " · this model predicts no vectors, so there is no path to be drawn"
        )
        self.say(f"{len(trajectory)} steps, {soft} of them left soft{missing}")

    def _show_step(self) -> None:
        with self._drawing:
            if self.trajectory is None:
                return
            trajectory, step = self.trajectory, self.step.value
            self.text.value = plots.text_html(trajectory, step)
            self.candidates.value = plots.candidates_html(trajectory, step)
            if self._basis:
                weights, off = self._weights[step], float(self.detectors["off_hull"].iloc[step])
                plots.update_hull(
                    self.figure, trajectory, self._basis, self.model.embedding, weights, off, step
                )
                plots.move_cursor(self.curves, step)
                for picture in self._pictures:
                    picture.draw()
                self.mixture.value = plots.mixture_html(trajectory, weights, off, step)

    def still(self):
        if self.trajectory is None or self._basis is None:
            return None
        step = self.step.value
        return plots.draw_step(
            self.trajectory,
            self._basis,
            self.model.embedding,
            self._weights[step],
            self.detectors,
            step,
        )

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
            for name in plots.CURVES
            if name in measures
        )
        where = f"step {step} of {len(one)} shows {masked(repr(symbol))}{found and ': ' + found}"
        return f"TrajectoryExplorer(prompt={one.prompt!r}, {options} wrote {masked(repr(one.text))}; {where})"
