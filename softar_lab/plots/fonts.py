"""Fonts of still pictures: characters that a text's own font lacks come from another one."""

from functools import cache

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from .style import visible

OWN = ("sans-serif", "monospace")  # the families in which pictures are written
# its glyphs are pictures of a script's name: it has one for each character
_LAST_RESORT = "Last Resort"


def drawable(symbol: str) -> str:
    """A visible symbol, with □ for each character that no installed font can draw.

    Large tables contain characters of every script.
    """
    return "".join(
        char if char.isprintable() and (_in_own(char) or _other(char)) else "□"
        for char in visible(symbol)
    )


def finished(figure: Figure) -> Figure:
    """The figure, closed, with fonts for all characters of its texts.

    matplotlib takes a character from the first font of a text's family list that has it.
    """
    for text in figure.findobj(Text):
        missing = {c for c in text.get_text() if c.isprintable() and not _in_own(c)}
        if others := dict.fromkeys(filter(None, map(_other, sorted(missing)))):
            text.set_fontfamily([*text.get_fontfamily(), *others])
    plt.close(figure)
    return figure


@cache
def _in_own(char: str) -> bool:
    """Whether the own fonts both have a character."""
    return all(
        get_font(findfont(FontProperties(family=[name]))).get_char_index(ord(char)) for name in OWN
    )


@cache
def _other(char: str) -> str | None:
    """The family of an installed font that has a character; None where there is none."""
    for path, name in _installed():
        try:
            if get_font(path).get_char_index(ord(char)):
                return name
        except (OSError, RuntimeError):  # a file that is gone or broken
            continue
    return None


@cache
def _installed() -> list[tuple[str, str]]:
    """Path and family of one upright font of ordinary weight in each installed family."""
    fonts = sorted(
        (one for one in fontManager.ttflist if not one.name.startswith(_LAST_RESORT)),
        key=lambda one: (one.name, one.style != "normal", abs(_weight(one.weight) - 400)),
    )
    families: dict[str, str] = {}
    for one in fonts:
        families.setdefault(one.name, one.fname)
    return [(path, name) for name, path in families.items()]


def _weight(weight: int | str) -> int:
    return weight if isinstance(weight, int) else 400
