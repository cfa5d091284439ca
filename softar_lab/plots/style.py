"""What all pictures share: colours, and symbols made visible."""

import html

from ..data.tokenizers.subword import EMPTY, HALF_BYTES
from ..metrics.pca import PCABasis

COLORMAP = "viridis"  # of steps, dark to bright; readable by the colour-blind and in grey
ACCENT = "#D55E00"
# A table with this many symbols or more is large: a picture writes only the symbols of its paths.
# Still pictures draw the others as a cloud of points.
MANY = 400
GREY = "#8a8f98"


def visible(symbol: str) -> str:
    """A symbol made visible: ␣ for a space, ↵ for a line end, ⇥ for a tab.

    ‹A› is half of a byte, where a character is spelled out in bytes. ∅ begins the name of an empty
    bucket.
    """
    text = {" ": "␣", "\n": "↵", "\t": "⇥"}.get(symbol, symbol)
    return text if text.isascii() else "".join(map(_half_byte, text))


def _half_byte(char: str) -> str:
    return f"‹{HALF_BYTES.index(char):X}›" if char in HALF_BYTES else "∅" if char == EMPTY else char


def plain(symbol: str) -> str:
    """A visible symbol that neither HTML nor plotly takes for markup (plotly knows no &quot;)."""
    return html.escape(visible(symbol), quote=False)


def axis_label(basis: PCABasis, axis: int) -> str:
    """The label of a principal axis, such as `PC 1 (8 % of the table's variance)`."""
    return f"PC {axis + 1} ({100 * basis.explained[axis]:.0f} % of the table's variance)"
