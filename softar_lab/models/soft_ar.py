"""SoftAR (K1, K11): a model that reads and predicts hard tokens and soft tokens.

It joins an embedding table, a transformer body and an objective.
"""

import inspect
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.predictor import Prediction
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
from .cache import Cache
from .compiled_decoder import CompiledDecoder
from .config import ModelConfig
from .embedding_tables import TABLES, make_table
from .mixing import MixingCollapse
from .numpy_decoder import RowDecoder
from .objectives import make_objective
from .state import SoftState
from .transformer import Transformer
from .vector_predictor import VectorPredictor, without_gradients
from .window_memory.layout import LAYOUTS, Window, resolve
from .window_memory.memories import MemoryState, make_memory

CHECKPOINT_FORMAT = "softar-lab/checkpoint"
MANIFEST = "config.json"
WEIGHTS = "model.safetensors"


class SoftAR(nn.Module, VectorPredictor):
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
        # 4) the table: tied to the head, with given rows
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
        return self.config.kept if self.config.layout else None

    @property
    def layout(self) -> Window | None:
        """The layout of the structured window, if the model has one."""
        return self.config.layout

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
        other.mixing = deepcopy(self.mixing)
        kept = {
            k: v for k, v in self.state_dict().items() if not k.startswith("objective.readout.")
        }
        other.load_state_dict({**other.state_dict(), **kept})
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
        kept = ("aggregate", "segments", "kind", "stretch")
        if self.memory and (
            asked is None or any(getattr(asked, name) != getattr(own, name) for name in kept)
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

    # -- whole texts at once: training and scoring ---------------------------------------------

    def hidden_states(
        self,
        token_ids: Int[Tensor, "B T"] | None = None,
        vectors: Float[Tensor, "B T m"] | None = None,
        memory: Float[Tensor, "B M d"] | None = None,
    ) -> Float[Tensor, "B slots d"]:
        """The body's output before and after each of T tokens.

        Args:
            token_ids: hard tokens (B, T). Give either these or `vectors`.
            vectors: soft tokens (B, T, m).
            memory: the memory slots (B, M, d) of the text before, as `read_memory` returns them;
                None: no text came before.

        Returns:
            The hidden states (B, T+1, d); entry t predicts token t.

        Raises:
            ValueError: where T is more than a window holds.
        """
        return self.body(self._slots(token_ids, vectors, memory))[:, self.n_front - 1 :]

    @without_gradients
    def attention(
        self,
        token_ids: Int[Tensor, "B T"] | None = None,
        vectors: Float[Tensor, "B T m"] | None = None,
        memory: Float[Tensor, "B M d"] | None = None,
    ) -> Float[Tensor, "layers B heads slots slots"]:
        """The attention weights of each layer and head; arguments as for `hidden_states`.

        Returns:
            Weights (layers, B, heads, S, S) with S = n_front + T; slot 0 is the start slot. Entry
            (…, t, s) is the weight that slot t gives to slot s <= t. Rows sum to 1.

        Raises:
            ValueError: where T is more than a window holds.
        """
        return self.body.attention(self._slots(token_ids, vectors, memory))

    def _slots(
        self, token_ids: Tensor | None, vectors: Tensor | None, memory: Tensor | None
    ) -> Tensor:
        """The body's input: the start slot, the memory slots and T tokens, (B, n_front+T, d)."""
        self._check_dtype()
        x = self.input(self._vectors(token_ids, vectors))
        if x.shape[1] > self.config.tokens:
            raise ValueError(
                f"{x.shape[1]} tokens are more than the context of {self.config.tokens}"
            )
        if self.memory is None:
            return self._with_start(x)
        return self._with_start(
            self.read_memory(self.update_memory(len(x))) if memory is None else memory, x
        )

    def _check_dtype(self) -> None:
        """Raise ValueError where the weights are in half precision."""
        if self.body.start.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"a SoftAR computes in float32 or float64, and its weights are {self.body.start.dtype}: "
                'model.float() brings them back; TrainConfig(precision="bf16") trains in bfloat16'
            )

    def behind_start(self, *slots: Float[Tensor, "B _ d"]) -> Float[Tensor, "B slots d"]:
        """The body's output for the start slot followed by the given slots, in their order."""
        stream = self._with_start(*slots)
        if torch.is_grad_enabled():
            return self.body(stream)
        return self._pass(stream, self.body.new_cache(len(stream)).reserve(0, stream.shape[1]))

    def _with_start(self, *slots: Float[Tensor, "B _ d"]) -> Float[Tensor, "B slots d"]:
        # the smallest type: bf16 where any of the slots is in bf16
        kind = min((one.dtype for one in slots), key=lambda dtype: dtype.itemsize)
        start = self.body.start.expand(len(slots[0]), 1, -1)
        return torch.cat([one.to(kind) for one in (start, *slots)], 1)

    def front(self, batch_size: int, memory_state: MemoryState) -> Float[Tensor, "B front d"]:
        """The slots before the first token of a window: the start slot and the memory slots."""
        start = self.body.start.expand(batch_size, 1, -1)
        return (
            start if self.memory is None else torch.cat([start, self.read_memory(memory_state)], 1)
        )

    def update_memory(
        self,
        memory_state: MemoryState | int,
        token_ids: Int[Tensor, "B n"] | None = None,
        vectors: Float[Tensor, "B n m"] | None = None,
        there: Bool[Tensor, "B n"] | None = None,
    ) -> MemoryState:
        """The memory state after n more tokens.

        Args:
            memory_state: the state before, or the number of rows B for an empty memory.
            token_ids: hard tokens (B, n), or None.
            vectors: soft tokens (B, n, m), or None. Without tokens the state does not change.
            there: which entries are tokens (B, n); None: all. A row with fewer than n tokens has
                them at the end.

        Returns:
            The new memory state; an empty tuple for a model without a memory.
        """
        if self.memory is None:
            return ()
        if isinstance(memory_state, int):
            memory_state = self.memory.empty(memory_state)
        if token_ids is None and vectors is None:
            return memory_state
        new = self._vectors(token_ids, vectors)
        return self.memory.update(memory_state, new, self, there) if new.shape[1] else memory_state

    def read_memory(self, memory_state: MemoryState) -> Float[Tensor, "B M d"]:
        """The memory slots (B, M, d) of a memory state, changed as the window's control requires.

        "masked": the slots of an empty memory. "other": each row gets the slots of another row.

        Raises:
            ValueError: where the control is "other" and the batch has a single row.
        """
        control = self.config.layout.control
        if control == "other" and len(memory_state[0]) < 2:
            raise ValueError(
                'window "other" shows a row the memory of another: it needs at least two rows'
            )
        if control == "masked":
            memory_state = self.memory.empty(len(memory_state[0]))
        slots = self.memory.read(memory_state, self)
        return slots.roll(1, 0) if control == "other" else slots

    def next_log_probs(
        self, token_ids: Int[Tensor, "B T"], memory: Float[Tensor, "B M d"] | None = None
    ) -> Float[Tensor, "B T V"]:
        """log p(w | the tokens before t in its row) of every symbol at every t, in one pass.

        The result is (B, T, V), in nats. `memory` is as in `hidden_states`.
        """
        hidden = self.hidden_states(token_ids[:, :-1], memory=memory)
        return self.objective.predict(hidden.flatten(0, 1), self.table.weight).log_probs.unflatten(
            0, token_ids.shape
        )

    # -- one token after the other: the predictor ----------------------------------------------

    @without_gradients
    def start(self, batch_size: int = 1) -> SoftState:
        """The state in which only the start slot (and an empty memory) has been read."""
        self._check_dtype()
        return self._begin(batch_size, self.update_memory(batch_size), 0)

    def _begin(
        self, batch_size: int, memory_state: MemoryState, begin: int, decoder: Any = None
    ) -> SoftState:
        """The state of a new window, before its first token."""
        cache = self.body.new_cache(batch_size).reserve(0, self.n_front)
        cache.decoder = decoder
        return SoftState(
            cache,
            0,
            self._pass(self.front(batch_size, memory_state), cache)[:, -1],
            (),
            begin,
            memory_state,
        )

    @without_gradients
    def predict(self, state: SoftState) -> Prediction:
        """p(w | the tokens read so far), and the soft token that represents it."""
        return self.objective.predict(state.hidden, self.table.weight)

    def _lookup(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self.table.weight)

    def _continue(self, state: SoftState, new: Tensor, at: int) -> tuple[Cache, Tensor]:
        cache = state.cache.reserve(at + self.n_front, new.shape[1])
        decoder = self._decoder(cache)
        # a RowDecoder takes one slot of one row; all else goes through `_pass`
        if isinstance(decoder, RowDecoder) and new.shape[:2] == (1, 1):
            keys, values = cache.keys.numpy()[:, 0], cache.values.numpy()[:, 0]
            row = decoder(decoder.embed(new.numpy()[0, 0]), keys, values, cache.filled)
            cache.filled += 1
            return cache, torch.from_numpy(row[None, None])
        embedded = decoder.embed(new) if isinstance(decoder, CompiledDecoder) else self.input(new)
        return cache, self._pass(embedded, cache)

    def _pass(self, stream: Float[Tensor, "B n d"], cache: Cache) -> Float[Tensor, "B n d"]:
        """The hidden states of embedded slots (B, n, d), which follow those in the cache."""
        decoder = self._decoder(cache)
        return (
            decoder(stream, cache)
            if isinstance(decoder, CompiledDecoder)
            else self.body(stream, cache)
        )

    def _decoder(self, cache: Cache) -> CompiledDecoder | RowDecoder | None:
        """The cache's faster replacement of the body, made when first needed; None: none fits."""
        if cache.decoder is None:
            kind = next(
                (kind for kind in (CompiledDecoder, RowDecoder) if kind.suits(self.body)), None
            )
            cache.decoder = kind and kind(self.input, self.body)
        return cache.decoder

    def _restart(self, state: SoftState, old: Tensor) -> SoftState:
        return self._begin(
            len(old),
            self.update_memory(state.memory_state, vectors=old),
            state.begin + old.shape[1],
            state.cache.decoder,
        )

    def _release(self, state: SoftState, cache: Cache) -> None:
        cache.release(state.length + self.n_front)

    def _check_renewal(self, total: int) -> None:
        if self.config.layout and self.config.layout.control == "full":
            raise ValueError(
                f'window "full" holds {self.config.tokens} tokens, {total} are too many'
            )

    # -- on disk -------------------------------------------------------------------------------

    def save(self, folder: str | Path, **files: bytes) -> None:
        """Write a checkpoint folder, completely or not at all, with `files` as further members."""
        weights = {name: tensor.detach().cpu() for name, tensor in self.state_dict().items()}
        save_folder(
            folder, self._manifest(), {WEIGHTS: vectors_to_bytes(weights), **files}, MANIFEST
        )

    def _manifest(self) -> dict[str, Any]:
        tokenizer = self.tokenizer.to_dict() if self.tokenizer else None
        fitted = {"mixing": {"window": self.mixing.window}} if self.mixing else {}
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


def pick_device(device: str = "auto") -> torch.device:
    """The device of that name; "auto": the GPU where there is one, else the CPU.

    Raises:
        ValueError: for an unknown name, or a GPU where there is none.
    """
    if not isinstance(device, str | torch.device) or device != "auto":
        try:
            found = torch.device(device)
        except (RuntimeError, TypeError) as error:
            known = 'device must be "auto", "cpu", "cuda" or another name of PyTorch\'s'
            raise ValueError(f"{known}, not {device!r:.80}") from error
        if found.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f'device {device!r}: there is no GPU here; "auto" or "cpu" works')
        return found
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
