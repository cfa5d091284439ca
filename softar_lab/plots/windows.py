"""A structured window as a strip: every character in the colour of its slot."""

import html
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from .fonts import drawable, finished
from .style import GREY

SLOT_COLOURS = {
    "lost": "#e3e5e8",
    "aggregate": "#CC79A7",
    "segment": "#E69F00",
    "hard": "#56B4E9",
    "soft": "#009E73",
    "unread": "#ffffff",
}


def slot_colour(part: str) -> str:
    """The colour of a slot by its name: "aggregate", "segment 2", "hard" …

    Even segments are darker, so that neighbours differ.
    """
    kind, _, number = part.partition(" ")
    return "#B87400" if kind == "segment" and int(number) % 2 == 0 else SLOT_COLOURS[kind]


def window_html(text: Sequence[str], parts: Sequence[str]) -> str:
    """The text with every character on the colour of its slot.

    Letters are grey where the character is lost or not read yet.
    """
    spans = []
    for i, symbol in enumerate(text):
        part = parts[i] if i < len(parts) else "unread"
        tone = f"color:{GREY};" if part in ("unread", "lost") else ""
        letter = "↵" if symbol == "\n" else html.escape(symbol)
        spans.append(
            f'<span title="{part}" style="{tone}background:{slot_colour(part)}99">{letter}</span>'
        )
    mono = "font:15px/1.8 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere"
    return f'<div style="{mono}">{"".join(spans)}</div>'


def slots_html(names: Sequence[tuple[str, int]]) -> str:
    """The window as boxes in a row: (name of the content, number of slots) per box."""
    boxes = "".join(
        f'<div style="flex:{max(2, count)} 1 0;min-width:76px;background:{slot_colour(name)}99;padding:4px 6px;'
        f'border:1px solid white;font-size:12px;text-align:center">{name}<br><b>{count}</b></div>'
        for name, count in names
        if count
    )
    return f'<div style="display:flex;width:100%;max-width:820px">{boxes}</div>'


def answers_html(answers: Mapping[str, tuple[float, str]], truth: str) -> str:
    """The answers to a question, one row per condition.

    Each row has the condition's name, p of the true answer as a bar, and the greedy answer.
    """
    rows = "".join(
        f'<tr><td style="padding-right:12px">{html.escape(name)}</td>'
        f'<td style="width:160px"><div style="background:#0072B2;height:11px;width:{max(1, 160 * p):.0f}px"></div></td>'
        f'<td style="padding:0 12px">{p:.1%}</td><td style="font-family:monospace">{html.escape(text)}</td></tr>'
        for name, (p, text) in answers.items()
    )
    return f'<div style="margin-top:6px">the truth: <b>{html.escape(truth)}</b></div><table>{rows}</table>'


def draw_window(
    text: Sequence[str], parts: Sequence[str], title: str = "", width: int = 72
) -> Figure:
    """The strip of `window_html` as a still picture; a legend names the slots.

    `width`: characters per line.
    """
    lines = -(-len(text) // width)
    figure, ax = plt.subplots(figsize=(9.6, 0.75 + 0.27 * lines), layout="constrained")
    seen: dict[str, str] = {}
    for i, symbol in enumerate(text):
        part = parts[i] if i < len(parts) else "unread"
        x, y, colour = i % width, -(i // width), slot_colour(part)
        if part != "unread":
            seen.setdefault(part, colour)
            ax.add_patch(plt.Rectangle((x - 0.5, y - 0.45), 1, 0.9, color=colour, alpha=0.6, lw=0))
        tone = GREY if part in ("unread", "lost") else "black"
        ax.text(x, y, drawable(symbol) if symbol != " " else "", ha="center", va="center", family="monospace",
                fontsize=8.5, color=tone)  # fmt: skip
    ax.set(xlim=(-0.6, width - 0.4), ylim=(-lines + 0.45, 0.55))
    ax.set_axis_off()
    marks = [plt.Rectangle((0, 0), 1, 1, color=colour, alpha=0.6) for colour in seen.values()]
    figure.legend(
        marks, seen, loc="outside lower center", ncols=max(1, len(seen)), frameon=False, fontsize=9
    )
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return finished(figure)
