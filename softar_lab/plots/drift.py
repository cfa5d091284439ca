"""Still pictures of how far soft paths stray: drift, and the cost of staying soft."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ..core.palette import COLOURS
from .comparisons import MARKS, plain_log
from .fonts import finished
from .style import ACCENT, GREY

DASHES = ("-", "--", ":")  # for the first, second and third round of colours


def draw_drift(curves: Mapping[str, pd.DataFrame], limit: float | int | None = None) -> Figure:
    """Drift in nats against steps, one line per setting with its band.

    The axis is linear up to 0.01 nats and logarithmic beyond. A line ends where the truth is lost.

    `curves`: frames of `metrics.drift.drift_curve` by setting. `limit`: a dashed line, in nats.
    """
    figure, ax = plt.subplots(figsize=(7.4, 3.8), layout="constrained")
    for i, (name, curve) in enumerate(curves.items()):
        colour, curve = COLOURS[i % len(COLOURS)], curve.where(curve < float("inf"))
        ax.plot(
            curve.index,
            curve["median"],
            color=colour,
            ls=DASHES[i // len(COLOURS) % 3],
            lw=1.6,
            label=name,
        )
        ax.fill_between(curve.index, curve["low"], curve["high"], color=colour, alpha=0.15, lw=0)
    _limit(ax, limit)
    ax.set_yscale("symlog", linthresh=0.01)
    ax.set(xlabel="step", ylabel="KL(truth ‖ model), nats")
    ax.set_ylim(bottom=0)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return finished(figure)


def draw_frontier(
    frame: pd.DataFrame, floor: float | int | None = None, oracle: str = "oracle"
) -> Figure:
    """Excess bits against the share of collapsed tokens, one line per family of schedules.

    Args:
        frame: as `softar_studies.frontier.against_oracle` gives it.
        floor: the cost of collapsing everything, a dashed line.
        oracle: the family that is drawn in black, last; it may be missing.
    """
    figure, ax = plt.subplots(figsize=(7.4, 4), layout="constrained")
    families = sorted(frame["family"].unique(), key=lambda name: name == oracle)  # stable
    for i, name in enumerate(families):
        part = frame[frame["family"] == name].sort_values("share")
        style = (
            {"color": COLOURS[i % 7], "lw": 1.4}
            if name != oracle
            else {"color": "black", "lw": 2.2}
        )
        ax.plot(
            part["share"], part["excess"], marker=MARKS[i % len(MARKS)], ms=5, label=name, **style
        )
    _limit(ax, floor)
    ax.set(
        xlabel="share of tokens collapsed",
        ylabel="excess over the truth (bits per symbol)",
        yscale="log",
    )
    plain_log(ax.yaxis)
    ax.set_xlim(-0.02, 1.02)
    if families:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return finished(figure)


def _limit(ax: plt.Axes, value: float | int | None) -> None:
    """A dashed line at `value` with its number; None draws nothing."""
    if value is not None:
        ax.axhline(value, color=ACCENT, ls="--", lw=1)
        ax.annotate(f"{value:.2g}", (1, value), xycoords=("axes fraction", "data"), xytext=(-4, 3), ha="right",
                    textcoords="offset points", color=GREY, fontsize=9)  # fmt: skip
