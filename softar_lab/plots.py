"""Every picture of the lab: matplotlib where a claim stands beside it, plotly where one hovers or turns.

Drawing never computes: pictures get coordinates, trajectories and histories that are ready.
"""

import html
import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from .analysis.geometry import PCABasis
from .generation.trajectory import Trajectory

COLORMAP = "viridis"  # steps, from dark to bright; readable by the colour-blind and in grey
ACCENT = "#D55E00"
GREY = "#8a8f98"


def visible(symbol: str) -> str:
    """A symbol as it can be seen: ␣ for a space, ↵ for a line's end."""
    return {" ": "␣", "\n": "↵", "\t": "⇥"}.get(symbol, symbol)


def _plain(symbol: str) -> str:
    """A visible symbol that neither HTML nor plotly takes for markup (plotly knows no &quot;)."""
    return html.escape(visible(symbol), quote=False)


def axis_label(basis: PCABasis, axis: int) -> str:
    """`PC 1 (8 % of the table's variance)`."""
    return f"PC {axis + 1} ({100 * basis.explained[axis]:.0f} % of the table's variance)"


# -- still pictures ---------------------------------------------------------------------------------------------------


def draw_path(
    trajectory: Trajectory,
    basis: PCABasis,
    embedding,
    *,
    first: int = 0,
    steps: int = 40,
    title: str | None = None,
    ax: plt.Axes | None = None,
) -> Figure:
    """The path of soft tokens among the symbols, in the plane of the first two directions of `basis`.

    Grey letters are the rows of the table; dots are soft tokens, dark first, and arrows lead from each to the next;
    rings mark the ones that were collapsed before being fed back. Draws `steps` of them from step `first` on.
    """
    own = ax is None
    figure, ax = plt.subplots(figsize=(6.4, 5.4), layout="constrained") if own else (ax.figure, ax)
    part = slice(first, first + steps)
    rows = basis.transform(embedding)[:, :2].numpy()
    points = basis.transform(trajectory.vectors[part])[:, :2].numpy()
    colours = plt.get_cmap(COLORMAP)(np.linspace(0, 0.95, len(points)))
    for begin, end, colour in zip(points[:-1], points[1:], colours, strict=False):
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.0, "alpha": 0.55, "connectionstyle": "arc3,rad=0.12"}
        ax.annotate("", end, begin, arrowprops=arrow)
    edges = np.where(trajectory.collapsed[part].numpy(), "black", "white")
    ax.scatter(*points.T, c=colours, s=46, edgecolors=edges, linewidths=1.0, zorder=3)
    _draw_symbols(ax, rows, trajectory.tokens, set(trajectory.token_ids[part].tolist()))
    ax.set(xlabel=axis_label(basis, 0), ylabel=axis_label(basis, 1))
    ax.set_title(title or _title(trajectory, part), fontsize=9, family="monospace", parse_math=False)  # $ is a symbol
    if own:
        plt.close(figure)
    return figure


def _draw_symbols(ax: plt.Axes, rows: np.ndarray, tokens: Sequence[str], shown: set[int]) -> None:
    """Every symbol at its row; the ones the path shows in black."""
    halo = [withStroke(linewidth=3, foreground="white")]
    for i, (x, y) in enumerate(rows):
        style = {"color": "#111111", "weight": "bold", "zorder": 5} if i in shown else {"color": "#b3b8c2", "zorder": 2}
        ax.text(x, y, visible(tokens[i]), ha="center", va="center", fontsize=12, path_effects=halo, **style)
    ax.scatter(*rows.T, s=0)
    ax.margins(0.08)


def _title(trajectory: Trajectory, part: slice, width: int = 44) -> str:
    """The settings, and below them the beginning of what the drawn part says."""
    names = ("collapse", "schedule", "feedback")
    words = "".join(visible(trajectory.tokens[i]) for i in trajectory.token_ids[part].tolist())
    shown = words if len(words) <= width else words[: width - 1] + "…"
    return " · ".join(str(trajectory.settings.get(name)) for name in names) + "\n" + shown


def draw_paths(trajectories: Sequence[Trajectory], basis: PCABasis, embedding, **options) -> Figure:
    """Several paths in the same plane, side by side."""
    figure, axes = plt.subplots(
        1, len(trajectories), figsize=(5.4 * len(trajectories), 5), sharex=True, sharey=True, layout="constrained"
    )
    for ax, trajectory in zip(np.atleast_1d(axes), trajectories, strict=True):
        draw_path(trajectory, basis, embedding, ax=ax, **options)
    plt.close(figure)
    return figure


