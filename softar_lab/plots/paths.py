"""Still pictures of trajectories among the symbols."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..core.trajectory import Trajectory
from ..generation.collapse import COLLAPSES
from ..generation.feedback import FEEDBACKS
from ..generation.schedule import SCHEDULES
from ..metrics.pca import PCABasis
from .fonts import drawable, finished
from .style import COLORMAP, MANY, axis_label

CLOUD = 3000  # about so many points stand for a large table


def draw_path(
    trajectory: Trajectory,
    basis: PCABasis,
    embedding,
    *,
    first: int = 0,
    steps: int = 40,
    title: str | None = None,
    ax: plt.Axes | None = None,
) -> Figure:
    """A path of soft tokens among the symbols, in the plane of the first two directions of `basis`.

    Grey letters are the rows of the table; symbols that the path emits are black. Dots are soft
    tokens, the first ones dark; arrows lead from each to the next. A black ring marks a soft token
    that was collapsed before it was fed back.

    Args:
        embedding: the table (V, m).
        first: the first step to draw.
        steps: how many steps to draw.
        title: None writes the settings and the beginning of the text.
        ax: the axes to draw into; None makes a new figure.
    """
    own = ax is None
    figure, ax = plt.subplots(figsize=(6.4, 5.4), layout="constrained") if own else (ax.figure, ax)
    part = slice(first, first + steps)
    rows = basis.transform(embedding)[:, :2].numpy()
    points = basis.transform(trajectory.vectors[part])[:, :2].numpy()
    colours = plt.get_cmap(COLORMAP)(np.linspace(0, 0.95, len(points)))
    # arrows first, then the soft tokens, then the symbols
    for begin, end, colour in zip(points[:-1], points[1:], colours, strict=False):
        arrow = {
            "arrowstyle": "-|>",
            "color": colour,
            "lw": 1.0,
            "alpha": 0.55,
            "connectionstyle": "arc3,rad=0.12",
        }
        ax.annotate("", end, begin, arrowprops=arrow)
    edges = np.where(trajectory.collapsed[part].numpy(), "black", "white")
    ax.scatter(*points.T, c=colours, s=46, edgecolors=edges, linewidths=1.0, zorder=3)
    draw_symbols(ax, rows, trajectory.tokens, set(trajectory.token_ids[part].tolist()))
    ax.set(xlabel=axis_label(basis, 0), ylabel=axis_label(basis, 1))
    # parse_math is off because $ is a symbol
    ax.set_title(
        title or _title(trajectory, part), fontsize=9, family="monospace", parse_math=False
    )
    return finished(figure) if own else figure


def draw_symbols(ax: plt.Axes, rows: np.ndarray, tokens: Sequence[str], emitted: set[int]) -> None:
    """Write every symbol at its row (V, 2); the ids `emitted` by a path in black.

    In a large table (`MANY` rows or more), the other symbols are a cloud of points.
    """
    halo = [withStroke(linewidth=3, foreground="white")]
    if many := len(rows) >= MANY:
        ax.scatter(*rows[:: max(1, len(rows) // CLOUD)].T, s=2, color="#d5d9e0", lw=0, zorder=1)
    for i in sorted(emitted) if many else range(len(rows)):
        x, y = rows[i]
        style = (
            {"color": "#111111", "weight": "bold", "zorder": 5}
            if i in emitted
            else {"color": "#b3b8c2", "zorder": 2}
        )
        ax.text(
            x,
            y,
            drawable(tokens[i]),
            ha="center",
            va="center",
            fontsize=9 if many else 12,
            path_effects=halo,
            **style,
        )
    if not many:
        ax.scatter(*rows.T, s=0)  # invisible: text alone does not set the limits of the axes
    ax.margins(0.08)


def _title(trajectory: Trajectory, part: slice, width: int = 44) -> str:
    """The settings, and below them the beginning of the text of the drawn part."""
    names = {"collapse": COLLAPSES, "schedule": SCHEDULES, "feedback": FEEDBACKS}
    specs = {name: str(trajectory.settings.get(name)) for name in names}
    words = "".join(drawable(trajectory.tokens[i]) for i in trajectory.token_ids[part].tolist())
    text = words if len(words) <= width else words[: width - 1] + "…"
    return " · ".join(names[name].short(spec) for name, spec in specs.items()) + "\n" + text


def draw_paths(trajectories: Sequence[Trajectory], basis: PCABasis, embedding, **options) -> Figure:
    """Several paths side by side in the same plane; `options` go to `draw_path`."""
    figure, axes = plt.subplots(
        1,
        len(trajectories),
        figsize=(5.4 * len(trajectories), 5),
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for ax, trajectory in zip(np.atleast_1d(axes), trajectories, strict=True):
        draw_path(trajectory, basis, embedding, ax=ax, **options)
    return finished(figure)
