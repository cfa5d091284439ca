"""Let real evaluation clients ask a served model, each in a virtual environment of its own.

usage: python tools/clients.py FOLDER [--record]      (minutes; pip fetches the clients once)

The environments lie in FOLDER. lm-eval runs a multiple-choice, a rolling and a generation task, by
ids and by texts, in batches of 1 and 3, and the first one as from llama.cpp (gguf); its figures and
texts must be our own, one by one. openai and litellm must read the same from a stream as from a
whole answer, of a text and of a chat. --record saves what they sent, which the tests send again, as
tests/fixtures/serving/clients.json. The exit code is 1 where anything differs.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from random import Random
from threading import Thread
from typing import Any

from softar_lab.data.languages.tales import TALES
from softar_lab.generation.generate import generate
from softar_lab.models.scoring import char_log_probs
from softar_studies.random_model import random_pretrained
from softar_studies.serving.http import serve
from softar_studies.serving.served import Served, load

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "data" / "checkpoints" / "tales-hard"
FIXTURE = ROOT / "tests" / "fixtures" / "serving" / "clients.json"
CLIENTS = {
    "lm-eval": ("lm-eval[api]==0.4.13",),
    "openai": ("openai==3.57.0",),
    "litellm": ("litellm==1.110.2",),
}
CLOSE = 1e-3  # nats a text: sums of some hundred float32 figures
TEXTS = 6

CHOICE = """task: tales_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
ROLLING = """task: tales_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
WRITING = """task: tales_writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 40}}
metric_list: [{{metric: exact_match}}]
"""
TASKS = {"choice": CHOICE, "rolling": ROLLING, "writing": WRITING}

OPENAI = """
import json, sys
from openai import OpenAI
client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
asked = dict(model="tales-hard", prompt=sys.argv[2], max_tokens=60, temperature=0.7, seed=5)
whole = client.completions.create(**asked, logprobs=2)
chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
several = client.completions.create(**{**asked, "prompt": [[1, 16], [16, 1]]}, n=2, stop=["."])
chats = OpenAI(base_url=sys.argv[3], api_key="none", max_retries=0).chat.completions
asked = dict(model="random", messages=[{"role": "user", "content": "Hello"}], max_tokens=20, seed=5)
answer, chunks_of_chat = chats.create(**asked), list(chats.create(**asked, stream=True))
spoken = "".join(chunk.choices[0].delta.content or "" for chunk in chunks_of_chat)
vectors = client.embeddings.create(model="tales-hard", input=["The king", "A witch"])
print(json.dumps({
    "whole": whole.choices[0].text,
    "stream": "".join(chunk.choices[0].text for chunk in chunks if chunk.choices),
    "finish": [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1],
    "same usage": chunks[-1].usage == whole.usage,
    "choices": [choice.index for choice in several.choices],
    "vectors": [len(one.embedding) for one in vectors.data],
    "models": [one.id for one in client.models.list()],
    "chat": [answer.choices[0].message.content, spoken],
}))
"""
LITELLM = """
import json, sys
import litellm
asked = dict(model="text-completion-openai/tales-hard", api_base=sys.argv[1], api_key="none",
             prompt=sys.argv[2], max_tokens=60, temperature=0.7, seed=5, num_retries=0)
whole = litellm.text_completion(**asked)
chunks = list(litellm.text_completion(**asked, stream=True))
chat_asked = dict(model="openai/random", api_base=sys.argv[3], api_key="none", num_retries=0, seed=5,
            messages=[{"role": "user", "content": "Hello"}], max_tokens=20)
answer, chat = litellm.completion(**chat_asked), list(litellm.completion(**chat_asked, stream=True))
spoken = "".join(chunk.choices[0].delta.content or "" for chunk in chat)
print(json.dumps({
    "whole": whole.choices[0].text,
    "stream": "".join(chunk.choices[0].text or "" for chunk in chunks if chunk.choices),
    "finish": whole.choices[0].finish_reason,
    "chat": [answer.choices[0].message.content, spoken],
}))
"""


@dataclass(frozen=True)
class Way:
    """One way in which lm-eval asks: its model class, that one's arguments, and the tasks."""

    name: str
    model: str
    arguments: str
    batch: int
    tasks: tuple[str, ...] = tuple(TASKS)


@dataclass
class Recorded:
    """What the server was asked: one request of each kind, by client."""

    client: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)

    def __call__(self, handler: Any) -> None:
        """Called by tornado after each answer."""
        request = handler.request
        body = json.loads(request.body) if request.body else None
        prompt = body.get("prompt", body.get("input")) if body else None
        rows = len(prompt) if isinstance(prompt, list) else 0
        shape = [type(prompt).__name__, min(rows, 2), rows and type(prompt[0]).__name__]
        kind = str([self.client, request.path, sorted(body or ()), shape])
        if kind not in self.kinds:
            self.kinds.add(kind)
            about = {"client": self.client, "method": request.method, "path": request.path}
            self.requests.append({**about, "status": handler.get_status(), "body": body})


def started(served: Served, recorded: Recorded) -> str:
    """Serve from a thread of this process; the address."""
    addresses: Queue[str] = Queue()
    running = serve(served, 0, addresses.put, log_function=recorded)
    Thread(target=lambda: asyncio.run(running), daemon=True).start()
    return addresses.get(timeout=60)


