"""Several settings in one picture, a colour and a mark each: their paths among the symbols, their drift below."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from ..analysis.geometry import PCABasis
from ..evidence import COLOURS
from ..generation.trajectory import Trajectory
from .interactive import plane_layout
from .look import ACCENT, axis_label, plain, written_ids
from .paths import draw_symbols
from .texts import step_hover

SETTINGS = COLOURS[:4]  # of settings A, B, C, D
_MARKS = (("circle", "o"), ("diamond", "D"), ("square", "s"), ("triangle-up", "^"))  # in plotly and in matplotlib
FLOOR = 1e-3  # nats: less drift than this is drawn at the lower edge
DRIFT = "KL(judge ‖ model), nats"


def together_figure(width: int = 980, height: int = 520) -> go.FigureWidget:
    """An empty plane for four paths, to be filled by `update_together`: all readings, all paths, the symbols."""
    figure = go.FigureWidget()
    for name, colour in zip("ABCD", SETTINGS, strict=True):
        line = {"color": colour, "width": 1, "dash": "dot"}
        figure.add_trace(go.Scatter(name=f"reading {name}", mode="lines", line=line, opacity=0.55, hoverinfo="skip",
                                    showlegend=False, legendgroup=name, visible=False))  # fmt: skip
    for name, colour, (mark, _) in zip("ABCD", SETTINGS, _MARKS, strict=True):
        marker = {"size": 8, "color": colour, "symbol": mark, "opacity": 0.75, "line": {"width": 0.8, "color": "white"}}
        line = {"color": _faint(colour), "width": 1}
        figure.add_trace(go.Scatter(name=name, mode="lines+markers", line=line, marker=marker, hoverinfo="text",
                                    showlegend=True, legendgroup=name, visible=False))  # fmt: skip
    figure.add_trace(go.Scatter(name="symbols", mode="text", textfont={"size": 16, "color": "#111"}, hoverinfo="skip",
                                showlegend=False))  # fmt: skip
    figure.update_layout(plane_layout(height), width=width, showlegend=True, legend=_LEGEND)
    return figure


_LEGEND = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "itemclick": "toggle"}


def update_symbols(
    figure: go.FigureWidget, basis: PCABasis, embedding, tokens: Sequence[str], paths: Sequence[Trajectory] = ()
) -> None:
    """Put the rows of a table (V, m) into a `together_figure` as letters, and name its axes.

    Of a large table only those symbols that `paths` show.
    """
    ids = written_ids(len(embedding), *(path.token_ids for path in paths))
    symbols, rows = figure.data[8], basis.transform(embedding[ids]).tolist()
    with figure.batch_update():
        symbols.x, symbols.y = [row[0] for row in rows], [row[1] for row in rows]
        symbols.text = [plain(tokens[i]) for i in ids]
        figure.layout.xaxis.title.text, figure.layout.yaxis.title.text = axis_label(basis, 0), axis_label(basis, 1)


def update_together(
    figure: go.FigureWidget,
    which: int,
    trajectory: Trajectory | None,
    basis: PCABasis | None,
    embedding,
    part: slice = slice(None),
) -> None:
    """Draw the path of setting `which` (0 … 3) in place, or take it away (None). `part`: the steps that are drawn.

    Dotted lines lead from soft tokens to the symbols that were read off them.
    """
    reading, path = figure.data[which], figure.data[4 + which]
    with figure.batch_update():
        reading.visible = path.visible = trajectory is not None
        if trajectory is None:
            return
        points = basis.transform(trajectory.vectors[part]).tolist()
        read = basis.transform(embedding[trajectory.token_ids[part].to(embedding.device)]).tolist()
        for k, axis in enumerate("xy"):
            path[axis] = [point[k] for point in points]
            reading[axis] = [end for a, b in zip(points, read, strict=True) for end in (a[k], b[k], None)]
        path.hovertext = [f"{path.name}, {step_hover(trajectory, t)}" for t in range(len(trajectory))[part]]


def drift_figure(width: int = 980, height: int = 230) -> go.FigureWidget:
    """An empty picture of drift, step by step; `update_drift` fills its four lines."""
    figure = go.FigureWidget()
    for name, colour, (mark, _) in zip("ABCD", SETTINGS, _MARKS, strict=True):
        marker = {"size": 4, "symbol": mark, "color": colour}
        figure.add_trace(go.Scatter(name=name, mode="lines+markers", line={"color": colour, "width": 1.4},
                                    marker=marker, connectgaps=False, customdata=[], visible=False,
                                    hovertemplate="step %{x}: %{customdata:.3g} nats"))  # fmt: skip
    figure.add_hline(0.1, line={"color": ACCENT, "width": 1, "dash": "dash"})
    ticks = {"tickvals": [0.001, 0.01, 0.1, 1, 10], "ticktext": ["≤ 0.001", "0.01", "0.1", "1", "10"]}
    figure.update_layout(
        width=width, height=height, margin={"l": 10, "r": 10, "t": 6, "b": 10}, template="plotly_white",
        showlegend=False,
        xaxis_title="step", yaxis={"type": "log", "title": DRIFT, "range": [np.log10(FLOOR) - 0.1, 1.4], **ticks},
    )  # fmt: skip
    return figure


def update_drift(figure: go.FigureWidget, which: int, kl: Sequence[float] | None) -> None:
    """Draw the drift of setting `which` in nats; a step where it is infinite or unknown is a gap. None: no line."""
    line = figure.data[which]
    with figure.batch_update():
        line.visible = kl is not None
        line.x, line.y = list(range(len(kl or ()))), drawn_drift(kl or ())
        line.customdata = list(kl or ())


def drawn_drift(kl: Sequence[float]) -> list[float | None]:
    """What is drawn: no less than FLOOR, and None for a gap."""
    return [max(value, FLOOR) if np.isfinite(value) else None for value in kl]


def draw_together(
    trajectories: dict[str, Trajectory],
    basis: PCABasis | None,
    embedding,
    drift: dict[str, Sequence[float]],
    part: slice = slice(None),
) -> Figure:
    """The still picture of both: paths by setting name ("A" … "D") in one plane, and below it the drift in nats.

    `part`: the steps whose soft tokens are drawn.
    """
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7.4, 7.6), height_ratios=(3, 1), layout="constrained"
    )  # fmt: skip
    for name, path in trajectories.items():
        which = "ABCD".index(name)
        points = basis.transform(path.vectors[part])[:, :2].numpy()
        above.plot(*points.T, color=SETTINGS[which], lw=0.8, alpha=0.3)
        above.scatter(*points.T, s=22, marker=_MARKS[which][1], color=SETTINGS[which], alpha=0.7, lw=0, label=name)
    if trajectories:
        shown = {i for path in trajectories.values() for i in path.token_ids[part].tolist()}
        rows = basis.transform(embedding)[:, :2].numpy()
        draw_symbols(above, rows, next(iter(trajectories.values())).tokens, shown)
        above.set(xlabel=axis_label(basis, 0), ylabel=axis_label(basis, 1))
        above.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    else:
        above.set_axis_off()
    for name, kl in drift.items():
        which = "ABCD".index(name)
        line = [np.nan if value is None else value for value in drawn_drift(kl)]
        below.plot(line, color=SETTINGS[which], marker=_MARKS[which][1], ms=2.5, lw=1.2, label=name)
    below.axhline(0.1, color=ACCENT, ls="--", lw=1)
    below.set_ylim(FLOOR * 0.8, 30)  # first: a logarithmic axis has no limits of its own where all is alike
    below.set(yscale="log", xlabel="step", ylabel=DRIFT)
    plt.close(figure)
    return figure


def _faint(colour: str) -> str:
    """A colour of #rrggbb, nearly transparent."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.22)"
