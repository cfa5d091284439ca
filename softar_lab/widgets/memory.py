"""MemoryExplorer: a passage's neighbours under several encodings, side by side, and why."""

import html
import io
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ipywidgets as w
from torch import Tensor

from ..evidence import masked
from ..memory.encodings import Hit, TextIndex
from ..memory.trace_graph import TraceGraph
from ..plots.traces import draw_trace
from .panel import Panel
from .setting import NARROW


@dataclass(frozen=True)
class Trace:
    """A graph that is drawn beside the texts, with the path of the passage.

    Args:
        graph: the graph.
        vectors: from a passage to the vectors that it passes (n, m).
        names: what is written at its nodes.
    """

    graph: TraceGraph
    vectors: Callable[[str], Tensor]
    names: Mapping[int, str]


class MemoryExplorer(Panel):
    """Type a passage; each index displays what it finds, and which token matched which.

    A graph beside them lights the path of the passage.

    Args:
        indexes: indexes of the same texts, by name.
        query: the passage at the start.
        k: how many texts each of them displays.
        trace: the graph; None: there is none.

    Raises:
        ValueError: where there is no index, or they hold different texts.
    """

    def __init__(
        self,
        indexes: Mapping[str, TextIndex],
        query: str = "",
        k: int = 4,
        trace: Trace | None = None,
    ):
        super().__init__()
        self.indexes, self.k, self.trace = dict(indexes), k, trace
        if len({tuple(index.texts) for index in self.indexes.values()}) != 1:
            raise ValueError("give at least one index, and all of the same texts")
        self.found: dict[str, list[Hit]] = {}
        self.query = w.Text(query, description="Passage", continuous_update=False, style=NARROW,
                            layout=w.Layout(width="100%"))  # fmt: skip
        self.path: list[int] = []
        self._places = {} if trace is None else trace.graph.layout()
        self.columns = w.HTML(layout=w.Layout(flex="3 1 480px"))
        self.graph = w.Image(layout=w.Layout(flex="2 1 320px", max_width="560px"))
        beside = (self.columns,) if trace is None else (self.columns, self.graph)
        box = w.HBox(beside, layout=w.Layout(flex_flow="row wrap", align_items="flex-start"))
        self.children = (self.query, self.status, box)
        self.update()
        self.query.observe(lambda _: self._run_in_background(self._search), "value")

    def update(self) -> dict[str, list[Hit]]:
        """Search now and wait.

        Returns:
            What each index found.
        """
        self._run(self._search, self._begin())
        return self.found

    def _search(self, stop: threading.Event) -> None:
        query, found = self.query.value, {}
        if not query.strip():
            raise ValueError("type a passage: an empty one has no neighbours")
        for name, index in self.indexes.items():
            if stop.is_set():
                return
            found[name] = index.search(query, self.k)
        path = []
        if self.trace is not None:
            path = self.trace.graph.cells(self.trace.vectors(query)).tolist()
        with self._drawing:
            self.found, self.path = found, path
            self.columns.value = self._html()
            self._draw()
            self.say(f"{len(next(iter(self.indexes.values())).texts)} passages")

    def still(self):
        """Return a matplotlib figure of the graph with the path; None without a graph."""
        if self.trace is None:
            return None
        graph = self.trace.graph
        return draw_trace(
            self._places,
            graph.edges.numpy(),
            graph.visits.numpy(),
            graph.hues().numpy(),
            self.path,
            self.trace.names,
        )

    def _draw(self) -> None:
        """Put the graph on the page."""
        figure, picture = self.still(), io.BytesIO()
        if figure is not None:
            figure.savefig(picture, format="png", dpi=96)
            self.graph.value = picture.getvalue()

    def _html(self) -> str:
        """One column per index."""
        columns = "".join(
            f'<td style="vertical-align:top;width:33%"><b>{html.escape(name)}</b>'
            f"{''.join(self._card(name, hit) for hit in hits)}</td>"
            for name, hits in self.found.items()
        )
        return f'<table style="width:100%;table-layout:fixed"><tr>{columns}</tr></table>'

    def _card(self, name: str, hit: Hit) -> str:
        """One text with its score, and the pairs of tokens that count most."""
        best = sorted(hit.matches, key=lambda match: -match[2])[:4]
        pairs = ", ".join(one if one == other else f"{one} → {other}" for one, other, _ in best)
        text = html.escape(self.indexes[name].texts[hit.number])
        return (
            f'<div style="margin:6px 0;padding:6px;background:var(--jp-layout-color2, #f4f5f7)">'
            f'{text}<br><span class="softar-note">{hit.score:.3f} {html.escape(pairs)}'
            "</span></div>"
        )

    def __repr__(self) -> str:
        firsts = {
            name: self.indexes[name].texts[hits[0].number] for name, hits in self.found.items()
        }
        told = "; ".join(f"{name}: {masked(text)}" for name, text in firsts.items())
        return f"MemoryExplorer({self.query.value!r}: {told or self.problem})"
