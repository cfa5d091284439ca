"""Still pictures of matrices: vectors as rows of colour, who looks at whom, what is expected next."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .look import visible


def draw_matrices(
    matrices: Mapping[str, pd.DataFrame], *, digits: int | None = None, columns: int = 6, size: float = 0.34
) -> Figure:
    """Matrices side by side, each with its title, the labels of its rows and columns, and colours of its own.

    Blue is 1 and white 0 where no number leaves [0, 1], as of probabilities; else orange is positive, purple negative,
    and the largest number's size is full colour. What is not finite is grey. `digits`: decimals to write into the
    cells; None writes none. `columns`: panels in a row; `size`: inches a cell, also the smallest side of a panel / 2.
    """
    rows = [list(matrices.items())[i : i + columns] for i in range(0, len(matrices), columns)]
    shapes = [[frame.shape for _, frame in row] for row in rows]
    widths = [max(max(2, row[i][1]) for row in shapes if i < len(row)) for i in range(len(rows[0]))]
    heights = [max(2, *(shape[0] for shape in row)) for row in shapes]
    figure, axes = plt.subplots(
        len(rows), len(widths), squeeze=False, layout="constrained",
        gridspec_kw={"width_ratios": widths, "height_ratios": heights},
        figsize=(sum(widths) * size + 0.95 * len(widths), sum(heights) * size + 0.75 * len(rows)),
    )  # fmt: skip
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (title, frame) in zip(axes.flat, [panel for row in rows for panel in row], strict=False):
        _draw_matrix(ax, title, frame, digits)
    plt.close(figure)
    return figure


def _draw_matrix(ax: plt.Axes, title: str, frame: pd.DataFrame, digits: int | None) -> None:
    values = np.ma.masked_invalid(frame.to_numpy(dtype=float))
    share = values.count() == 0 or bool(values.min() >= 0 and values.max() <= 1)
    limit = 1.0 if share else float(np.abs(values).max())
    colours = plt.get_cmap("Blues" if share else "PuOr_r").with_extremes(bad="#d9dce1")
    ax.imshow(values, cmap=colours, vmin=0 if share else -limit, vmax=limit, aspect="equal")
    if digits is not None:
        for (row, column), value in np.ndenumerate(frame.to_numpy(dtype=float)):
            bright = np.isfinite(value) and abs(value) > 0.6 * limit
            text = f"{value:.{digits}f}".replace("inf", "∞").replace("-", "−")
            text = text.removeprefix("−") if set(text) <= set("−0.") else text
            ax.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if bright else "#222222")
    ax.set_axis_on()
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=9)
    for names, axis in ((frame.columns, ax.xaxis), (frame.index, ax.yaxis)):
        if isinstance(names, pd.RangeIndex):  # nobody named them: a few numbers do
            axis.set_ticks(range(0, len(names), max(1, len(names) // 4)))
        else:
            labels = [visible(str(name)) for name in names]
            turned = 90 if axis is ax.xaxis and max(map(len, labels)) > 2 else 0
            axis.set_ticks(range(len(names)), labels, rotation=turned)
    ax.set_title(title, fontsize=10, parse_math=False)
