"""Interactive pictures, to hover over, made with plotly."""

import plotly.graph_objects as go

from .style import GREY


def history_figure(steps: int, floor: float | None = None, height: int = 300) -> go.Figure:
    """An empty live picture of a training run: the loss of each step, and validation bits.

    Args:
        steps: how many steps the run has; the axis shows all of them from the beginning.
        floor: bits per character that the true language needs, a dashed line; None: not known.
        height: in pixels.
    """
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
        xaxis={"title": "step", "range": [0, steps]}, yaxis_title="nats or bits", showlegend=True,
        legend={"x": 0.98, "xanchor": "right", "y": 0.98},
    )  # fmt: skip
    if floor is not None:
        text = f"the language itself: {floor:.2f} bits"
        figure.add_hline(floor, line={"color": "#0072B2", "dash": "dash"}, annotation_text=text)
    return figure
