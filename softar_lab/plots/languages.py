"""Still pictures of languages: the trie of a counting model, and a reader's beliefs over states."""

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from ..core.palette import COLOURS
from ..counting.exact import CountingModel
from .fonts import drawable, finished
from .style import GREY

# the corners of the triangle in which three probabilities are one point
CORNERS = np.array([[0, 0], [1, 0], [0.5, 3**0.5 / 2]])


def draw_trie(model: CountingModel) -> Figure:
    """The trie of a counting model, for a handful of sequences.

    Each circle is a prefix, with the number of sequences that begin with it. Each edge is a token.
    """
    prefixes = list(model.prefixes())
    counts = {s: sum(model.children(s[:-1])[t] for t in s[-1:]) for s in prefixes}
    leaves = [s for s in prefixes if not model.children(s)]
    # a prefix stands at the mean height of the leaves below it
    height = {
        s: -float(np.mean([i for i, leaf in enumerate(leaves) if leaf[: len(s)] == s]))
        for s in prefixes
    }
    depth = max(map(len, prefixes))
    size = (1.35 * depth + 0.8, 0.5 + 0.95 * len(leaves))
    figure = plt.figure(figsize=size, layout="none")
    ax = figure.add_axes((0, 0, 1, 1))
    # 1) an arrow to each prefix from its parent, with the token above
    for s in prefixes[1:]:
        begin, end = (len(s) - 1, height[s[:-1]]), (len(s), height[s])
        ax.annotate(
            "",
            end,
            begin,
            arrowprops={"arrowstyle": "-|>", "color": GREY, "shrinkA": 11, "shrinkB": 11},
        )
        middle = ((begin[0] + end[0]) / 2, (begin[1] + end[1]) / 2)
        ax.annotate(
            drawable(s[-1]),
            middle,
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            family="monospace",
        )
    # 2) circles with their counts
    x, y = [len(s) for s in prefixes], [height[s] for s in prefixes]
    ax.scatter(x, y, s=420, color=COLOURS[5], edgecolors="white", zorder=3)
    for s in prefixes:
        ax.text(len(s), height[s], str(counts[s]) if s else "∅", ha="center", va="center", zorder=4)
    ax.set_axis_off()
    ax.margins(0.06, 0.35)
    return finished(figure)


def draw_simplex(
    beliefs: dict[str, Float[np.ndarray, "N 3"]], corners: tuple[str, str, str]
) -> Figure:
    """Beliefs over three states (N, 3) as points in a triangle, one panel per entry of `beliefs`.

    A point has the colour of its belief in the first panel. `corners`: the names of the states.
    """
    colours = np.clip(next(iter(beliefs.values())), 0, 1) @ np.array(
        [to_rgb(c) for c in COLOURS[:3]]
    )
    figure, axes = plt.subplots(
        1,
        len(beliefs),
        figsize=(4.6 * len(beliefs), 4.2),
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for ax, (name, points) in zip(np.atleast_1d(axes), beliefs.items(), strict=True):
        ax.fill(*CORNERS.T, facecolor="none", edgecolor=GREY, lw=0.8)
        ax.scatter(*(points @ CORNERS).T, s=2, c=np.clip(colours, 0, 1), linewidths=0)
        for corner, label, align in zip(
            CORNERS, corners, (("right", "top"), ("left", "top"), ("center", "bottom"))
        ):
            ax.text(*corner, label, ha=align[0], va=align[1])
        ax.set_title(name)
        ax.set_aspect("equal")
        ax.set_axis_off()
    return finished(figure)
