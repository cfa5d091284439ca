"""Interactive pictures, to hover over, made with plotly."""

import plotly.graph_objects as go

from .style import GREY


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
