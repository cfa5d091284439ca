"""A text cut into tokens, as a picture: the characters of each token, its id and its table row."""

import html
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .fonts import drawable, finished
from .style import plain

TINTS = ("#cfe3f1", "#fbdcc4", "#cdebe0", "#f3dce9", "#fbe8bd", "#dbeffb")
SHADES = plt.get_cmap("RdBu_r")


def _shade(value: float, limit: float) -> str:
    red, green, blue, _ = SHADES(0.5 + 0.5 * value / limit, bytes=True)
    return f"#{red:02x}{green:02x}{blue:02x}"


def tokens_html(
    name: str, pieces: Sequence[str], ids: Sequence[int], rows: np.ndarray | None, known: int = 0
) -> str:
    """Tokens side by side, each on a tint; below each its id and the start of its table row.

    The same token has the same tint everywhere. Numbers are bars from blue (negative) to red.

    Args:
        pieces: the T tokens, each as a string.
        ids: their ids.
        rows: the first n numbers of their rows (T, n); None draws no bars.
        known: how many tokens are left out at the end.
    """
    limit = 1e-9 + (0 if rows is None or not rows.size else float(np.abs(rows).max()))
    cells = []
    for t, (piece, i) in enumerate(zip(pieces, ids, strict=True)):
        bars = "".join(
            f'<div title="number {k}: {value:+.2f}" style="height:7px;background:{_shade(value, limit)}"></div>'
            for k, value in enumerate(() if rows is None else rows[t].tolist())
        )
        cells.append(
            f'<div style="display:inline-block;vertical-align:top;margin:0 2px 8px 0;text-align:center;min-width:17px">'
            f'<div style="font:15px/1.6 ui-monospace,monospace;background:{TINTS[i % len(TINTS)]};color:#111;'
            f'padding:0 3px;border-radius:3px">{"".join(map(plain, piece))}</div>'
            f'<div style="font-size:10px;color:#5a606e">{i}</div>{bars}</div>'
        )
    more = f'<span style="color:#5a606e"> … and {known} more</span>' if known else ""
    return f'<div style="margin:6px 0"><b>{html.escape(name)}</b><div>{"".join(cells)}{more}</div></div>'


def draw_tokens(cuts: dict[str, tuple[Sequence[str], Sequence[int]]], width: int = 64) -> Figure:
    """One text as several tokenizers cut it: one line per tokenizer, tinted tokens, ids below.

    `cuts`: (tokens, ids) by tokenizer name. `width`: the most characters per line.
    """
    figure, ax = plt.subplots(figsize=(10, 0.3 + 0.62 * len(cuts)), layout="constrained")
    for line, (name, (pieces, ids)) in enumerate(cuts.items()):
        x = 0.0
        for piece, i in zip(pieces, ids):
            shown = "".join(map(drawable, piece))
            wide = len(shown)
            if x + wide > width:  # the line is full
                ax.text(x + 0.2, -line, "…", va="center")
                break
            ax.add_patch(
                Rectangle(
                    (x + 0.05, -line - 0.26), wide - 0.1, 0.56, color=TINTS[i % len(TINTS)], lw=0
                )
            )
            ax.text(
                x + wide / 2,
                0.04 - line,
                shown,
                ha="center",
                va="center",
                family="monospace",
                fontsize=11,
            )
            ax.text(
                x + wide / 2,
                -line - 0.42,
                str(i),
                ha="center",
                va="center",
                fontsize=6.5,
                color="#5a606e",
            )
            x += wide
        ax.text(-0.6, -line, name, ha="right", va="center", fontsize=10)
    ax.set(xlim=(-11, width + 1), ylim=(0.45 - len(cuts), 0.5))
    ax.axis("off")
    return finished(figure)


def draw_rows(
    tables: dict[str, np.ndarray], names: Sequence[str], limit: float | None = None
) -> Figure:
    """Tables as grids of coloured squares, one square per number: blue below zero, red above.

    Args:
        tables: arrays (n, m) by title.
        names: the n names of the rows.
        limit: the number with full colour; None takes the largest size in each table.
    """
    figure, axes = plt.subplots(
        1,
        len(tables),
        figsize=(1.2 + 3.6 * len(tables), 0.7 + 0.24 * len(names)),
        layout="constrained",
        squeeze=False,
    )
    for ax, (title, rows) in zip(axes[0], tables.items()):
        most = limit or float(np.abs(rows).max())
        ax.imshow(rows, cmap=SHADES, vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
        ax.set_yticks(
            range(len(names)), ["".join(map(drawable, name)) for name in names], family="monospace"
        )
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.set_xlabel("number in the row")
        ax.set_title(title, fontsize=10)
    return finished(figure)


def draw_neighbours(similar: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Cosine of the table rows of each two tokens (V, V): −1 is opposite, 1 the same direction."""
    size = 0.8 + 0.19 * len(names)
    figure, ax = plt.subplots(figsize=(size + 0.8, size), layout="constrained")
    image = ax.imshow(similar, cmap=SHADES, vmin=-1, vmax=1, interpolation="nearest")
    shown = ["".join(map(drawable, name)) for name in names]
    ax.set_xticks(range(len(names)), shown, family="monospace", fontsize=9)
    ax.set_yticks(range(len(names)), shown, family="monospace", fontsize=9)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    figure.colorbar(image, ax=ax, shrink=0.6, label="cosine")
    ax.set_title(title, fontsize=10)
    return finished(figure)
