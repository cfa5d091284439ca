"""What models that read vectors slot by slot have in common: read on, renew a full context, mend it, look ahead."""

from abc import abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..predictor import Predictor
from .state import SoftState


def without_gradients(method: Callable) -> Callable:
    """Run in inference mode. Entering it takes microseconds, of which a step has few: only where it is not on yet."""

    @wraps(method)
    def wrapped(*args, **kwargs):
        if torch.is_inference_mode_enabled():
            return method(*args, **kwargs)
        with torch.inference_mode():
            return method(*args, **kwargs)

    return wrapped


class SlotReader(Predictor):
    """A predictor whose context is a row of slots, each a hard token or a soft one; its `config` tells how many.

    When the context is full, the next token begins a new one: the latest `config.kept` slots are read again, once.
    """

    config: Any  # with tokens, kept, embedding_dim

    @abstractmethod
    def _lookup(self, token_ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n m"]:
        """The rows of the table; IndexError for an unknown id."""

    @abstractmethod
    def _continue(self, state: SoftState, new: Float[Tensor, "B n m"], at: int) -> tuple[Any, Float[Tensor, "B n d"]]:
        """Read n slots behind the first `at` of those a state holds: the cache, and the hidden states after each."""

    @abstractmethod
    def _renew(self, state: SoftState, old: Float[Tensor, "B n m"]) -> SoftState:
        """A context that holds nothing yet, after one whose first n slots are left behind."""

    @abstractmethod
    def _give_back(self, state: SoftState, cache: Any) -> None:
        """What was written to `cache`, read on from a state, belongs to none: it may be written over."""

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
        inputs, held = (*state.inputs, new), state.length
        total, context = held + new.shape[1], self.config.tokens
        if total > context:
            self._check_renewal(total)
            keep = self.config.kept
            length = keep + (total - context - 1) % (context - keep + 1)
            old, new = torch.cat(inputs, 1).split([total - length, length], 1)
            state, inputs, held, total = self._renew(state, old), (new,), 0, length
        cache, hidden = self._continue(state, new, held)
        return SoftState(cache, total, hidden[:, -1], inputs, state.begin, state.carry)

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
        cache, hidden = self._continue(state, inputs[:, at:], at)
        return SoftState(cache, state.length, hidden[:, -1], (inputs,), state.begin, state.carry)

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
            return self._continue(self._renew(state, old), torch.cat([latest, new], 1), 0)[1][:, -n:]
        cache, hidden = self._continue(state, new, state.length)
        self._give_back(state, cache)
        return hidden

    def _check_renewal(self, total: int) -> None:
        """ValueError for a model that may forget nothing."""

    def _vectors(self, token_ids: Tensor | None, vectors: Tensor | None, state: SoftState | None = None) -> Tensor:
        """The rows of the table for ids, the vectors themselves otherwise; ValueError for what is neither or unfit."""
        if (token_ids is None) == (vectors is None):
            raise ValueError("give either token_ids or vectors")
        given = token_ids if vectors is None else vectors
        if state is not None and len(given) != len(state.hidden):
            raise ValueError(f"{len(given)} rows given, the state has {len(state.hidden)}")
        if token_ids is not None:
            try:
                return self._lookup(token_ids)
            except IndexError:
                raise ValueError(f"token ids must lie in 0 … {self.vocab_size - 1}") from None
        if vectors.shape[-1] != self.config.embedding_dim:
            raise ValueError(f"soft tokens are {self.config.embedding_dim} wide here, not {vectors.shape[-1]}")
        if not torch.isfinite(vectors).all():
            raise ValueError("soft tokens must be finite; found NaN or infinity")
        return vectors
