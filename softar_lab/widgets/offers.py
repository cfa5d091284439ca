"""Offers: symbols to click, in the place of one that a model does not know."""

import difflib
import unicodedata
from collections.abc import Callable
from typing import Any

import ipywidgets as w

from .. import plots

MOST = 64  # so many symbols are offered at most


def unknown(tokenizer: Any, text: str) -> tuple[str, int] | None:
    """The first character or word of a text that a tokenizer does not know, and its position."""
    found = {} if tokenizer is None or tokenizer.unk_id is not None else tokenizer.unknown_in(text)
    places = [(text.index(symbol), symbol) for symbol in found]
    return min(places)[::-1] if places else None


def complain(tokenizer: Any, text: str) -> str:
    """What a text holds that a tokenizer does not know, in words; "" where it knows all."""
    found = unknown(tokenizer, text)
    if found is None:
        return ""
    return (
        f"{found[0]!r} at position {found[1]} is not in the alphabet of this model: what should "
        "stand there?"
    )


def candidates(tokenizer: Any, symbol: str) -> list[str]:
    """The tokens that may stand for an unknown symbol, the most similar ones first."""
    tokens = [token for token in tokenizer.tokens if token.strip() or token == " "]
    plain = unicodedata.normalize("NFKD", symbol)[:1] if len(symbol) == 1 else symbol
    alike = [one for one in (symbol.lower(), symbol.upper(), symbol.capitalize()) if one in tokens]
    alike += [one for one in (plain, plain.lower()) if one in tokens]
    if len(symbol) > 1:
        alike += difflib.get_close_matches(symbol.lower(), tokens, n=8, cutoff=0.5)
    return list(dict.fromkeys([*alike, *tokens]))[:MOST]


class Offers(w.HBox):
    """Buttons, one for each symbol that may stand where an unknown one stands.

    Args:
        choose: called with the prompt in which the unknown symbol is replaced.
    """

    def __init__(self, choose: Callable[[str], None]):
        self._choose = choose
        super().__init__(layout=w.Layout(flex_flow="row wrap"))

    def offer(self, tokenizer: Any, prompt: str) -> None:
        """Show the buttons for a prompt; none where all of it is known."""
        found = unknown(tokenizer, prompt)
        if found is None:
            self.clear()
            return
        symbol, position = found
        layout, buttons = w.Layout(width="auto", min_width="32px", padding="0 6px"), []
        for one in candidates(tokenizer, symbol):
            button = w.Button(description=plots.visible(one), layout=layout)
            button.tooltip = f"write {one!r} instead of {symbol!r}"
            changed = prompt[:position] + one + prompt[position + len(symbol) :]
            button.on_click(lambda _, changed=changed: self._choose(changed))
            buttons.append(button)
        self._replace(buttons)

    def clear(self) -> None:
        """Show no buttons."""
        self._replace([])

    def _replace(self, buttons: list[w.Button]) -> None:
        before, self.children = self.children, buttons
        for button in before:
            button.close()
