"""Still pictures of many runs side by side: curves, rankings, predictions among the symbols."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ..metrics.pca import PCABasis
from .fonts import finished
from .paths import draw_symbols
from .style import ACCENT, GREY, axis_label

MARKS = "osD^vPX*"


def plain_log(axis: Axis, subs: Sequence[int] = (1, 2, 5)) -> None:
    """Label a logarithmic axis with plain numbers: 0.5, not 5 × 10⁻¹."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(plt.FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(plt.NullFormatter())


def draw_among(basis: PCABasis, embedding, tokens: Sequence[str], **groups) -> Figure:
    """Groups of vectors among the symbols, in the plane of `basis`; the first group as rings.

    `groups`: vectors (N, m) by name; an underscore in a name is written as a space.
    """
    figure, ax = plt.subplots(figsize=(6, 5), layout="constrained")
    for i, (name, vectors) in enumerate(groups.items()):
        style = (
            {"s": 150, "facecolors": "none", "edgecolors": "black"}
            if i == 0
            else {"s": 22, "color": f"C{i}"}
        )
        ax.scatter(
            *basis.transform(vectors)[:, :2].numpy().T,
            label=name.replace("_", " "),
            zorder=3,
            **style,
        )
    draw_symbols(ax, basis.transform(embedding)[:, :2].numpy(), tokens, set(range(len(tokens))))
    ax.set(xlabel=axis_label(basis, 0), ylabel=axis_label(basis, 1))
    ax.legend()
    return finished(figure)


def draw_lines(
    frame: pd.DataFrame, ylabel: str, *, log: str = "", mark: tuple[float | int, str] | None = None
) -> Figure:
    """One line per column against the index; the name of the index labels the x axis.

    Columns of the same name get one colour, for example runs that differ only in their seed.

    Args:
        frame: one column per line.
        log: the logarithmic axes, "x", "y" or "xy".
        mark: an x and its name, a dashed vertical line.
    """
    figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(frame.columns))}
    for i, name in enumerate(frame.columns):
        label = name if name not in frame.columns[:i] else None
        ax.plot(
            frame.index,
            frame.iloc[:, i],
            color=colours[name],
            marker="o",
            ms=3,
            lw=1.4,
            label=label,
        )
    if mark is not None:
        ax.axvline(mark[0], color=GREY, ls="--", lw=1)
        ax.annotate(mark[1], (mark[0], 1), xycoords=("data", "axes fraction"), xytext=(4, -4), va="top", color=GREY,
                    textcoords="offset points", fontsize=9)  # fmt: skip
    ax.set(xlabel=frame.index.name, ylabel=ylabel)
    if "x" in log:
        ax.set_xscale("log")
        ax.set_xticks(
            frame.index, [f"{x:g}" for x in frame.index], rotation=60 * (len(frame) > 6), fontsize=9
        )
        ax.set_xticks([], minor=True)
    if "y" in log:
        ax.set_yscale("log")
        plain_log(ax.yaxis)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return finished(figure)


def draw_ranking(
    frame: pd.DataFrame,
    xlabel: str,
    *,
    reference: float | None = None,
    limit: float | int | None = None,
) -> Figure:
    """Means with intervals: one panel per table, one row per objective, one mark per readout.

    The best objective (smallest mean over all tables and readouts) is in the top row.

    Args:
        frame: as `softar_studies.objectives_table.summary` gives it.
        reference: the x of a dashed line.
        limit: the right edge; a mean beyond it is written at the edge as a number.
    """
    order = frame.groupby("objective")["mean"].min().sort_values(ascending=False).index
    tables, readouts = list(dict.fromkeys(frame["table"])), sorted(set(frame["readout"]))
    figure, axes = plt.subplots(1, len(tables), figsize=(10, 0.9 + 0.38 * len(order)), sharex=True, sharey=True,
                                layout="constrained", squeeze=False)  # fmt: skip
    for ax, table in zip(axes[0], tables, strict=True):
        part = frame[frame["table"] == table]
        _draw_readouts(ax, part, readouts, order, limit)
        if limit is not None:
            ax.set_xlim(0.9 * frame["mean"].min(), limit)
        if reference is not None:
            ax.axvline(reference, color=ACCENT, ls="--", lw=1)
        ax.set(title=table, xscale="log", yticks=range(len(order)), yticklabels=order)
        plain_log(ax.xaxis, (1, 2, 3, 5))
    figure.supxlabel(xlabel, fontsize=11)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False
    )
    return finished(figure)


