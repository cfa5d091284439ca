"""TokenExplorer: type a text and see its tokens, their ids and their embedding rows."""

from collections.abc import Mapping
from types import MappingProxyType

import ipywidgets as w

from .. import plots
from ..core.predictor import Predictor
from ..evidence import masked
from .panel import Panel
from .setting import NARROW, by_name, has_rows

MOST = 200  # at most so many tokens of a text are displayed


class TokenExplorer(Panel):
    """A text as several models read it: coloured tokens, their ids and part of their rows.

    The controls are `explorer.text` and `explorer.width`. `cut(name)` returns the tokens and their
    ids. The status line shows errors, such as an unknown character.

    Args:
        models: one predictor with a tokenizer, or several by name. A model without vectors has no
            embedding rows to display.
        text: the text at the start.
        width: how many of the first numbers of each row are displayed.
    """

    shown: Mapping[str, w.HTML] = MappingProxyType({})  # one text per model

    def __init__(
        self, models: Predictor | Mapping[str, Predictor], text: str = "", width: int = 12
    ):
        super().__init__()
        self.models = by_name(models)
        self.text = w.Textarea(
            text, description="Text", style=NARROW, layout=w.Layout(width="80%", height="64px")
        )
        self.width = w.IntSlider(
            width, min=0, max=32, description="Row", style=NARROW, layout=w.Layout(width="40%")
        )
        self.shown = {name: w.HTML() for name in self.models}
        self.children = (self.text, self.width, self.status, *self.shown.values())
        for control in (self.text, self.width):
            control.observe(lambda _: self._attempt(self._show), "value")
        self._attempt(self._show)

    def cut(self, name: str) -> tuple[list[str], list[int]]:
        """Return the tokens and ids of the present text, cut by the tokenizer of model `name`.

        Raises:
            ValueError: where the tokenizer refuses a character.
        """
        tokenizer = self.models[name].tokenizer
        ids = tokenizer.encode(self.text.value).tolist()
        return [tokenizer.tokens[i] for i in ids], ids

    def _show(self) -> None:
        problems, counts = [], []
        for name, model in self.models.items():
            try:
                pieces, ids = self.cut(name)
            except ValueError as error:
                problems.append(f"{name}: {error}")
                self.shown[name].value = ""
                continue
            counts.append(f"{name} {len(ids)}")
            rows = (
                model.embedding[ids[:MOST], : self.width.value].cpu().numpy()
                if has_rows(model)
                else None
            )
            more = max(0, len(ids) - MOST)
            self.shown[name].value = plots.tokens_html(name, pieces[:MOST], ids[:MOST], rows, more)
        if problems:
            self.say(" · ".join(problems), "error")
        else:
            self.say(f"{len(self.text.value)} characters; tokens: {', '.join(counts)}")

    def still(self):
        cuts = {}
        for name in self.models:
            try:
                cuts[name] = self.cut(name)
            except ValueError:
                cuts[name] = [], []
        return plots.draw_tokens(cuts) if self.text.value else None

    def __repr__(self) -> str:
        if not self.shown:
            return "TokenExplorer()"
        told = [self.problem] if self.problem else []
        for name in self.models if not told else ():
            pieces, ids = self.cut(name)
            cut = masked(f"{len(ids)} tokens: {plots.visible('|'.join(pieces)):.120}")
            told.append(f"{name} {cut}")
        return f"TokenExplorer({self.text.value!r:.80}: {'; '.join(told)})"
