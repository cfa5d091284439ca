"""Serve a checkpoint behind an OpenAI-compatible address, as a judge for any tool that uses one.

    python -m softar_studies.serving data/checkpoints/tales-hard --port 8000

It answers POST /v1/completions (log-probs, echo) and /v1/embeddings on this machine only. tornado
comes with Jupyter.
"""

import argparse
import asyncio
import json
import time
from typing import Any

import torch
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from softar_lab.models.scoring import char_log_probs
from softar_lab.models.soft_ar import SoftAR


@torch.inference_mode()
def complete(model: SoftAR, request: dict[str, Any]) -> dict[str, Any]:
    """Answer a completion request: the most probable characters after `prompt`.

    Every character is a token. Log-probs are included where the request asks for them. The first
    character of a text has no log-prob (null); those of the prompt are `char_log_probs`'.

    Raises:
        ValueError: where the request cannot be answered.
    """
    prompt, steps = request.get("prompt"), request.get("max_tokens", 16)
    if not isinstance(prompt, str) or not prompt:
        raise ValueError("prompt must be a text, and not empty")
    if not isinstance(steps, int) or not 0 <= steps <= 4096:
        raise ValueError(f"max_tokens must be from 0 to 4096, not {steps!r}")
    # 1) write
    ids = model.tokenizer.encode(prompt)
    state, written, log_probs = model.start(1), "", []
    state = model.read(state, ids[None].to(model.device)) if steps else state
    for _ in range(steps):
        best = model.predict(state).log_probs[0].max(0)
        written += model.tokenizer.decode([int(best.indices)])
        log_probs.append(float(best.values))
        state = model.advance(state, token_ids=best.indices[None])
    # 2) score the prompt where it is echoed
    text = written
    if request.get("echo"):
        scored = char_log_probs(model, prompt).tolist() if len(prompt) > 1 else []
        text, log_probs = prompt + written, [None, *scored, *log_probs]
    # 3) answer in OpenAI's format
    said = {
        "tokens": list(text),
        "token_logprobs": log_probs,
        "text_offset": list(range(len(text))),
    }
    choice = {"index": 0, "text": text, "finish_reason": "length"}
    choice["logprobs"] = said if request.get("logprobs") is not None else None
    usage = {
        "prompt_tokens": len(prompt),
        "completion_tokens": steps,
        "total_tokens": len(prompt) + steps,
    }
    return {
        "object": "text_completion",
        "created": int(time.time()),
        "choices": [choice],
        "usage": usage,
    }


@torch.inference_mode()
def embed(model: SoftAR, request: dict[str, Any]) -> dict[str, Any]:
    """One vector per text: the mean of the body's hidden states over its last characters.

    The last `context` - 1 characters are read.

    Raises:
        ValueError: where the input is no text and no list of texts, or a text is empty.
    """
    texts = request.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("input must be a text or a list of texts, none of them empty")
    data = []
    for i, text in enumerate(texts):
        ids = model.tokenizer.encode(text)[-model.config.context + 1 :]
        vector = model.hidden_states(ids[None].to(model.device))[0].mean(0).tolist()
        data.append({"object": "embedding", "index": i, "embedding": vector})
    return {"object": "list", "data": data}


def application(model: SoftAR, name: str) -> Application:
    """Both endpoints of a model; an unusable request gets status 400 and the reason."""

    class Endpoint(RequestHandler):
        def initialize(self, answer):
            self.answer = answer

        def post(self):
            try:
                request = json.loads(self.request.body)
                answer = self.answer(model, request if isinstance(request, dict) else {})
            except ValueError as error:
                self.set_status(400)
                answer = {"object": "error", "message": str(error)}
            self.set_header("Content-Type", "application/json")
            self.write(json.dumps({"model": name, **answer}))

    routes = {"completions": complete, "embeddings": embed}
    return Application(
        [(f"/v1/{path}", Endpoint, {"answer": answer}) for path, answer in routes.items()]
    )


async def _serve(model: SoftAR, name: str, port: int) -> None:
    sockets = bind_sockets(port, "127.0.0.1")
    HTTPServer(application(model, name)).add_sockets(sockets)
    print(f"http://127.0.0.1:{sockets[0].getsockname()[1]}/v1", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a checkpoint of the lab to this machine.")
    parser.add_argument("folder", help="a checkpoint's folder")
    parser.add_argument(
        "--port", type=int, default=0, help="0: any free one; the address is printed"
    )
    given = parser.parse_args()
    asyncio.run(_serve(SoftAR.load(given.folder).eval(), given.folder, given.port))
