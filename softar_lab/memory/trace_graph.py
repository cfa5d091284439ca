"""A graph of where one has been (K26): cells of a space, how often one led to another, their colour."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ..core.checks import real_number, whole_number
from ..core.predictor import Prediction, Predictor, check_finite
from ..models.nearest import nearest


class TraceGraph:
    """Nodes are cells around centres; edges count the steps from cell to cell.

    A node's colour is the mean of the vectors that passed through it. With a decay, a step of n
    steps ago counts (1 - decay)^n, in edges and colours alike.

    Args:
        centres: a cell is the points that are closest to one of these (C, m).
        vocab_size: number of symbols, of which one may be read at every step.
        decay: the share that is forgotten at every step, from 0 to below 1.

    Raises:
        ValueError: where centres hold NaN or infinity, or another argument is out of range.
    """

    def __init__(self, centres: Float[Tensor, "C m"], vocab_size: int, decay: float = 0.0):
        check_finite(centres)
        self.centres = centres.detach().clone()
        self.vocab_size = whole_number("vocab_size", vocab_size)
        self.decay = real_number("decay", decay, "from 0 to below 1", lambda x: 0 <= x < 1)
        cells, width = centres.shape
        self.edges = torch.zeros(cells, cells, dtype=torch.float64)
        self.visits = torch.zeros(cells, dtype=torch.float64)
        self.arrived = torch.zeros(cells, vocab_size, dtype=torch.float64)  # with which symbol
        self._sums = torch.zeros(cells, width, dtype=torch.float64)

    @classmethod
    def fit(
        cls,
        vectors: Float[Tensor, "N m"],
        cells: int,
        vocab_size: int,
        decay: float = 0.0,
        seed: int = 0,
    ) -> "TraceGraph":
        """A graph without steps whose centres are the k-means of some vectors."""
        from sklearn.cluster import KMeans

        found = KMeans(cells, n_init=1, random_state=seed).fit(vectors.double().numpy())
        return cls(torch.from_numpy(found.cluster_centers_).to(vectors.dtype), vocab_size, decay)

    @property
    def colours(self) -> Float64[Tensor, "C m"]:
        """The mean of what passed through each node (C, m); NaN where nothing did."""
        return self._sums / self.visits[:, None]

    def hues(self) -> Float64[Tensor, "C 3"]:
        """The colours as red, green and blue from 0 to 1: the three directions in which they differ
        most. Grey where nothing passed.
        """
        found = torch.full((len(self.visits), 3), 0.5, dtype=torch.float64)
        means = self.colours[self.visits > 0]
        if len(means) > 1:
            about = means - means.mean(0)
            places = about @ torch.linalg.svd(about, full_matrices=False).Vh[:3].T  # (n, 3)
            low, high = places.amin(0), places.amax(0)
            found[self.visits > 0, : places.shape[1]] = (places - low) / (high - low).clamp(1e-12)
        return found

    def cells(self, vectors: Float[Tensor, "N m"]) -> Int64[Tensor, " N"]:
        """The cell of each vector."""
        return nearest(vectors, self.centres)

    def add(
        self, vectors: Float[Tensor, "T m"], token_ids: Int64[Tensor, " T"]
    ) -> Int64[Tensor, " T"]:
        """Take in one path.

        Args:
            vectors: where it was after each symbol (T, m).
            token_ids: the symbols (T,); -1: none was read.

        Returns:
            The cells it passed through (T,).

        Raises:
            ValueError: where vectors hold NaN or infinity, or a symbol is unknown.
        """
        if len(token_ids) and not -1 <= token_ids.min() <= token_ids.max() < self.vocab_size:
            raise ValueError(f"token ids must lie in -1 … {self.vocab_size - 1}")
        cells = self.cells(vectors)
        # 1) what is there fades
        ages = torch.arange(len(cells) - 1, -1, -1, dtype=torch.float64)
        weights = (1 - self.decay) ** ages  # (T,)
        for one in (self.edges, self.visits, self.arrived, self._sums):
            one *= (1 - self.decay) ** len(cells)
        # 2) the path is added
        self.visits.index_add_(0, cells, weights)
        self._sums.index_add_(0, cells, weights[:, None] * vectors.detach().double())
        read = token_ids >= 0
        self.arrived.index_put_((cells[read], token_ids[read]), weights[read], accumulate=True)
        self.edges.index_put_((cells[:-1], cells[1:]), weights[1:], accumulate=True)
        return cells

    def log_probs(
        self, cells: Int64[Tensor, " B"], smoothing: float = 0.5
    ) -> Float64[Tensor, "B V"]:
        """log p of the next symbol (B, V), nats, from the cells one is in; -1: from anywhere.

        From a cell one goes on as the edges say, and each node has the symbols with which it was
        reached. `smoothing` is added to the count of every symbol.
        """
        reached = self.arrived.sum(1, keepdim=True)
        symbols = torch.where(reached > 0, self.arrived / reached, 0)  # (C, V)
        edges = torch.where((cells < 0)[:, None], self.visits, self.edges[cells])
        counts = edges @ symbols + smoothing
        return (counts / counts.sum(-1, keepdim=True)).log()

    def layout(self, seed: int = 0) -> dict[int, np.ndarray]:
        """A place in the plane for each node that was visited; what leads to each other is close."""
        try:
            import networkx
        except ImportError as error:
            raise ImportError('networkx is missing: pip install "softar-lab[memory]"') from error
        graph = networkx.Graph()
        graph.add_nodes_from(self.visits.nonzero().flatten().tolist())
        both = (self.edges + self.edges.T).log1p()
        for one, other in both.nonzero().tolist():
            graph.add_edge(one, other, weight=float(both[one, other]))
        return networkx.spring_layout(graph, seed=seed)


@dataclass(frozen=True)
class TraceState:
    """The state of a `TracePredictor`: that of its model, and the cells (B,); -1: none yet."""

    inner: Any
    cells: Int64[Tensor, " B"]

    def select(self, rows: Int64[Tensor, " n"]) -> "TraceState":
        """Fork, drop or reorder batch rows."""
        return TraceState(self.inner.select(rows), self.cells[rows])


class TracePredictor(Predictor):
    """What a trace graph predicts, of where a model is.

    Args:
        graph: the graph.
        model: reads the text.
        source: "row": a step is the table's row of the symbol that was read, so the graph is a
            chain of the first order over cells; "hidden": it is the model's hidden state.
        smoothing: added to the count of every symbol.

    Raises:
        ValueError: for an unknown source or another vocabulary.
    """

    def __init__(
        self, graph: TraceGraph, model: Predictor, source: str = "row", smoothing: float = 0.5
    ):
        if source not in ("row", "hidden"):
            raise ValueError(f"source must be 'row' or 'hidden', not {source!r}")
        if graph.vocab_size != model.vocab_size:
            raise ValueError(f"the graph knows {graph.vocab_size} symbols, not {model.vocab_size}")
        self.graph, self.model, self.source, self.smoothing = graph, model, source, smoothing
        self.vocab_size, self.tokenizer, self.context = (
            model.vocab_size,
            model.tokenizer,
            model.context,
        )

    def path(self, token_ids: Int64[Tensor, " T"]) -> tuple[Float[Tensor, "n m"], Tensor]:
        """The vectors of a text and the symbols read with them, as `TraceGraph.add` takes them.

        Hidden states begin with the one before any symbol.
        """
        if self.source == "row":
            return self.model.embedding.detach()[token_ids], token_ids
        with torch.inference_mode():
            hidden = self.model.hidden_states(token_ids[None])[0].clone()
        return hidden, torch.cat([torch.tensor([-1]), token_ids])

    def start(self, batch_size: int = 1) -> TraceState:
        """The state in which nothing has been read yet."""
        inner = self.model.start(batch_size)
        nowhere = torch.full((batch_size,), -1)
        return TraceState(
            inner, nowhere if self.source == "row" else self.graph.cells(inner.hidden)
        )

    def predict(self, state: TraceState) -> Prediction:
        """The prediction for the next symbol."""
        return Prediction(self.graph.log_probs(state.cells, self.smoothing).float())

    def advance(self, state, token_ids=None, vectors=None) -> TraceState:
        """The state after one more symbol per row, `token_ids` (B,)."""
        if self.source == "row":
            return TraceState(state.inner, self.graph.cells(self.model.embedding[token_ids]))
        inner = self.model.advance(state.inner, token_ids=token_ids)
        return TraceState(inner, self.graph.cells(inner.hidden))

    def next_log_probs(self, token_ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """log p of every symbol at every place (B, T, V), in one pass."""
        if self.source == "row":
            cells = self.graph.cells(self.model.embedding.detach()[token_ids.flatten()])
            cells = torch.cat(
                [torch.full((len(token_ids), 1), -1), cells.view_as(token_ids)[:, :-1]], 1
            )
        else:
            with torch.inference_mode():
                hidden = self.model.hidden_states(token_ids[:, :-1])
            cells = self.graph.cells(hidden.flatten(0, 1))
        found = self.graph.log_probs(cells.flatten(), self.smoothing).float()
        return found.view(*token_ids.shape, -1)
