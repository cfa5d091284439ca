"""The answers of each address, as OpenAI's format has them; nothing here knows of HTTP.

Each is a function `(served, body, cancelled) -> answer`. The answer is a dictionary, or an iterator
of dictionaries where the client asked for a stream. Every check is done before it returns.
"""

import base64
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .fields import DETOKENIZE, EMBEDDINGS, TOKENIZE, BadRequest, read
from .formats import Chat, Completions, Job, prompts
from .served import Served
from .writing import Part

Answer = dict[str, Any] | Iterator[dict[str, Any]]
Cancelled = Callable[[], bool]


def _writes(style: Completions | Chat) -> Callable[[Served, Any, Cancelled], Answer]:
    """A format as a function: whole answers, or chunks where a stream is asked for."""

    def answer(served: Served, body: Any, cancelled: Cancelled) -> Answer:
        job = style.job(served, body, cancelled)
        streams = job.asked["stream"]
        head = {
            "id": f"{style.prefix}-{secrets.token_hex(12)}",
            "object": style.chunk if streams else style.whole,
            "created": int(time.time()),
            "model": served.name,
        }
        if streams:
            return _chunks(style, job, head)
        return {**head, **_whole(style, job)}

    return answer


def _whole(style: Completions | Chat, job: Job) -> dict[str, Any]:
    """All choices, and the usage."""
    # 1) collect the parts of each row
    found: dict[int, list[Part]] = {}
    for part in job.parts():
        found.setdefault(part.row, []).append(part)
    # 2) join them
    choices, count = [], 0
    for row, parts in sorted(found.items()):
        text = "".join(part.text for part in parts)
        tokens = tuple(one for part in parts for one in part.tokens)
        choices.append(style.answer(job, Part(row, text, tokens, parts[-1].finish)))
        count += len(tokens)
        if job.echo:
            count -= len(parts[0].tokens)
    return {"choices": choices, "usage": job.usage(count)}


def _chunks(style: Completions | Chat, job: Job, head: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One chunk per part; where usage is asked for, a last one says how many tokens there were."""
    counts = job.asked["stream_options"]
    extra = {"usage": None} if counts else {}
    lengths: dict[int, int] = {}
    count = 0
    for part in job.parts():
        first = part.row not in lengths
        offset = lengths.get(part.row, 0)
        lengths[part.row] = offset + len(part.text)
        if not (first and job.echo):
            count += len(part.tokens)
        yield {**head, "choices": [style.delta(job, part, offset, first)], **extra}
    if counts:
        yield {**head, "choices": [], "usage": job.usage(count)}


complete, chat = _writes(Completions()), _writes(Chat())


@torch.inference_mode()
def embed(served: Served, body: Any, cancelled: Cancelled) -> Answer:
    """One vector per text: the mean of the body's hidden states over its last tokens.

    The last `context` - 1 tokens are read; `usage` counts them.
    """
    asked, model = read(body, EMBEDDINGS), served.model
    packed = asked["encoding_format"] == "base64"
    data, count = [], 0
    for i, prompt in enumerate(prompts(served, "input", asked["input"])):
        ids = prompt.own_ids[-model.context + 1 :]
        if not len(ids):
            raise BadRequest("input", f"text {i} is empty")
        hidden = model.hidden_states(ids[None].to(model.device))[0]  # (T + 1, d)
        vector = hidden.mean(0).float().cpu().numpy()
        found = base64.b64encode(vector.astype("<f4")).decode() if packed else vector.tolist()
        data.append({"object": "embedding", "index": i, "embedding": found})
        count += len(ids)
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": data, "model": served.name, "usage": usage}


def tokenize(served: Served, body: Any, cancelled: Cancelled) -> Answer:
    """The ids of a text; the model's start token comes first unless the request declines it."""
    asked = read(body, TOKENIZE)
    ids = served.prompt("prompt", asked["prompt"]).ids.tolist()
    if asked["add_special_tokens"] and served.begin_id is not None:
        ids.insert(0, served.begin_id)
    return {
        "count": len(ids),
        "max_model_len": served.model.context,
        "tokens": ids,
        "token_strs": [served.names[one] for one in ids] if asked["return_token_strs"] else None,
    }


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
