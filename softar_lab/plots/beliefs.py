"""Pictures of thoughts: what each soft token holds beside what it should, and a run on rewards."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from .fonts import finished
from .style import ACCENT, COLORMAP, GREY, plain

Rows = Mapping[str, Sequence[float]]  # name of a row -> a probability for each state


def draw_beliefs(states: Sequence[str], rows: Rows, title: str = "") -> Figure:
    """Distributions over states as a map: one row for each, a column for each state."""
    size = (2.2 + 0.36 * len(states), 0.9 + 0.34 * len(rows))
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    values = np.array([*rows.values()], dtype=float).reshape(len(rows), len(states))
    ax.imshow(values, cmap=COLORMAP, vmin=0, vmax=max(values.max(initial=0), 1e-9), aspect="auto")
    for row, column in np.argwhere(values >= 0.05):
        shade = "black" if values[row, column] > 0.6 * values.max() else "white"
        text = f"{values[row, column]:.2f}"[1:] if values[row, column] < 0.995 else "1"
        ax.text(column, row, text, ha="center", va="center", fontsize=7, color=shade)
    ax.set_xticks(range(len(states)), states, fontsize=8)
    ax.set_yticks(range(len(rows)), rows, fontsize=9)
    ax.grid(visible=False)
    ax.set(title=title)
    return finished(figure)


def beliefs_figure(height: int = 300) -> go.Figure:
    """An empty interactive map of distributions over states; `update_beliefs` fills it."""
    figure = go.Figure(go.Heatmap(colorscale=COLORMAP, zmin=0, showscale=False))
    figure.update_traces(hovertemplate="%{y}<br>%{x}: %{z:.3f}<extra></extra>", xgap=1, ygap=1)
    figure.update_layout(
        height=height, margin={"l": 10, "r": 10, "t": 10, "b": 10}, template="plotly_white",
        xaxis={"type": "category", "side": "top"}, yaxis={"autorange": "reversed"},
    )  # fmt: skip
    return figure


def update_beliefs(figure: go.Figure, states: Sequence[str], rows: Rows) -> None:
    """Put distributions over states into a `beliefs_figure`."""
    (trace,) = figure.data
    with figure.batch_update():
        trace.x, trace.y = [plain(one) for one in states], list(rows)
        trace.z = [[float(value) for value in row] for row in rows.values()]


CURVES = ("held-out problems right", "cosine with the exact gradient")


def rewards_figure(height: int = 260) -> go.Figure:
    """An empty live picture of a run on rewards: a share and a cosine against roll-outs."""
    figure = go.Figure()
    for name, colour in zip(CURVES, ("#0072B2", ACCENT), strict=True):
        figure.add_trace(
            go.Scatter(mode="lines+markers", name=name, line={"color": colour}, showlegend=True)
        )
    figure.update_layout(
        height=height, margin={"l": 10, "r": 10, "t": 10, "b": 10}, template="plotly_white",
        xaxis_title="roll-outs", yaxis={"range": [-0.25, 1.05], "zerolinecolor": GREY},
        legend={"orientation": "h", "y": 1.12},
    )  # fmt: skip
    return figure


def update_rewards(
    figure: go.Figure, curves: Sequence[Sequence[tuple[float | int, float]]]
) -> None:
    """Put the curves into a `rewards_figure`: points (roll-outs, value) of each of `CURVES`."""
    with figure.batch_update():
        for trace, points in zip(figure.data, curves, strict=True):
            trace.x, trace.y = [x for x, _ in points], [y for _, y in points]
