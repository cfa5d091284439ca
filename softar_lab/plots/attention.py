"""Pictures of attention: one head as a heat map, all heads as small maps, and a text to hover over.

Colours follow the square root of a weight, so that a weight of 0.01 is still visible. Every colour
scale is labelled with the weights themselves.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import plotly.graph_objects as go
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import Rectangle

from .fonts import drawable, finished
from .style import ACCENT, GREY, plain

_TICKS = (0, 0.01, 0.1, 0.3, 0.6, 1)
_BLUES = ((0, "#ffffff"), (0.5, "#7fb8e0"), (1, "#08407e"))


def attention_figure(width: int = 560, height: int = 520) -> go.Figure:
    """An empty heat map of one head; `update_attention` fills it."""
    scale = {
        "tickvals": [w**0.5 for w in _TICKS],
        "ticktext": [f"{w:.0%}" for w in _TICKS],
        "thickness": 10,
    }
    figure = go.Figure(go.Heatmap(zmin=0, zmax=1, colorscale=_BLUES, colorbar=scale, xgap=0.5, ygap=0.5,
        hovertemplate="%{y} looks at %{x}: %{customdata:.1%}<extra></extra>"))  # fmt: skip
    figure.add_shape(type="rect", line={"color": ACCENT, "width": 1.5}, visible=False)
    axis = {"type": "category", "showgrid": False, "zeroline": False}
    figure.update_layout(
        width=width, height=height, margin={"l": 10, "r": 10, "t": 30, "b": 10}, template="plotly_white",
        xaxis={**axis, "side": "top", "title": "is looked at"},
        yaxis={**axis, "autorange": "reversed", "title": "looks"},
        hoverlabel={"font": {"family": "monospace"}},
    )  # fmt: skip
    return figure


def update_attention(
    figure: go.Figure, weights, queries: Sequence[str], keys: Sequence[str]
) -> None:
    """Draw one head: row t of `weights` (T, S) is the attention of `queries[t]` to `keys`."""
    trace = figure.data[0]
    with figure.batch_update():
        trace.x, trace.y = (
            [f"{plain(word)} ({i})" for i, word in enumerate(words)] for words in (keys, queries)
        )
        trace.z, trace.customdata = weights.sqrt().tolist(), weights.tolist()
        for axis, words in ((figure.layout.xaxis, keys), (figure.layout.yaxis, queries)):
            axis.tickvals, axis.ticktext = list(range(len(words))), [plain(word) for word in words]
            axis.tickfont.size = max(6, min(13, 560 // max(1, len(words))))
            axis.tickangle = 0 if max(map(len, words)) < 3 else None


def mark_query(figure: go.Figure, query: int, keys: int) -> None:
    """Frame the row of one query in an `attention_figure`; `keys` is the number of keys."""
    figure.layout.shapes[0].update(
        x0=-0.5, x1=keys - 0.5, y0=query - 0.5, y1=query + 0.5, visible=True
    )


def heads_figure(width: int = 400) -> go.Figure:
    """An empty picture of all heads, one row per layer; `update_heads` fills it."""
    figure = go.Figure(go.Heatmap(zmin=0, zmax=1, colorscale=_BLUES, showscale=False, hoverongaps=False,
        hovertemplate="click to see this head<extra></extra>"))  # fmt: skip
    figure.add_shape(type="rect", line={"color": ACCENT, "width": 2.5}, visible=False)
    axis = {"showgrid": False, "zeroline": False}
    figure.update_layout(
        width=width, height=width, margin={"l": 10, "r": 10, "t": 30, "b": 10}, template="plotly_white",
        plot_bgcolor="#d9dce1", xaxis={**axis, "side": "top", "title": "head"},
        yaxis={**axis, "autorange": "reversed", "title": "layer"},
    )  # fmt: skip
    return figure


def update_heads(figure: go.Figure, tiles, layers: int, heads: int, side: tuple[int, int]) -> None:
    """Draw all heads as small maps in one picture, and number its layers and heads.

    Args:
        tiles: rows of the whole picture, from `widgets.attention.mosaic`; None in the gaps.
        layers: how many maps lie below each other.
        heads: how many maps lie side by side.
        side: height and width of one map in cells, gap included.
    """
    with figure.batch_update():
        figure.data[0].z = tiles
        figure.layout.height = max(
            160, min(620, 60 + 340 * layers * side[0] // max(1, heads * side[1]))
        )
        for axis, count, length in (
            (figure.layout.yaxis, layers, side[0]),
            (figure.layout.xaxis, heads, side[1]),
        ):
            axis.tickvals = [i * length + (length - 2) / 2 for i in range(count)]
            axis.ticktext = [str(i + 1) for i in range(count)]


def mark_head(
    figure: go.Figure, layer: int, head: int | None, heads: int, side: tuple[int, int]
) -> None:
    """Frame one head, or a whole layer where `head` is None; `side` as in `update_heads`."""
    first, last = (0, heads) if head is None else (head, head + 1)
    box = {"x0": first * side[1] - 0.5, "x1": last * side[1] - 1.5}
    figure.layout.shapes[0].update(
        **box, y0=layer * side[0] - 0.5, y1=(layer + 1) * side[0] - 1.5, visible=True
    )


def draw_attention(
    weights, queries: Sequence[str], keys: Sequence[str], layer: int, head: int | None, query: int
) -> Figure:
    """The still picture: all heads small, one head large, the text with one query's weights.

    Args:
        weights: (layers, heads, T, S), the attention of T queries to S keys.
        layer: the layer of the large map, from 0.
        head: its head, from 0; None for the mean of the layer's heads.
        query: the query (0 … T - 1) that is framed, and whose weights colour the text.
    """
    figure = plt.figure(figsize=(10.4, 6.0), layout="constrained")
    places = figure.add_gridspec(2, 2, height_ratios=(6, 1), width_ratios=(1, 1.25))
    # 1) all heads as small maps
    _draw_heads(figure, places[0, 0], weights, layer, head)
    # 2) the chosen head as a large map
    chosen = weights[layer].mean(0) if head is None else weights[layer, head]  # (T, S)
    ax = figure.add_subplot(places[0, 1])
    _draw_head(ax, chosen, queries, keys, query)
    name = "mean of all heads" if head is None else f"head {head + 1}"
    ax.set_title(f"layer {layer + 1}, {name}", fontsize=10)
    # 3) the text below both
    _draw_text(figure.add_subplot(places[1, :]), chosen, queries, keys, query)
    return finished(figure)


def _look() -> dict[str, Any]:
    """How matplotlib draws a map of weights."""
    norm = PowerNorm(0.5, 0, 1)
    return {"cmap": "Blues", "norm": norm, "aspect": "auto", "interpolation": "nearest"}


def _draw_heads(figure: Figure, place: SubplotSpec, weights, layer: int, head: int | None) -> None:
    """Draw all heads as small maps; the chosen head, or its whole layer, is framed."""
    layers, heads = weights.shape[:2]
    look = _look()
    grid = place.subgridspec(layers, heads, wspace=0.06, hspace=0.06)
    for i in range(layers):
        for j in range(heads):
            ax = figure.add_subplot(grid[i, j])
            ax.imshow(weights[i, j], **look)
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
            # 1) the frame
            chosen = i == layer and head in (j, None)
            colour, width = (ACCENT, 2) if chosen else ("#d9dce1", 0.8)
            for spine in ax.spines.values():
                spine.set(visible=True, color=colour, linewidth=width)
            # 2) numbers at the upper and the left edge
            if i == 0:
                ax.set_title(f"head {j + 1}" if j == 0 else str(j + 1), fontsize=9)
            if j == 0:
                ax.set_ylabel(f"layer {i + 1}" if i == 0 else str(i + 1), fontsize=9)


def _draw_head(
    ax: plt.Axes, weights, queries: Sequence[str], keys: Sequence[str], query: int
) -> None:
    """Draw one head as a large map (T, S), with a frame around the row of one query."""
    image = ax.imshow(weights, **_look())
    ax.grid(visible=False)
    size = max(4, min(10, 320 // max(len(keys), len(queries))))
    ax.set_xticks(range(len(keys)), [drawable(word) for word in keys], fontsize=size)
    ax.set_yticks(range(len(queries)), [drawable(word) for word in queries], fontsize=size)
    ax.tick_params(length=0)
    ax.add_patch(Rectangle((-0.5, query - 0.5), len(keys), 1, fill=False, edgecolor=ACCENT, lw=1.4))
    ax.set(xlabel="is looked at", ylabel="looks")
    ax.figure.colorbar(image, ax=ax, ticks=_TICKS, format=lambda w, _: f"{w:.0%}", fraction=0.04)


def _draw_text(
    ax: plt.Axes, weights, queries: Sequence[str], keys: Sequence[str], query: int
) -> None:
    """Draw the keys as a text, each on the colour of its weight for one query."""
    ax.set_axis_off()
    colours, norm = plt.get_cmap("Blues"), PowerNorm(0.5, 0, 1)
    ax.set_title(f"where {drawable(queries[query])} ({query}) looks", fontsize=10, loc="left")
    wide = min(96, max(40, sum(len(drawable(word)) for word in keys)))
    x = y = 0
    for i, word in enumerate(keys):
        width = max(1, len(drawable(word)))
        if x + width > wide:  # the word begins a new line
            x, y = 0, y + 1
        share = float(weights[query, i])
        ax.add_patch(Rectangle((x, y), width, 1, color=colours(norm(share)), lw=0))
        # white on a dark colour; grey for keys that come later in the same text
        ink = (
            "white" if share > 0.3 else GREY if len(keys) == len(queries) and i > query else "#222"
        )
        ax.text(x + width / 2, y + 0.5, drawable(word), ha="center", va="center", fontsize=9, family="monospace",
                color=ink, parse_math=False)  # fmt: skip
        x += width
    ax.set(xlim=(0, wide), ylim=(max(2, y + 1), 0))
