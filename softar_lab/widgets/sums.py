"""SumExplorer: add and subtract words, and see the nearest words and the closest mixture."""

import html
import re
from collections.abc import Sequence

import ipywidgets as w
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .. import plots
from ..evidence import masked
from ..metrics.superposition import nearest_rows
from ..models.by_row import largest
from ..models.embedding_tables import TINY
from ..models.simplex import barycentric
from .panel import Panel

SHOWN = 6  # words per list
TERM = re.compile(r"([+-]?)\s*([^\s+-]+)")  # a sign and a word
SUM = re.compile(r"[+-]?\s*[^\s+-]+(\s*[+-]\s*[^\s+-]+)*")


class SumExplorer(Panel):
    """Type a sum such as "king - man + woman"; see its nearest words and its closest mixture.

    The panel lists the nearest words twice: with and without the words of the sum itself.
    `explorer.sum` is the text field. `explorer.nearest(k, without)` and `explorer.mixture(k)`
    return the listed words. The status line names an unknown word.

    Args:
        table: the embedding table (V, m), with one row per word.
        words: the V words, in the order of the rows.
        sum: the sum at the start.
    """

    terms: Sequence[tuple[int, int]] = ()  # sign and row of each word; none before a sum is read

    def __init__(self, table: Float[Tensor, "V m"], words: Sequence[str], sum: str):
        super().__init__()
        self.table, self.words = table, list(words)
        self.sum = w.Text(
            sum, description="Sum", continuous_update=False, layout=w.Layout(width="70%")
        )
        self.shown = w.HTML()
        self.children = (self.sum, self.status, self.shown)
        self.sum.observe(lambda _: self._attempt(self.read), "value")
        self._attempt(self.read)

    def read(self) -> None:
        """Parse the typed sum and display the results.

        Raises:
            ValueError: where the text is not a sum of known words.
        """
        text = self.sum.value.strip()
        if not SUM.fullmatch(text):
            raise ValueError('write words with + or - between them, such as "king - man + woman"')
        found = TERM.findall(text)
        if unknown := [word for _, word in found if word not in self.words]:
            raise ValueError(
                f"{unknown[0]!r} is not among the {len(self.words)} words, as are {self.words[-4:]}"
            )
        self.terms = [(-1 if sign == "-" else 1, self.words.index(word)) for sign, word in found]
        columns = "".join(
            f'<td style="vertical-align:top;padding-right:36px"><b>{name}</b><br>'
            + "<br>".join(f"{value:.2f} {html.escape(plots.visible(word))}" for word, value in rows)
            + "</td>"
            for name, rows in self.rows().items()
        )
        self.shown.value = f'<table style="line-height:1.5"><tr>{columns}</tr></table>'
        self.say(f"{len(self.terms)} words added, of {len(self.words)}")

    @property
    def vector(self) -> Float[Tensor, " m"]:
        """The sum of the signed rows, (m,)."""
        return torch.stack([sign * self.table[i] for sign, i in self.terms]).sum(0)

    def nearest(self, k: int = SHOWN, without: bool = False) -> list[str]:
        """Return the k words whose rows have the largest cosine with the sum, best first.

        The mean row is subtracted from every row, also inside the sum. `without` leaves out the
        words of the sum.
        """
        exclude = torch.tensor([sorted({i for _, i in self.terms})]) if without else None
        k = min(k, len(self.words) - (0 if exclude is None else exclude.shape[1]))
        return [
            self.words[i]
            for i in nearest_rows(self._centred(), self._rows(), k, exclude)[0].tolist()
        ]

    def mixture(self, k: int = SHOWN) -> list[str]:
        """Return the k words of largest weight in the closest mixture of rows, best first.

        The mixture approximates the mean of the terms: the sum divided by the number of added
        minus subtracted words (by 1 where that number is smaller).
        """
        return [
            self.words[i]
            for i in largest(self._weights()[None], min(k, len(self.words)))[0].tolist()
        ]

    def rows(self) -> dict[str, list[tuple[str, float]]]:
        """Return the displayed lists by title: pairs of word and value, best first."""
        cosine = F.cosine_similarity(self._centred(), self._rows(), eps=TINY)
        weights, value = self._weights(), {word: i for i, word in enumerate(self.words)}
        return {
            "nearest of all words": [(word, float(cosine[value[word]])) for word in self.nearest()],
            "nearest, the sum's own left out": [
                (word, float(cosine[value[word]])) for word in self.nearest(without=True)
            ],
            "closest mixture": [(word, float(weights[value[word]])) for word in self.mixture()],
        }

    def _rows(self) -> Tensor:
        return self.table - self.table.mean(0)

    def _centred(self) -> Tensor:
        return (self.vector - sum(sign for sign, _ in self.terms) * self.table.mean(0))[None]

    def _weights(self) -> Tensor:
        return barycentric(
            self.vector[None] / max(1, sum(sign for sign, _ in self.terms)), self.table
        )[0]

    def still(self):
        return plots.draw_sum(self.rows(), self.sum.value) if self.terms else None

    def __repr__(self) -> str:
        if not self.terms:
            return f"SumExplorer(nothing: {self.problem})" if self.problem else "SumExplorer()"
        # Both words of a sum can be equally near to it; then rounding decides which comes first.
        best = {name: masked(repr(rows[0][0])) for name, rows in self.rows().items()}
        return f"SumExplorer({self.sum.value!r}: {', '.join(f'{name} {word}' for name, word in best.items())})"
