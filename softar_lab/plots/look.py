"""What all pictures share: colours, and symbols made visible."""

import html

import torch
from torch import Tensor

from ..analysis.geometry import PCABasis
from ..sources.units import EMPTY, HALF_BYTES

COLORMAP = "viridis"  # steps, from dark to bright; readable by the colour-blind and in grey
ACCENT = "#D55E00"
MANY = 400  # symbols; of larger tables only those that a path shows are written, the others are a cloud
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


def written_ids(vocab_size: int, *ids: Tensor) -> list[int]:
    """Which symbols are written into a picture: all of them, or of a table of `MANY` rows and more only `ids`."""
    if vocab_size < MANY or not ids:
        return list(range(min(vocab_size, MANY)))
    return torch.cat([some.flatten().cpu() for some in ids]).unique().tolist()


def axis_label(basis: PCABasis, axis: int) -> str:
    """`PC 1 (8 % of the table's variance)`."""
    return f"PC {axis + 1} ({100 * basis.explained[axis]:.0f} % of the table's variance)"
