"""Still pictures of how far soft paths stray: drift step by step, who is left, and what it costs to stay soft."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ..evidence import COLOURS
from .comparisons import MARKS, plain_log
from .look import ACCENT, GREY

DASHES = ("-", "--", ":")  # the first, second and third time round the colours


def draw_drift(curves: Mapping[str, pd.DataFrame], limit: float | int | None = None) -> Figure:
    """Drift in nats, a line a setting with its band: frames of `coherence.drift_curve`. `limit`: a dashed line.

    The axis is linear up to 0.01 nats and logarithmic beyond; a line ends where the truth is lost.
    """
    figure, ax = plt.subplots(figsize=(7.4, 3.8), layout="constrained")
    for i, (name, curve) in enumerate(curves.items()):
        colour, curve = COLOURS[i % len(COLOURS)], curve.where(curve < float("inf"))
        ax.plot(curve.index, curve["median"], color=colour, ls=DASHES[i // len(COLOURS) % 3], lw=1.6, label=name)
        ax.fill_between(curve.index, curve["low"], curve["high"], color=colour, alpha=0.15, lw=0)
    _limit(ax, limit)
    ax.set_yscale("symlog", linthresh=0.01)
    ax.set(xlabel="step", ylabel="KL(truth ‖ model), nats")
    ax.set_ylim(bottom=0)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    plt.close(figure)
    return figure


def draw_survival(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Share of trajectories still coherent after so many steps, with its band: frames of `coherence.survival`."""
    figure, ax = plt.subplots(figsize=(7.4, 3.4), layout="constrained")
    for i, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        style = {"color": colour, "ls": DASHES[i // len(COLOURS) % 3], "lw": 1.8}
        ax.step(curve.index, curve["share"], where="post", label=name, **style)
        ax.fill_between(curve.index, curve["low"], curve["high"], step="post", color=colour, alpha=0.12, lw=0)
    ax.set(xlabel="steps", ylabel="share still coherent", ylim=(0, 1.02))
    ax.set_xlim(left=0)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    plt.close(figure)
    return figure


def draw_frontier(frame: pd.DataFrame, floor: float | int | None = None, oracle: str = "oracle") -> Figure:
    """Excess bits against the share of tokens collapsed, a line a family: the frame of `frontier.against_oracle`.

    The family `oracle` is black; `floor`, what collapsing everything costs, a dashed line.
    """
    figure, ax = plt.subplots(figsize=(7.4, 4), layout="constrained")
    families = [name for name in frame["family"].unique() if name != oracle]
    for i, name in enumerate([*families, oracle]):
        part = frame[frame["family"] == name].sort_values("share")
        style = {"color": COLOURS[i % 7], "lw": 1.4} if name != oracle else {"color": "black", "lw": 2.2}
        ax.plot(part["share"], part["excess"], marker=MARKS[i % len(MARKS)], ms=5, label=name, **style)
    _limit(ax, floor)
    ax.set(xlabel="share of tokens collapsed", ylabel="excess over the truth (bits per symbol)", yscale="log")
    plain_log(ax.yaxis)
    ax.set_xlim(-0.02, 1.02)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    plt.close(figure)
    return figure


def _limit(ax: plt.Axes, value: float | int | None) -> None:
    if value is not None:
        ax.axhline(value, color=ACCENT, ls="--", lw=1)
        ax.annotate(f"{value:.2g}", (1, value), xycoords=("axes fraction", "data"), xytext=(-4, 3), ha="right",
                    textcoords="offset points", color=GREY, fontsize=9)  # fmt: skip
