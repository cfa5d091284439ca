"""One step of a path in detail: its position beside the hull of the symbols, and its detectors."""

import matplotlib.pyplot as plt
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from ..core.trajectory import Trajectory
from ..metrics.pca import PCABasis
from .fonts import finished
from .interactive import plane_layout
from .paths import draw_symbols
from .style import ACCENT, COLORMAP, GREY, axis_label, plain, written_ids

BLUE = "#0072B2"
LEAST = 0.01  # a symbol with less weight does not count as part of a mixture
_SILENT = {"hoverinfo": "skip", "showlegend": False}  # a trace without hover text or legend
CURVES = {  # columns of metrics.drift.detectors, and their titles
    "entropy": "entropy (nats)",
    "distance": "distance to the nearest symbol",
    "off_hull": "off the hull",
    "norm": "norm",
    "soft_run": "soft tokens in a row before",
}


def parts(weights, tokens: tuple[str, ...], least: float = LEAST) -> list[tuple[int, str, float]]:
    """The symbols with weight in a mixture (V,), heaviest first: (id, symbol, weight)."""
    order = [i for i in weights.argsort(descending=True).tolist() if float(weights[i]) >= least]
    return [(i, tokens[i], float(weights[i])) for i in order]


def hull_figure(width: int = 690, height: int = 560) -> go.Figure:
    """An empty plane; `update_hull` fills it.

    It holds the path so far, the present vector and the mixture nearest to that vector.
    """
    figure = go.Figure()
    faint = {"color": "rgba(110,118,135,0.18)", "width": 1}
    # 1) the background: the whole path, faint, and the symbols
    figure.add_trace(go.Scatter(name="ahead", mode="lines", line=faint, **_SILENT))
    figure.add_trace(
        go.Scatter(
            name="symbols", mode="text", textfont={"size": 14, "color": "#9aa0ab"}, **_SILENT
        )
    )
    # 2) the path so far, coloured by step
    marker = {"size": 8, "colorscale": COLORMAP, "line": {"width": 0.6, "color": "white"}}
    line = {"color": "rgba(110,118,135,0.3)", "width": 1.3}
    figure.add_trace(
        go.Scatter(
            name="path so far", mode="lines+markers", line=line, marker=marker, hoverinfo="skip"
        )
    )
    # 3) the nearest mixture, its symbols, and the line from it to the soft token
    _add_mixture(figure)
    # 4) the soft token of the present step
    now = {"size": 17, "symbol": "circle-open", "color": ACCENT, "line": {"width": 3}}
    figure.add_trace(
        go.Scatter(name="soft token now", mode="markers", marker=now, hoverinfo="text")
    )
    legend = {
        "orientation": "h",
        "x": 0,
        "y": 1.0,
        "yanchor": "bottom",
        "itemclick": False,
        "itemdoubleclick": False,
    }
    figure.update_layout(plane_layout(height), width=width, showlegend=True, legend=legend)
    return figure


def _add_mixture(figure: go.Figure) -> None:
    """Add the empty traces of the nearest mixture to a `hull_figure`."""
    figure.add_trace(go.Scatter(name="its symbols", mode="lines", line={"color": BLUE, "width": 1.4, "dash": "dot"},
                                **_SILENT))  # fmt: skip
    figure.add_trace(go.Scatter(name="weights", mode="text", textposition="top left", hoverinfo="skip",
                                showlegend=False))  # fmt: skip
    figure.add_trace(
        go.Scatter(name="off the hull", mode="lines", line={"color": ACCENT, "width": 4}, **_SILENT)
    )
    blue = {"size": 13, "symbol": "diamond", "color": BLUE, "line": {"width": 1, "color": "white"}}
    figure.add_trace(
        go.Scatter(name="nearest mixture of symbols", mode="markers", marker=blue, hoverinfo="text")
    )


def update_hull(
    figure: go.Figure,
    trajectory: Trajectory,
    basis: PCABasis,
    embedding,
    weights,
    off_hull: float,
    step: int,
) -> None:
    """Draw one step of a path into a `hull_figure`.

    Args:
        weights: the mixture of rows (V,) that is nearest to the step's soft token.
        off_hull: the distance of the soft token from the hull of all symbols.
    """
    embedding = embedding.detach().cpu().float()
    points, rows = basis.transform(trajectory.vectors), basis.transform(embedding)
    written = written_ids(len(embedding), trajectory.token_ids)
    here, mixed = points[step].tolist(), basis.transform(weights.float() @ embedding).tolist()
    found = parts(weights, trajectory.tokens)
    heavy_ids, named = (
        {i for i, _, _ in found},
        [f"<b>{plain(symbol)}</b> {weight:.0%}" for _, symbol, weight in found],
    )
    ahead, symbols, path, spokes, heavy, residual, mixture, now = figure.data
    with figure.batch_update():
        for k, axis in enumerate("xy"):
            ahead[axis], symbols[axis] = points[:, k].tolist(), rows[written, k].tolist()
            path[axis] = points[: step + 1, k].tolist()
            heavy[axis] = [rows[i, k].item() for i, _, _ in found]
            # from the mixture to each of its symbols; None ends a line
            spokes[axis] = [end for i, _, _ in found for end in (mixed[k], rows[i, k].item(), None)]
            residual[axis], mixture[axis], now[axis] = [here[k], mixed[k]], [mixed[k]], [here[k]]
        symbols.text = ["" if i in heavy_ids else plain(trajectory.tokens[i]) for i in written]
        heavy.text = named
        mixture.hovertext = ["   ".join(named)]
        now.hovertext = [f"step {step}: {off_hull:.3f} off the hull"]
        figure.layout.xaxis.title.text, figure.layout.yaxis.title.text = (
            axis_label(basis, 0),
            axis_label(basis, 1),
        )
        path.marker.color, path.marker.cmin = list(range(step + 1)), 0
        path.marker.cmax = len(trajectory) - 1
    heavy.textfont = {"size": [13 + 8 * weight for _, _, weight in found], "color": BLUE}


