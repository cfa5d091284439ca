"""The answers of each endpoint, as OpenAI's format has them; nothing here knows of HTTP.

An endpoint is a function `(served, body, cancelled) -> answer`. The answer is a dictionary, or an
iterator of dictionaries where the client asked for a stream. Every check is done before it returns.
"""

import base64
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .fields import CHAT, COMPLETION, DETOKENIZE, EMBEDDINGS, TOKENIZE, BadRequest, read
from .served import Entry, Prompt, Served
from .writing import Part, Wish, written

Answer = dict[str, Any] | Iterator[dict[str, Any]]
Cancelled = Callable[[], bool]

DEFAULT_TOKENS = 16  # of a completion, as OpenAI has it
CHAT_TOKENS = 1024  # of an answer in a chat, if the context has so many left


@dataclass(frozen=True)
class Job:
    """A request to write, checked: the prompts, how each is continued, and what is repeated."""

    served: Served
    prompts: tuple[Prompt, ...]
    wish: Wish
    echo: bool
    figures: bool  # whether log-probs are asked for
    cancelled: Cancelled

    def parts(self) -> Iterator[Part]:
        """All parts of all rows, prompt by prompt; the rows of a prompt follow each other."""
        rows = len(self.wish.seeds)
        for i, prompt in enumerate(self.prompts):
            if self.echo:
                known = self.served.scored(prompt, self.wish.best) if self.figures else None
                tokens = tuple(zip(prompt.pieces, known or [None] * len(prompt.ids), strict=True))
                for row in range(rows):
                    yield Part(i * rows + row, prompt.text, tokens)
            for part in written(self.served, prompt, self.wish, self.cancelled):
                yield Part(i * rows + part.row, part.text, part.tokens, part.finish)

    def usage(self, completion_tokens: int) -> dict[str, int]:
        """How many tokens were read and written."""
        read_tokens = sum(len(prompt.ids) for prompt in self.prompts)
        return {
            "prompt_tokens": read_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": read_tokens + completion_tokens,
        }

    def top(self, piece: str, entry: Entry) -> dict[str, float]:
        """The names and log-probs of the best tokens and of the token itself, the best first."""
        found = {piece: entry.log_prob}
        for token_id, log_prob in entry.top:
            if token_id != entry.token_id:
                name = self.served.names[token_id]
                found[f"{name}#{token_id}" if name in found else name] = log_prob
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))


class Completions:
    """POST /v1/completions: a text is continued."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def job(self, served: Served, body: Any, cancelled: Cancelled) -> tuple[Job, dict[str, Any]]:
        """The checked request."""
        asked = read(body, COMPLETION)
        prompts = _prompts(served, "prompt", asked["prompt"])
        tokens = DEFAULT_TOKENS if asked["max_tokens"] is None else asked["max_tokens"]
        wish = _wish(asked, tokens, asked["logprobs"] or 0)
        figures = asked["logprobs"] is not None
        return Job(served, prompts, wish, asked["echo"], figures, cancelled), asked

    def choice(self, job: Job, part: Part, offset: int, first: bool) -> dict[str, Any]:
        """A choice, or a chunk of one that begins at a character of it."""
        logprobs = self._logprobs(job, part, offset) if job.figures else None
        reason = {"finish_reason": part.finish}
        return {"index": part.row, "text": part.text, "logprobs": logprobs, **reason}

    joined = choice

    def _logprobs(self, job: Job, part: Part, offset: int) -> dict[str, list]:
        tokens = [piece for piece, _ in part.tokens]
        ends = np.cumsum([offset, *map(len, tokens)]).tolist()
        return {
            "tokens": tokens,
            "token_logprobs": [entry and entry.log_prob for _, entry in part.tokens],
            "top_logprobs": [entry and job.top(piece, entry) for piece, entry in part.tokens],
            "text_offset": ends[:-1],
        }


class Chat:
    """POST /v1/chat/completions: a conversation is continued, by a model that knows the format."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def job(self, served: Served, body: Any, cancelled: Cancelled) -> tuple[Job, dict[str, Any]]:
        """The checked request."""
        asked = read(body, CHAT)
        if not served.info()["chat_template"]:
            raise BadRequest(
                "messages",
                "this model has no chat template, so it knows no conversation; /v1/completions "
                "continues a text",
            )
        try:
            text = served.tokenizer.chat(asked["messages"])
        except Exception as error:  # a template may refuse roles or their order in any words
            raise BadRequest(
                "messages", f"the model's chat template refuses them ({error})"
            ) from None
        prompts = _prompts(served, "messages", [text])
        given = (asked["max_completion_tokens"], asked["max_tokens"])
        left = max(1, (served.model.context or CHAT_TOKENS) - len(prompts[0].ids))
        tokens = next((n for n in given if n is not None), min(CHAT_TOKENS, left))
        wish = _wish(asked, tokens, asked["top_logprobs"])
        return Job(served, prompts, wish, False, asked["logprobs"], cancelled), asked

    def choice(self, job: Job, part: Part, offset: int, first: bool) -> dict[str, Any]:
        """A chunk of an answer; the first one names the role."""
        delta = {"role": "assistant"} if first else {}
        delta |= {"content": part.text} if part.text or first else {}
        return {
            "index": part.row,
            "delta": delta,
            "logprobs": self._logprobs(job, part),
            "finish_reason": part.finish,
        }

    def joined(self, job: Job, part: Part, offset: int, first: bool) -> dict[str, Any]:
        """A whole answer."""
        return {
            "index": part.row,
            "message": {"role": "assistant", "content": part.text, "refusal": None},
            "logprobs": self._logprobs(job, part),
            "finish_reason": part.finish,
        }

    def _logprobs(self, job: Job, part: Part) -> dict[str, list] | None:
        if not job.figures:
            return None
        content = []
        for piece, entry in part.tokens:
            top = job.top(piece, entry).items() if job.wish.best else ()
            content.append(
                {**_token(piece, entry.log_prob), "top_logprobs": [_token(*one) for one in top]}
            )
        return {"content": content, "refusal": None}


