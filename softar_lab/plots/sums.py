"""Still pictures of sums: what can be read back from one vector, and the offsets of analogies."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from ..metrics.pca import PCABasis
from .fonts import drawable, finished
from .style import ACCENT, GREY, axis_label

THEORY = "theory of "


def draw_reading(read: pd.DataFrame, limits: Mapping[int, int], vocab_size: int) -> Figure:
    """Share of items read back against their number: one panel per width m, one line per reader.

    Args:
        read: columns (m, reader), index the number of items. A column "theory of …" is dashed, in
            the colour of the reader that it names.
        limits: for each m, the number of items up to which a mixture is unique, a dotted line.
        vocab_size: gives the line of chance, the number of items / V.
    """
    widths = list(dict.fromkeys(read.columns.get_level_values(0)))
    figure, axes = plt.subplots(
        1, len(widths), figsize=(9.6, 3.6), sharey=True, layout="constrained", squeeze=False
    )
    for ax, m in zip(axes[0], widths, strict=True):
        readers = [name for name in read[m] if not name.startswith(THEORY)]
        for i, name in enumerate(readers):
            ax.plot(
                read.index, read[m][name], color=f"C{i}", marker="osD^"[i % 4], ms=5, label=name
            )
            if THEORY + name in read[m]:
                ax.plot(
                    read.index,
                    read[m][THEORY + name],
                    color=f"C{i}",
                    ls="--",
                    lw=1.2,
                    label=THEORY + name,
                )
        ax.plot(read.index, read.index / vocab_size, color=GREY, lw=1, label="chance")
        ax.axvline(limits[m], color="black", ls=":", lw=1.2)
        ax.annotate(f"threshold: {limits[m]}", (limits[m], 0), xycoords=("data", "axes fraction"), xytext=(3, 6),
                    textcoords="offset points", fontsize=9)  # fmt: skip
        ax.set(title=f"m = {m}", xscale="log", xlabel=read.index.name, ylim=(0, 1.04))
        ax.set_xticks(read.index, [f"{x:g}" for x in read.index])
        ax.set_xticks([], minor=True)
    axes[0, 0].set_ylabel("share of items read back")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False
    )
    return finished(figure)


def draw_offsets(
    vectors: Float[Tensor, "V m"], pairs: Int[Tensor, "P 2"], names: Sequence[str]
) -> Figure:
    """Each pair as an arrow from its first word to its second, in the pairs' own principal plane.

    Args:
        vectors: the table (V, m).
        pairs: ids (P, 2).
        names: the words by id.
    """
    own = vectors[pairs.flatten()]
    basis = PCABasis.fit(own, 2)
    points = basis.transform(own).numpy().reshape(-1, 2, 2)
    figure, ax = plt.subplots(figsize=(7.4, 5), layout="constrained")
    for (first, second), (one, other) in zip(pairs.tolist(), points, strict=True):
        ax.annotate(
            "",
            other,
            one,
            arrowprops={"arrowstyle": "-|>", "color": ACCENT, "lw": 1.4, "shrinkB": 2},
        )
        ax.annotate(
            names[first], one, fontsize=9, color="black", xytext=(3, 3), textcoords="offset points"
        )
        ax.annotate(
            names[second],
            other,
            fontsize=9,
            color=ACCENT,
            xytext=(3, 3),
            textcoords="offset points",
        )
    ax.scatter(*np.concatenate([points[:, 0], points[:, 1]]).T, s=8, color=GREY)
    ax.set(
        xlabel=axis_label(basis, 0).replace("table", "pairs"),
        ylabel=axis_label(basis, 1).replace("table", "pairs"),
    )
    ax.margins(0.12)
    return finished(figure)


def draw_sum(rows: Mapping[str, Sequence[tuple[str, float]]], title: str) -> Figure:
    """Bars of words and their values, best first, one panel per reading of a sum."""
    figure, axes = plt.subplots(
        1, len(rows), figsize=(9.6, 2.9), layout="constrained", squeeze=False
    )
    for i, (ax, (name, found)) in enumerate(zip(axes[0], rows.items(), strict=True)):
        words, values = [word for word, _ in found], [value for _, value in found]
        ax.barh(range(len(words)), values, color=f"C{i}")
        ax.set_yticks(range(len(words)), map("".join, (map(drawable, word) for word in words)))
        ax.invert_yaxis()
        ax.set_title(name, fontsize=10)
    figure.suptitle(title, fontsize=11, x=0.02, ha="left")
    return finished(figure)
