#!/usr/bin/env bash
# lm-eval 0.4.13, local-completions with the server's own tokenizer (tokenizer_backend=remote): a begin token whose id is
# 0 counts as none. `prefix_token_id` is `bos_token_id or eos_token_id`, and `0 or 2` is 2. So rolling tasks, and
# questions with an empty context, are scored given the END token, without a word; the Hugging Face backend asks
# `is not None` and takes the begin token. Ids 0 for "<s>" are common (RoBERTa's and BART's family, many small
# tokenizers).
#
# Seen with lm-eval 0.4.13: bos_token_id 0, eos_token_id 2, prefix_token_id 2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "lm-eval[api]==0.4.13"
"$folder/venv/bin/python" - 2>/dev/null <<'PY'
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from lm_eval.models.openai_completions import LocalCompletionsAPI

IDS = {"<s>": 0, "<pad>": 1, "</s>": 2}

class Server(BaseHTTPRequestHandler):
    """A server with a tokenizer, as vLLM has it: /tokenizer_info and /tokenize."""

    def answer(self, found):
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})

    def do_POST(self):
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        self.answer({"tokens": [IDS[prompt]] if prompt in IDS else [3 + ord(one) for one in prompt]})

server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_address[1]}/v1/completions"
model = LocalCompletionsAPI(model="m", base_url=url, tokenizer_backend="remote")
begin, end, prefix = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id, model.prefix_token_id
print(f"bos_token_id {begin}, eos_token_id {end}, prefix_token_id {prefix}")
assert (begin, end) == (0, 2)
assert prefix == 2, "a begin token with id 0 is now the prefix"
PY
