"""The two formats in which texts are continued: completions, and answers in a chat."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .fields import CHAT, COMPLETION, BadRequest, read
from .served import Entry, Prompt, Served
from .writing import Part, Wish, written

DEFAULT_TOKENS = 16  # of a completion, as OpenAI has it
CHAT_TOKENS = 1024  # of an answer in a chat, if the context has so many left
NO_TEMPLATE = (
    "this model has no chat template, so it knows no conversation; /v1/completions continues a text"
)


@dataclass(frozen=True)
class Job:
    """A request to write, checked: the prompts, how each is continued, and what is repeated.

    Args:
        served: the model.
        prompts: each gets as many rows as `wish` has seeds.
        wish: how each is continued.
        asked: all fields of the request.
        echo: whether the prompts come first in the answer.
        figures: whether log-probs are asked for.
        cancelled: whether nobody waits for the answer any more.
    """

    served: Served
    prompts: tuple[Prompt, ...]
    wish: Wish
    asked: dict[str, Any]
    echo: bool
    figures: bool
    cancelled: Callable[[], bool]

    def parts(self) -> Iterator[Part]:
        """All parts of all rows, prompt by prompt; the rows of a prompt follow each other."""
        rows = len(self.wish.seeds)
        for i, prompt in enumerate(self.prompts):
            first = i * rows
            if self.echo:
                tokens = self._echoed(prompt)
                for row in range(rows):
                    yield Part(first + row, prompt.text, tokens)
            for part in written(self.served, prompt, self.wish, self.cancelled):
                yield Part(first + part.row, part.text, part.tokens, part.finish)

    def _echoed(self, prompt: Prompt) -> tuple[tuple[str, Entry | None], ...]:
        entries: list[Entry | None] = [None] * len(prompt.ids)
        if self.figures:
            entries = self.served.scored(prompt, self.wish.best)
        return tuple(zip(prompt.pieces, entries, strict=True))

    def usage(self, completion_tokens: int) -> dict[str, int]:
        """How many tokens were read and written."""
        prompt_tokens = sum(len(prompt.ids) for prompt in self.prompts)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }

    def top(self, piece: str, entry: Entry) -> dict[str, float]:
        """The names and log-probs of the best tokens and of the token itself, the best first."""
        found = {piece: entry.log_prob}
        for token_id, log_prob in entry.top:
            if token_id == entry.token_id:
                continue
            name = self.served.names[token_id]
            if name in found:
                name = f"{name}#{token_id}"
            found[name] = log_prob
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))


class Completions:
    """POST /v1/completions: a text is continued."""

    prefix = "cmpl"
    whole = chunk = "text_completion"

    def job(self, served: Served, body: Any, cancelled: Callable[[], bool]) -> Job:
        """The checked request."""
        asked = read(body, COMPLETION)
        best = asked["logprobs"]
        max_tokens = asked["max_tokens"]
        if max_tokens is None:
            max_tokens = DEFAULT_TOKENS
        return Job(
            served=served,
            prompts=prompts(served, "prompt", asked["prompt"]),
            wish=_wish(asked, max_tokens, best or 0),
            asked=asked,
            echo=asked["echo"],
            figures=best is not None,
            cancelled=cancelled,
        )

    def answer(self, job: Job, part: Part) -> dict[str, Any]:
        """A whole choice."""
        return self.delta(job, part, 0, True)

    def delta(self, job: Job, part: Part, offset: int, first: bool) -> dict[str, Any]:
        """A part of a choice, which begins at a character of it."""
        return {
            "index": part.row,
            "text": part.text,
            "logprobs": _legacy_logprobs(job, part, offset) if job.figures else None,
            "finish_reason": part.finish,
        }


def _legacy_logprobs(job: Job, part: Part, offset: int) -> dict[str, list]:
    tokens, figures, tops, offsets = [], [], [], []
    for piece, entry in part.tokens:
        tokens.append(piece)
        figures.append(entry and entry.log_prob)
        tops.append(entry and job.top(piece, entry))
        offsets.append(offset)
        offset += len(piece)
    return {
        "tokens": tokens,
        "token_logprobs": figures,
        "top_logprobs": tops,
        "text_offset": offsets,
    }


class Chat:
    """POST /v1/chat/completions: a conversation is continued, by a model that knows the format."""

    prefix = "chatcmpl"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def job(self, served: Served, body: Any, cancelled: Callable[[], bool]) -> Job:
        """The checked request."""
        asked = read(body, CHAT)
        if asked["top_logprobs"] and not asked["logprobs"]:
            raise BadRequest("top_logprobs", 'needs "logprobs": true')
        found = prompts(served, "messages", [_conversation(served, asked["messages"])])
        max_tokens = asked["max_completion_tokens"]
        if max_tokens is None:
            max_tokens = asked["max_tokens"]
        if max_tokens is None:
            left = (served.model.context or CHAT_TOKENS) - len(found[0].ids)
            max_tokens = max(1, min(CHAT_TOKENS, left))
        return Job(
            served=served,
            prompts=found,
            wish=_wish(asked, max_tokens, asked["top_logprobs"]),
            asked=asked,
            echo=False,
            figures=asked["logprobs"],
            cancelled=cancelled,
        )

    def answer(self, job: Job, part: Part) -> dict[str, Any]:
        """A whole choice."""
        message = {"role": "assistant", "content": part.text, "refusal": None}
        return self._choice(job, part, "message", message)

    def delta(self, job: Job, part: Part, offset: int, first: bool) -> dict[str, Any]:
        """A part of a choice; the first one names the role."""
        delta = {}
        if first:
            delta["role"] = "assistant"
        if first or part.text:
            delta["content"] = part.text
        return self._choice(job, part, "delta", delta)

    def _choice(self, job: Job, part: Part, name: str, content: dict[str, Any]) -> dict[str, Any]:
        return {
            "index": part.row,
            name: content,
            "logprobs": _chat_logprobs(job, part) if job.figures else None,
            "finish_reason": part.finish,
        }


def _conversation(served: Served, messages: list[dict[str, str]]) -> str:
    """The conversation as the model's training had it, up to its answer.

    Raises:
        BadRequest: where the model has no chat template, or the template refuses the messages.
    """
    if not served.info()["chat_template"]:
        raise BadRequest("messages", NO_TEMPLATE)
    try:
        return served.tokenizer.chat(messages)
    except Exception as error:  # a template may refuse roles or their order in any words
        message = f"the model's chat template refuses them ({error})"
        raise BadRequest("messages", message) from None


def _chat_logprobs(job: Job, part: Part) -> dict[str, list | None]:
    content = []
    for piece, entry in part.tokens:
        top = job.top(piece, entry) if job.wish.best else {}
        alternatives = [_token(*one) for one in top.items()]
        content.append({**_token(piece, entry.log_prob), "top_logprobs": alternatives})
    return {"content": content, "refusal": None}


def _token(text: str, log_prob: float) -> dict[str, Any]:
    return {"token": text, "logprob": log_prob, "bytes": list(text.encode("utf-8", "replace"))}


def prompts(served: Served, name: str, given: list[str | list[int]]) -> tuple[Prompt, ...]:
    """What is read of each text, or list of ids, of a field.

    Raises:
        BadRequest: where one cannot be read; it names the field, and which of several.
    """
    if len(given) == 1:
        return (served.prompt(name, given[0]),)
    return tuple(served.prompt(f"{name}[{i}]", one) for i, one in enumerate(given))


def _wish(asked: dict[str, Any], max_tokens: int, best: int) -> Wish:
    """How each prompt is continued; without a seed every request is another draw."""
    seed = asked["seed"]
    if seed is None:
        seed = secrets.randbits(62)
    return Wish(
        max_tokens=max_tokens,
        temperature=asked["temperature"],
        seeds=tuple((seed + i) % 2**63 for i in range(asked["n"])),
        stop=asked["stop"],
        best=best,
    )
