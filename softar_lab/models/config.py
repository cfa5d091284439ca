"""The configuration of a model, checked when it is made."""

import math
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import torch

from ..core.checks import plain_fields, whole_number
from .activations import MLPS
from .embedding_tables import TABLES
from .horizons import LEVELS
from .objectives import OBJECTIVES, READOUTS, make_objective
from .window_memory.layout import LAYOUTS, Window, resolve
from .window_memory.memories import make_memory

POSITIONS = ("learned", "sinusoidal", "rotary", "none")
NORMS = ("layer", "rms")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides the shape of a model.

    The defaults describe the lab's own transformer; the presets describe other people's.
    `objective`, `readout` and `table` may carry arguments: "successor(0.5)", "barycentric(0.1)",
    "random(trained=True)". The configuration stores them with all arguments written out, defaults
    included.

    Args:
        vocab_size: V, the number of symbols.
        context: number of slots, without the start slot that comes before them.
        embedding_dim: m, the width of the table. None: vocab_size for orthonormal rows, otherwise
            d_model.
        readout: how the objective's vector is read as probabilities. None: the objective's default.
        table: the embedding table. None: "joint" for the hard objective "ce", "random" for the
            others, because a joint table collapses (K23).
        positions: "learned", "sinusoidal", "rotary" (with `rotary_base`) or "none".
        window: how a memory and the tokens share the slots, see models/window_memory/layout.py.
            None: all slots hold tokens.
        norm: "layer" or "rms", with `norm_eps`.
        mlp: "gelu", "gelu-tanh" or "swiglu". Its inner width is `mlp_ratio` times d_model.
        bias: whether linear maps and layer norms have a bias.
        queries_per_key: how many query heads share one head of keys and values.
        attention_window: how many slots a slot attends to, itself included. None: itself and all
            slots before it.
        input_map: whether a learned map takes the table's rows to the residual stream. False: they
            enter unchanged.
        tied: whether the head of the objective "ce" is the table itself.
        levels: heads that look further ahead than the next symbol, such as "ahead", "bound(2)" or
            "multi-token(8)", see models/horizons.py. None: no such heads.

    Raises:
        ValueError: where a field is out of range or does not fit the others. The message names it.
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
    rotary_base: float | int = 10_000.0
    norm: str = "layer"
    norm_eps: float | int = 1e-5
    mlp: str = "gelu"
    mlp_ratio: float | int = 4
    bias: bool = False
    queries_per_key: int = 1
    attention_window: int | None = None
    input_map: bool = True
    tied: bool = False
    levels: str | None = None

    def __post_init__(self):
        plain_fields(self)
        self._fill_in_defaults()
        self._check_numbers()
        self._complete_names()
        self._check_combinations()
        self._check_window()

    def _fill_in_defaults(self) -> None:
        """Set the fields whose defaults depend on other fields."""
        if self.table is None:
            object.__setattr__(
                self, "table", "joint" if OBJECTIVES.name_of(self.objective) == "ce" else "random"
            )
        orthonormal = TABLES.name_of(self.table) == "orthonormal"
        if self.embedding_dim is None:
            object.__setattr__(
                self, "embedding_dim", self.vocab_size if orthonormal else self.d_model
            )

    def _check_numbers(self) -> None:
        """Check that numbers are in range, and that the sizes of the body fit each other."""
        for name in _COUNTS:
            value = getattr(self, name)
            if value is None and name == "attention_window":
                continue
            object.__setattr__(self, name, whole_number(f"ModelConfig.{name}", value))
        for name in ("rotary_base", "norm_eps", "mlp_ratio"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"ModelConfig.{name} must be above 0, not {getattr(self, name)!r}")
        if round(self.mlp_ratio * self.d_model) < 1:
            raise ValueError(
                f"ModelConfig.mlp_ratio {self.mlp_ratio} of {self.d_model} leaves no inner width"
            )
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"ModelConfig.d_model must be n_heads times an even number; {self.d_model} is not "
                f"with n_heads={self.n_heads}"
            )

    def _complete_names(self) -> None:
        """Check that names are known, and store them with all their arguments."""
        TABLES.check(TABLES.name_of(self.table))
        with torch.device("meta"):  # checks the arguments without computing anything
            objective = make_objective(
                self.objective, self.readout, self.d_model, self.vocab_size, self.embedding_dim
            )
        readout = self.readout or objective.readouts[0]
        object.__setattr__(self, "objective", OBJECTIVES.complete(self.objective, *[None] * 3))
        object.__setattr__(self, "readout", READOUTS.complete(readout, *[None] * 2))
        object.__setattr__(self, "table", TABLES.complete(self.table, *[None] * 3))
        if self.levels is not None:
            with torch.device("meta"):
                LEVELS.make(self.levels, self)
            object.__setattr__(self, "levels", LEVELS.complete(self.levels, None))
        for name, known in (("positions", POSITIONS), ("norm", NORMS), ("mlp", MLPS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}"
                )

    def _check_combinations(self) -> None:
        """Check fields that must fit each other."""
        if self.n_heads % self.queries_per_key:
            raise ValueError(f"ModelConfig.n_heads ({self.n_heads}) must be a multiple of queries_per_key, "
                             f"{self.queries_per_key}")  # fmt: skip
        if self.embedding_dim != self.d_model and (self.tied or not self.input_map):
            which = "tied=True" if self.tied else "input_map=False"
            raise ValueError(f"ModelConfig.embedding_dim must be d_model ({self.d_model}) with {which}, "
                             f"not {self.embedding_dim}")  # fmt: skip
        if self.tied and OBJECTIVES.name_of(self.objective) != "ce":
            raise ValueError(f'ModelConfig.tied is for the objective "ce", whose head has a row a symbol, '
                             f"not {self.objective!r}")  # fmt: skip
        orthonormal = TABLES.name_of(self.table) == "orthonormal"
        if orthonormal and self.embedding_dim < self.vocab_size:
            raise ValueError(
                f"ModelConfig.embedding_dim must be at least vocab_size ({self.vocab_size}) for orthonormal "
                f"rows, not {self.embedding_dim}"
            )

    def _check_window(self) -> None:
        """Check that the window fits the context, and store it with all its arguments."""
        window = resolve(self.window)
        object.__setattr__(self, "window", window and LAYOUTS.spec(window))
        if window:
            window.tokens(self.context)
            make_memory(self, torch.Generator())  # only to check its arguments

    @cached_property
    def layout(self) -> Window | None:
        """The structured window; None where all slots hold tokens and the model has no memory."""
        return resolve(self.window)

    @property
    def tokens(self) -> int:
        """How many tokens a window holds."""
        return self.layout.tokens(self.context) if self.layout else self.context

    @property
    def overlap(self) -> int:
        """How many of the latest tokens are read again when a window is full."""
        return self.layout.kept(self.context) if self.layout else max(1, self.context // 2)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "ModelConfig":
        """The preset `name`, with `changes` applied to it.

        Raises:
            ValueError: where `name` is unknown; the message lists the known names.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """The inverse of `to_dict`.

        Raises:
            ValueError: where `values` has a field that this version does not know.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"ModelConfig has no field {', '.join(sorted(unknown))}")
        return cls(**values)


