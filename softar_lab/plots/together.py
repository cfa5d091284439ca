"""Several settings in one picture: their paths among the symbols, and their drift below.

Each setting has its own colour and mark.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from ..core.palette import COLOURS
from ..core.trajectory import Trajectory
from ..metrics.pca import PCABasis
from .fonts import finished
from .interactive import plane_layout
from .paths import draw_symbols
from .style import ACCENT, axis_label, plain, written_ids
from .texts import step_hover

SETTINGS = COLOURS[:4]  # of settings A, B, C, D
_MARKS = (  # of the same settings, in plotly and in matplotlib
    ("circle", "o"),
    ("diamond", "D"),
    ("square", "s"),
    ("triangle-up", "^"),
)
FLOOR = 1e-3  # nats: a smaller drift is drawn at this value, near the lower edge
DRIFT = "KL(judge ‖ model), nats"


def together_figure(width: int = 980, height: int = 520) -> go.Figure:
    """An empty plane for four paths; `update_together` and `update_symbols` fill it.

    Its traces are the four lines to the output symbols, the four paths, and the symbols.
    """
    figure = go.Figure()
    for name, colour in zip("ABCD", SETTINGS, strict=True):
        line = {"color": colour, "width": 1, "dash": "dot"}
        figure.add_trace(go.Scatter(name=f"reading {name}", mode="lines", line=line, opacity=0.55, hoverinfo="skip",
                                    showlegend=False, legendgroup=name, visible=False))  # fmt: skip
    for name, colour, (mark, _) in zip("ABCD", SETTINGS, _MARKS, strict=True):
        marker = {
            "size": 8,
            "color": colour,
            "symbol": mark,
            "opacity": 0.75,
            "line": {"width": 0.8, "color": "white"},
        }
        line = {"color": _faint(colour), "width": 1}
        figure.add_trace(go.Scatter(name=name, mode="lines+markers", line=line, marker=marker, hoverinfo="text",
                                    showlegend=True, legendgroup=name, visible=False))  # fmt: skip
    figure.add_trace(go.Scatter(name="symbols", mode="text", textfont={"size": 16, "color": "#111"}, hoverinfo="skip",
                                showlegend=False))  # fmt: skip
    figure.update_layout(plane_layout(height), width=width, showlegend=True, legend=_LEGEND)
    return figure


_LEGEND = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "itemclick": "toggle"}


def update_symbols(
    figure: go.Figure,
    basis: PCABasis,
    embedding,
    tokens: Sequence[str],
    paths: Sequence[Trajectory] = (),
) -> None:
    """Write the symbols of a table (V, m) into a `together_figure`, and name its axes.

    Of a large table, only the symbols that `paths` emit are written.
    """
    ids = written_ids(len(embedding), *(path.token_ids for path in paths))
    symbols, rows = figure.data[8], basis.transform(embedding[ids]).tolist()
    with figure.batch_update():
        symbols.x, symbols.y = [row[0] for row in rows], [row[1] for row in rows]
        symbols.text = [plain(tokens[i]) for i in ids]
        figure.layout.xaxis.title.text, figure.layout.yaxis.title.text = (
            axis_label(basis, 0),
            axis_label(basis, 1),
        )


def update_together(
    figure: go.Figure,
    which: int,
    trajectory: Trajectory | None,
    basis: PCABasis | None,
    embedding,
    part: slice = slice(None),
) -> None:
    """Draw the path of setting `which` (0 … 3) in place, or hide it where `trajectory` is None.

    Dotted lines lead from soft tokens to their output symbols. `part`: the steps to draw.
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
            # None ends each line
            reading[axis] = [
                end for a, b in zip(points, read, strict=True) for end in (a[k], b[k], None)
            ]
        path.hovertext = [
            f"{path.name}, {step_hover(trajectory, t)}" for t in range(len(trajectory))[part]
        ]


