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
) -> Figure:
    """Nodes as large as they were visited, lines as wide as they were gone, a path in colour.

    Args:
        places: node -> its place in the plane (2,).
        edges: how often one node led to another (C, C).
        visits: how often each node was visited (C,).
        colours: one colour per node, red, green and blue from 0 to 1 (C, 3).
        path: nodes in the order in which a text passed through them.
    """
    figure, ax = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    widest = max(float(edges.max()), 1.0)
    for one, other in zip(*np.nonzero(edges)):
        if one != other and edges[one, other] > 0.02 * widest:
            (x, y), (u, v) = places[one], places[other]
            ax.plot([x, u], [y, v], color=GREY, lw=3 * edges[one, other] / widest, zorder=1)
    if len(path):
        steps = np.array([places[node] for node in path])
        ax.plot(*steps.T, color=ACCENT, lw=1.2, alpha=0.8, zorder=2)
    names = list(places)
    where = np.array([places[node] for node in names])
    sizes = 60 + 900 * visits[names] / visits.max()
    ax.scatter(*where.T, s=sizes, c=colours[names], edgecolor="black", lw=0.6, zorder=3)
    ax.set_axis_off()
    return finished(figure)
