"""A trace graph as a picture: nodes, the steps between them, and one path."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .fonts import finished
from .style import ACCENT, GREY


def draw_trace(
    places: Mapping[int, np.ndarray],
    edges: np.ndarray,
    visits: np.ndarray,
    colours: np.ndarray,
    path: Sequence[int] = (),
    names: Mapping[int, str] | None = None,
) -> Figure:
    """Nodes as large as they were visited, lines as wide as they were gone, a path lit.

    Args:
        places: node -> its place in the plane (2,).
        edges: how often one node led to another (C, C).
        visits: how often each node was visited (C,).
        colours: one colour per node, red, green and blue from 0 to 1 (C, 3).
        path: nodes in the order in which a text passed through them; those without a place are
            left out.
        names: what is written at nodes; None: nothing.
    """
    figure, ax = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    widest = max(float(edges.max()), 1.0)
    for one, other in zip(*np.nonzero(edges)):
        if one != other and edges[one, other] > 0.02 * widest:
            (x, y), (u, v) = places[one], places[other]
            ax.plot([x, u], [y, v], color=GREY, lw=3 * edges[one, other] / widest, zorder=1)
    path = [node for node in path if node in places]
    if path:
        steps = np.array([places[node] for node in path])
        ax.plot(*steps.T, color=ACCENT, lw=1.6, alpha=0.8, zorder=2)
    nodes = list(places)
    where = np.array([places[node] for node in nodes])
    sizes = 60 + 900 * visits[nodes] / visits.max()
    rims = [ACCENT if node in path else "black" for node in nodes]
    widths = [2.4 if node in path else 0.6 for node in nodes]
    ax.scatter(*where.T, s=sizes, c=colours[nodes], edgecolor=rims, lw=widths, zorder=3)
    for node, name in (names or {}).items():
        if node in places:
            look = {"weight": "bold" if node in path else "normal", "fontsize": 9}
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
            ax.text(*places[node], name, ha="center", va="center", bbox=box, zorder=4, **look)
    ax.set_axis_off()
    return finished(figure)