def drift_figure(width: int = 980, height: int = 230) -> go.Figure:
    """An empty picture of drift, step by step; `update_drift` fills its four lines."""
    figure = go.Figure()
    for name, colour, (mark, _) in zip("ABCD", SETTINGS, _MARKS, strict=True):
        marker = {"size": 4, "symbol": mark, "color": colour}
        figure.add_trace(go.Scatter(name=name, mode="lines+markers", line={"color": colour, "width": 1.4},
                                    marker=marker, connectgaps=False, customdata=[], visible=False,
                                    hovertemplate="step %{x}: %{customdata:.3g} nats"))  # fmt: skip
    figure.add_hline(0.1, line={"color": ACCENT, "width": 1, "dash": "dash"})
    ticks = {
        "tickvals": [0.001, 0.01, 0.1, 1, 10],
        "ticktext": ["≤ 0.001", "0.01", "0.1", "1", "10"],
    }
    figure.update_layout(
        width=width, height=height, margin={"l": 10, "r": 10, "t": 6, "b": 10}, template="plotly_white",
        showlegend=False,
        xaxis_title="step", yaxis={"type": "log", "title": DRIFT, "range": [np.log10(FLOOR) - 0.1, 1.4], **ticks},
    )  # fmt: skip
    return figure


def update_drift(figure: go.Figure, which: int, kl: Sequence[float] | None) -> None:
    """Draw the drift `kl` of setting `which` in nats, or hide its line where `kl` is None.

    A step whose drift is infinite or unknown is a gap.
    """
    line = figure.data[which]
    with figure.batch_update():
        line.visible = kl is not None
        line.x, line.y = list(range(len(kl or ()))), drawn_drift(kl or ())
        line.customdata = list(kl or ())


def drawn_drift(kl: Sequence[float]) -> list[float | None]:
    """The drift as it is drawn: at least FLOOR, and None for a gap."""
    return [max(value, FLOOR) if np.isfinite(value) else None for value in kl]


def draw_together(
    trajectories: dict[str, Trajectory],
    basis: PCABasis | None,
    embedding,
    drift: dict[str, Sequence[float]],
    part: slice = slice(None),
) -> Figure:
    """The still picture: paths by setting name ("A" … "D") in one plane, and their drift below.

    Args:
        trajectories: one path per setting; none leaves the plane empty.
        basis: the plane; None only where `trajectories` is empty.
        embedding: the table (V, m).
        drift: nats per step, by setting name.
        part: the steps whose soft tokens are drawn; the drift is drawn at all steps.
    """
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7.4, 7.6), height_ratios=(3, 1), layout="constrained"
    )  # fmt: skip
    _draw_paths(above, trajectories, basis, embedding, part)
    _draw_drift(below, drift)
    return finished(figure)


def _draw_paths(
    ax: plt.Axes,
    trajectories: dict[str, Trajectory],
    basis: PCABasis | None,
    embedding,
    part: slice,
) -> None:
    """Draw the paths, and the symbols around them."""
    if not trajectories:
        ax.set_axis_off()
        return
    # 1) the steps of each path
    for name, path in trajectories.items():
        which = "ABCD".index(name)
        colour, mark = SETTINGS[which], _MARKS[which][1]
        points = basis.transform(path.vectors[part])[:, :2].numpy()
        ax.plot(*points.T, color=colour, lw=0.8, alpha=0.3)
        ax.scatter(*points.T, s=22, marker=mark, color=colour, alpha=0.7, lw=0, label=name)
    # 2) the symbols; those that a path emits stand out
    emitted = {i for path in trajectories.values() for i in path.token_ids[part].tolist()}
    rows = basis.transform(embedding)[:, :2].numpy()
    draw_symbols(ax, rows, next(iter(trajectories.values())).tokens, emitted)
    # 3) the axes
    ax.set(xlabel=axis_label(basis, 0), ylabel=axis_label(basis, 1))
    ax.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)


def _draw_drift(ax: plt.Axes, drift: dict[str, Sequence[float]]) -> None:
    """Draw the drift of each setting, and a dashed line at 0.1 nats."""
    for name, kl in drift.items():
        which = "ABCD".index(name)
        line = [np.nan if value is None else value for value in drawn_drift(kl)]
        ax.plot(line, color=SETTINGS[which], marker=_MARKS[which][1], ms=2.5, lw=1.2, label=name)
    ax.axhline(0.1, color=ACCENT, ls="--", lw=1)
    # before the scale: a logarithmic axis finds no limits of its own where all values are equal
    ax.set_ylim(FLOOR * 0.8, 30)
    ax.set(yscale="log", xlabel="step", ylabel=DRIFT)


def _faint(colour: str) -> str:
    """A colour #rrggbb, made nearly transparent."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.22)"
