"""Still pictures of measurements: what training, texts and predictors cost."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .look import ACCENT, GREY, visible


def draw_history(histories: dict[str, pd.DataFrame], floor: float | None = None) -> Figure:
    """Validation bits per character against training steps, one line a run, with the known floor if there is one."""
    figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for name, history in histories.items():
        ax.plot(history["step"], history["val_bits_per_char"], marker="o", ms=4, label=name)
    if floor is not None:
        ax.axhline(floor, color=GREY, ls="--", lw=1)
        ax.annotate("the floor: the true generator", (1, floor), xycoords=("axes fraction", "data"), ha="right",
                    va="bottom", color=GREY, fontsize=9, xytext=(-4, 2), textcoords="offset points")  # fmt: skip
    ax.set(xlabel="training step", ylabel="bits per character (validation)")
    ax.legend()
    plt.close(figure)
    return figure


def draw_bits(text: str, bits: dict[str, np.ndarray]) -> Figure:
    """What each symbol of `text` costs, in bits: the first predictor as bars, the second as marks on top."""
    figure, ax = plt.subplots(figsize=(10, 2.8), layout="constrained")
    positions = np.arange(len(text))
    (first, costs), *others = bits.items()
    ax.bar(positions, costs, color="#56B4E9", width=0.85, label=first)
    for name, other in others:
        ax.plot(positions, other, color=ACCENT, lw=0, marker="_", ms=6, mew=2, label=name)
    ax.set_xticks(positions, [visible(symbol) for symbol in text], fontsize=7)
    ax.tick_params(axis="x", length=0)
    ax.grid(visible=False, axis="x")
    ax.set(ylabel="bits", xlim=(-1, len(text)))
    ax.legend(ncols=2)
    plt.close(figure)
    return figure
