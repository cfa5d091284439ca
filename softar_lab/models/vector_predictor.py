"""What the models that read vectors slot by slot share.

They read on, renew a full context, replace slots in it, and look ahead.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.predictor import Predictor
from .state import SoftState


def without_gradients(method: Callable) -> Callable:
    """Decorator: run a method in inference mode.

    The mode is entered only where it is not on yet: entering takes microseconds, and a step has few
    to spare.
    """

    @wraps(method)
    def wrapped(*args, **kwargs):
        if torch.is_inference_mode_enabled():
            return method(*args, **kwargs)
        with torch.inference_mode():
            return method(*args, **kwargs)

    return wrapped


class VectorPredictor(Predictor):
    """A predictor whose context is a row of `config.tokens` slots, each a hard or a soft token.

    When the context is full, the next token begins a new one. The latest `config.overlap` slots,
    the new token included, are read again in one pass.
    """

    can_replace = can_look_ahead = True
    config: Any  # needs tokens, overlap and embedding_dim

    @abstractmethod
    def _lookup(self, token_ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n m"]:
        """The rows of the table; IndexError for an unknown id."""

    @abstractmethod
    def _continue(
        self, state: SoftState, new: Float[Tensor, "B n m"], at: int
    ) -> tuple[Any, Float[Tensor, "B n d"]]:
        """Read n slots after the first `at` slots of a state.

        Returns:
            The cache, and the hidden state after each of the n slots (B, n, d).
        """

    @abstractmethod
    def _restart(self, state: SoftState, old: Float[Tensor, "B n m"]) -> SoftState:
        """The state of a new, empty context, after the first n slots of `state` have left it."""

    @abstractmethod
    def _release(self, state: SoftState, cache: Any) -> None:
        """Free what was written to `cache` after `state`.

        No state needs it; it may be overwritten.
        """

    def advance(self, state, token_ids=None, vectors=None) -> SoftState:
        """The state after one more slot per row: a hard token (B,) or a soft one (B, m).

        Raises:
            ValueError: for both or neither, a wrong shape, an unknown id, NaN or infinity.
        """
        if token_ids is not None:
            token_ids = token_ids.unsqueeze(1)
        if vectors is not None:
            vectors = vectors.unsqueeze(1)
        return self.read(state, token_ids=token_ids, vectors=vectors)

    @without_gradients
    def read(self, state, token_ids=None, vectors=None) -> SoftState:
        """The state after T more slots per row: hard tokens (B, T) or soft ones (B, T, m).

        They are read in one pass.

        Raises:
            ValueError: as `advance` does.
        """
        new = self._vectors(token_ids, vectors, state)
        if new.shape[1] == 0:
            return state
        inputs, held = (*state.inputs, new), state.length
        total, context = held + new.shape[1], self.config.tokens
        if total > context:
            self._check_renewal(total)
            keep = self.config.overlap
            # as many slots as would remain if they were read one at a time
            length = keep + (total - context - 1) % (context - keep + 1)
            old, new = torch.cat(inputs, 1).split([total - length, length], 1)
            state, inputs, held, total = self._restart(state, old), (new,), 0, length
        cache, hidden = self._continue(state, new, held)
        return SoftState(cache, total, hidden[:, -1], inputs, state.begin, state.memory_state)

    @without_gradients
    def replace(self, state: SoftState, slot: int, vectors: Float[Tensor, "B n m"]) -> SoftState:
        """The state that results if n slots from `slot` on held these vectors from the start (K5).

        The slots before them come from the cache; the slots after them are read again. `state`
        itself does not change.

        Raises:
            ValueError: for slots that are not in the context, naming those that are; or as
                `advance` does.
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
        return SoftState(
            cache, state.length, hidden[:, -1], (inputs,), state.begin, state.memory_state
        )

    @without_gradients
    def lookahead(
        self, state: SoftState, vectors: Float[Tensor, "B n m"]
    ) -> Float[Tensor, "B n d"]:
        """The hidden states (B, n, d) after each of n more slots, in one pass.

        `state` does not change. Where the context has too little space for them, they are read
        after its latest `config.overlap` slots, or after fewer if only fewer fit.

        Raises:
            ValueError: for more slots than the context holds; or as `advance` does.
        """
        new, n, context = self._vectors(None, vectors, state), vectors.shape[1], self.config.tokens
        if n > context:
            raise ValueError(f"{n} slots ahead are more than the context of {context}")
        if n == 0:
            return state.hidden[:, None, :][:, :0]
        if state.length + n > context:
            keep = min(self.config.overlap, context - n)
            old, latest = torch.cat(state.inputs, 1).split([state.length - keep, keep], 1)
            return self._continue(self._restart(state, old), torch.cat([latest, new], 1), 0)[1][
                :, -n:
            ]
        cache, hidden = self._continue(state, new, state.length)
        self._release(state, cache)
        return hidden

    def _check_renewal(self, total: int) -> None:
        """Raise ValueError in a model that may forget nothing; by default do nothing."""

    def _vectors(
        self, token_ids: Tensor | None, vectors: Tensor | None, state: SoftState | None = None
    ) -> Tensor:
        """The rows of the table for ids; otherwise the vectors themselves.

        Raises:
            ValueError: for both or neither, or for ids or vectors that do not fit.
        """
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
            raise ValueError(
                f"soft tokens are {self.config.embedding_dim} wide here, not {vectors.shape[-1]}"
            )
        if not torch.isfinite(vectors).all():
            raise ValueError("soft tokens must be finite; found NaN or infinity")
        return vectors
