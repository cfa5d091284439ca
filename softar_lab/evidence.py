"""How a notebook proves its statements: claims that raise, and numbers whose digits may differ.

nbval compares verdicts (✓ or ✗), names and expectations exactly, as text. What depends on the
processor stands inside ⟨…⟩, which `tests/nbval_sanitize.cfg` masks: the reader sees it, no check
relies on it. Only `masked` writes these brackets. No space outside the brackets depends on the
length of their content.
"""

from __future__ import annotations

import html
import math
import numbers
import os
import re
from collections.abc import Collection, Iterable, Sequence
from typing import SupportsFloat, TypeVar

import numpy as np
import pandas as pd
import torch

from .core.palette import COLOURS

T = TypeVar("T")


MASK = re.compile("⟨([^⟩]*)⟩")  # as in tests/nbval_sanitize.cfg


class ClaimError(AssertionError):
    """A notebook states something that its own cell does not confirm."""


def claim(text: str, holds: object) -> None:
    """Print `✓ text` where `holds` is true; print `✗ text` and raise ClaimError where it is false.

    `holds` is a bool, a numpy bool or a 0-dimensional bool tensor.

    Raises:
        ClaimError: where `holds` is false.
        TypeError: where `holds` is anything else. A list or a number is "true" too easily to prove
            something.
    """
    _verdict(text, _truth(holds))


def measured(
    name: str,
    value: SupportsFloat,
    expect: float | int | None = None,
    tol: float | int | None = None,
    unit: str = "",
    *,
    at_least: float | int | None = None,
    at_most: float | int | None = None,
) -> None:
    """Print one line such as `✓ bits per character ⟨1.234⟩ (expected 1.2 ± 0.1)`, digits masked.

    Give either `expect` and `tol`, or one or both of the limits `at_least` and `at_most`. All are
    in `unit`. A value that equals a limit is inside.

    Raises:
        ClaimError: where the value is outside or not finite.
        ValueError: where the expectation is missing, incomplete, given twice or not finite, or
            where `tol` is negative.
    """
    value = float(value)
    limits = {"at least": at_least, "at most": at_most}
    limits = {word: float(limit) for word, limit in limits.items() if limit is not None}
    if (expect is None) != (tol is None) or (expect is None) == (not limits):
        raise ValueError(f"measured({name!r}) needs expect and tol, or at_least and/or at_most")
    if (
        not all(map(math.isfinite, [*limits.values()] if limits else [expect, tol]))
        or (tol or 0) < 0
    ):
        raise ValueError(
            f"measured({name!r}): what is expected must be finite, and tol not negative"
        )

    if limits:
        expected = " and ".join(f"{word} {limit:g}" for word, limit in limits.items())
        inside = limits.get("at least", -math.inf) <= value <= limits.get("at most", math.inf)
    else:
        expected = f"{expect:g} ± {tol:g}"
        inside = abs(value - expect) <= tol
    number = masked(value)
    _verdict(
        f"{name} {number}{unit and ' ' + unit} (expected {expected})",
        inside and math.isfinite(value),
    )


def masked(value: object, digits: int = 4) -> str:
    """Return `value` inside ⟨…⟩: a number or a text that may differ on another processor.

    `digits`: significant digits of a float, or of a 0-dimensional float tensor. Anything else is
    written as `str` writes it. A ⟩ in it becomes ›, because ⟩ would end the mask.
    """
    value = value.item() if isinstance(value, torch.Tensor | np.generic) else value
    shown = _significant(value, digits) if isinstance(value, float) else str(value)
    return f"⟨{shown.replace('⟩', '›')}⟩"