def _draw_readouts(
    ax: plt.Axes,
    frame: pd.DataFrame,
    readouts: Sequence[str],
    order: pd.Index,
    limit: float | int | None,
) -> None:
    """Draw the means and intervals of one table, with one mark per readout.

    `order`: the objectives, from the lowest row to the top row.
    """
    for i, readout in enumerate(readouts):
        part, colour = frame[frame["readout"] == readout], f"C{i}"
        # 1) each readout is moved a little up or down, so that intervals do not overlap
        at = order.get_indexer(part["objective"]) + 0.12 * (i - len(readouts) / 2 + 0.5)
        ends = np.abs(part[["low", "high"]].to_numpy().T - part["mean"].to_numpy())
        mark = MARKS[i % len(MARKS)]
        ax.errorbar(
            part["mean"], at, xerr=ends, fmt=mark, color=colour, ms=5, lw=1.2, label=readout
        )
        # 2) a mean beyond the right edge becomes a number with an arrow
        style = {"ha": "right", "va": "center", "color": colour, "fontsize": 9}
        for y, mean in zip(at, part["mean"], strict=True):
            if limit is not None and mean > limit:
                ax.annotate(f"{mean:.0f} →", (limit, y), **style)


def draw_intervals(
    frame: pd.DataFrame,
    xlabel: str,
    *,
    reference: Mapping[str, float] | None = None,
    log: bool = False,
) -> Figure:
    """Values with intervals, in panels and rows; each mark has its own colour and shape.

    Args:
        frame: columns panel, row, mark, value, low, high. Panels, rows and marks are drawn in the
            frame's order. A row stays empty in a panel that has no value for it.
        reference: the x of a dashed line, by panel; a panel without one has no line.
        log: whether the x axis is logarithmic.
    """
    panels, rows, marks = (list(dict.fromkeys(frame[name])) for name in ("panel", "row", "mark"))
    figure, axes = plt.subplots(1, len(panels), figsize=(9.6, 1.2 + 0.42 * len(rows)), sharex=True, sharey=True,
                                layout="constrained", squeeze=False)  # fmt: skip
    for ax, panel in zip(axes[0], panels, strict=True):
        for i, mark in enumerate(marks):
            part = frame[(frame["panel"] == panel) & (frame["mark"] == mark)]
            # each mark is moved a little up or down, so that intervals do not overlap
            at = np.array([rows.index(row) for row in part["row"]]) + 0.15 * (
                i - (len(marks) - 1) / 2
            )
            ends = np.abs(part[["low", "high"]].to_numpy().T - part["value"].to_numpy())
            style = {"fmt": MARKS[i % len(MARKS)], "color": f"C{i}", "ms": 6, "lw": 1.4}
            ax.errorbar(part["value"], at, xerr=ends, label=mark, **style)
        if reference is not None and panel in reference:
            ax.axvline(reference[panel], color=ACCENT, ls="--", lw=1)
        ax.set(
            title=panel,
            xscale="log" if log else "linear",
            yticks=range(len(rows)),
            yticklabels=rows,
        )
        if log:
            plain_log(ax.xaxis)
    axes[0, 0].invert_yaxis()  # first row on top
    figure.supxlabel(xlabel, fontsize=11)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False
    )
    return finished(figure)
