"""The texts of an adaptation, and the rows that are cut from them (K32)."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from ...core.checks import sequence
from ...core.predictor import Predictor


class Texts:
    """The rows of a run: row i of step t depends on the seed and t alone.

    Args:
        model: its tokenizer reads the texts.
        text: one running text, of which rows are cut anywhere; or texts, each of which is a row
            from its beginning.
        window: tokens per row at most.

    Raises:
        ValueError: where there is no text of at least 2 tokens.
    """

    def __init__(self, model: Predictor, text: str | Sequence[str], window: int):
        whole = [text] if isinstance(text, str) else sequence("text", text, "texts")
        for one in whole:
            if not isinstance(one, str):
                raise ValueError(f"text must be a text or a list of texts, and holds {one!r:.40}")
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer to read the text with")
        self.ids = [ids for one in whole if len(ids := model.tokenizer.encode(one)) > 1]
        if not self.ids:
            raise ValueError("no text of at least 2 tokens")
        self.running, self.window, self.device = isinstance(text, str), window, model.device
        joined = torch.cat([F.pad(ids, (0, 1), value=-1) for ids in self.ids])
        self.digest = hashlib.sha256(joined.numpy().tobytes()).hexdigest()

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of one step: tokens (B, T), and which of them exist (B, T)."""
        if self.running:
            last = max(1, len(self.ids[0]) - self.window + 1)
            begins = torch.randint(last, (size,), generator=generator).tolist()
            return self._padded([self.ids[0][i : i + self.window] for i in begins])
        chosen = torch.randint(len(self.ids), (size,), generator=generator).tolist()
        return self._padded([self.ids[i][: self.window] for i in chosen])

    def first(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Up to `size` rows in their order, each as a batch of one."""
        if self.running:
            rows = [one for one in self.ids[0].split(self.window) if len(one) > 1]
        else:
            rows = [ids[: self.window] for ids in self.ids]
        return [self._padded([row]) for row in rows[:size]]

    def _padded(self, rows: list[Int[Tensor, " _"]]) -> tuple[Tensor, Tensor]:
        """Rows of one length, padded behind their end, where nothing before can see it."""
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        exists = torch.arange(ids.shape[1]) < lengths[:, None]
        return ids.to(self.device), exists.to(self.device)