def table(frame: pd.DataFrame, *, digits: int = 4, exact: Collection[str] = ()) -> Table:
    """Display a DataFrame with every float as ⟨1.234⟩, masked for nbval; the rest is compared.

    NaN and infinity stay unmasked: that a number is missing does not depend on the processor. Pass
    a text that does depend on it as `masked(text)`.

    Args:
        frame: its row labels are settings, treated like `exact`; a 0…n-1 index is left out.
        digits: significant digits of the floats.
        exact: columns of settings (a temperature, a rate), which are compared, not masked.

    Raises:
        KeyError: where `exact` names a column that does not exist.
    """
    if missing := [name for name in exact if name not in frame.columns]:
        raise KeyError(f"exact names {missing}, but the columns are {list(frame.columns)}")
    columns = [_column(values, name in exact, digits) for name, values in frame.items()]
    header = [_label(name) for name in frame.columns]
    index = frame.index
    if not (
        isinstance(index, pd.RangeIndex)
        and index.name is None
        and index.start == 0
        and index.step == 1
    ):
        levels = [index.get_level_values(i) for i in range(index.nlevels)]
        columns = [_column(level, True, digits) for level in levels] + columns
        header = ["" if name is None else str(name) for name in index.names] + header
    return Table(header, [list(row) for row in zip(*columns, strict=True)], digits)


class Table:
    """Rows of finished cells that display as text and as HTML, every column flush right.

    In the text, every mask counts as wide as -1.234e-05, the longest usual number with this many
    digits. A shorter number is padded inside the mask; a longer one sticks out. So the numbers of
    another processor do not move the text that is compared.
    """

    def __init__(self, header: Sequence[str], rows: Sequence[Sequence[str]], digits: int = 4):
        self.header, self.rows, self.digits = header, rows, digits

    def __repr__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [
            max(len(self._lay_out(cell, empty=True)) for cell in column)
            for column in zip(*lines, strict=True)
        ]
        return "\n".join("  ".join(map(self._flush_right, line, widths)) for line in lines)

    def _flush_right(self, cell: str, width: int) -> str:
        missing = width - len(self._lay_out(cell, empty=True))
        return " " * missing + self._lay_out(cell)

    def _lay_out(self, cell: str, empty: bool = False) -> str:
        """The cell with every mask padded to its width; `empty`: only spaces in the masks."""
        return MASK.sub(lambda mask: f"⟨{'' if empty else mask[1]:>{self.digits + 6}}⟩", cell)

    def _repr_html_(self) -> str:
        def row(tag: str, cells: Sequence[str]) -> str:
            cells = "".join(f'<{tag} align="right">{html.escape(cell)}</{tag}>' for cell in cells)
            return f"<tr>{cells}</tr>"

        body = "\n".join(row("td", cells) for cells in self.rows)
        return (
            f"<table>\n<thead>{row('th', self.header)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        )


def setup() -> None:
    """Set the look of the notebook: readable sizes, quiet axes, colours for the colour-blind."""
    import matplotlib

    matplotlib.rcParams.update(
        {
            "figure.figsize": (7.0, 3.6),
            "figure.dpi": 80,
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
            "grid.alpha": 0.3,
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "image.cmap": "viridis",
        }
    )


def scaled(full: T, fast: T) -> T:
    """Return `full`, or `fast` where the variable SOFTAR_FAST is set to anything but "" and "0"."""
    return full if os.environ.get("SOFTAR_FAST", "") in ("", "0") else fast


def _verdict(text: str, holds: bool) -> None:
    print("✓" if holds else "✗", text)
    if not holds:
        raise ClaimError(text)


def _truth(holds: object) -> bool:
    if isinstance(holds, bool | np.bool_):
        return bool(holds)
    kind = type(holds).__name__
    if isinstance(holds, torch.Tensor):
        if holds.ndim == 0 and holds.dtype == torch.bool:
            return bool(holds)
        kind = f"{kind} of {holds.dtype} and shape {tuple(holds.shape)}"
    raise TypeError(f"a claim holds or it does not: expected a bool, got {kind}")


def _significant(value: float, digits: int) -> str:
    if 10**digits <= abs(value) < 1e6:
        return f"{value:.0f}"  # 12346 reads better than 1.235e+04
    return f"{value:#.{digits}g}".rstrip(".")


def _column(values: Iterable, exact: bool, digits: int) -> list[str]:
    return [_cell(value, exact, digits) for value in values]


def _cell(value: object, exact: bool, digits: int) -> str:
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, numbers.Integral | np.bool_) or not isinstance(value, numbers.Real):
        return str(value)
    if exact or not math.isfinite(value):
        return f"{value:g}"
    return masked(float(value), digits)


def _label(name: object) -> str:
    return " ".join(map(str, name)) if isinstance(name, tuple) else str(name)
