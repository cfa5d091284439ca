"""A predictor that reads the same text as a model, symbol by symbol, in the model's symbols."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..core.predictor import Prediction, Predictor


class TokenHistory(Sequence):
    """The symbols (B,) at every position, eight bytes each, in one tensor that grows.

    A list would hold one small tensor per step, and a million of them need much memory.
    """

    def __init__(self, batch_size: int):
        self._ids, self._length = torch.zeros(64, batch_size, dtype=torch.long), 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, at):
        """The symbols at a position (B,); for a slice, a tuple of them.

        A negative position counts from the end.
        """
        return (
            self._ids[: self._length][at]
            if isinstance(at, int)
            else self._ids[: self._length][at].unbind(0)
        )

    def __setitem__(self, at: int, token_ids: Int[Tensor, " B"]) -> None:
        self._ids[: self._length][at] = token_ids

    def append(self, token_ids: Int[Tensor, " B"]) -> None:
        """Add one position, (B,)."""
        if self._length == len(self._ids):
            self._ids = torch.cat([self._ids, torch.zeros_like(self._ids)])
        self._ids = self._ids.to(token_ids.device)
        self._length += 1
        self[-1] = token_ids

    def __iadd__(self, more: Iterable[Int[Tensor, " B"]]) -> "TokenHistory":
        for token_ids in more:
            self.append(token_ids)
        return self


@dataclass(frozen=True)
class AlignedState:
    """The state of an `AlignedPredictor`.

    Once a row has emitted a symbol that the predictor held impossible, no language defines what
    follows. From then on the predictor reads its own most probable symbol in that row, not the
    emitted one.

    Args:
        state: the state of the predictor inside.
        log_probs: its prediction of the next symbol (B, V), in the model's symbols.
        favourite: its most probable symbol (B,), as an id of its own.
        lost: the rows that have emitted an impossible symbol (B,).
    """

    state: Any
    log_probs: Float[Tensor, "B V"]
    favourite: Int[Tensor, " B"]
    lost: Bool[Tensor, " B"]

    def select(self, rows: Int[Tensor, " n"]) -> "AlignedState":
        """Fork, drop or reorder batch rows."""
        return AlignedState(
            self.state.select(rows), self.log_probs[rows], self.favourite[rows], self.lost[rows]
        )


class AlignedPredictor(Predictor):
    """A predictor in terms of the symbols `tokens` (V of them); symbols it lacks get log p = -inf.

    Raises:
        ValueError: where `predictor` has no tokenizer, or has a symbol that is not among `tokens`.
    """

    def __init__(self, predictor: Predictor, tokens: tuple[str, ...]):
        known = predictor.tokenizer and predictor.tokenizer.tokens
        if known is None:
            raise ValueError(
                "a predictor that reads along needs a tokenizer, which says what its ids mean"
            )
        spoken = set(tokens)
        if strange := [token for token in known if token not in spoken]:
            raise ValueError(
                f"a predictor that reads along could write {strange[0]!r}, which the model cannot"
            )
        own = {token: i for i, token in enumerate(known)}
        self.predictor, self.device, self.vocab_size = predictor, predictor.device, len(tokens)
        # (V,) the predictor's id of each of the model's symbols; -1: it has no such symbol
        self.ids = torch.tensor([own.get(token, -1) for token in tokens], device=self.device)

    def start(self, batch_size: int = 1) -> AlignedState:
        """The state in which nothing has been read yet."""
        return self._reading(
            self.predictor.start(batch_size),
            torch.zeros(batch_size, dtype=torch.bool, device=self.device),
        )

    def predict(self, state: AlignedState) -> Prediction:
        """The prediction of the next symbol, in the model's symbols."""
        return Prediction(state.log_probs)

    def advance(self, state, token_ids=None, vectors=None) -> AlignedState:
        """The state after one more symbol per row, `token_ids` (B,) in the model's symbols."""
        token_ids = token_ids.to(self.device)
        lost = state.lost | state.log_probs.gather(1, token_ids[:, None]).squeeze(1).isneginf()
        read = torch.where(lost, state.favourite, self.ids[token_ids])
        return self._reading(self.predictor.advance(state.state, token_ids=read), lost)

    def _reading(self, state: Any, lost: Tensor) -> AlignedState:
        log_probs = self.predictor.predict(state).log_probs
        of_all = F.pad(log_probs, (0, 1), value=-torch.inf)[:, self.ids]  # id -1 picks the padding
        return AlignedState(state, of_all, log_probs.argmax(-1), lost)