def _token(text: str, log_prob: float) -> dict[str, Any]:
    return {"token": text, "logprob": log_prob, "bytes": list(text.encode("utf-8", "replace"))}


def _prompts(served: Served, name: str, given: list[str | list[int]]) -> tuple[Prompt, ...]:
    alone = len(given) == 1
    return tuple(
        served.prompt(name if alone else f"{name}[{i}]", one) for i, one in enumerate(given)
    )


def _wish(asked: dict[str, Any], max_tokens: int, best: int) -> Wish:
    """How each prompt is continued; without a seed every request is another draw."""
    seed = secrets.randbits(62) if asked["seed"] is None else asked["seed"]
    return Wish(
        max_tokens=max_tokens,
        temperature=asked["temperature"],
        seeds=tuple((seed + i) % 2**63 for i in range(asked["n"])),
        stop=asked["stop"],
        best=best,
    )


def _writes(endpoint: Completions | Chat) -> Callable[[Served, Any, Cancelled], Answer]:
    """The endpoint as a function: whole answers, or chunks where a stream is asked for."""

    def answer(served: Served, body: Any, cancelled: Cancelled) -> Answer:
        job, asked = endpoint.job(served, body, cancelled)
        head = {
            "id": f"{endpoint.prefix}-{secrets.token_hex(12)}",
            "object": endpoint.chunk if asked["stream"] else endpoint.whole,
            "created": int(time.time()),
            "model": served.name,
        }
        if asked["stream"]:
            return _chunks(endpoint, job, head, asked["stream_options"])
        return {**head, **_whole(endpoint, job)}

    return answer


def _whole(endpoint: Completions | Chat, job: Job) -> dict[str, Any]:
    """All choices, and the usage."""
    found: dict[int, list[Part]] = {}
    for part in job.parts():
        found.setdefault(part.row, []).append(part)
    choices, count = [], 0
    for row, parts in sorted(found.items()):
        count += sum(len(part.tokens) for part in parts[int(job.echo) :])
        text = "".join(part.text for part in parts)
        tokens = tuple(one for part in parts for one in part.tokens)
        whole = Part(row, text, tokens, parts[-1].finish)
        choices.append(endpoint.joined(job, whole, 0, True))
    return {"choices": choices, "usage": job.usage(count)}


def _chunks(
    endpoint: Completions | Chat, job: Job, head: dict[str, Any], usage: bool
) -> Iterator[dict[str, Any]]:
    """One chunk per part; with `usage`, a last one that says how many tokens there were."""
    lengths: dict[int, int] = {}
    extra, count = ({"usage": None} if usage else {}), 0
    for part in job.parts():
        first, offset = part.row not in lengths, lengths.get(part.row, 0)
        count += 0 if first and job.echo else len(part.tokens)
        lengths[part.row] = offset + len(part.text)
        yield {**head, "choices": [endpoint.choice(job, part, offset, first)], **extra}
    if usage:
        yield {**head, "choices": [], "usage": job.usage(count)}


complete, chat = _writes(Completions()), _writes(Chat())


@torch.inference_mode()
def embed(served: Served, body: Any, cancelled: Cancelled) -> Answer:
    """One vector per text: the mean of the body's hidden states over its last tokens.

    The last `context` - 1 tokens are read; `usage` counts them.
    """
    asked, model = read(body, EMBEDDINGS), served.model
    data, count = [], 0
    for i, prompt in enumerate(_prompts(served, "input", asked["input"])):
        ids = prompt.own_ids[-model.context + 1 :]
        if not len(ids):
            raise BadRequest("input", f"text {i} is empty")
        count += len(ids)
        vector = model.hidden_states(ids[None].to(model.device))[0].mean(0).float().cpu().numpy()
        as_text = asked["encoding_format"] == "base64"
        found = base64.b64encode(vector.astype("<f4")).decode() if as_text else vector.tolist()
        data.append({"object": "embedding", "index": i, "embedding": found})
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": data, "model": served.name, "usage": usage}


def tokenize(served: Served, body: Any, cancelled: Cancelled) -> Answer:
    """The ids of a text; the model's start token comes first unless the request declines it."""
    asked = read(body, TOKENIZE)
    prompt = served.prompt("prompt", asked["prompt"])
    begin = [served.begin_id] if asked["add_special_tokens"] and served.begin_id is not None else []
    ids = [*begin, *prompt.ids.tolist()]
    names = [served.names[one] for one in ids] if asked["return_token_strs"] else None
    size = served.model.context
    return {"count": len(ids), "max_model_len": size, "tokens": ids, "token_strs": names}


def detokenize(served: Served, body: Any, cancelled: Cancelled) -> Answer:
    """The text of ids."""
    return {"prompt": served.prompt("tokens", read(body, DETOKENIZE)["tokens"]).text}


def models(served: Served, body: Any, cancelled: Cancelled) -> Answer:
    """The one model that is served."""
    about = {"id": served.name, "object": "model", "created": 0, "owned_by": "softar-lab"}
    return {"object": "list", "data": [{**about, "max_model_len": served.model.context}]}


def tokenizer_info(served: Served, body: Any, cancelled: Cancelled) -> Answer:
    """The special tokens and the chat template."""
    return served.info()


POST = {
    "/v1/completions": complete,
    "/v1/chat/completions": chat,
    "/v1/embeddings": embed,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}
GET = {"/v1/models": models, "/tokenizer_info": tokenizer_info}
