"""One level (K22, K24): a head on a layer that predicts, as one vector, what comes further ahead.

layer states (B, T, d) --Level--> vector (B, T, m) --readout--> log p of a symbol in a span
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .by_row import product, single
from .objectives import READOUTS, make_objective


@dataclass(frozen=True, order=True)
class Span:
    """What a reading is about: the symbol `first` to `last` steps on, each equally likely meant.

    Attributes:
        layer: the layer that is read, from 1.
        first, last: steps ahead; 1 is the next symbol.
    """

    layer: int
    first: int
    last: int


class Level(nn.Module):
    """A head on one layer.

    Attributes:
        layer: the layer that it reads, from 1.
        reach: how many symbols its target needs.
        spans: what can be read from its vector.
        tokens: how many training tokens `calibrate` needs at least.
    """

    tokens = 1
    layer: int
    reach: int
    spans: tuple[Span, ...]

    def loss(
        self,
        hidden: Float[Tensor, "B T d"],
        target_ids: Int[Tensor, "B T"],
        table: Float[Tensor, "V m"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """The mean loss; entry t of `hidden` has read the tokens before t."""
        raise NotImplementedError

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the first weights, where there are some that may not begin at zero."""

    def vector(
        self, hidden: Float[Tensor, "N d"], table: Float[Tensor, "V m"]
    ) -> Float[Tensor, "N m"]:
        """The vector of each position (N, m)."""
        raise NotImplementedError

    def log_probs(
        self, hidden: Float[Tensor, "N d"], table: Float[Tensor, "V m"]
    ) -> list[Float[Tensor, "N V"]]:
        """For each of `spans`: log p of the symbols in it (N, V), in nats."""
        raise NotImplementedError

    def logits(
        self, table: Float[Tensor, "V m"]
    ) -> list[tuple[Float[Tensor, "d V"], Float[Tensor, " V"]]] | None:
        """For each of `spans`: (matrix, bias) where p is softmax(hidden @ matrix + bias).

        None where the readout is no such map.
        """
        raise NotImplementedError

    def calibrate(
        self,
        hidden: Float[Tensor, "B T d"],
        target_ids: Int[Tensor, "B T"],
        table: Float[Tensor, "V m"],
    ) -> None:
        """Fit the readouts, if they have parameters. Never fit them on validation text."""


class SymbolLevel(Level):
    """Predicts the symbol exactly `reach` steps on, by any objective; its vector is that one's.

    Args:
        config: the shape of the model.
        layer: the layer that it reads.
        reach: how many steps ahead.
        objective: the name of an objective, with its arguments.
    """

    def __init__(self, config: Any, layer: int, reach: int, objective: str):
        super().__init__()
        self.layer, self.reach, self.spans = layer, reach, (Span(layer, reach, reach),)
        self.objective = make_objective(
            objective, None, config.d_model, config.vocab_size, config.embedding_dim
        )
        self.tokens = self.objective.readout.tokens

    def initialise(self, generator):
        self.objective.initialise(generator)

    def loss(self, hidden, target_ids, table, generator):
        end = target_ids.shape[1] - self.reach + 1
        targets = target_ids[:, self.reach - 1 :]
        return self.objective.loss(hidden[:, :end], targets, table, generator)

    def vector(self, hidden, table):
        return self.objective.vector(self.objective.output(hidden), table)

    def log_probs(self, hidden, table):
        return [self.objective.predict(hidden, table).log_probs]

    def logits(self, table):
        found = self.objective.affine_logits(table)
        return None if found is None else [found]

    def calibrate(self, hidden, target_ids, table):
        end = target_ids.shape[1] - self.reach + 1
        targets = target_ids[:, self.reach - 1 :].flatten()
        self.objective.calibrate(hidden[:, :end].flatten(0, 1), targets, table)