def draw_history(histories: dict[str, pd.DataFrame], floor: float | None = None) -> Figure:
    """Validation bits per character against training steps, one line a run, with the known floor if there is one."""
    figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for name, history in histories.items():
        ax.plot(history["step"], history["val_bits_per_char"], marker="o", ms=4, label=name)
    if floor is not None:
        ax.axhline(floor, color=GREY, ls="--", lw=1)
        ax.annotate("the floor: the true generator", (1, floor), xycoords=("axes fraction", "data"), ha="right",
                    va="bottom", color=GREY, fontsize=9, xytext=(-4, 2), textcoords="offset points")  # fmt: skip
    ax.set(xlabel="training step", ylabel="bits per character (validation)")
    ax.legend()
    plt.close(figure)
    return figure


def draw_bits(text: str, bits: dict[str, np.ndarray]) -> Figure:
    """What each symbol of `text` costs, in bits: the first predictor as bars, the second as marks on top."""
    figure, ax = plt.subplots(figsize=(10, 2.8), layout="constrained")
    positions = np.arange(len(text))
    (first, costs), *others = bits.items()
    ax.bar(positions, costs, color="#56B4E9", width=0.85, label=first)
    for name, other in others:
        ax.plot(positions, other, color=ACCENT, lw=0, marker="_", ms=6, mew=2, label=name)
    ax.set_xticks(positions, [visible(symbol) for symbol in text], fontsize=7)
    ax.tick_params(axis="x", length=0)
    ax.grid(visible=False, axis="x")
    ax.set(ylabel="bits", xlim=(-1, len(text)))
    ax.legend(ncols=2)
    plt.close(figure)
    return figure


# -- pictures to hover over and to turn -------------------------------------------------------------------------------


TRAIL = 6  # steps before the present one that are drawn in the accent colour


def path_figure(height: int = 440) -> go.FigureWidget:
    """An empty interactive picture; `update_path` fills its traces: path, trail, symbols, each in 2-D and in 3-D."""
    figure = go.FigureWidget()
    for kind, size in ((go.Scatter, 9), (go.Scatter3d, 4)):
        marker = {"size": size, "colorscale": COLORMAP, "line": {"width": 0.6, "color": "white"}}
        faint = {"color": "rgba(110,118,135,0.35)", "width": 1.3}
        figure.add_trace(kind(name="path", mode="lines+markers", line=faint, marker=marker, hoverinfo="text"))
        trail = {"symbol": "circle-open", "color": ACCENT, "line": {"width": 3, "color": ACCENT}}
        strong = {"color": ACCENT, "width": 2.4 if kind is go.Scatter else 5}
        figure.add_trace(kind(name="trail", mode="lines+markers", line=strong, marker=trail, hoverinfo="skip"))
        figure.add_trace(kind(name="symbols", mode="text", textfont={"size": 15, "color": "#111"}, hoverinfo="skip"))
    axis = {"gridcolor": "#eef0f3", "zeroline": False}
    figure.update_layout(
        height=height, margin={"l": 10, "r": 10, "t": 10, "b": 10}, showlegend=False, template="plotly_white",
        xaxis=axis, yaxis=axis, hoverlabel={"font": {"family": "monospace"}}, uirevision="keep",
    )  # fmt: skip
    return figure


def update_path(figure: go.FigureWidget, trajectory: Trajectory, basis: PCABasis, embedding, three: bool) -> None:
    """Put a trajectory into a `path_figure`, in place (a new figure a click would send 5 MB).

    Plotly's widgets stumble over arrays that come back from the browser, so they are given lists.
    """
    rows, points = basis.transform(embedding).tolist(), basis.transform(trajectory.vectors).tolist()
    hovers = [step_hover(trajectory, step) for step in range(len(trajectory))]
    with figure.batch_update():
        for offset, axes, shown in ((0, "xy", not three), (3, "xyz", three)):
            path, trail, symbols = figure.data[offset : offset + 3]
            path.visible = trail.visible = symbols.visible = shown
            if shown:
                for k, axis in enumerate(axes):
                    path[axis], symbols[axis] = [point[k] for point in points], [row[k] for row in rows]
                path.hovertext, path.marker.color = hovers, list(range(len(points)))
                written = visible if three else _plain  # WebGL writes text as it is
                symbols.text = [written(token) for token in trajectory.tokens]
        figure.layout.xaxis.visible = figure.layout.yaxis.visible = not three
        if three:
            figure.layout.scene = {f"{axis}axis": {"title": f"PC {k + 1}"} for k, axis in enumerate("xyz")}
        else:
            figure.layout.xaxis.title.text, figure.layout.yaxis.title.text = axis_label(basis, 0), axis_label(basis, 1)


