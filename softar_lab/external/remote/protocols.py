"""How to ask each server for the log-probs of a text, and how to read its answer (K33).

The servers are vLLM, TGI, TensorRT-LLM and LMI.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch

# A token and its log-prob as the server sends them; None for a log-prob where there is nothing
# before the token, and for the text of a first token that is not sent.
Pair = tuple[Any, Any]
WRITTEN = 1  # number of tokens that a server must write: some refuse to write none
LONGEST = 100  # characters of a token whose text the server does not send
ONLY_OWN = (
    "llama.cpp's server, `transformers serve` and others give log-probs only of what they write "
    "themselves, and cannot judge a text"
)


@runtime_checkable
class Served(Protocol):
    """What a protocol must know of a model: its name, and its tokenizer where one is needed."""

    model: str
    tokenizer: Callable[..., Any] | None


class Unusable(ValueError):
    """A fault in an answer."""


def _ask_completions(judge: Served, text: str) -> dict:
    return {
        "model": judge.model,
        "prompt": text,
        "echo": True,
        "logprobs": 1,
        "max_tokens": WRITTEN,
        "temperature": 0,
    }


def _read_completions(judge: Served, answer: Any, text: str) -> list[Pair]:
    choice = _choice(answer)
    answered = _get(choice, "text", str)
    if not answered.startswith(text):
        raise Unusable(
            f"it was asked to repeat the text and says {answered[:80]!r}; does it know echo? {ONLY_OWN}"
        )
    found = _get(choice, "logprobs", dict)
    tokens, log_probs = _get(found, "tokens", list), _get(found, "token_logprobs", list)
    if len(tokens) != len(log_probs):
        raise Unusable(f"it gives {len(tokens)} tokens and {len(log_probs)} log-probs")
    if len(tokens) <= WRITTEN:
        raise Unusable(
            "it gives log-probs only of what it wrote itself, as TensorRT-LLM does here "
            '(api="context_logits" asks that one for all logits)'
        )
    # what it wrote comes last
    return list(zip(tokens, log_probs))[: len(tokens) - _written(answer)]


def _written(answer: dict) -> int:
    """How many tokens a server wrote after the text."""
    usage = answer.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count <= WRITTEN else WRITTEN


def _ask_prompt_logprobs(judge: Served, text: str) -> dict:
    return {
        "model": judge.model,
        "prompt": text,
        "prompt_logprobs": 0,
        "max_tokens": WRITTEN,
        "temperature": 0,
    }


def _read_prompt_logprobs(judge: Served, answer: Any, text: str) -> list[Pair]:
    choice = _choice(answer)
    if choice.get("prompt_logprobs") is None:
        raise Unusable(f"its answer has no prompt_logprobs, which vLLM alone knows. {ONLY_OWN}")
    first, *others = _get(choice, "prompt_logprobs", list) or [{}]
    if first is not None:
        raise Unusable(
            "its first prompt_logprobs is not null, though nothing stands before the first token"
        )
    pairs: list[Pair] = [(None, None)]  # the server does not send the text of the first token
    for entry in others:
        if not isinstance(entry, dict) or len(entry) != 1:
            raise Unusable(
                "prompt_logprobs must hold one token a place, which prompt_logprobs=0 asks for"
            )
        (only,) = entry.values()
        pairs.append((_get(only, "decoded_token", str), _get(only, "logprob", int, float)))
    return pairs


def _ask_generate(judge: Served, text: str) -> dict:
    return {
        "inputs": text,
        "parameters": {"details": True, "decoder_input_details": True, "max_new_tokens": WRITTEN},
    }


def _read_generate(judge: Served, answer: Any, text: str) -> list[Pair]:
    if isinstance(answer, list) and len(answer) == 1:  # compatible LMI, and TGI's root path
        answer = answer[0]
    prefill = _get(_get(answer, "details", dict), "prefill", list)
    if not prefill:
        raise Unusable(
            "it gives no details of the text; TGI must be started with --enable-prefill-logprobs"
        )
    return [
        (_get(token, "text", str), token.get("logprob", token.get("log_prob"))) for token in prefill
    ]


def _encoded(judge: Served, text: str) -> tuple[list[int], list[str]]:
    """Token ids, and the part of the text that each covers.

    That part is "" for a start token, and for all but the first of the tokens that share one
    character.
    """
    found = judge.tokenizer(text, return_offsets_mapping=True)
    tokens, done = [], 0
    for begin, end in found["offset_mapping"]:
        tokens.append(text[done : max(done, end)] if end > begin else "")
        done = max(done, end)
    return list(found["input_ids"]), tokens


def _ask_context_logits(judge: Served, text: str) -> dict:
    ids, _ = _encoded(judge, text)
    return {
        "model": judge.model,
        "prompt": ids,
        "return_context_logits": True,
        "max_tokens": WRITTEN,
        "temperature": 0,
    }


def _read_context_logits(judge: Served, answer: Any, text: str) -> list[Pair]:
    ids, tokens = _encoded(judge, text)
    rows = _get(_choice(answer), "context_logits", list)
    try:
        logits = torch.tensor(rows, dtype=torch.float64)
    except (TypeError, ValueError):
        raise Unusable("its context_logits are no table of numbers") from None
    if logits.ndim != 2 or len(logits) != len(ids) or logits.shape[1] <= max(ids):
        raise Unusable(
            f"it gives logits {tuple(logits.shape)} for {len(ids)} tokens with ids up to {max(ids)}"
        )
    log_probs = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return list(zip(tokens, [None, *log_probs.tolist()]))


APIS: Mapping[
    str,
    tuple[str, Callable[[Served, str], dict], Callable[[Served, Any, str], list[Pair]]],
] = {
    "completions": ("/completions", _ask_completions, _read_completions),
    "prompt_logprobs": ("/completions", _ask_prompt_logprobs, _read_prompt_logprobs),
    "generate": ("/generate", _ask_generate, _read_generate),
    "context_logits": ("/completions", _ask_context_logits, _read_context_logits),
}


def embedding_rows(answer: Any, count: int) -> list[list]:
    """Embeddings in order, from OpenAI's format (entries with an index) or a list of vectors."""
    entries = answer if isinstance(answer, list) else _get(answer, "data", list)
    if not isinstance(answer, list):
        if sorted(_get(entry, "index", int) for entry in entries) != list(range(len(entries))):
            raise Unusable("its embeddings are not numbered 0, 1, 2 …")
        entries = [
            _get(entry, "embedding", list)
            for entry in sorted(entries, key=lambda entry: entry["index"])
        ]
    if len(entries) != count:
        raise Unusable(f"it gives {len(entries)} embeddings for {count} texts")
    for i, row in enumerate(entries):
        numbers = isinstance(row, list) and row and all(type(x) in (int, float) for x in row)
        if not numbers or not all(abs(x) < 3e38 for x in row):  # the range of float32
            raise Unusable(f"embedding {i} is no list of finite numbers")
    return entries


def _choice(answer: Any) -> dict:
    choices = _get(answer, "choices", list)
    if len(choices) != 1 or not isinstance(choices[0], dict):
        raise Unusable(f"it gives {len(choices)} choices where one was asked for: {choices!r:.40}")
    return choices[0]


def _get(where: Any, name: str, *kinds: type) -> Any:
    """A field of an answer, of one of the given types.

    Raises:
        Unusable: where it is missing or has another type.
    """
    found = where.get(name) if isinstance(where, dict) else None
    if not isinstance(found, kinds) or isinstance(found, bool):
        raise Unusable(f"its answer has no {name} as expected here, but {found!r:.40}")
    return found
