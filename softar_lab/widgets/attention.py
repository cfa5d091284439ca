"""AttentionExplorer: choose a layer and a head, and see where each token attends."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as w
import torch
import traitlets
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .. import plots
from ..evidence import masked
from ..generation import Trajectory
from ..models.soft_ar import SoftAR
from .panel import Panel
from .picture import Picture
from .setting import NARROW, always_chosen

START, MEMORY = "⊢", "▣"  # symbols for the slots that hold no token
MOST, CELLS = 160, 60_000  # limits: displayed slots; cells in the picture of all heads


class AttendedText(anywidget.AnyWidget):
    """A text that displays the attention of the token under the pointer.

    A click on a token sets `chosen`.
    """

    _esm = Path(__file__).with_name("attended_text.js")
    shown = traitlets.Dict({"queries": [], "keys": [], "weights": [], "soft": []}).tag(sync=True)
    chosen = traitlets.Int(0).tag(sync=True)


class AttentionExplorer(Panel):
    """Small pictures of all heads, a large picture of one head, and the text.

    Hover over a token to see where the chosen head attends. Slot 0 is the start, displayed as ⊢.
    The slots of a memory follow it, displayed as ▣. Without a model, `show(weights, tokens)` takes
    any weights, such as those of a transformer made by hand.

    The controls `explorer.layer` and `explorer.head` count from 1; head 0 is the mean of all heads.
    The control `explorer.token` is the slot whose attention is displayed. A click on a small
    picture chooses its layer and head; a click on a row of the large picture chooses its slot.

    Args:
        model: the SoftAR that reads the text, or None.
        text: a text, or a trajectory that the model generated, with its soft tokens.
        layer: the layer at the start.
        head: the head at the start.
    """

    weights: Tensor | None = None  # those on display

    def __init__(
        self,
        model: SoftAR | None = None,
        text: str | Trajectory = "",
        layer: int = 1,
        head: int = 1,
    ):
        super().__init__()
        self.model, self.weights, self._side = model, None, (1, 1)
        self.queries: list[str] = []
        self.looked_at: list[str] = []
        self.text = w.Text(text.prompt + text.text if isinstance(text, Trajectory) else text, description="Text",
                           continuous_update=False, style=NARROW, layout=w.Layout(width="98%"))  # fmt: skip
        self.layer = w.Dropdown(
            options=[layer], description="Layer", style=NARROW, layout=w.Layout(width="180px")
        )
        self.head = w.Dropdown(options=[("mean of all", 0), (str(head), head)], value=head, description="Head",
                               style=NARROW, layout=w.Layout(width="220px"))  # fmt: skip
        self.token = w.IntSlider(
            0, min=0, max=0, description="Token", style=NARROW, layout=w.Layout(width="45%")
        )
        self.attended = AttendedText()
        self.heads, self.figure = plots.heads_figure(), plots.attention_figure()
        traitlets.link((self.attended, "chosen"), (self.token, "value"))
        self._pictures = Picture(self.heads), Picture(self.figure)
        for picture, pick in zip(self._pictures, (self._pick_head, self._pick_token), strict=True):
            picture.on_point_click(partial(self._attempt, pick))
        pictures = w.HBox(self._pictures, layout=w.Layout(align_items="flex-start"))
        above = [self.text] if model is not None else []
        self.children = (
            *above, w.HBox([self.layer, self.head, self.token]), self.status, self.attended, pictures,
        )  # fmt: skip
        self.text.observe(lambda change: self._attempt(self._read, change["new"]), "value")
        for control in (self.layer, self.head):
            always_chosen(control).observe(lambda _: self._attempt(self._show_head), "value")
        self.token.observe(lambda _: self._attempt(self._show_token), "value")
        if model is not None:
            self._attempt(self._read, text)

    def show(
        self,
        weights: Float[Tensor, "layers heads T S"],
        queries: Sequence[str],
        keys: Sequence[str] | None = None,
        soft: Sequence[bool] = (),
    ) -> None:
        """Display attention weights: how much each query attends to each key.

        Only the first 160 queries and the first 160 keys are displayed.

        Args:
            weights: attention weights after the softmax, (layers, heads, T, S).
            queries: the T tokens that attend.
            keys: the S tokens that they attend to; None: the queries themselves.
            soft: which queries are soft tokens; these are underlined.

        Raises:
            ValueError: where the weights do not fit the tokens, where no token, layer or head is
                given, or where a weight is not a share between 0 and 1.
        """
        between = keys is not None  # attention from one text to another
        queries, keys = list(queries), list(queries if keys is None else keys)
        _check_weights(weights, queries, keys)
        with self._drawing:
            # 1) what is displayed
            self.weights = None  # the controls' callbacks draw nothing while this is None
            found = weights[..., :MOST, :MOST].detach().float().cpu().clamp(0, 1)
            self.queries, self.looked_at = queries[:MOST], keys[:MOST]
            self._soft = [bool(one) for one in soft][:MOST]
            self._between = between
            # 2) adapt the controls
            layers, heads = found.shape[:2]
            self._fit_controls(layers, heads)
            # 3) draw
            self.weights = found
            tiles, self._side = mosaic(found)
            plots.update_heads(self.heads, tiles, layers, heads, self._side)
            self._show_head()
        cut = (
            f" · of {len(queries)} tokens the first {MOST} are shown" if len(queries) > MOST else ""
        )
        self.say(f"{layers} layers of {heads} heads, {len(self.queries)} slots{cut}")

    def _fit_controls(self, layers: int, heads: int) -> None:
        """Offer the given layers and heads and the displayed queries; choose the last query."""
        layer, head = min(self.layer.value, layers), min(self.head.value, heads)
        self.layer.options = list(range(1, layers + 1))
        self.head.options = [("mean of all", 0), *((str(i), i) for i in range(1, heads + 1))]
        self.layer.value, self.head.value = layer, head
        self.token.max = self.token.value = len(self.queries) - 1

    def _read(self, text: str | Trajectory) -> None:
        """Let the model read a text or a trajectory, and display its attention."""
        model = self.model
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer to read a text with")

        # 1) the prompt, or the whole text, as hard tokens
        path = text if isinstance(text, Trajectory) else None
        token_ids = model.tokenizer.encode(text if path is None else path.prompt).to(model.device)
        names, soft = (
            [model.tokenizer.tokens[i] for i in token_ids.tolist()],
            [False] * len(token_ids),
        )
        vectors = model.embedding[token_ids]  # (T, m)

        # 2) a trajectory adds the vectors that were fed back, soft or hard
        if path is not None:
            vectors = torch.cat([vectors, path.inputs.to(vectors)])
            names += [path.tokens[i] for i in path.token_ids.tolist()]
            soft += (~path.collapsed).tolist()
        if not names:
            raise ValueError("there is no text to read")

        # 3) the start slot and the memory slots come before the tokens
        weights = model.attention(vectors=vectors[None])[:, 0]  # (layers, heads, S, S)
        front = [START, *[MEMORY] * (weights.shape[-1] - len(names) - 1)]
        self.show(weights, front + names, soft=[False] * len(front) + soft)

    def _chosen(self) -> Float[Tensor, "T S"]:
        """Return the weights of the chosen head, or the mean over the heads of its layer."""
        layer = self.weights[self.layer.value - 1]
        return layer.mean(0) if self.head.value == 0 else layer[self.head.value - 1]

    def _show_head(self) -> None:
        with self._drawing:
            if self.weights is None:
                return
            weights, heads = self._chosen(), self.weights.shape[1]
            keys = self.looked_at if self._between else []
            rows = [[round(value, 4) for value in row] for row in weights.tolist()]
            self.attended.shown = {
                "queries": self.queries,
                "keys": keys,
                "weights": rows,
                "soft": self._soft,
            }
            plots.update_attention(self.figure, weights, self.queries, self.looked_at)
            head = self.head.value - 1 if self.head.value else None
            plots.mark_head(self.heads, self.layer.value - 1, head, heads, self._side)
            self._show_token()

    def _show_token(self) -> None:
        with self._drawing:
            if self.weights is not None:
                plots.mark_query(self.figure, self.token.value, len(self.looked_at))
                for picture in self._pictures:
                    picture.draw()

    def _pick_head(self, point: dict[str, Any]) -> None:
        """Choose the layer and head of the small picture that was clicked."""
        self.layer.value = int(point["y"]) // self._side[0] + 1
        self.head.value = int(point["x"]) // self._side[1] + 1

    def _pick_token(self, point: dict[str, Any]) -> None:
        """Choose the clicked row of the large picture; its label ends with "(number)"."""
        self.token.value = int(point["y"].rpartition("(")[2].rstrip(")"))

    def looks_at(self, most: int = 5) -> list[tuple[str, int, float]]:
        """Return the `most` slots that the chosen token attends to in the chosen head.

        Returns:
            One tuple (token, slot, weight) per slot, the largest weight first.
        """
        if self.weights is None:
            return []
        row = self._chosen()[self.token.value]
        return [
            (self.looked_at[i], i, float(row[i]))
            for i in row.argsort(descending=True)[:most].tolist()
        ]

    def still(self):
        if self.weights is None:
            return None
        head = self.head.value - 1 if self.head.value else None
        return plots.draw_attention(
            self.weights.numpy(), self.queries, self.looked_at, self.layer.value - 1, head, self.token.value
        )  # fmt: skip

    def __repr__(self) -> str:
        if self.weights is None:
            return (
                f"AttentionExplorer(nothing: {self.problem})"
                if self.problem
                else "AttentionExplorer()"
            )
        head = f"head {self.head.value}" if self.head.value else "mean of all heads"
        slot = f"{plots.visible(self.queries[self.token.value])!r} ({self.token.value})"
        found = ", ".join(
            f"{plots.visible(name)!r} ({i}) {share:.0%}" for name, i, share in self.looks_at(3)
        )
        return (
            f"AttentionExplorer(layer {self.layer.value}, {head}: {slot} looks at {masked(found)})"
        )


def _check_weights(weights: Tensor, queries: Sequence[str], keys: Sequence[str]) -> None:
    """Raise ValueError where these are not attention weights of the queries to the keys."""
    if weights.ndim != 4 or weights.shape[2:] != (len(queries), len(keys)):
        wanted = f"(layers, heads, {len(queries)}, {len(keys)})"
        raise ValueError(f"weights must be {wanted} for these tokens, not {tuple(weights.shape)}")
    if not (len(queries) and len(keys) and weights.numel()):
        raise ValueError("there is nothing to look at: give at least one token, layer and head")
    if not (torch.isfinite(weights).all() and weights.min() >= 0 and weights.max() <= 1 + 1e-4):
        raise ValueError("weights must be shares between 0 and 1: those after the softmax")


def mosaic(
    weights: Float[Tensor, "layers heads T S"],
) -> tuple[list[list[float | None]], tuple[int, int]]:
    """Return one picture of all heads: layers from top to bottom, heads from left to right.

    Cells hold square roots of weights. Where the picture would have too many cells, each cell
    holds the largest weight of a block.

    Returns:
        The rows of cells, with None in the gaps, and the height and width of one head with its gap.
    """
    layers, heads, *shape = weights.shape
    limit = max(8, int((CELLS / (layers * heads)) ** 0.5))
    small = F.adaptive_max_pool2d(weights, [min(limit, length) for length in shape])
    side = (small.shape[2] + 1, small.shape[3] + 1)
    framed = F.pad(small.sqrt(), (0, 1, 0, 1), value=-1)  # (layers, heads, *side)
    rows = framed.permute(0, 2, 1, 3).reshape(layers * side[0], heads * side[1])[:-1, :-1]
    return [
        [None if value < 0 else round(value, 3) for value in row] for row in rows.tolist()
    ], side