def update_now(figure: go.FigureWidget, trajectory: Trajectory, basis: PCABasis, step: int, three: bool) -> None:
    """Move the ring of the present step, and the trail that leads to it."""
    points = basis.transform(trajectory.vectors[max(0, step - TRAIL) : step + 1]).tolist()
    trail = figure.data[4 if three else 1]
    with figure.batch_update():
        for k, axis in enumerate("xyz" if three else "xy"):
            trail[axis] = [point[k] for point in points]
        trail.marker.size = [0] * (len(points) - 1) + [10 if three else 20]


def step_hover(trajectory: Trajectory, step: int) -> str:
    """What one step's hover says: symbol, surprise, entropy, distance, the best candidates."""
    bits = -float(trajectory.log_probs[step]) / math.log(2)
    fed = "collapsed" if bool(trajectory.collapsed[step]) else "stays soft"
    best = "  ".join(f"{_plain(c)} {p:.0%}" for c, p in trajectory.candidates(step)[:4])
    symbol = _plain(trajectory.tokens[int(trajectory.token_ids[step])])
    return (
        f"step {step}: <b>{symbol}</b> ({fed})<br>surprise {bits:.2f} bits · entropy "
        f"{float(trajectory.entropy[step]) / math.log(2):.2f} bits<br>distance to the nearest symbol "
        f"{float(trajectory.distance[step]):.2f}<br>{best}"
    )


# -- text as a picture ------------------------------------------------------------------------------------------------


def text_html(trajectory: Trajectory, now: int | None = None) -> str:
    """The text, each symbol's background the redder the more it surprised the model; details on hover."""
    spans = []
    bits = (-trajectory.log_probs / math.log(2)).tolist()
    for t, symbol in enumerate(trajectory.tokens[i] for i in trajectory.token_ids.tolist()):
        shade = min(bits[t] / 8, 1.0) if math.isfinite(bits[t]) else 1.0
        ring = f"outline:2px solid {ACCENT};" if t == now else ""
        line = "" if bool(trajectory.collapsed[t]) else "border-bottom:2px dotted #0072B2;"
        tip = step_hover(trajectory, t).replace("<br>", "\n").replace("<b>", "").replace("</b>", "")
        tip = html.escape(html.unescape(tip))
        mark = "↵<br>" if symbol == "\n" else html.escape(symbol)
        style = f"background:rgba(213,94,0,{0.75 * shade:.2f});{line}{ring}"
        spans.append(f'<span title="{tip}" style="{style}">{mark}</span>')
    return (
        '<div style="font:15px/1.7 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere">'
        f'<span style="color:{GREY}">{html.escape(trajectory.prompt)}</span>{"".join(spans)}</div>'
    )


def candidates_html(trajectory: Trajectory, step: int) -> str:
    """The best candidates of one step as bars."""
    rows = "".join(
        f'<tr><td style="font:15px monospace;padding:0 8px;text-align:center">{_plain(symbol)}</td>'
        f'<td style="width:140px"><div style="background:#0072B2;height:11px;width:{max(1, 140 * p):.0f}px"></div></td>'
        f'<td style="padding-left:6px;font-size:12px">{p:.1%}</td></tr>'
        for symbol, p in trajectory.candidates(step)
    )
    head = step_hover(trajectory, step).rsplit("<br>", 1)[0]
    return f'<div style="font-size:13px;line-height:1.5">{head}</div><table style="margin-top:6px">{rows}</table>'


def history_figure(height: int = 300) -> go.FigureWidget:
    """An empty live picture of a training run: loss of each step, validation bits."""
    figure = go.FigureWidget()
    figure.add_trace(go.Scatter(mode="lines", name="training loss (nats)", line={"color": GREY, "width": 1.2}))
    figure.add_trace(
        go.Scatter(mode="lines+markers", name="validation (bits per character)", line={"color": "#0072B2"})
    )
    figure.update_layout(
        height=height, margin={"l": 10, "r": 10, "t": 10, "b": 10}, template="plotly_white",
        xaxis_title="step", legend={"x": 0.98, "xanchor": "right", "y": 0.98},
    )  # fmt: skip
    return figure
