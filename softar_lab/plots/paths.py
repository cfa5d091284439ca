"""Still pictures of trajectories among the symbols."""

from collections.abc import Sequence
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patheffects import withStroke

from ..analysis.geometry import PCABasis
from ..generation.trajectory import Trajectory
from .look import COLORMAP, MANY, axis_label, visible

CLOUD = 3000  # points that stand for a large table


@cache
def _drawn() -> set[int]:
    """The characters that matplotlib's own fonts hold, code by code."""
    held = (get_font(findfont(FontProperties(family=[name]))).get_charmap() for name in ("sans-serif", "monospace"))
    return set.intersection(*map(set, held))


def drawable(symbol: str) -> str:
    """A visible symbol, □ in place of characters that no font here can draw: large tables hold every script."""
    return "".join(char if ord(char) in _drawn() and char.isprintable() else "□" for char in visible(symbol))


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
    """The path of soft tokens among the symbols, in the plane of the first two directions of `basis`.

    Grey letters are the rows of the table; dots are soft tokens, dark first, and arrows lead from each to the next;
    rings mark the ones that were collapsed before being fed back. Draws `steps` of them from step `first` on.
    """
    own = ax is None
    figure, ax = plt.subplots(figsize=(6.4, 5.4), layout="constrained") if own else (ax.figure, ax)
    part = slice(first, first + steps)
    rows = basis.transform(embedding)[:, :2].numpy()
    points = basis.transform(trajectory.vectors[part])[:, :2].numpy()
    colours = plt.get_cmap(COLORMAP)(np.linspace(0, 0.95, len(points)))
    for begin, end, colour in zip(points[:-1], points[1:], colours, strict=False):
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.0, "alpha": 0.55, "connectionstyle": "arc3,rad=0.12"}
        ax.annotate("", end, begin, arrowprops=arrow)
    edges = np.where(trajectory.collapsed[part].numpy(), "black", "white")
    ax.scatter(*points.T, c=colours, s=46, edgecolors=edges, linewidths=1.0, zorder=3)
    draw_symbols(ax, rows, trajectory.tokens, set(trajectory.token_ids[part].tolist()))
    ax.set(xlabel=axis_label(basis, 0), ylabel=axis_label(basis, 1))
    ax.set_title(title or _title(trajectory, part), fontsize=9, family="monospace", parse_math=False)  # $ is a symbol
    if own:
        plt.close(figure)
    return figure


def draw_symbols(ax: plt.Axes, rows: np.ndarray, tokens: Sequence[str], shown: set[int]) -> None:
    """Every symbol at its row; the ones the path shows in black. Of a large table the others are a cloud of points."""
    halo = [withStroke(linewidth=3, foreground="white")]
    if many := len(rows) >= MANY:
        ax.scatter(*rows[:: max(1, len(rows) // CLOUD)].T, s=2, color="#d5d9e0", lw=0, zorder=1)
    for i in sorted(shown) if many else range(len(rows)):
        x, y = rows[i]
        style = {"color": "#111111", "weight": "bold", "zorder": 5} if i in shown else {"color": "#b3b8c2", "zorder": 2}
        ax.text(
            x, y, drawable(tokens[i]), ha="center", va="center", fontsize=9 if many else 12, path_effects=halo, **style
        )
    if not many:
        ax.scatter(*rows.T, s=0)
    ax.margins(0.08)


def _title(trajectory: Trajectory, part: slice, width: int = 44) -> str:
    """The settings, and below them the beginning of what the drawn part says."""
    names = ("collapse", "schedule", "feedback")
    words = "".join(drawable(trajectory.tokens[i]) for i in trajectory.token_ids[part].tolist())
    shown = words if len(words) <= width else words[: width - 1] + "…"
    return " · ".join(str(trajectory.settings.get(name)) for name in names) + "\n" + shown


def draw_paths(trajectories: Sequence[Trajectory], basis: PCABasis, embedding, **options) -> Figure:
    """Several paths in the same plane, side by side."""
    figure, axes = plt.subplots(
        1, len(trajectories), figsize=(5.4 * len(trajectories), 5), sharex=True, sharey=True, layout="constrained"
    )
    for ax, trajectory in zip(np.atleast_1d(axes), trajectories, strict=True):
        draw_path(trajectory, basis, embedding, ax=ax, **options)
    plt.close(figure)
    return figure