_COUNTS = (
    *("vocab_size", "context", "n_layers", "n_heads", "d_model", "embedding_dim"),
    *("queries_per_key", "attention_window"),
)
_LLAMA = {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "input_map": False}
# "shakespeare" is nanoGPT's documented CPU model: 4 layers, 4 heads, width 128.
# "tales" needs another vocab_size where the tokenizer's differs.
# The last three are the published GPT-2, Llama 2 7B and Mistral 7B. Their published contexts of
# 1,024, 4,096 and 32,768 include the start slot. To make them small, change n_layers, n_heads and
# d_model: every size that depends on these is a ratio.
PRESETS = {
    "shakespeare": {"vocab_size": 65, "context": 64},
    "tales": {"vocab_size": 48, "context": 400},
    "gpt2": {"vocab_size": 50257, "context": 1023, "n_layers": 12, "n_heads": 12, "d_model": 768, "bias": True,
             "positions": "learned", "mlp": "gelu-tanh", "input_map": False, "tied": True},
    "llama2": {"vocab_size": 32000, "context": 4095, "n_layers": 32, "n_heads": 32, "d_model": 4096, **_LLAMA,
               "mlp_ratio": 2.6875},
    "mistral": {"vocab_size": 32000, "context": 32767, "n_layers": 32, "n_heads": 32, "d_model": 4096, **_LLAMA,
                "mlp_ratio": 3.5, "queries_per_key": 4, "attention_window": 4096},
}  # fmt: skip