class SumLevel(Level):
    """Predicts the sum of the rows of the next `reach` symbols, by regression.

    With an angle per pair of coordinates the row of the j-th symbol is turned j times before it is
    added. Then each symbol can be read from the sum, as far as its width allows; without, only
    which symbols come, not when.

    Args:
        config: the shape of the model.
        layer: the layer that it reads.
        reach: how many symbols are added.
        bound: whether they are turned.
        readout: how a symbol is read from the vector.
    """

    def __init__(self, config: Any, layer: int, reach: int, bound: bool, readout: str):
        super().__init__()
        m = config.embedding_dim
        self.layer, self.reach, self.bound = layer, reach, bound
        places = [(j, j) for j in range(1, reach + 1)] if bound else [(1, reach)]
        self.spans = tuple(Span(layer, first, last) for first, last in places)
        self.head = nn.Linear(config.d_model, m, bias=False)
        nn.init.zeros_(self.head.weight)
        self.readouts = nn.ModuleList(READOUTS.make(readout, config.vocab_size, m) for _ in places)
        self.tokens = self.readouts[0].tokens
        draws = torch.Generator().manual_seed(reach)
        angle = torch.rand(m // 2, generator=draws, dtype=torch.float64, device="cpu")
        self.register_buffer("angle", (2 * torch.pi * angle).float() * bound)

    def turned(self, vectors: Float[Tensor, "*n m"], steps: int) -> Float[Tensor, "*n m"]:
        """Each pair of coordinates (2i, 2i+1), turned `steps` times by its angle; back where < 0."""
        if not self.bound:
            return vectors
        pairs = vectors[..., : 2 * len(self.angle)].unflatten(-1, (-1, 2))
        cosine, sine = (steps * self.angle).cos(), (steps * self.angle).sin()
        x, y = pairs.unbind(-1)
        new = torch.stack([cosine * x - sine * y, sine * x + cosine * y], -1).flatten(-2)
        return torch.cat([new, vectors[..., 2 * len(self.angle) :]], -1)

    def targets(
        self, target_ids: Int[Tensor, "B T"], table: Float[Tensor, "V m"]
    ) -> Float[Tensor, "B _ m"]:
        """The sums behind each position that has `reach` symbols before it ends, (B, T-reach+1, m)."""
        rows, length = F.embedding(target_ids, table), target_ids.shape[1] - self.reach + 1
        return sum(
            self.turned(rows[:, j - 1 : j - 1 + length], j) for j in range(1, self.reach + 1)
        )

    def loss(self, hidden, target_ids, table, generator):
        table = table.detach()  # else a table that is trained would become small
        targets = self.targets(target_ids, table)
        apart = self.output(hidden[:, : targets.shape[1]]) - targets
        return apart.square().sum(-1).mean() / (self.reach * table.square().sum(-1).mean())

    def output(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n m"]:
        """The sum that is predicted (*n, m)."""
        return single(product(hidden, self.head.weight.T))

    def vector(self, hidden, table):
        return self.output(hidden)

    def _read(self, vector: Float[Tensor, "N m"]) -> list[Float[Tensor, "N m"]]:
        """For each of `spans`: a vector whose best value is a mixture of rows."""
        if self.bound:
            return [self.turned(vector, -j) for j in range(1, self.reach + 1)]
        return [vector / self.reach]

    def log_probs(self, hidden, table):
        vectors = self._read(self.output(hidden))
        return [
            readout.log_probs(self, vector, vector, table)
            for readout, vector in zip(self.readouts, vectors, strict=True)
        ]

    def logits(self, table):
        unit = self._read(torch.eye(table.shape[1], dtype=table.dtype))  # (m, m): a linear map each
        found = []
        for readout, back in zip(self.readouts, unit, strict=True):
            if (pair := readout.affine(_LINEAR, table)) is None:
                return None
            found.append((self.head.weight.T @ back.to(table) @ pair[0], pair[1]))
        return found

    def calibrate(self, hidden, target_ids, table):
        length = target_ids.shape[1] - self.reach + 1
        vectors = self._read(self.output(hidden[:, :length].flatten(0, 1)))
        for readout, vector, span in zip(self.readouts, vectors, self.spans, strict=True):
            places = range(span.first, span.last + 1)
            ids = [target_ids[:, j - 1 : j - 1 + length].flatten() for j in places]
            many = vector.repeat(len(ids), 1)  # each of the symbols counts once
            readout.calibrate(self, many, many, torch.cat(ids), table)


class RecurrentLevel(Level):
    """Proposes symbol after symbol: each knows those proposed before it.

    From a hidden state h that predicts the next symbol x_1: z = h P, then for each symbol
    z = tanh(z R + E[x]), and p of the one after it is softmax(z B + b). Nothing is read from it but
    proposals, for p of a symbol given the past alone would need a sum over those between.

    Args:
        config: the shape of the model.
        reach: the farthest symbol that it proposes.
    """

    spans = ()

    def __init__(self, config: Any, reach: int):
        super().__init__()
        d, vocab_size = config.d_model, config.vocab_size
        self.layer, self.reach = config.n_layers, reach
        self.enter = nn.Parameter(torch.eye(d))  # P (d, d)
        self.step = nn.Parameter(torch.eye(d))  # R (d, d)
        self.rows = nn.Parameter(torch.zeros(vocab_size, d))  # E (V, d)
        self.leave = nn.Parameter(torch.zeros(d, vocab_size))  # B (d, V)
        self.bias = nn.Parameter(torch.zeros(vocab_size))  # b (V,)

    def initialise(self, generator):
        d = len(self.enter)
        for weight, deviation in ((self.enter, d**-0.5), (self.rows, 0.5), (self.leave, 0.03)):
            weight.data.normal_(0, deviation, generator=generator)

    def loss(self, hidden, target_ids, table, generator):
        end = target_ids.shape[1] - self.reach + 1
        z, losses = hidden[:, :end] @ self.enter, []
        for k in range(1, self.reach):
            # x_k is known, x_(k+1) is proposed
            z = torch.tanh(z @ self.step + self.rows[target_ids[:, k - 1 : k - 1 + end]])
            logits, targets = z @ self.leave + self.bias, target_ids[:, k : k + end]
            losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        return sum(losses) / len(losses)

    def vector(self, hidden, table):
        raise TypeError("a recurrent level proposes symbols; it has no vector of its own")

    def log_probs(self, hidden, table):
        return []

    def logits(self, table):
        return []


class _Linear(nn.Module):
    """What a readout asks of an objective: here the soft token is the head's output itself."""

    linear = True


_LINEAR = _Linear()