def mixture_html(trajectory: Trajectory, weights, off_hull: float, step: int) -> str:
    """The mixture of symbols nearest to a step's soft token, in words.

    `off_hull`: the distance of the soft token from the hull of all symbols.
    """
    found = " · ".join(
        f"{plain(symbol)} {weight:.0%}"
        for _, symbol, weight in parts(weights, trajectory.tokens)[:6]
    )
    return (
        f'<div style="font-size:13px;line-height:1.5"><b style="color:{BLUE}">nearest mixture:</b> {found}<br>'
        f'<b style="color:{ACCENT}">off the hull:</b> {off_hull:.3f}<br><span style="color:{GREY}">The thick line is '
        f"the shadow of that distance in this plane, so it may look shorter.</span></div>"
    )


def curves_figure(width: int = 320, height: int = 430) -> go.Figure:
    """An empty picture of the detectors at every step, one small curve each, with a cursor."""
    figure = go.Figure(make_subplots(len(CURVES), 1, shared_xaxes=True, vertical_spacing=0.055,
                                           subplot_titles=list(CURVES.values())))  # fmt: skip
    for row, name in enumerate(CURVES, start=1):
        figure.add_trace(go.Scatter(name=name, mode="lines", line={"color": BLUE, "width": 1.4}, showlegend=False,
                                    hovertemplate="step %{x}: %{y:.3g}<extra></extra>"), row=row, col=1)  # fmt: skip
    figure.add_shape(
        type="line",
        xref="x",
        yref="paper",
        x0=0,
        x1=0,
        y0=0,
        y1=1,
        line={"color": ACCENT, "width": 2},
    )
    figure.update_annotations(font={"size": 12, "color": "#5a606e"}, x=0, xanchor="left")
    margin = {"l": 10, "r": 10, "t": 24, "b": 10}
    figure.update_layout(width=width, height=height, margin=margin, template="plotly_white")
    figure.update_xaxes(title_text="step", row=len(CURVES), col=1)
    figure.update_yaxes(rangemode="tozero", nticks=3)
    return figure


def update_curves(figure: go.Figure, detectors: pd.DataFrame) -> None:
    """Put the frame of `metrics.drift.detectors` of one trajectory into a `curves_figure`."""
    with figure.batch_update():
        for line, name in zip(figure.data, CURVES, strict=True):
            line.x, line.y = list(range(len(detectors))), detectors[name].tolist()


def move_cursor(figure: go.Figure, step: int) -> None:
    """Move the cursor of a `curves_figure` to a step."""
    with figure.batch_update():
        figure.layout.shapes[0].x0 = figure.layout.shapes[0].x1 = step


def draw_step(
    trajectory: Trajectory, basis: PCABasis, embedding, weights, detectors: pd.DataFrame, step: int
) -> Figure:
    """The still picture of one step: the plane of `update_hull` and the curves of the detectors.

    `weights` (V,) as in `update_hull`; `detectors` as in `update_curves`.
    """
    embedding = embedding.detach().cpu().float()
    figure = plt.figure(figsize=(10.4, 5.4), layout="constrained")
    grid = figure.add_gridspec(len(CURVES), 2, width_ratios=(1.4, 1))
    ax = figure.add_subplot(grid[:, 0])
    points, rows = (
        basis.transform(trajectory.vectors)[:, :2].numpy(),
        basis.transform(embedding)[:, :2].numpy(),
    )
    mixed, found = (
        basis.transform(weights.float() @ embedding)[:2].numpy(),
        parts(weights, trajectory.tokens),
    )
    # 1) left: the whole path, the path so far, the nearest mixture and the soft token
    ax.plot(*points.T, color=GREY, lw=0.6, alpha=0.3)
    so_far = {"c": range(step + 1), "cmap": COLORMAP, "vmin": 0, "vmax": max(1, len(points) - 1)}
    ax.scatter(*points[: step + 1].T, s=24, lw=0, **so_far)
    for i, _, _ in found:
        ax.plot(*zip(mixed, rows[i], strict=True), color=BLUE, ls=":", lw=1.4)
    ax.plot(*zip(points[step], mixed, strict=True), color=ACCENT, lw=3)
    ax.scatter(*mixed, s=70, marker="D", color=BLUE, edgecolors="white", zorder=6)
    ax.scatter(*points[step], s=150, facecolors="none", edgecolors=ACCENT, linewidths=2.2, zorder=6)
    draw_symbols(ax, rows, trajectory.tokens, {i for i, _, _ in found})
    ax.set(xlabel=axis_label(basis, 0), ylabel=axis_label(basis, 1))
    # 2) right: one curve per detector, with a line at the present step
    for row, (name, title) in enumerate(CURVES.items()):
        curve = figure.add_subplot(grid[row, 1])
        curve.plot(detectors[name].to_numpy(), color=BLUE, lw=1.2)
        curve.axvline(step, color=ACCENT, lw=1.6)
        curve.set_title(title, fontsize=9, loc="left")
        curve.tick_params(labelsize=8, labelbottom=row == len(CURVES) - 1)
        curve.set_ylim(bottom=0)
    curve.set_xlabel("step")
    return finished(figure)
