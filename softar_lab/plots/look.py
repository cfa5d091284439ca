"""What all pictures share: colours, and symbols made visible."""

import html

from ..analysis.geometry import PCABasis
from ..sources.units import EMPTY, HALF_BYTES

COLORMAP = "viridis"  # steps, from dark to bright; readable by the colour-blind and in grey
ACCENT = "#D55E00"
GREY = "#8a8f98"


def visible(symbol: str) -> str:
    """A symbol as it can be seen: ␣ for a space, ↵ for a line's end, ‹A› for half a byte of one spelled out."""
    shown = {" ": "␣", "\n": "↵", "\t": "⇥"}.get(symbol, symbol)
    return shown if shown.isascii() else "".join(map(_half_byte, shown))


def _half_byte(char: str) -> str:
    return f"‹{HALF_BYTES.index(char):X}›" if char in HALF_BYTES else "∅" if char == EMPTY else char


def plain(symbol: str) -> str:
    """A visible symbol that neither HTML nor plotly takes for markup (plotly knows no &quot;)."""
    return html.escape(visible(symbol), quote=False)


def axis_label(basis: PCABasis, axis: int) -> str:
    """`PC 1 (8 % of the table's variance)`."""
    return f"PC {axis + 1} ({100 * basis.explained[axis]:.0f} % of the table's variance)"
