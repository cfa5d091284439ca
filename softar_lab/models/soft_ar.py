"""SoftAR (K1, K11): a table, a transformer body and an objective; reads hard tokens or soft ones, predicts both."""

from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..predictor import Prediction
from ..sources.tokenizers import CharTokenizer, UnitTokenizer, tokenizer_from_dict
from ..store import CheckpointError, load_folder, save_folder, vectors_from_bytes, vectors_to_bytes
from .compiled_decoder import CompiledDecoder
from .config import ModelConfig
from .decoding import RowDecoder
from .memory import Carry, make_memory
from .mixing import MixingCollapse
from .objectives import make_objective
from .slots import SlotReader, without_gradients
from .state import SoftState
from .targets import TABLES, make_table
from .transformer import Cache, Transformer
from .window import LAYOUTS, Window, resolve

CHECKPOINT_FORMAT = "softar-lab/checkpoint"
MANIFEST = "config.json"
WEIGHTS = "model.safetensors"


class SoftAR(nn.Module, SlotReader):
    """An autoregressive model over R^m. `seed` decides the first weights; `card` tells where they came from.

    `rows`, the table's first values instead of drawn ones, are required by the table "pretrained".
    With a `window` in the configuration what is older is folded into the memory slots that come before them (K8).
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
        self.mixing: MixingCollapse | None = None  # of collapse "mixing"; fitted by train_mixing
        generator = torch.Generator().manual_seed(seed)
        m, d = config.embedding_dim, config.d_model
        with torch.random.fork_rng(devices=[]):  # torch's own first values are drawn and thrown away
            self.table = make_table(config.table, config.vocab_size, m, generator)
            self.input = nn.Linear(m, d, bias=False)
            self.body = Transformer(config)
            self.objective = make_objective(config.objective, config.readout, d, config.vocab_size, m)
        if config.input_map:
            self.input.weight.data.normal_(0, d**-0.5, generator=generator)
        else:
            self.input.requires_grad_(False).weight.data.copy_(torch.eye(d))
        self.body.initialise(generator)
        self.objective.initialise(generator)
        self.memory = make_memory(config, generator)
        self.n_front = 1 + (self.memory.slots if self.memory else 0)  # slots before the first token
        if config.tied:
            self.objective.head.weight = self.table.weight
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

    @property
    def work(self) -> int:
        """The multiply-adds of a token, about: one for each weight."""
        return self.n_parameters(trained=False)

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
            raise ValueError("this model has no memory: give ModelConfig(window=…), and train it with one")
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
        return self.body(self._slots(token_ids, vectors, memory))[:, self.n_front - 1 :]

    @without_gradients
    def attention(
        self,
        token_ids: Int[Tensor, "B T"] | None = None,
        vectors: Float[Tensor, "B T m"] | None = None,
        memory: Float[Tensor, "B M d"] | None = None,
    ) -> Float[Tensor, "layers B heads slots slots"]:
        """Where each slot looks, in each layer and head, (layers, B, heads, S, S): S = n_front + T, slot 0 the start.

        Entry (…, t, s) is the weight that slot t gives to slot s <= t; rows sum to 1. `memory` as in `hidden_states`.
        Raises ValueError for more tokens than a window holds.
        """
        return self.body.attention(self._slots(token_ids, vectors, memory))

    def _slots(self, token_ids: Tensor | None, vectors: Tensor | None, memory: Tensor | None) -> Tensor:
        """What the body reads: the start slot, the memory's, and T tokens, (B, n_front+T, d)."""
        x = self.input(self._vectors(token_ids, vectors))
        if x.shape[1] > self.config.tokens:
            raise ValueError(f"{x.shape[1]} tokens are more than the context of {self.config.tokens}")
        if self.memory is None:
            return self._with_start(x)
        return self._with_start(self.recall(self.fold(len(x))) if memory is None else memory, x)

    def behind_start(self, *slots: Float[Tensor, "B _ d"]) -> Float[Tensor, "B slots d"]:
        """The body's output for the start slot and those given, in their order."""
        stream = self._with_start(*slots)
        if torch.is_grad_enabled():
            return self.body(stream)
        return self._pass(stream, self.body.new_cache(len(stream)).room_for(0, stream.shape[1]))

    def _with_start(self, *slots: Float[Tensor, "B _ d"]) -> Float[Tensor, "B slots d"]:
        kind = min((one.dtype for one in slots), key=lambda dtype: dtype.itemsize)  # bf16 where one is in bf16
        start = self.body.start.expand(len(slots[0]), 1, -1)
        return torch.cat([one.to(kind) for one in (start, *slots)], 1)

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

    def _begin(self, batch_size: int, carry: Carry, begin: int, decoder: Any = None) -> SoftState:
        """A new window, which the first token is yet to enter."""
        cache = self.body.new_cache(batch_size).room_for(0, self.n_front)
        cache.decoder = decoder
        return SoftState(cache, 0, self._pass(self.front(batch_size, carry), cache)[:, -1], (), begin, carry)

    @without_gradients
    def predict(self, state: SoftState) -> Prediction:
        """p(w | what was read) and the soft token that stands for it."""
        return self.objective.predict(state.hidden, self.table.weight)

    def _lookup(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self.table.weight)

    def _continue(self, state: SoftState, new: Tensor, at: int) -> tuple[Cache, Tensor]:
        cache = state.cache.room_for(at + self.n_front, new.shape[1])
        decoder = self._decoder(cache)
        if isinstance(decoder, RowDecoder) and new.shape[:2] == (1, 1):
            keys, values = cache.keys.numpy()[:, 0], cache.values.numpy()[:, 0]
            row = decoder(decoder.embed(new.numpy()[0, 0]), keys, values, cache.filled)
            cache.filled += 1
            return cache, torch.from_numpy(row[None, None])
        embedded = decoder.embed(new) if isinstance(decoder, CompiledDecoder) else self.input(new)
        return cache, self._pass(embedded, cache)

    def _pass(self, stream: Float[Tensor, "B n d"], cache: Cache) -> Float[Tensor, "B n d"]:
        """Slots as they enter the body, which follow those in the cache: their hidden states."""
        decoder = self._decoder(cache)
        return decoder(stream, cache) if isinstance(decoder, CompiledDecoder) else self.body(stream, cache)

    def _decoder(self, cache: Cache) -> CompiledDecoder | RowDecoder | None:
        """The quicker way from slots to hidden states that a cache's states take, if there is one."""
        if cache.decoder is None:
            kind = next((kind for kind in (CompiledDecoder, RowDecoder) if kind.suits(self.body)), None)
            cache.decoder = kind and kind(self.input, self.body)
        return cache.decoder

    def _renew(self, state: SoftState, old: Tensor) -> SoftState:
        return self._begin(
            len(old), self.fold(state.carry, vectors=old), state.begin + old.shape[1], state.cache.decoder
        )

    def _give_back(self, state: SoftState, cache: Cache) -> None:
        cache.give_back(state.length + self.n_front)

    def _check_renewal(self, total: int) -> None:
        if self.config.layout and self.config.layout.control == "full":
            raise ValueError(f'window "full" holds {self.config.tokens} tokens, {total} are too many')

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
            tokenizer = tokenizer_from_dict(manifest["tokenizer"]) if manifest["tokenizer"] else None
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
