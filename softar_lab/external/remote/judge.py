"""A judge served elsewhere: log-probs of a text, and embeddings (K33).

The servers are vLLM, TGI, TensorRT-LLM and LMI. Each has its own format for scoring a text that it
did not write. A result is accepted only where it covers exactly this text, token by token, and
every number is a possible log-prob. Otherwise there is an error and no number. llama.cpp's server,
`transformers serve` and others score only what they write themselves, and cannot judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ...core.checks import unicode_text
from .alignment import aligned
from .http import Caller, RemoteError, place_of
from .protocols import APIS, Pair, Unusable, embedding_rows

FLOOR = -9999.0  # vLLM and TensorRT-LLM send this instead of anything smaller


@dataclass(frozen=True)
class Scored:
    """A model's log-probs of a text: `unscored` + the joined `tokens` are exactly `text`.

    `unscored`: the part that was only read, usually the first token; "" where the server puts a
    start token before the text. If the first token is a part of a character, the whole character;
    its other parts are tokens with log-probs as all others, here and in `evaluate`.
    `tokens` (N): the part of the text of each; "" where tokens spell one character together, for
    all of them but one. `log_probs` (N,), in nats: of each token given everything before it.
    """

    text: str
    unscored: str
    tokens: tuple[str, ...]
    log_probs: Float64[Tensor, " N"]

    @property
    def offsets(self) -> Int64[Tensor, " N"]:
        """Where each token begins in the text (N,), in characters."""
        lengths = torch.tensor([len(self.unscored), *map(len, self.tokens)])
        return lengths.cumsum(0)[:-1]

    @property
    def bits_per_char(self) -> float:
        """Mean bits per character, over the characters that were scored."""
        return -self.log_probs.sum().item() / math.log(2) / (len(self.text) - len(self.unscored))


@dataclass(frozen=True, kw_only=True)
class RemoteJudge:
    """A language model behind an address, asked over HTTP.

    Args:
        url: the address before the path, such as "http://localhost:8000/v1".
        model: the name under which the model is served.
        api: the server's format. "completions": repeats the text with its log-probs (`echo`), on
            vLLM and most compatible servers; "prompt_logprobs": the same in vLLM's own format;
            "generate": the details of TGI (start it with --enable-prefill-logprobs) and LMI;
            "context_logits": all of TensorRT-LLM's logits, which needs `tokenizer` and transfers
            one row of the vocabulary per token.
        caller: authentication, time-outs, retries, limits.
        tokenizer: the model's own, from `transformers`.
        path: replaces the api's path; "" where the address is complete, as that of a SageMaker
            endpoint.

    Raises:
        ValueError: where the api is unknown, the address is unusable or a tokenizer is missing.
    """

    url: str
    model: str = ""
    api: str = "completions"
    caller: Caller = field(default_factory=Caller)
    tokenizer: Callable[..., Any] | None = None
    path: str | None = None

    def __post_init__(self):
        if self.api not in APIS:
            raise ValueError(f"api must be one of {', '.join(APIS)}, not {self.api!r}")
        if self.api == "context_logits" and self.tokenizer is None:
            raise ValueError('api="context_logits" needs tokenizer, the served model\'s own')
        place_of(self.url)

    def log_probs(self, text: str) -> Scored:
        """Log-probs of a text's tokens, in nats.

        Raises:
            ValueError: where the text is empty or not valid Unicode.
            RemoteError: where the server cannot be asked, its answer is not about this text, or a
                number is missing or impossible (NaN, above 0, cut off at the server's floor).
        """
        _sendable(text)
        path, request, read = APIS[self.api]
        answer = self.caller.post(self._at(path), request(self, text))
        try:
            return _scored(read(self, answer, text), text)
        except Unusable as error:
            place = place_of(self._at(path))
            raise RemoteError(f"{place}: {self.caller.hidden(str(error))}") from None

    def bits_per_char(self, text: str) -> float:
        """Mean bits per character of a text, over the characters that were scored.

        Raises:
            ValueError, RemoteError: as `log_probs` does.
        """
        return self.log_probs(text).bits_per_char

    def embeddings(self, texts: Sequence[str], batch: int = 64) -> Float[Tensor, "N m"]:
        """One vector per text (N, m), in the texts' order; `batch` texts per request.

        The request has the format of OpenAI's embeddings or, where the api is "generate", of LMI's.

        Raises:
            ValueError: where there is no text, or one is empty or not valid Unicode.
            RemoteError: where the server cannot be asked, or its vectors cannot be used.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError("texts must be a list of at least one text")
        for text in texts:
            _sendable(text)
        rows: list[list] = []
        for first in range(0, len(texts), batch):
            part = list(texts[first : first + batch])
            lmi, path = self.api == "generate", "/embeddings"
            request = (
                {"inputs": part}
                if lmi
                else {"model": self.model, "input": part, "encoding_format": "float"}
            )
            address = self._at("/invocations" if lmi else path)
            try:
                rows += embedding_rows(self.caller.post(address, request), len(part))
                if len({len(row) for row in rows}) > 1:
                    raise Unusable(
                        f"its vectors have different widths: {sorted({len(row) for row in rows})}"
                    )
            except Unusable as error:
                raise RemoteError(
                    f"{place_of(address)}: {self.caller.hidden(str(error))}"
                ) from None
        return torch.tensor(rows, dtype=torch.float32)

    def _at(self, path: str) -> str:
        return self.url.rstrip("/") + (path if self.path is None else self.path)


def _sendable(text: str) -> None:
    if not text:
        raise ValueError("the text is empty")
    unicode_text(text)


def _scored(pairs: list[Pair], text: str) -> Scored:
    """Align the tokens with the text.

    Raises:
        Unusable: where tokens and text do not fit.
    """
    tokens, values = [token for token, _ in pairs], [value for _, value in pairs]
    for i, token in enumerate(tokens):
        if not isinstance(token, str) and (i or token is not None):
            raise Unusable(f"token {i} is no text but {token!r:.40}")
    # 1) a start token of the server is not part of the text
    try:
        parts = aligned(tokens, text)
    except Unusable:
        if tokens[0] is None or values[0] is not None or len(tokens) == 1:
            raise
        del values[0]
        parts, unscored = aligned(tokens[1:], text), ""
    else:
        # 2) without one, the first token was only read
        unscored = parts.pop(0) if values[0] is None else ""
        values = values[len(values) - len(parts) :]
    # 3) check the log-probs of all other tokens
    if len(unscored) == len(text):
        raise Unusable(
            "the text is a single token or character, of which no model without a start token can "
            "say anything"
        )
    log_probs = [_log_prob(value, i) for i, value in enumerate(values)]
    if len(log_probs) > 3 and not any(log_probs):
        raise Unusable("every log-prob is exactly 0: it does not score what it did not write")
    return Scored(text, unscored, tuple(parts), torch.tensor(log_probs, dtype=torch.float64))


def _log_prob(value: Any, i: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unusable(f"the log-prob of token {i} is missing or no number: {value!r:.40}")
    # NaN fails this test, too; rounding may lift log 1 a little above 0
    if not -math.inf < value <= 1e-6:
        raise Unusable(f"the log-prob of token {i} is {value!r:.40}, which none can be")
    if value <= FLOOR:
        raise Unusable(
            f"the log-prob of token {i} is {value!r:.40}: the server's floor, not a figure"
        )
    return min(0.0, float(value))
