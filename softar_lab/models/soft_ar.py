"""SoftAR (K1, K11): a model that reads and predicts hard tokens and soft tokens.

It joins an embedding table, a transformer body and an objective, and is saved as a checkpoint
folder. What it computes is in `forward`.
"""

import inspect
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.store import (
    CheckpointError,
    load_folder,
    save_folder,
    vectors_from_bytes,
    vectors_to_bytes,
)
from ..data.tokenizers import tokenizer_from_dict
from ..data.tokenizers.char import CharTokenizer
from ..data.tokenizers.subword import UnitTokenizer
from .config import ModelConfig
from .device import pick_device
from .embedding_tables import TABLES, make_table
from .exit_heads import ExitHeads
from .forward import ForwardPasses
from .horizons import make_levels
from .mixing import MixingCollapse
from .objectives import make_objective
from .transformer import Transformer
from .window_memory.layout import LAYOUTS, Window, resolve
from .window_memory.memories import make_memory

CHECKPOINT_FORMAT = "softar-lab/checkpoint"
MANIFEST = "config.json"
WEIGHTS = "model.safetensors"


class SoftAR(nn.Module, ForwardPasses):
    """An autoregressive model over R^m (K1).

    With a `window` in the config, tokens that are older than the window are folded into memory
    slots, which come before the window's tokens (K8).

    Args:
        config: the shape of the model.
        tokenizer: the meaning of its token ids, if any.
        seed: decides the first weights. The dictionary `card` records where the weights came from.
        rows: the first values of the table (V, m), instead of random ones. The table "pretrained"
            requires them.

    Raises:
        ValueError: where the tokenizer has another number of symbols than the config, `rows` have
            the wrong shape, or the table "pretrained" gets no rows.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: CharTokenizer | UnitTokenizer | None = None,
        seed: int = 0,
        rows: Float[Tensor, "V m"] | None = None,
    ):
        super().__init__()
        if tokenizer is not None and tokenizer.vocab_size != config.vocab_size:
            raise ValueError(
                f"the tokenizer knows {tokenizer.vocab_size} symbols, ModelConfig.vocab_size is {config.vocab_size}; "
                "they must be equal"
            )
        self.config, self.tokenizer, self.vocab_size = config, tokenizer, config.vocab_size
        self.card: dict[str, Any] = {"seed": seed}
        self.mixing: MixingCollapse | None = None  # for collapse "mixing"; set by train_mixing
        self.exits: ExitHeads | None = None  # for exit="…"; set by train_exits
        generator = torch.Generator().manual_seed(seed)
        m, d = config.embedding_dim, config.d_model
        # 1) the parts; their first values are overwritten below, and torch's global generator must
        # not move
        with torch.random.fork_rng(devices=[]):
            self.table = make_table(config.table, config.vocab_size, m, generator)
            self.input = nn.Linear(m, d, bias=False)
            self.body = Transformer(config)
            self.objective = make_objective(
                config.objective, config.readout, d, config.vocab_size, m
            )
        # 2) the first weights
        self._initialise(generator)
        # 3) the memory
        self.memory = make_memory(config, generator)
        self.n_front = 1 + (self.memory.slots if self.memory else 0)  # slots before the first token
        # 4) heads that look further ahead
        with torch.random.fork_rng(devices=[]):
            self.levels = make_levels(config, generator)
        # 5) the table: tied to the head, with given rows
        if config.tied:
            self.objective.head.weight = self.table.weight
        self._fill_table(rows)

    def _initialise(self, generator: torch.Generator) -> None:
        """Draw the first weights of everything but the table and the memory."""
        if self.config.input_map:
            deviation = self.config.d_model**-0.5
            self.input.weight.data.normal_(0, deviation, generator=generator)
        else:
            identity = torch.eye(self.config.d_model)
            self.input.requires_grad_(False).weight.data.copy_(identity)
        self.body.initialise(generator)
        self.objective.initialise(generator)

    def _fill_table(self, rows: Tensor | None) -> None:
        """Copy given rows into the table, if any.

        Raises:
            ValueError: where they have the wrong shape, or where the table "pretrained" gets none.
        """
        if rows is not None:
            if rows.shape != self.embedding.shape:
                raise ValueError(
                    f"rows must be {tuple(self.embedding.shape)} here, not {tuple(rows.shape)}"
                )
            self.table.weight.data.copy_(rows)
        elif TABLES.name_of(self.config.table) == "pretrained":
            raise ValueError(
                'the table "pretrained" needs rows: SoftAR(config, rows=pretrained_rows(folder))'
            )

    @property
    def embedding(self) -> Float[Tensor, "V m"]:
        """The table E (V, m), detached."""
        return self.table.weight.detach()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.input.weight.device

    @property
    def context(self) -> int:
        """How many tokens a window holds."""
        return self.config.tokens

    @property
    def overlap(self) -> int | None:
        """How many tokens a new window reads again when a text continues; None: none."""
        return self.config.overlap if self.config.layout else None

    @property
    def layout(self) -> Window | None:
        """The layout of the structured window, if the model has one."""
        return self.config.layout

    @property
    def draws_vectors(self) -> bool:
        return self.objective.noise_dim > 0

    @property
    def has_memory(self) -> bool:
        """Whether the model has a memory of the tokens that are older than its window."""
        return self.memory is not None

    @property
    def steps_are_its_own(self) -> bool:
        """Whether `predict`, `advance` and `read` are the methods of this class, not replaced."""
        own = (
            (getattr(self, name), getattr(SoftAR, name)) for name in ("predict", "advance", "read")
        )
        return all(inspect.ismethod(mine) and mine.__func__ is its for mine, its in own)

    @property
    def work(self) -> int:
        """About how many multiply-adds a token takes: one for each weight."""
        return self.n_parameters(trained=False)

    def n_parameters(self, trained: bool = True) -> int:
        """The number of parameters; by default only of the trained ones."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trained)

    def with_readout(self, readout: str) -> "SoftAR":
        """A copy of this model with another readout, which `evaluation.calibrate` can then fit.

        Raises:
            ValueError: where the readout makes no sense for the objective.
        """
        other = SoftAR(
            replace(self.config, readout=readout), self.tokenizer, rows=self.embedding.cpu()
        )
        other.mixing, other.exits = deepcopy(self.mixing), deepcopy(self.exits)
        weights = {
            k: v for k, v in self.state_dict().items() if not k.startswith("objective.readout.")
        }
        other.load_state_dict({**other.state_dict(), **weights})
        other.card = dict(self.card)
        return other.to(self.device).train(self.training)

    def with_window(self, window: str | Window | None) -> "SoftAR":
        """This model with another window; both share the weights.

        Args:
            window: "masked", "other", "full", another layout, such as other numbers of tokens, or
                None for the model's own window.

        Raises:
            ValueError: where the window is unknown or does not fit the context, or its memory slots
                are not those of the model.
        """
        own = self.config.layout
        asked = resolve(window, own)
        if asked == own:
            return self
        fixed = ("aggregate", "segments", "kind", "stretch")
        if self.memory and (
            asked is None or any(getattr(asked, name) != getattr(own, name) for name in fixed)
        ):
            asked = LAYOUTS.spec(asked) if asked else "plain"
            raise ValueError(
                f"this model's memory is {LAYOUTS.spec(own)}, and {asked} would have another: only hard, soft, keep "
                'and control may change; "masked" lets the memory say nothing'
            )
        if (
            not self.memory
            and asked is not None
            and (asked.memory or asked.control in ("masked", "other"))
        ):
            raise ValueError(
                "this model has no memory: give ModelConfig(window=…), and train it with one"
            )
        other = copy(self)
        other.config = replace(self.config, window=asked)
        return other

    # -- on disk -------------------------------------------------------------------------------

    def save(self, folder: str | Path, **files: bytes) -> None:
        """Write a checkpoint folder, completely or not at all, with `files` as further members."""
        weights = {name: tensor.detach().cpu() for name, tensor in self.state_dict().items()}
        save_folder(
            folder, self._manifest(), {WEIGHTS: vectors_to_bytes(weights), **files}, MANIFEST
        )

    def _manifest(self) -> dict[str, Any]:
        tokenizer = self.tokenizer.to_dict() if self.tokenizer else None
        fitted: dict[str, Any] = {"mixing": {"window": self.mixing.window}} if self.mixing else {}
        fitted |= {"exits": True} if self.exits else {}
        return {
            "format": CHECKPOINT_FORMAT,
            "version": 1,
            "config": self.config.to_dict(),
            "tokenizer": tokenizer,
            "card": self.card,
            **fitted,
        }

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> "SoftAR":
        """Read a checkpoint folder.

        Raises:
            CheckpointError: where a file is missing, damaged or foreign. The message names it.
        """
        return cls.load_with_files(folder, device)[0]

    @classmethod
    def load_with_files(
        cls, folder: str | Path, device: str = "auto"
    ) -> tuple["SoftAR", dict[str, bytes]]:
        """As `load`; returns the model and all files saved with the manifest, by name."""
        folder = Path(folder)
        manifest, files = load_folder(folder, MANIFEST, CHECKPOINT_FORMAT)
        try:
            tokenizer = (
                tokenizer_from_dict(manifest["tokenizer"]) if manifest["tokenizer"] else None
            )
            config = ModelConfig.from_dict(manifest["config"])
            # The table is loaded with the weights below, so zeros will do here.
            no_rows = torch.zeros(config.vocab_size, config.embedding_dim)
            model = cls(config, tokenizer, rows=no_rows)
            model.card = dict(manifest["card"])
            if "mixing" in manifest:
                model.mixing = MixingCollapse(config, **manifest["mixing"]).requires_grad_(False)
            if manifest.get("exits"):
                heads = ExitHeads(config.n_layers, config.d_model, config.vocab_size)
                model.exits = heads.requires_grad_(False)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / MANIFEST}: {error}") from None
        if WEIGHTS not in files:
            raise CheckpointError(f"{folder / MANIFEST} names no {WEIGHTS}")
        try:
            model.load_state_dict(vectors_from_bytes(files[WEIGHTS], folder / WEIGHTS)[0])
        except RuntimeError as error:
            raise CheckpointError(
                f"{folder / WEIGHTS}: does not fit its configuration ({error})"
            ) from None
        return model.to(pick_device(device)).eval(), files
