"""Still pictures of measurements: the cost of training, texts and predictors."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .fonts import drawable, finished
from .style import ACCENT, GREY


def draw_history(histories: dict[str, pd.DataFrame], floor: float | None = None) -> Figure:
    """Validation bits per character against training steps, one line per run.

    `floor`: the known bits of the true generator, a dashed line; None draws no line.
    """
    figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for name, history in histories.items():
        ax.plot(history["step"], history["val_bits_per_char"], marker="o", ms=4, label=name)
    if floor is not None:
        ax.axhline(floor, color=GREY, ls="--", lw=1)
        ax.annotate("the floor: the true generator", (1, floor), xycoords=("axes fraction", "data"), ha="right",
                    va="bottom", color=GREY, fontsize=9, xytext=(-4, 2), textcoords="offset points")  # fmt: skip
    ax.set(xlabel="training step", ylabel="bits per character (validation)")
    ax.legend()
    return finished(figure)


def draw_bits(text: Sequence[str], bits: dict[str, np.ndarray]) -> Figure:
    """Bits that each symbol of `text` costs: first predictor as bars, others as marks on top."""
    figure, ax = plt.subplots(figsize=(10, 2.8), layout="constrained")
    positions = np.arange(len(text))
    (first, costs), *others = bits.items()
    ax.bar(positions, costs, color="#56B4E9", width=0.85, label=first)
    for name, other in others:
        ax.plot(positions, other, color=ACCENT, lw=0, marker="_", ms=6, mew=2, label=name)
    ax.set_xticks(
        positions, [drawable(symbol) for symbol in text], fontsize=7 if len(text) > 40 else 11
    )
    ax.tick_params(axis="x", length=0)
    ax.grid(visible=False, axis="x")
    ax.set(ylabel="bits", xlim=(-1, len(text)))
    ax.legend(ncols=2)
    return finished(figure)


def draw_excess(frame: pd.DataFrame, xlabel: str) -> Figure:
    """Excess over the truth in bits per symbol, one line per column against the index.

    The last column is black: the others are compared with it.
    """
    figure, ax = plt.subplots(figsize=(8.4, 4), layout="constrained")
    for i, (name, line) in enumerate(frame.items()):
        style = {"color": "black", "lw": 2.4} if i == frame.shape[1] - 1 else {}
        ax.plot(line.index, line.to_numpy(), marker="osD^vPX"[i % 7], ms=5, label=name, **style)
    ax.set(
        xscale="log", yscale="log", xlabel=xlabel, ylabel="excess over the truth (bits per symbol)"
    )
    ax.set_xticks(frame.index, [f"{x:,}" for x in frame.index])
    ax.set_xticks([], minor=True)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return finished(figure)


def draw_calibration(curves: dict[str, pd.DataFrame]) -> Figure:
    """How often the best guess is right, against the model's confidence in it.

    The dashed diagonal is perfect calibration. Each frame has the columns confidence, accuracy and
    count. The area of a dot grows with its share of the guesses.
    """
    figure, ax = plt.subplots(figsize=(4.6, 4.4), layout="constrained")
    ax.plot([0, 1], [0, 1], color=GREY, ls="--", lw=1)
    for name, curve in curves.items():
        (line,) = ax.plot(curve["confidence"], curve["accuracy"], lw=1)
        share = curve["count"] / curve["count"].sum()
        ax.scatter(
            curve["confidence"],
            curve["accuracy"],
            s=12 + 220 * share,
            color=line.get_color(),
            label=name,
        )
    ax.set(xlabel="confidence of the best guess", ylabel="how often it is right", aspect="equal")
    ax.legend()
    return finished(figure)


def draw_grid(frame: pd.DataFrame, title: str, number: str = "+g") -> Figure:
    """A table of coloured numbers: white at 0, orange above, purple below.

    `number` is the format of the written numbers. A cell that is 0 or NaN gets no number; NaN means
    that the cell does not exist.
    """
    values = frame.to_numpy(dtype=float)
    limit = max(1e-9, np.nanmax(np.abs(values)))
    # inches: the names of neighbouring columns must not touch
    cell = max(0.62, 0.13 * max(len(str(name)) for name in frame.columns))
    figure, ax = plt.subplots(
        figsize=(1.6 + cell * values.shape[1], 0.8 + 0.3 * values.shape[0]), layout="constrained"
    )
    ax.imshow(values, cmap="PuOr_r", vmin=-1.6 * limit, vmax=1.6 * limit, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if value and not np.isnan(value):
            ax.text(column, row, f"{value:{number}}", ha="center", va="center", fontsize=9)
    ax.set_xticks(
        range(values.shape[1]), [drawable(str(name)) for name in frame.columns], family="monospace"
    )
    ax.set_yticks(
        range(values.shape[0]), [str(name) or "∅" for name in frame.index], family="monospace"
    )
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.grid(visible=False)
    ax.set_title(title, fontsize=10)
    return finished(figure)
