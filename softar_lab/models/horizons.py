"""The levels of a model (K22, K24): heads that look further ahead than the next symbol.

Level l reads layer l and predicts, as one vector, what comes within the next k = growth^(l-1)
symbols: 1, 2, 4, 8, … The registry LEVELS has the kinds, and `multi-token` as the control: as many
heads as are asked for, all on the top layer. A model with levels predicts the next symbol as any
other; the levels are trained beside its objective (training/update.py), and change nothing else.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.checks import whole_number
from ..core.registry import Registry
from .by_row import single
from .levels import Level, RecurrentLevel, Span, SumLevel, SymbolLevel

LEVELS = Registry("levels")
FARTHEST = 4096  # steps ahead; growth^(layers-1) would soon be more than any text has


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
        """Draw the first weights of all levels."""
        for level in self.levels:
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
