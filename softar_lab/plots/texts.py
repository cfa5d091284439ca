"""Text as HTML, in which each symbol gives its details on hover."""

import html
import math
from collections.abc import Sequence

from ..core.trajectory import Trajectory
from .style import ACCENT, GREY, plain


def step_hover(trajectory: Trajectory, step: int) -> str:
    """The hover text of one step: symbol, surprise, entropy, distance, the best candidates."""
    bits = -float(trajectory.log_probs[step]) / math.log(2)
    fed = "collapsed" if bool(trajectory.collapsed[step]) else "stays soft"
    best = "  ".join(f"{plain(c)} {p:.0%}" for c, p in trajectory.candidates(step)[:4])
    symbol = plain(trajectory.tokens[int(trajectory.token_ids[step])])
    return (
        f"step {step}: <b>{symbol}</b> ({fed})<br>surprise {bits:.2f} bits · entropy "
        f"{float(trajectory.entropy[step]) / math.log(2):.2f} bits<br>distance to the nearest symbol "
        f"{float(trajectory.distance[step]):.2f}<br>{best}"
    )


def _tip(trajectory: Trajectory, step: int) -> str:
    """The hover text of a step as the value of an HTML attribute."""
    tip = step_hover(trajectory, step).replace("<br>", "\n").replace("<b>", "").replace("</b>", "")
    return html.escape(html.unescape(tip))


def _page(prompt: str, spans: list[str]) -> str:
    return (
        '<div style="font:15px/1.7 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere">'
        f'<span style="color:{GREY}">{html.escape(prompt)}</span>{"".join(spans)}</div>'
    )


def text_html(trajectory: Trajectory, now: int | None = None) -> str:
    """The text; the more a symbol surprised the model, the redder its background; details on hover.

    A dotted line marks symbols whose token stays soft; a ring marks the step `now`.
    """
    spans = []
    bits = (-trajectory.log_probs / math.log(2)).tolist()
    for t, symbol in enumerate(trajectory.tokens[i] for i in trajectory.token_ids.tolist()):
        shade = min(bits[t] / 8, 1.0) if math.isfinite(bits[t]) else 1.0
        ring = f"outline:2px solid {ACCENT};" if t == now else ""
        line = "" if bool(trajectory.collapsed[t]) else "border-bottom:2px dotted #0072B2;"
        style = f"background:rgba(213,94,0,{0.75 * shade:.2f});{line}{ring}"
        spans.append(
            f'<span title="{_tip(trajectory, t)}" style="{style}">{_letter(symbol)}</span>'
        )
    return _page(trajectory.prompt, spans)


def _letter(symbol: str) -> str:
    return "↵<br>" if symbol == "\n" else html.escape(symbol)


def difference_html(trajectory: Trajectory, differs: Sequence[bool], colour: str) -> str:
    """The text, with the symbols that differ in bold, underlined, on a tint; details on hover.

    `differs`: one bool per step. `colour`: the tint, #rrggbb.
    """
    marked = f"background:{colour}2e;border-bottom:2px solid {colour};font-weight:bold"
    spans = []
    for t, symbol in enumerate(trajectory.tokens[i] for i in trajectory.token_ids.tolist()):
        style = marked if differs[t] else ""
        letter = "␣<wbr>" if differs[t] and symbol == " " else _letter(symbol)
        spans.append(f'<span title="{_tip(trajectory, t)}" style="{style}">{letter}</span>')
    return _page(trajectory.prompt, spans)


def candidates_html(trajectory: Trajectory, step: int) -> str:
    """The best candidates of one step as bars."""
    rows = "".join(
        f'<tr><td style="font:15px monospace;padding:0 8px;text-align:center">{plain(symbol)}</td>'
        f'<td style="width:140px"><div style="background:#0072B2;height:11px;width:{max(1, 140 * p):.0f}px"></div></td>'
        f'<td style="padding-left:6px;font-size:12px">{p:.1%}</td></tr>'
        for symbol, p in trajectory.candidates(step)
    )
    head = step_hover(trajectory, step).rsplit("<br>", 1)[0]
    return f'<div style="font-size:13px;line-height:1.5">{head}</div><table style="margin-top:6px">{rows}</table>'
