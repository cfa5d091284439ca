"""Interactive pictures, to hover over, made with plotly."""

import plotly.graph_objects as go
from torch import Tensor

from ..core.trajectory import Trajectory
from ..metrics.pca import PCABasis
from .style import ACCENT, GREY, axis_label, plain, written_ids
from .texts import step_hover

TRAIL = 6  # steps that a plane shows before the present one


def plane_figure(height: int = 400) -> go.Figure:
    """An empty interactive picture of the last steps; `update_plane` fills its two traces."""
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            name="symbols", mode="text", textfont={"size": 15, "color": "#111"}, hoverinfo="skip"
        )
    )
    figure.add_trace(
        go.Scatter(
            name="trail",
            mode="lines+markers",
            line={"color": ACCENT, "width": 2.4},
            marker={"color": ACCENT, "line": {"width": 3, "color": ACCENT}},
            hoverinfo="text",
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


def update_plane(
    figure: go.Figure, trajectory: Trajectory, basis: PCABasis, embedding: Tensor, step: int
) -> None:
    """Put the symbols and the latest steps up to `step` into a `plane_figure`, a ring on the last.

    The axes say how much of the table's variance they hold.
    """
    ids = written_ids(len(embedding), trajectory.token_ids, trajectory.top_ids[:, :3])
    rows = basis.transform(embedding[ids]).tolist()
    latest = range(max(0, step - TRAIL), step + 1)
    points = basis.transform(trajectory.vectors[latest.start : latest.stop]).tolist()
    symbols, trail = figure.data
    with figure.batch_update():
        for k, axis in enumerate("xy"):
            symbols[axis] = [row[k] for row in rows]
            trail[axis] = [point[k] for point in points]
        symbols.text = [plain(trajectory.tokens[i]) for i in ids]
        trail.hovertext = [step_hover(trajectory, t) for t in latest]
        trail.marker.size = [7] * (len(points) - 1) + [20]
        trail.marker.symbol = ["circle"] * (len(points) - 1) + ["circle-open"]
        figure.layout.xaxis.title.text = axis_label(basis, 0)
        figure.layout.yaxis.title.text = axis_label(basis, 1)


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
