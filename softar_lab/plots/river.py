"""The river of a trajectory: one column per step, its candidates stacked by probability."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..core.trajectory import Trajectory
from .style import ACCENT, visible

# Of the candidates, the chosen one first; soft: all of them are read on, hard: only the chosen one.
SOFT_SHADES = ("#0072B2", "#56B4E9", "#8CCBF0", "#B5DEF6", "#D3EBF9")
HARD_SHADES = ("#0072B2", "#B9D6E8", "#CFE2EE", "#DFECF4", "#EBF3F8")
HEAT = LinearSegmentedColormap.from_list("distance", ["#FFFFCC", "#FEB24C", "#F03B20", "#800026"])
TAIL, START = 24, 400  # characters of a prompt that a river shows beside its columns, and above


def river_state(
    trajectories: Mapping[str, Trajectory],
    spell: Callable[[str], str] = str,
    strip: Mapping[str, torch.Tensor] | None = None,
    strip_name: str = "distance",
    stale: Collection[str] = (),
) -> dict[str, Any]:
    """What a river shows of trajectories of one vocabulary, as plain lists and numbers.

    Args:
        trajectories: by name; they share the x axis, so they should share the prompt, too.
        spell: the text of a symbol, where it is not the symbol itself.
        strip: a number (T,) per step and trajectory, drawn below the columns from pale to dark, and
            nothing below a trajectory that it does not name; None: the distance of the soft token
            to the closest row.
        strip_name: what these numbers are.
        stale: the names of trajectories that were written for other choices.

    Returns:
        `tokens`, the symbols that occur, and `symbols`, their spelling; `rivers`, for each
        trajectory its `name`, the chosen `ids`, the candidates `top` of at least 0.05 % and their
        probabilities `p` in thousandths, whether a step is `soft`, the `forced` steps, and the
        numbers of the `strip`; `pieces`, the text of each step where it is not its symbol; `stale`,
        whether it was written for other choices; `shared`, how many steps all have in common; the
        `prompt`'s end, and `start`, more of it.
    """
    some = list(trajectories.values())
    if strip is None:
        strip = {name: one.distance for name, one in trajectories.items()}
    unknown = {name: torch.full((len(one),), math.nan) for name, one in trajectories.items()}
    strip = {**unknown, **strip}
    numbers: dict[str, int] = {}  # of the symbols that occur
    rivers = [_river(name, one, strip[name], numbers) for name, one in trajectories.items()]
    for river, one in zip(rivers, some, strict=True):
        river["pieces"] = _pieces(one, spell)
        river["stale"] = river["name"] in stale
    known = [x for river in rivers for x in river["strip"] if x is not None]
    return {
        "tokens": list(numbers),
        "symbols": ["".join(map(visible, spell(symbol))) for symbol in numbers],
        "rivers": rivers,
        "shared": shared_steps(some),
        "prompt": "".join(map(visible, _tail(some[0].prompt, spell, TAIL))) if some else "",
        "start": _tail(some[0].prompt, spell, START) if some else "",
        "strip": {"name": strip_name, "most": max(0.0, *known) or 1.0} if known else None,
    }


def _river(
    name: str, trajectory: Trajectory, strip: torch.Tensor, numbers: dict[str, int]
) -> dict[str, Any]:
    """One trajectory as `river_state` has it; new symbols are added to `numbers`."""

    def number(token_id: int) -> int:
        return numbers.setdefault(trajectory.tokens[token_id], len(numbers))

    top, p = [], []
    ids = trajectory.token_ids.tolist()
    thousandths = (1000 * trajectory.top_probs).round().int().tolist()
    for chosen, row, weights in zip(ids, trajectory.top_ids.tolist(), thousandths, strict=True):
        nonzero = [(i, x) for i, x in zip(row, weights, strict=True) if x > 0 or i == chosen]
        top.append([number(i) for i, _ in nonzero])
        p.append([x for _, x in nonzero])
    return {
        "name": name,
        "ids": [number(i) for i in ids],
        "top": top,
        "p": p,
        "soft": (~trajectory.collapsed).int().tolist(),
        "forced": [step for step, _ in trajectory.settings.get("forced", [])],
        # three digits; NaN and infinity are no JSON
        "strip": [float(f"{x:.3g}") if math.isfinite(x) else None for x in strip.tolist()],
    }


def _pieces(trajectory: Trajectory, spell: Callable[[str], str]) -> list[str] | None:
    """The part of the text that each step wrote; None where these are the symbols themselves."""
    text = spell(trajectory.text) if trajectory.text else ""
    symbols = [spell(trajectory.tokens[i]) for i in trajectory.token_ids.tolist()]
    if "".join(symbols) == text:
        return None if spell is str else symbols
    pieces, begin = [], 0
    for symbol in symbols:  # a word, perhaps after a space
        found = text.find(symbol, begin)
        if found < 0 or text[begin:found].strip():  # it was spelled otherwise, such as in bytes
            return ["".join(map(visible, one)) for one in symbols]
        pieces.append(text[begin : found + len(symbol)])
        begin = found + len(symbol)
    return pieces


def _tail(prompt: str, spell: Callable[[str], str], most: int) -> str:
    text = spell(prompt) if prompt else ""
    return text if len(text) <= most else f"…{text[-most:]}"


def shared_steps(trajectories: list[Trajectory]) -> int:
    """The number of steps, from the first, at which all trajectories chose the same symbol."""
    if len(trajectories) < 2:
        return 0
    length = min(map(len, trajectories))
    ids = torch.stack([one.token_ids[:length] for one in trajectories])  # (n, T)
    same = (ids == ids[0]).all(0).long()
    return int(same.cumprod(0).sum())


def draw_river(
    trajectories: Mapping[str, Trajectory],
    steps: int = 40,
    begin: int = 0,
    spell: Callable[[str], str] = str,
    strip: Mapping[str, torch.Tensor] | None = None,
) -> Figure:
    """Rivers one below the other: at each step the candidates, stacked, and the chosen one framed.

    The frame is solid where the step became a symbol, and dotted where it stayed soft. The strip
    below shows how far the soft token is from the closest row, or other numbers.

    Args:
        trajectories: by name.
        steps: how many steps are drawn at most.
        begin: the first of them.
        spell: the text of a symbol, where it is not the symbol itself.
        strip: as in `river_state`.
    """
    state = river_state(trajectories, spell, strip)
    rivers, symbols = state["rivers"], state["symbols"]
    end = min(begin + steps, max((len(river["ids"]) for river in rivers), default=0))
    figure, axes = plt.subplots(
        len(rivers), 1, figsize=(10, 0.2 + 1.9 * len(rivers)), layout="constrained", squeeze=False
    )
    texts = [spell(one.text[begin:end]) for one in trajectories.values()]
    for ax, river, text in zip(axes[:, 0], rivers, texts, strict=True):
        for t in range(begin, min(end, len(river["ids"]))):
            _draw_column(ax, river, symbols, t)
            if state["strip"] and river["strip"][t] is not None:
                color = HEAT(river["strip"][t] / state["strip"]["most"])
                ax.add_patch(Rectangle((t - 0.48, -0.13), 0.96, 0.08, color=color, lw=0))
        title = f"{river['name']}:  " if river["name"] else ""
        ax.set_title(
            title + "".join(map(visible, text)),
            fontsize=9,
            loc="left",
            parse_math=False,
        )
        ax.set(xlim=(begin - 0.5, end - 0.5), ylim=(-0.14, 1), xticks=[])
        ax.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"], fontsize=8)
        ax.spines[:].set_visible(False)
        ax.grid(visible=False)
    plt.close(figure)
    return figure


def _draw_column(ax: Axes, river: dict[str, Any], symbols: list[str], t: int) -> None:
    """The candidates of one step, the most probable at the bottom."""
    soft, chosen, filled = river["soft"][t], river["ids"][t], 0.0
    shades = SOFT_SHADES if soft else HARD_SHADES
    ax.add_patch(Rectangle((t - 0.48, 0), 0.96, 1, color="#ECEDF1", lw=0))
    losers = 0
    for symbol, p in zip(river["top"][t], river["p"][t], strict=True):
        height, is_chosen = p / 1000, symbol == chosen
        losers += not is_chosen
        color = shades[0 if is_chosen else min(losers, len(shades) - 1)]
        ax.add_patch(Rectangle((t - 0.48, filled), 0.96, height, color=color, lw=0))
        if is_chosen:
            edge, style = ("#083A5B", ":") if soft else (ACCENT, "-")
            frame = Rectangle((t - 0.46, filled), 0.92, max(height, 0.015), fill=False)
            frame.set(edgecolor=edge, linestyle=style, linewidth=1.5, zorder=3)
            ax.add_patch(frame)
        if height > 0.1:
            ink = "white" if is_chosen else "#20303C"
            size = 8 if len(symbols[symbol]) < 4 else 5.5
            place = {
                "ha": "center",
                "va": "center",
                "clip_on": True,
                "zorder": 4,
                "parse_math": False,
            }
            ax.text(t, filled + height / 2, symbols[symbol], color=ink, fontsize=size, **place)
        filled += height
