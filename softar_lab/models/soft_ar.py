"""SoftAR (K1, K11): a table, a transformer body and an objective; reads hard tokens or soft ones, predicts both."""

from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..predictor import Prediction, Predictor
from ..sources.tokenizers import CharTokenizer
from ..store import CheckpointError, load_folder, save_folder, vectors_from_bytes, vectors_to_bytes
from .config import ModelConfig
from .decoding import RowDecoder
from .memory import Carry, make_memory
from .mixing import MixingCollapse
from .objectives import make_objective
from .state import SoftState
from .targets import TABLES, make_table
from .transformer import Transformer
from .window import LAYOUTS, Window, resolve

CHECKPOINT_FORMAT = "softar-lab/checkpoint"
MANIFEST = "config.json"
WEIGHTS = "model.safetensors"


def without_gradients(method: Callable) -> Callable:
    """Run in inference mode. Entering it takes microseconds, of which a step has few: only where it is not on yet."""

    @wraps(method)
    def wrapped(*args, **kwargs):
        if torch.is_inference_mode_enabled():
            return method(*args, **kwargs)
        with torch.inference_mode():
            return method(*args, **kwargs)

    return wrapped


class SoftAR(nn.Module, Predictor):
    """An autoregressive model over R^m. `seed` decides the first weights; `card` tells where they came from.

    `rows`, the table's first values instead of drawn ones, are required by the table "pretrained".
    When the context is full, the next token begins a new window: the latest half of the tokens is read again, once.
    With a `window` in the configuration what is older is folded into the memory slots that come before them (K8).
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: CharTokenizer | None = None,
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
        self.mixing: MixingCollapse | None = None  # of collapse "mixing"; fitted by train_mixing
        generator = torch.Generator().manual_seed(seed)
        m, d = config.embedding_dim, config.d_model
        with torch.random.fork_rng(devices=[]):  # torch's own first values are drawn and thrown away
            self.table = make_table(config.table, config.vocab_size, m, generator)
            self.input = nn.Linear(m, d, bias=False)
            self.body = Transformer(config.context, config.n_layers, config.n_heads, d, config.positions)
            self.objective = make_objective(config.objective, config.readout, d, config.vocab_size, m)
        self.input.weight.data.normal_(0, d**-0.5, generator=generator)
        self.body.initialise(generator)
        self.objective.initialise(generator)
        self.memory = make_memory(config, generator)
        self.n_front = 1 + (self.memory.slots if self.memory else 0)  # slots before the first token
        if rows is not None:
            if rows.shape != self.embedding.shape:
                raise ValueError(f"rows must be {tuple(self.embedding.shape)} here, not {tuple(rows.shape)}")
            self.table.weight.data.copy_(rows)
        elif TABLES.name_of(config.table) == "pretrained":
            raise ValueError('the table "pretrained" needs rows: SoftAR(config, rows=pretrained_rows(folder))')

    @property
    def embedding(self) -> Float[Tensor, "V m"]:
        """The table E (V, m), detached."""
        return self.table.weight.detach()

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.input.weight.device

    def n_parameters(self, trained: bool = True) -> int:
        """How many parameters there are; only the trained ones by default."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trained)

    def with_readout(self, readout: str) -> "SoftAR":
        """A copy of this model whose vectors are read another way; `evaluation.calibrate` then fits the reading.

        Raises ValueError for a readout that makes no sense for the objective.
        """
        other = SoftAR(replace(self.config, readout=readout), self.tokenizer, rows=self.embedding.cpu())
        other.mixing = deepcopy(self.mixing)
        kept = {k: v for k, v in self.state_dict().items() if not k.startswith("objective.readout.")}
        other.load_state_dict({**other.state_dict(), **kept})
        other.card = dict(self.card)
        return other.to(self.device).train(self.training)

    def with_window(self, window: str | Window | None) -> "SoftAR":
        """This model, its weights shared, with another window: "masked", "other", "full", or other numbers of tokens.

        Raises ValueError where the window does not fit the context or its memory slots are not those of the model.
        """
        own = self.config.layout
        asked = resolve(window, own)
        if asked == own:
            return self
        kept = ("aggregate", "segments", "kind", "stretch")
        if self.memory and (asked is None or any(getattr(asked, name) != getattr(own, name) for name in kept)):
            asked = LAYOUTS.spec(asked) if asked else "plain"
            raise ValueError(
                f"this model's memory is {LAYOUTS.spec(own)}, and {asked} would have another: only hard, soft, keep "
                'and control may change; "masked" lets the memory say nothing'
            )
        if not self.memory and asked is not None and (asked.memory or asked.control in ("masked", "other")):
            raise ValueError(
                "this model was trained without a memory: give ModelConfig(window=…) and train it with one"
            )
        other = copy(self)
        other.config = replace(self.config, window=asked)
        return other

    # -- whole texts at once: training and scoring ---------------------------------------------------------------------

    def hidden_states(
        self,
        token_ids: Int[Tensor, "B T"] | None = None,
        vectors: Float[Tensor, "B T m"] | None = None,
        memory: Float[Tensor, "B M d"] | None = None,
    ) -> Float[Tensor, "B slots d"]:
        """The body's output before and after each of T tokens, (B, T+1, d); entry t predicts token t.

        `memory`: the slots that `recall` gives of what stood before; None: nothing did.
        Raises ValueError for more tokens than a window holds.
        """
        x = self.input(self._vectors(token_ids, vectors))
        if x.shape[1] > self.config.tokens:
            raise ValueError(f"{x.shape[1]} tokens are more than the context of {self.config.tokens}")
        if self.memory is None:
            return self.behind_start(x)
        return self.behind_start(self.recall(self.fold(len(x))) if memory is None else memory, x)[:, self.n_front - 1 :]

    def behind_start(self, *slots: Float[Tensor, "B _ d"]) -> Float[Tensor, "B slots d"]:
        """The body's output for the start slot and those given, in their order."""
        kind = min((one.dtype for one in slots), key=lambda dtype: dtype.itemsize)  # bf16 where one is in bf16
        start = self.body.start.expand(len(slots[0]), 1, -1)
        return self.body(torch.cat([one.to(kind) for one in (start, *slots)], 1))

    def front(self, batch_size: int, carry: Carry) -> Float[Tensor, "B front d"]:
        """What stands before the first token of a window: the start slot and the memory's."""
        start = self.body.start.expand(batch_size, 1, -1)
        return start if self.memory is None else torch.cat([start, self.recall(carry)], 1)

    def fold(
        self,
        carry: Carry | int,
        token_ids: Int[Tensor, "B n"] | None = None,
        vectors: Float[Tensor, "B n m"] | None = None,
        there: Bool[Tensor, "B n"] | None = None,
    ) -> Carry:
        """What the memory keeps after n more tokens; `carry` is what it kept before, or the number of rows: nothing.

        Rows that have fewer have theirs last, and `there` tells them. Empty for a model without a memory.
        """
        if self.memory is None:
            return ()
        if isinstance(carry, int):
            carry = self.memory.empty(carry)
        if token_ids is None and vectors is None:
            return carry
        new = self._vectors(token_ids, vectors)
        return self.memory.fold(carry, new, self, there) if new.shape[1] else carry

    def recall(self, carry: Carry) -> Float[Tensor, "B M d"]:
        """The memory slots of a carry, as the window's control lets them be seen.

        Raises ValueError for the control "other" with a single row.
        """
        control = self.config.layout.control
        if control == "other" and len(carry[0]) < 2:
            raise ValueError('window "other" shows a row the memory of another: it needs at least two rows')
        if control == "masked":
            carry = self.memory.empty(len(carry[0]))
        slots = self.memory.read(carry, self)
        return slots.roll(1, 0) if control == "other" else slots

    def next_log_probs(
        self, token_ids: Int[Tensor, "B T"], memory: Float[Tensor, "B M d"] | None = None
    ) -> Float[Tensor, "B T V"]:
        """log p(w | the tokens before t in its row) of every symbol at every t, (B, T, V), in nats, in one pass.

        `memory` as in `hidden_states`.
        """
        hidden = self.hidden_states(token_ids[:, :-1], memory=memory)
        return self.objective.predict(hidden.flatten(0, 1), self.table.weight).log_probs.unflatten(0, token_ids.shape)

    # -- one token after the other: the predictor ----------------------------------------------------------------------

    @without_gradients
    def start(self, batch_size: int = 1) -> SoftState:
        """Nothing read yet but the start slot."""
        return self._begin(batch_size, self.fold(batch_size), 0)

    def _begin(self, batch_size: int, carry: Carry, begin: int) -> SoftState:
        """A new window, which the first token is yet to enter."""
        cache = self.body.new_cache(batch_size).room_for(0, self.n_front)
        return SoftState(cache, 0, self.body(self.front(batch_size, carry), cache)[:, -1], (), begin, carry)

    @without_gradients
    def predict(self, state: SoftState) -> Prediction:
        """p(w | what was read) and the soft token that stands for it."""
        return self.objective.predict(state.hidden, self.table.weight)

    def advance(self, state, token_ids=None, vectors=None) -> SoftState:
        """One more slot a row: a hard token (B,) or a soft one (B, m).

        Raises ValueError for both or neither, a wrong shape, an unknown id, NaN or infinity.
        """
        if token_ids is not None:
            token_ids = token_ids.unsqueeze(1)
        if vectors is not None:
            vectors = vectors.unsqueeze(1)
        return self.read(state, token_ids=token_ids, vectors=vectors)

    @without_gradients
    def read(self, state, token_ids=None, vectors=None) -> SoftState:
        """T more slots a row in one pass: hard tokens (B, T) or soft ones (B, T, m)."""
        new = self._vectors(token_ids, vectors, state)
        if new.shape[1] == 0:
            return state
        inputs = (*state.inputs, new)
        total, context = state.length + new.shape[1], self.config.tokens
        if total > context:
            if self.config.layout and self.config.layout.control == "full":
                raise ValueError(f'window "full" holds {context} tokens, {total} are too many')
            keep = self.config.kept
            length = keep + (total - context - 1) % (context - keep + 1)
            old, new = torch.cat(inputs, 1).split([total - length, length], 1)
            decoder, carry = state.cache.decoder, self.fold(state.carry, vectors=old)
            state = self._begin(len(new), carry, state.begin + total - length)
            state.cache.decoder, inputs, total = decoder, (new,), length
        begin, carry = state.begin, state.carry
        cache = state.cache.room_for(state.length + self.n_front, new.shape[1])
        if new.shape[:2] == (1, 1) and not new.is_cuda:
            if cache.decoder is None:
                cache.decoder = RowDecoder(self.input, self.body)
            row = cache.decoder(cache.decoder.embed(new.numpy()[0, 0]), cache.data.numpy()[:, :, 0], cache.filled)
            cache.filled += 1
            return SoftState(cache, total, torch.from_numpy(row[None]), inputs, begin, carry)
        return SoftState(cache, total, self.body(self.input(new), cache)[:, -1], inputs, begin, carry)

    @without_gradients
    def replace(self, state: SoftState, slot: int, vectors: Float[Tensor, "B n m"]) -> SoftState:
        """The state there would be had n slots, `slot` and those after it, held these vectors from the start (K5).

        What came before is taken from the cache, what comes after is read again; `state` itself stays as it is.
        Raises ValueError, naming those that are, for slots that are not in the context; or as `advance` does.
        """
        new, n = self._vectors(None, vectors, state), vectors.shape[1]
        if not state.begin <= slot <= state.end - n:
            asked = f"slots {slot} … {slot + n - 1} cannot be replaced"
            held = f"holds {state.begin} … {state.end - 1}" if state.length else "is empty"
            raise ValueError(f"{asked}: the context {held}")
        if n == 0:
            return state
        at, inputs = slot - state.begin, torch.cat(state.inputs, 1)
        inputs = torch.cat([inputs[:, :at], new, inputs[:, at + n :]], 1)
        cache = state.cache.room_for(at + self.n_front, state.length - at)
        hidden = self.body(self.input(inputs[:, at:]), cache)[:, -1]
        return SoftState(cache, state.length, hidden, (inputs,), state.begin, state.carry)

    @without_gradients
    def foresee(self, state: SoftState, vectors: Float[Tensor, "B n m"]) -> Float[Tensor, "B n d"]:
        """The hidden states that n more slots would leave, one after each, in one pass; the state stays as it is.

        Where the context has no room for them, they are read after its latest half, or as much of it as leaves room.
        Raises ValueError for more slots than the context holds; or as `advance` does.
        """
        new, n, context = self._vectors(None, vectors, state), vectors.shape[1], self.config.tokens
        if n > context:
            raise ValueError(f"{n} slots ahead are more than the context of {context}")
        if n == 0:
            return state.hidden[:, None, :][:, :0]
        if state.length + n > context:
            keep = min(self.config.kept, context - n)
            old, latest = torch.cat(state.inputs, 1).split([state.length - keep, keep], 1)
            memory = None if self.memory is None else self.recall(self.fold(state.carry, vectors=old))
            return self.hidden_states(vectors=torch.cat([latest, new], 1), memory=memory)[:, -n:]
        cache = state.cache.room_for(state.length + self.n_front, n)
        hidden = self.body(self.input(new), cache)
        cache.filled -= n  # what was written belongs to no state, so whoever reads on may write over it
        return hidden

    def _vectors(self, token_ids: Tensor | None, vectors: Tensor | None, state: SoftState | None = None) -> Tensor:
        """The rows of the table for ids, the vectors themselves otherwise; ValueError for what is neither or unfit."""
        if (token_ids is None) == (vectors is None):
            raise ValueError("give either token_ids or vectors")
        given = token_ids if vectors is None else vectors
        if state is not None and len(given) != len(state.hidden):
            raise ValueError(f"{len(given)} rows given, the state has {len(state.hidden)}")
        if token_ids is not None:
            try:
                return F.embedding(token_ids, self.table.weight)
            except IndexError:
                raise ValueError(f"token ids must lie in 0 … {self.vocab_size - 1}") from None
        if vectors.shape[-1] != self.config.embedding_dim:
            raise ValueError(f"soft tokens are {self.config.embedding_dim} wide here, not {vectors.shape[-1]}")
        if not torch.isfinite(vectors).all():
            raise ValueError("soft tokens must be finite; found NaN or infinity")
        return vectors

    # -- on disk ------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, **files: bytes) -> None:
        """Write a checkpoint folder, all of it or nothing; `files` are more members of the same commitment."""
        weights = {name: tensor.detach().cpu() for name, tensor in self.state_dict().items()}
        save_folder(folder, self._manifest(), {WEIGHTS: vectors_to_bytes(weights), **files}, MANIFEST)

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
        """Read a checkpoint folder; CheckpointError names the file that is missing, damaged or foreign."""
        return cls.load_with_files(folder, device)[0]

    @classmethod
    def load_with_files(cls, folder: str | Path, device: str = "auto") -> tuple["SoftAR", dict[str, bytes]]:
        """`load`, and the other files committed with the weights."""
        folder = Path(folder)
        manifest, files = load_folder(folder, MANIFEST, CHECKPOINT_FORMAT)
        try:
            tokenizer = CharTokenizer.from_dict(manifest["tokenizer"]) if manifest["tokenizer"] else None
            config = ModelConfig.from_dict(manifest["config"])
            no_rows = torch.zeros(config.vocab_size, config.embedding_dim)  # a table is loaded, not made
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
            raise CheckpointError(f"{folder / WEIGHTS}: does not fit its configuration ({error})") from None
        return model.to(pick_device(device)).eval(), files


def pick_device(device: str = "auto") -> torch.device:
    """`auto`: the GPU where there is one, else the CPU."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