def python(folder: Path, client: str) -> Path:
    """The interpreter of a client's environment, which is made where it is missing."""
    home = folder / client
    if not (home / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([home / "bin" / "pip", "install", "-q", *CLIENTS[client]], check=True)
        (home / "installed").touch()
    return home / "bin" / "python"


def questions() -> list[dict[str, Any]]:
    """Stories that end with a question, its right answer, and a wrong one."""
    found = []
    for i in range(TEXTS):
        story, _, answer = TALES.sample(Random(i)).rstrip("\n").rpartition("? ")
        other = "The king." if "king" not in answer else "The witch."
        found.append({"question": f"{story}?", "choices": [answer, other], "gold": 0})
    return found


def texts() -> list[dict[str, str]]:
    """Running texts, the last one longer than the model's context."""
    stories = [TALES.sample(Random(100 + i)) for i in range(TEXTS + 2)]
    return [{"text": story} for story in stories[: TEXTS - 1]] + [{"text": "".join(stories[5:])}]


def write_tasks(folder: Path) -> None:
    """The tasks and their data, as files of lm-eval's."""
    for name, task in TASKS.items():
        data, rows = folder / f"{name}.jsonl", texts() if name == "rolling" else questions()
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        (folder / f"tales_{name}.yaml").write_text(task.format(data=data), encoding="utf-8")


def lm_eval(folder: Path, way: Way) -> dict[str, list]:
    """What lm-eval reports: per task, the log-likelihood or the text of each request, in order."""
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    write_tasks(tasks)
    out = folder / f"out {way.name}"
    command = [
        *(python(folder, "lm-eval"), "-m", "lm_eval", "run"),
        *("--model", way.model, "--model_args", way.arguments),
        *("--batch_size", way.batch, "--tasks", ",".join(f"tales_{task}" for task in way.tasks)),
        *("--include_path", tasks, "--log_samples", "--output_path", out),
    ]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    found = {}
    for task in way.tasks:
        newest = max(out.rglob(f"samples_tales_{task}_*.jsonl"), key=lambda path: path.name)
        rows = map(json.loads, newest.read_text(encoding="utf-8").splitlines())
        ordered = sorted(rows, key=lambda row: row["doc_id"])
        found[task] = [_first(one) for row in ordered for one in row["resps"]]
    return found


def _first(response: Any) -> str | float:
    """A text, or the log-likelihood; lm-eval packs both into lists."""
    while isinstance(response, list):
        response = response[0]
    try:
        return float(response)
    except ValueError:
        return response


def expected(served: Served) -> dict[str, list]:
    """The same by our own scoring and our own generation."""
    model = served.model

    def tail(text: str, begin: int) -> float:
        """log p of the characters from `begin` on; the first character is only read."""
        return char_log_probs(model, text)[begin - 1 :].sum().item()

    def answer(question: str) -> str:
        """The most probable text up to a full stop or a line's end."""
        return re.split("[.\n]", generate(model, question, 40, temperature=0).text)[0]

    rows = questions()
    return {
        "choice": [
            tail(f"{row['question']} {one}", len(row["question"]))
            for row in rows
            for one in row["choices"]
        ],
        "rolling": [tail("\n" + row["text"], 1) for row in texts()],
        "writing": [answer(row["question"]) for row in rows],
    }


def ways(url: str) -> Iterator[Way]:
    """All the ways in which lm-eval asks."""
    shared = f"model=tales-hard,base_url={url}/completions,num_concurrent=1,max_retries=1"
    for kind in ("ids", "texts"):
        arguments = f"{shared},tokenized_requests={kind == 'ids'},tokenizer_backend=remote"
        for batch in (1, 3):
            yield Way(f"{kind}, batches of {batch}", "local-completions", arguments, batch)
    yield Way("gguf", "gguf", f"base_url={url.removesuffix('/v1')}", 1, ("choice",))


def lm_eval_checks(folder: Path, url: str, served: Served, recorded: Recorded) -> Iterator[bool]:
    """lm-eval's figures and texts against ours."""
    right = expected(served)
    for way in ways(url):
        recorded.client = f"lm-eval 0.4.13, {way.name}"
        for task, theirs in lm_eval(folder, way).items():
            pairs = list(zip(theirs, right[task], strict=True))
            if task == "writing":
                same = sum(one == own for one, own in pairs)
                print(f"{recorded.client}: {task}: {same} of {len(pairs)} texts are our own")
                yield same == len(pairs)
                continue
            off = max(abs(one - own) for one, own in pairs)
            print(f"{recorded.client}: {task}: {len(pairs)} texts, {off:.1e} nats at most")
            yield off < CLOSE


def stream_checks(folder: Path, url: str, recorded: Recorded) -> Iterator[bool]:
    """The same text from a stream as from a whole answer."""
    chat = started(Served(random_pretrained(), "random"), recorded)
    for client, script in (("openai", OPENAI), ("litellm", LITELLM)):
        recorded.client = CLIENTS[client][0].replace("==", " ")
        command = [python(folder, client), "-c", script, url, "In spring the king", chat]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        answer = json.loads(done.stdout.splitlines()[-1])
        print(f"{recorded.client}: {answer}")
        yield answer["whole"] == answer["stream"] and answer["finish"] == "length"
        yield answer["chat"][0] == answer["chat"][1] != ""


def main() -> int:
    """Run every client; 1 where one of them read anything else than due."""
    parser = argparse.ArgumentParser(description="Real clients against a served checkpoint.")
    parser.add_argument("folder", type=Path, help="where the clients' environments lie")
    parser.add_argument("--record", action="store_true", help=f"write {FIXTURE.relative_to(ROOT)}")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    recorded, served = Recorded(), Served(*load(str(CHECKPOINT)))
    url = started(served, recorded)
    held = [
        *stream_checks(folder, url, recorded),
        *lm_eval_checks(folder, url, served, recorded),
    ]
    if given.record:
        rows = ",\n".join(json.dumps(one) for one in recorded.requests)
        FIXTURE.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    print(f"{sum(held)} of {len(held)} as due")
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
