"""Levels (K22, K24): heads that look further ahead than the next symbol, each on its own layer.

Level l reads layer l and predicts, as one vector, what comes within the next k = growth^(l-1)
symbols: 1, 2, 4, 8, … The registry LEVELS has the kinds, and `multi-token` as the control: as many
heads as are asked for, all on the top layer. A model with levels predicts the next symbol as any
other; the levels are trained beside its objective (training/update.py), and change nothing else.

    layer states (B, T, d) --Level--> vector (B, T, m) --readout--> log p of a symbol in a span
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.checks import whole_number
from ..core.registry import Registry
from .by_row import product, single
from .objectives import READOUTS, make_objective

LEVELS = Registry("levels")
FARTHEST = 4096  # steps ahead; growth^(layers-1) would soon be more than any text has


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

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights that cannot begin alike."""
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


class Levels(nn.Module):
    """The levels of a model, in the order in which a curriculum switches them on."""

    def __init__(self, levels: Sequence[Level], depth: int):
        super().__init__()
        self.levels, self.depth = nn.ModuleList(levels), depth

    @property
    def spans(self) -> list[Span]:
        """Everything that can be read, level by level."""
        return [span for level in self.levels for span in level.spans]

    @property
    def tokens(self) -> int:
        """How many training tokens `calibrate` needs at least."""
        return max(level.tokens for level in self.levels)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the first weights of objectives that do not start at zero."""
        for level in self.levels:
            if isinstance(level, SymbolLevel):
                level.objective.initialise(generator)
            if isinstance(level, RecurrentLevel):
                level.initialise(generator)

    def loss(
        self,
        states: Sequence[Float[Tensor, "B T d"]],
        target_ids: Int[Tensor, "B T"],
        table: Float[Tensor, "V m"],
        generator: torch.Generator,
        active: int,
    ) -> Float[Tensor, ""]:
        """The sum of the losses of the first `active` levels, over the number of all levels.

        A level that reaches further than the rows are long adds nothing.
        """
        on = [level for level in self.levels[:active] if level.reach <= target_ids.shape[1]]
        losses = [level.loss(self._of(level, states), target_ids, table, generator) for level in on]
        return sum(losses, table.new_zeros(())) / len(self.levels)

    def log_probs(
        self, states: Sequence[Float[Tensor, "N d"]], table: Float[Tensor, "V m"]
    ) -> dict[Span, Float[Tensor, "N V"]]:
        """log p of the symbols in each span (N, V), in nats, from every layer's states (N, d)."""
        found = {}
        for level in self.levels:
            readings = level.log_probs(self._of(level, states), table)
            found |= dict(zip(level.spans, readings, strict=True))
        return found

    def calibrate(
        self,
        states: Sequence[Float[Tensor, "B T d"]],
        target_ids: Int[Tensor, "B T"],
        table: Float[Tensor, "V m"],
    ) -> None:
        """Fit the readouts of all levels on training rows."""
        for level in self.levels:
            if level.reach <= target_ids.shape[1]:
                level.calibrate(self._of(level, states), target_ids, table)

    def proposals(
        self, table: Float[Tensor, "V m"]
    ) -> list[tuple[Float[Tensor, "d V"], Float[Tensor, " V"]]]:
        """What the top layer says of the symbols 2, 3, … steps on, without a gap.

        Returns:
            (matrix, bias) for each of them: p is softmax(hidden @ matrix + bias), from the hidden
            state that predicts the next symbol. Empty where the top layer does not read them.
        """
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for level in self.levels:
            if level.layer == self.depth and (maps := level.logits(table)):
                found |= {
                    span.first: one
                    for span, one in zip(level.spans, maps, strict=True)
                    if span.first == span.last
                }
        ordered = []
        while (one := found.get(len(ordered) + 2)) is not None:
            ordered.append(one)
        return ordered

    @property
    def recurrent(self) -> RecurrentLevel | None:
        """The level that proposes symbol after symbol, if there is one."""
        return next((one for one in self.levels if isinstance(one, RecurrentLevel)), None)

    def _of(self, level: Level, states: Sequence[Tensor]) -> Tensor:
        """What a level reads: its layer's states, normed; the body has normed the last ones."""
        state = states[level.layer - 1]
        if level.layer < self.depth:
            state = F.layer_norm(state, state.shape[-1:])
        return single(state)


def reaches(config: Any, growth: int) -> list[int]:
    """growth^0, growth^1, …: one for each layer.

    Raises:
        ValueError: where growth is below 1, or the last would be too far.
    """
    growth = whole_number("growth", growth, 1)
    if growth ** (config.n_layers - 1) > FARTHEST:
        raise ValueError(
            f"growth {growth} over {config.n_layers} layers reaches "
            f"{growth ** (config.n_layers - 1)} steps ahead; at most {FARTHEST}"
        )
    return [growth**layer for layer in range(config.n_layers)]


@LEVELS.register("ahead")
def ahead(config: Any, growth: int = 2, objective: str = "ce") -> Levels:
    """Level l predicts the symbol exactly growth^(l-1) steps on (K24)."""
    each = enumerate(reaches(config, growth), 1)
    levels = [SymbolLevel(config, layer, k, objective) for layer, k in each]
    return Levels(levels, config.n_layers)


@LEVELS.register("sum")
def sums(config: Any, growth: int = 2, readout: str = "affine") -> Levels:
    """Level l predicts the sum of the rows of the next growth^(l-1) symbols (K22)."""
    each = enumerate(reaches(config, growth), 1)
    levels = [SumLevel(config, layer, k, False, readout) for layer, k in each]
    return Levels(levels, config.n_layers)


@LEVELS.register("bound")
def bound(config: Any, growth: int = 2, readout: str = "affine") -> Levels:
    """As `sum`, but each row is turned by its place, so that each symbol can be read (K24)."""
    each = enumerate(reaches(config, growth), 1)
    levels = [SumLevel(config, layer, k, True, readout) for layer, k in each]
    return Levels(levels, config.n_layers)


@LEVELS.register("multi-token")
def multi_token(config: Any, reach: int = 8, objective: str = "ce") -> Levels:
    """The control: heads on the top layer for the symbols 2, 3, … reach steps on.

    Source: arXiv 2404.19737.
    """
    reach = whole_number("reach", reach, 2, FARTHEST)
    top = config.n_layers
    return Levels([SymbolLevel(config, top, k, objective) for k in range(2, reach + 1)], top)


@LEVELS.register("recurrent")
def recurrent(config: Any, reach: int = 8) -> Levels:
    """For drafts: a small recurrent head that proposes the symbols 2, 3, … reach steps on.

    Source: arXiv 2403.09919.
    """
    reach = whole_number("reach", reach, 2, FARTHEST)
    return Levels([RecurrentLevel(config, reach)], config.n_layers)


def make_levels(config: Any, generator: torch.Generator) -> Levels | None:
    """The levels of a model with this config; None where it has none."""
    if config.levels is None:
        return None
    levels = LEVELS.make(config.levels, config)
    levels.initialise(generator)
    return levels
