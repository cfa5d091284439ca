"""Still pictures of matrices: coloured vectors, attention weights, next-token probabilities."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .fonts import drawable, finished


def draw_matrices(
    matrices: Mapping[str, pd.DataFrame],
    *,
    digits: int | None = None,
    columns: int = 6,
    size: float = 0.34,
) -> Figure:
    """Matrices side by side, each with its title, its row and column labels, and its own colours.

    Where every number lies in [0, 1], as for probabilities, 0 is white and 1 is blue. Otherwise
    positive numbers are orange, negative ones purple, and the largest size has full colour. Numbers
    that are not finite are grey.

    Args:
        matrices: frames by title.
        digits: decimals to write into the cells; None writes no numbers.
        columns: panels per row.
        size: inches per cell; a panel is at least two cells wide and high.
    """
    rows = [list(matrices.items())[i : i + columns] for i in range(0, len(matrices), columns)]
    shapes = [[frame.shape for _, frame in row] for row in rows]
    # cells per column and per row of panels: that of the largest matrix in it, at least 2
    widths = [max(max(2, row[i][1]) for row in shapes if i < len(row)) for i in range(len(rows[0]))]
    heights = [max(2, *(shape[0] for shape in row)) for row in shapes]
    figure, axes = plt.subplots(
        len(rows), len(widths), squeeze=False, layout="constrained",
        gridspec_kw={"width_ratios": widths, "height_ratios": heights},
        figsize=(sum(widths) * size + 0.95 * len(widths), sum(heights) * size + 0.75 * len(rows)),
    )  # fmt: skip
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (title, frame) in zip(
        axes.flat, [panel for row in rows for panel in row], strict=False
    ):
        _draw_matrix(ax, title, frame, digits)
    return finished(figure)


def _draw_matrix(ax: plt.Axes, title: str, frame: pd.DataFrame, digits: int | None) -> None:
    values = np.ma.masked_invalid(frame.to_numpy(dtype=float))
    share = values.count() == 0 or bool(values.min() >= 0 and values.max() <= 1)
    limit = 1.0 if share else float(np.abs(values).max())
    colours = plt.get_cmap("Blues" if share else "PuOr_r").with_extremes(bad="#d9dce1")
    ax.imshow(values, cmap=colours, vmin=0 if share else -limit, vmax=limit, aspect="equal")
    if digits is not None:
        for (row, column), value in np.ndenumerate(frame.to_numpy(dtype=float)):
            bright = np.isfinite(value) and abs(value) > 0.6 * limit
            # infinity and minus as signs; no minus before a number that rounds to 0
            text = f"{value:.{digits}f}".replace("inf", "∞").replace("-", "−")
            text = text.removeprefix("−") if set(text) <= set("−0.") else text
            ax.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=8,
                color="white" if bright else "#222222",
            )
    ax.set_axis_on()
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=9)
    for names, axis in ((frame.columns, ax.xaxis), (frame.index, ax.yaxis)):
        if isinstance(names, pd.RangeIndex):  # no names: a few numbers are enough
            axis.set_ticks(range(0, len(names), max(1, len(names) // 4)))
        else:
            labels = [drawable(str(name)) for name in names]
            turned = 90 if axis is ax.xaxis and max(map(len, labels)) > 2 else 0
            axis.set_ticks(range(len(names)), labels, rotation=turned)
    ax.set_title(title, fontsize=10, parse_math=False)
