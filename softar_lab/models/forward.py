"""The forward passes of a SoftAR: whole texts at once, and one token after the other with a cache.

A row is the start slot, the memory slots (K8) and then the tokens, hard or soft.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.predictor import Prediction
from .cache import Cache
from .compiled_decoder import CompiledDecoder
from .config import ModelConfig
from .embedding_tables import EmbeddingTable
from .numpy_decoder import RowDecoder
from .objectives import Objective
from .state import SoftState
from .transformer import Transformer
from .vector_predictor import VectorPredictor, without_gradients
from .window_memory.memories import MemoryState


class ForwardPasses(VectorPredictor):
    """What a model of these parts computes; `SoftAR` makes the parts.

    Attributes:
        config: the shape of the model.
        table: the embedding table.
        input: the linear map from its rows (m) to the body's slots (d).
        body: the transformer.
        objective: reads a prediction out of a hidden state.
        memory: folds older tokens into memory slots; None: they are forgotten.
        n_front: how many slots come before the first token.
    """

    config: ModelConfig
    table: EmbeddingTable
    input: nn.Linear
    body: Transformer
    objective: Objective
    memory: nn.Module | None
    n_front: int

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

    def layer_states(
        self,
        token_ids: Int[Tensor, "B T"] | None = None,
        vectors: Float[Tensor, "B T m"] | None = None,
        memory: Float[Tensor, "B M d"] | None = None,
    ) -> list[Float[Tensor, "B slots d"]]:
        """The output of every layer before and after each of T tokens, (B, T+1, d) each.

        Arguments are those of `hidden_states`, which is the last of them; the others are the
        residual stream, not normed.
        """
        states = self.body.layer_states(self._slots(token_ids, vectors, memory))
        return [state[:, self.n_front - 1 :] for state in states]

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
        is_token: Bool[Tensor, "B n"] | None = None,
    ) -> MemoryState:
        """The memory state after n more tokens.

        Args:
            memory_state: the state before, or the number of rows B for an empty memory.
            token_ids: hard tokens (B, n), or None.
            vectors: soft tokens (B, n, m), or None. Without tokens the state does not change.
            is_token: which entries are tokens (B, n); None: all. A row with fewer than n tokens has
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
        return (
            self.memory.update(memory_state, new, self, is_token) if new.shape[1] else memory_state
        )

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
