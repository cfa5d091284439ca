"""Interactive pictures, to hover over and to turn, made with plotly."""

import plotly.graph_objects as go

from ..core.trajectory import Trajectory
from ..metrics.pca import PCABasis
from .style import ACCENT, COLORMAP, GREY, axis_label, plain, visible, written_ids
from .texts import step_hover

TRAIL = 6  # steps before the present one in the accent colour


def path_figure(height: int = 440) -> go.Figure:
    """An empty interactive picture of a path; `update_path` fills its traces.

    The traces are path, trail and symbols, first in 2-D, then in 3-D.
    """
    figure = go.Figure()
    for kind, size in ((go.Scatter, 9), (go.Scatter3d, 4)):
        marker = {"size": size, "colorscale": COLORMAP, "line": {"width": 0.6, "color": "white"}}
        faint = {"color": "rgba(110,118,135,0.35)", "width": 1.3}
        figure.add_trace(
            kind(name="path", mode="lines+markers", line=faint, marker=marker, hoverinfo="text")
        )
        trail = {"symbol": "circle-open", "color": ACCENT, "line": {"width": 3, "color": ACCENT}}
        strong = {"color": ACCENT, "width": 2.4 if kind is go.Scatter else 5}
        figure.add_trace(
            kind(name="trail", mode="lines+markers", line=strong, marker=trail, hoverinfo="skip")
        )
        figure.add_trace(
            kind(
                name="symbols",
                mode="text",
                textfont={"size": 15, "color": "#111"},
                hoverinfo="skip",
            )
        )
    figure.update_layout(plane_layout(height), showlegend=False)
    return figure


def plane_layout(height: int) -> dict:
    """The look of a plane among the symbols: quiet axes; the zoom stays while traces change."""
    axis = {"gridcolor": "#eef0f3", "zeroline": False}
    return {
        "height": height, "margin": {"l": 10, "r": 10, "t": 10, "b": 10}, "template": "plotly_white",
        "xaxis": axis, "yaxis": axis, "hoverlabel": {"font": {"family": "monospace"}}, "uirevision": "keep",
    }  # fmt: skip


def update_path(
    figure: go.Figure, trajectory: Trajectory, basis: PCABasis, embedding, three: bool
) -> None:
    """Put a trajectory into a `path_figure`.

    `three`: whether to draw in 3-D.
    """
    ids = written_ids(len(embedding), trajectory.token_ids, trajectory.top_ids[:, :3])
    rows, points = (
        basis.transform(embedding[ids]).tolist(),
        basis.transform(trajectory.vectors).tolist(),
    )
    hovers = [step_hover(trajectory, step) for step in range(len(trajectory))]
    # the first three traces are 2-D, the other three 3-D; one group is visible
    with figure.batch_update():
        for offset, axes, shown in ((0, "xy", not three), (3, "xyz", three)):
            path, trail, symbols = figure.data[offset : offset + 3]
            path.visible = trail.visible = symbols.visible = shown
            if shown:
                for k, axis in enumerate(axes):
                    path[axis], symbols[axis] = (
                        [point[k] for point in points],
                        [row[k] for row in rows],
                    )
                path.hovertext, path.marker.color = hovers, list(range(len(points)))
                written = visible if three else plain  # WebGL draws text as it is
                symbols.text = [written(trajectory.tokens[i]) for i in ids]
        figure.layout.xaxis.visible = figure.layout.yaxis.visible = not three
        if three:
            figure.layout.scene = {
                f"{axis}axis": {"title": f"PC {k + 1}"} for k, axis in enumerate("xyz")
            }
        else:
            figure.layout.xaxis.title.text, figure.layout.yaxis.title.text = (
                axis_label(basis, 0),
                axis_label(basis, 1),
            )


def update_now(
    figure: go.Figure, trajectory: Trajectory, basis: PCABasis, step: int, three: bool
) -> None:
    """Move the ring to the present step, together with the trail that leads to it."""
    points = basis.transform(trajectory.vectors[max(0, step - TRAIL) : step + 1]).tolist()
    trail = figure.data[4 if three else 1]
    with figure.batch_update():
        for k, axis in enumerate("xyz" if three else "xy"):
            trail[axis] = [point[k] for point in points]
        trail.marker.size = [0] * (len(points) - 1) + [10 if three else 20]


def history_figure(height: int = 300) -> go.Figure:
    """An empty live picture of a training run: the loss of each step, and validation bits."""
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(mode="lines", name="training loss (nats)", line={"color": GREY, "width": 1.2})
    )
    figure.add_trace(
        go.Scatter(
            mode="lines+markers", name="validation (bits per character)", line={"color": "#0072B2"}
        )
    )
    figure.update_layout(
        height=height, margin={"l": 10, "r": 10, "t": 10, "b": 10}, template="plotly_white",
        xaxis_title="step", legend={"x": 0.98, "xanchor": "right", "y": 0.98},
    )  # fmt: skip
    return figure
