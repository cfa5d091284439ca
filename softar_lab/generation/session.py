"""What the steps of one call of generate() share: the model, what has been shown so far, and who reads along."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..evaluation import device_of
from ..models.soft_ar import SoftAR
from ..predictor import Prediction, Predictor


class Session:
    """One call of generate() with `model` in B rows. `shown`: the symbols so far, prompts included, (B,) a position.

    `reach`: how many of the latest symbols may still be revised; those who read along remember so many states.
    `memory`: what a strategy keeps from step to step, under its own name.
    """

    def __init__(self, model: Predictor, batch_size: int, reach: int = 0):
        self.model, self.batch_size, self.reach = model, batch_size, reach
        self.shown = Shown(batch_size)
        self.memory: dict[str, Any] = {}
        self._readers: dict[Predictor, Reader] = {}
        self._readings: dict[Predictor, dict[int, Reading]] = {}  # by how many symbols were read, the latest last

    def reader(self, predictor: Predictor) -> "Reader":
        """`predictor` in the model's symbols.

        Raises ValueError where it has no tokenizer, or could write a symbol that the model cannot.
        """
        if predictor not in self._readers:
            self._readers[predictor] = Reader(predictor, self.model.tokenizer.tokens)
            self._readings[predictor] = {0: self._readers[predictor].start(self.batch_size)}
        return self._readers[predictor]

    def read_by(self, predictor: Predictor, ago: int = 0) -> "Reading":
        """Where `predictor` stands after all that was shown as hard tokens, or all but the last `ago` <= `reach`.

        Each symbol is read once, unless it is revised. Raises ValueError as `reader` does.
        """
        reader, position = self.reader(predictor), len(self.shown) - ago
        readings = self._readings[predictor]
        while (last := next(reversed(readings))) < position:
            readings[last + 1] = reader.advance(readings[last], token_ids=self.shown[last])
            readings.pop(last - self.reach, None)
        return readings[position]

    def revise(self, position: int, token_ids: Int[Tensor, " B"]) -> None:
        """Let other symbols have been shown at a position; who read further goes back there."""
        self.shown[position] = token_ids
        for readings in self._readings.values():
            while next(reversed(readings)) > position:
                readings.popitem()

    @cached_property
    def inverse(self) -> Float[Tensor, "d m"]:
        """The pseudo-inverse of the model's input: hidden states @ inverse are the soft tokens read most like them.

        Raises ValueError for a model whose input is not one linear map.
        """
        if isinstance(self.model, SoftAR):
            return torch.linalg.pinv(self.model.input.weight.detach()).T
        if getattr(self.model, "reads_hidden_states", False):  # as wide as a soft token: fed back as it is
            return torch.eye(self.model.config.embedding_dim, device=self.model.device)
        raise ValueError(f"only a SoftAR reads through one linear map, which can be undone; not {self.model!r:.80}")


class Shown(Sequence):
    """Symbols (B,) a position, eight bytes each: in a text of a million steps, a million small tensors would weigh."""

    def __init__(self, batch_size: int):
        self._ids, self._length = torch.zeros(64, batch_size, dtype=torch.long), 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, at):
        """The symbols at a position (B,), counted from the end where negative; of a slice, a tuple of them."""
        return self._ids[: self._length][at] if isinstance(at, int) else self._ids[: self._length][at].unbind(0)

    def __setitem__(self, at: int, token_ids: Int[Tensor, " B"]) -> None:
        self._ids[: self._length][at] = token_ids

    def append(self, token_ids: Int[Tensor, " B"]) -> None:
        """One more position."""
        if self._length == len(self._ids):
            self._ids = torch.cat([self._ids, torch.zeros_like(self._ids)])
        self._ids = self._ids.to(token_ids.device)
        self._length += 1
        self[-1] = token_ids

    def __iadd__(self, more: Iterable[Int[Tensor, " B"]]) -> "Shown":
        for token_ids in more:
            self.append(token_ids)
        return self


@dataclass(frozen=True)
class Reading:
    """Where a `Reader` stands: `log_probs` (B, V) is what it says next, in the model's symbols.

    `lost` (B,): the rows that have shown what it held to be impossible. No language says what follows that, so from
    then on it reads what it likes best itself, its own `favourite` (B,).
    """

    state: Any
    log_probs: Float[Tensor, "B V"]
    favourite: Int[Tensor, " B"]
    lost: Bool[Tensor, " B"]

    def select(self, rows: Int[Tensor, " n"]) -> "Reading":
        """Fork, drop or reorder batch rows."""
        return Reading(self.state.select(rows), self.log_probs[rows], self.favourite[rows], self.lost[rows])


class Reader(Predictor):
    """A predictor that reads and speaks the symbols `tokens` (V of them): -inf is what it says of those it lacks."""

    def __init__(self, predictor: Predictor, tokens: tuple[str, ...]):
        known = getattr(getattr(predictor, "tokenizer", None), "tokens", None)
        if known is None:
            raise ValueError("a predictor that reads along needs a tokenizer, which says what its ids mean")
        spoken = set(tokens)
        if strange := [token for token in known if token not in spoken]:
            raise ValueError(f"a predictor that reads along could write {strange[0]!r}, which the model cannot")
        own = {token: i for i, token in enumerate(known)}
        self.predictor, self.device, self.vocab_size = predictor, device_of(predictor), len(tokens)
        self.ids = torch.tensor(
            [own.get(token, -1) for token in tokens], device=self.device
        )  # (V,), -1: no such symbol

    def start(self, batch_size: int = 1) -> Reading:
        """Nothing read yet."""
        return self._reading(
            self.predictor.start(batch_size), torch.zeros(batch_size, dtype=torch.bool, device=self.device)
        )

    def predict(self, state: Reading) -> Prediction:
        """What it says next."""
        return Prediction(state.log_probs)

    def advance(self, state, token_ids=None, vectors=None) -> Reading:
        """One more symbol a row."""
        token_ids = token_ids.to(self.device)
        lost = state.lost | state.log_probs.gather(1, token_ids[:, None]).squeeze(1).isneginf()
        read = torch.where(lost, state.favourite, self.ids[token_ids])
        return self._reading(self.predictor.advance(state.state, token_ids=read), lost)

    def _reading(self, state: Any, lost: Tensor) -> Reading:
        log_probs = self.predictor.predict(state).log_probs
        of_all = F.pad(log_probs, (0, 1), value=-torch.inf)[:, self.ids]  # the last for -1
        return Reading(state, of_all, log_probs.argmax(-1), lost)
