"""What the steps of one call of generate() share: the model, what has been shown so far, and who reads along."""

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..evaluation import device_of
from ..models.soft_ar import SoftAR
from ..predictor import Predictor


class Session:
    """One call of generate() with `model` in B rows. `shown`: the symbols so far, prompts included, (B,) a position.

    `memory`: what a strategy keeps from step to step, under its own name.
    """

    def __init__(self, model: Predictor, batch_size: int):
        self.model, self.batch_size = model, batch_size
        self.shown: list[Int[Tensor, " B"]] = []
        self.memory: dict[str, Any] = {}
        self._readers: dict[Predictor, Reader] = {}

    def read_by(self, predictor: Predictor) -> "Reader":
        """`predictor`, after it has read all that was shown as hard tokens; it goes on from where it was last asked.

        Raises ValueError where it has no tokenizer, or could write a symbol that the model cannot.
        """
        if predictor not in self._readers:
            self._readers[predictor] = Reader(predictor, self.model.tokenizer.tokens, self.batch_size)
        reader = self._readers[predictor]
        for token_ids in self.shown[reader.position :]:
            reader.read(token_ids)
        return reader

    @cached_property
    def inverse(self) -> Float[Tensor, "d m"]:
        """The pseudo-inverse of the model's input: hidden states @ inverse are the soft tokens read most like them.

        Raises ValueError for a model whose input is not one linear map.
        """
        if not isinstance(self.model, SoftAR):
            raise ValueError(f"only a SoftAR reads through one linear map, which can be undone; not {self.model!r:.80}")
        return torch.linalg.pinv(self.model.input.weight.detach()).T


class Reader:
    """A predictor that reads what B rows show, written in the symbols `tokens` (V of them).

    `log_probs` (B, V) is what it says next, in their order, -inf where it has no such symbol. `lost` (B,): the rows
    that have shown what it held to be impossible. No language says what follows that, so from then on it reads what
    it likes best itself.
    """

    def __init__(self, predictor: Predictor, tokens: tuple[str, ...], batch_size: int):
        known = getattr(getattr(predictor, "tokenizer", None), "tokens", None)
        if known is None:
            raise ValueError("a predictor that reads along needs a tokenizer, which says what its ids mean")
        if strange := [token for token in known if token not in tokens]:
            raise ValueError(f"a predictor that reads along could write {strange[0]!r}, which the model cannot")
        own = {token: i for i, token in enumerate(known)}
        self.predictor, self.device = predictor, device_of(predictor)
        self.ids = torch.tensor(
            [own.get(token, -1) for token in tokens], device=self.device
        )  # (V,), -1: no such symbol
        self.state, self.position = predictor.start(batch_size), 0
        self.lost: Bool[Tensor, " B"] = torch.zeros(batch_size, dtype=torch.bool, device=self.device)
        self._predict()

    def read(self, token_ids: Int[Tensor, " B"]) -> None:
        """One more symbol a row."""
        token_ids = token_ids.to(self.device)
        self.lost = self.lost | self.log_probs.gather(1, token_ids[:, None]).squeeze(1).isneginf()
        read = torch.where(self.lost, self.prediction.log_probs.argmax(-1), self.ids[token_ids])
        self.state, self.position = self.predictor.advance(self.state, token_ids=read), self.position + 1
        self._predict()

    def _predict(self) -> None:
        self.prediction = self.predictor.predict(self.state)
        self.log_probs = F.pad(self.prediction.log_probs, (0, 1), value=-torch.inf)[:, self.ids]  # the last for -1
