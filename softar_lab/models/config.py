"""The shape of a model, checked when it is written down."""

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import torch

from .memory import make_memory
from .objectives import OBJECTIVES, make_objective
from .targets import TABLES
from .transformer import POSITIONS
from .window import LAYOUTS, Window, resolve


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides a model's shape. `context` counts slots; a start slot comes before them.

    `embedding_dim` is m, the width of the table; None: vocab_size for orthonormal rows, else d_model.
    `table` None: "joint" for the hard objective "ce", "random" for the others (a joint table collapses, K23).
    `readout`, how the objective's vector is read as probabilities; None: the objective's default.
    These three may carry arguments: "successor(0.5)", "barycentric(0.1)", "random(trained=True)".
    `window`: how the slots are shared between a memory and tokens, see models/window.py; None: all are tokens.
    """

    vocab_size: int
    context: int = 256
    n_layers: int = 4
    n_heads: int = 4
    d_model: int = 128
    embedding_dim: int | None = None
    objective: str = "ce"
    readout: str | None = None
    table: str | None = None
    positions: str = "rotary"
    window: str | Window | None = None

    def __post_init__(self):
        if self.table is None:
            object.__setattr__(self, "table", "joint" if OBJECTIVES.name_of(self.objective) == "ce" else "random")
        table = TABLES.name_of(self.table)
        if self.embedding_dim is None:
            object.__setattr__(self, "embedding_dim", self.vocab_size if table == "orthonormal" else self.d_model)
        for name in ("vocab_size", "context", "n_layers", "n_heads", "d_model", "embedding_dim"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"ModelConfig.{name} must be a whole number of at least 1, not {value!r}")
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"ModelConfig.d_model must be n_heads times an even number; {self.d_model} is not "
                f"with n_heads={self.n_heads}"
            )
        TABLES.check(table)
        with torch.device("meta"):  # its arguments are checked, and nothing is computed
            objective = make_objective(self.objective, self.readout, self.d_model, self.vocab_size, self.embedding_dim)
        if self.readout is None:
            object.__setattr__(self, "readout", objective.readouts[0])
        if self.positions not in POSITIONS:
            raise ValueError(f"unknown positions {self.positions!r}; known: {', '.join(POSITIONS)}")
        if table == "orthonormal" and self.embedding_dim < self.vocab_size:
            raise ValueError(
                f"ModelConfig.embedding_dim must be at least vocab_size ({self.vocab_size}) for orthonormal "
                f"rows, not {self.embedding_dim}"
            )
        window = resolve(self.window)
        object.__setattr__(self, "window", window and LAYOUTS.spec(window))
        if window:
            window.tokens(self.context)
            make_memory(self, torch.Generator())  # its arguments are checked

    @cached_property
    def layout(self) -> Window | None:
        """The window; None where every slot is a token's and nothing is kept of what leaves the context."""
        return resolve(self.window)

    @property
    def tokens(self) -> int:
        """How many tokens a window holds."""
        return self.layout.tokens(self.context) if self.layout else self.context

    @property
    def kept(self) -> int:
        """How many of the latest tokens are read again when a window is full."""
        return self.layout.kept(self.context) if self.layout else max(1, self.context // 2)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "ModelConfig":
        """A named shape, with `changes` on top. ValueError lists the names where `name` is unknown."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """The inverse of `to_dict`; ValueError names a field this version does not know."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"ModelConfig has no field {', '.join(sorted(unknown))}")
        return cls(**values)


PRESETS = {
    "shakespeare": {"vocab_size": 65, "context": 64},  # nanoGPT's documented CPU model: 4 layers, 4 heads, width 128
    "tales": {"vocab_size": 48, "context": 400},  # vocab_size is to be given where the tokenizer's differs
}
