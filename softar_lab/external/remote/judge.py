"""A judge served elsewhere: log-probs of a text, and embeddings (K33).

The servers are vLLM, TGI, TensorRT-LLM and LMI. Each has its own format for scoring a text that it
did not write. A result is accepted only where it covers exactly this text, token by token, and
every number is a possible log-prob. Otherwise there is an error and no number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from .http import Caller, RemoteError, place_of
from .protocols import APIS, WRITTEN, Pair, Unusable, embedding_rows

FLOOR = -9999.0  # vLLM and TensorRT-LLM send this instead of anything smaller


@dataclass(frozen=True)
class Scored:
    """A model's log-probs of a text: `unscored` + the joined `tokens` are exactly `text`.

    `unscored`: the part that was only read, usually the first token; "" where the server puts a
    start token before the text. `log_probs` (N,), in nats: of each token given everything before
    it.
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
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text is no Unicode: a lone surrogate at character {error.start}"
        ) from None


def _scored(pairs: list[Pair], text: str) -> Scored:
    """Align the tokens with the text and drop what the server wrote itself.

    Raises:
        Unusable: where tokens and text do not fit.
    """
    # 1) a start token of the server is not part of the text
    started = len(pairs) > 1 and pairs[0][1] is None and not text.startswith(pairs[0][0])
    tokens = _along(pairs[1:] if started else pairs, text)
    # 2) without one, the first token was only read
    unscored = ""
    if not started and tokens[0][1] is None:
        (unscored, _), *tokens = tokens
    # 3) check the log-probs of all other tokens
    log_probs = [_log_prob(value, i) for i, (_, value) in enumerate(tokens)]
    if len(unscored) == len(text):
        raise Unusable(
            "the text is a single token, of which no model without a start token can say anything"
        )
    if len(log_probs) > 3 and not any(log_probs):
        raise Unusable("every log-prob is exactly 0: it does not score what it did not write")
    return Scored(
        text,
        unscored,
        tuple(token for token, _ in tokens),
        torch.tensor(log_probs, dtype=torch.float64),
    )


def _along(pairs: list[Pair], text: str) -> list[Pair]:
    """The pairs that make up the text.

    A token decoded alone may have lost the space before it; the space is put back.
    """
    laid: list[Pair] = []
    at = 0
    for i, (token, value) in enumerate(pairs):
        if at == len(text):
            if len(pairs) - i > WRITTEN:
                raise Unusable(
                    f"it goes on for {len(pairs) - i} tokens after the text, asked for {WRITTEN}"
                )
            break
        if not isinstance(token, str):
            raise Unusable(f"token {i} is no text but {token!r:.40}")
        if not text.startswith(token, at):
            token = " " + token
        if not text.startswith(token, at):
            here = text[at : at + 20]
            raise Unusable(
                f"it scored another text: at character {at} stands {here!r}, its token is {token[1:]!r:.40}"
            )
        laid.append((token, value))
        at += len(token)
    if at < len(text):
        raise Unusable(f"it scored only {at} of {len(text)} characters")
    return laid


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
