"""The served model: every way to ask, every way to ask wrongly, and what real clients sent."""

import asyncio
import base64
import copy
import json
import math
import re
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Queue
from random import Random
from threading import Thread

import httpx
import numpy as np
import pytest
import torch

import softar_lab as lab
from conftest import enliven
from softar_lab.data.languages.tales import TALES
from softar_lab.data.tokenizers.growing import GrowingTokenizer
from softar_lab.data.tokenizers.subword import BPETokenizer
from softar_lab.external.pretrained.wrapper import Pretrained
from softar_lab.generation.generate import generate
from softar_lab.metrics.texts import judge
from softar_lab.models.config import ModelConfig
from softar_lab.models.scoring import char_log_probs, evaluate
from softar_lab.models.soft_ar import SoftAR
from softar_studies.random_model import random_pretrained
from softar_studies.serving.__main__ import main
from softar_studies.serving.answers import GET, POST
from softar_studies.serving.fields import BadRequest
from softar_studies.serving.http import serve
from softar_studies.serving.served import IMPOSSIBLE, Served, load

ROOT = Path(__file__).parents[1]
CHECKPOINTS = ROOT / "data" / "checkpoints"
CLIENTS = json.loads((ROOT / "tests/fixtures/serving/clients.json").read_text(encoding="utf-8"))
DOCUMENT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
STORY = TALES.sample(Random(7)).rstrip("\n")
EMOJI = "the café 😀 met 日本 the king"


@pytest.fixture(scope="module")
def tales():
    return Served(SoftAR.load(CHECKPOINTS / "tales-hard").eval(), "tales-hard")


def with_units(kind, name):
    """A model whose tokens are longer than a character, or half of a byte."""
    tokenizer = kind.fit("the king met the queen. the café " * 9, 60)
    assert tokenizer.units
    shape = {"vocab_size": tokenizer.vocab_size, "context": 40, "n_layers": 1, "n_heads": 2}
    return Served(enliven(SoftAR(ModelConfig(**shape, d_model=16), tokenizer), 3, 0.3), name)


@pytest.fixture(scope="module")
def units():
    return with_units(BPETokenizer, "units")


@pytest.fixture(scope="module")
def grown():
    return with_units(GrowingTokenizer, "grown")


@pytest.fixture(scope="module")
def random():
    """A pretrained model with a chat template; its pieces are bytes and longer."""
    return Served(random_pretrained(layers=2), "random")


@pytest.fixture(params=["tales", "units", "grown", "random"])
def served(request):
    return request.getfixturevalue(request.param)


def ask(served, path="/v1/completions", **body):
    """The answer to a request; the chunks of a stream as a list."""
    answer = POST[path](served, body, lambda: False)
    return answer if isinstance(answer, dict) else list(answer)


def choices(served, **body):
    return ask(served, **body)["choices"]


def text_of(served):
    return STORY[:60] if served.name == "tales-hard" else EMOJI


# what is asked


def test_every_form_of_a_prompt_is_answered_alike(served):
    text = text_of(served)
    ids = served.tokenizer.encode(text).tolist()
    how = partial(choices, served, max_tokens=4, logprobs=2, seed=3, echo=True)
    (one,) = how(prompt=text)
    assert how(prompt=[text]) == how(prompt=ids) == how(prompt=[ids]) == [one]
    two = how(prompt=[text, text[:5]])
    assert [choice["index"] for choice in two] == [0, 1]
    assert two[0] == one
    assert {**two[1], "index": 0} == how(prompt=text[:5])[0]  # a batch is its prompts one by one


@pytest.mark.parametrize("most", [0, 1, 5])
def test_echo_has_one_entry_per_token(served, most):
    text = text_of(served)
    (choice,) = choices(
        served, prompt=text, max_tokens=most, echo=True, logprobs=3, temperature=0, stop=["e"]
    )
    found, count = choice["logprobs"], len(served.tokenizer.encode(text))
    lengths = {name: len(entries) for name, entries in found.items()}
    assert len(set(lengths.values())) == 1
    written = lengths["tokens"] - count
    assert written == most or (choice["finish_reason"] == "stop" and 1 <= written < most)
    assert choice["text"].startswith(text)
    assert "".join(found["tokens"]) == choice["text"]
    assert found["text_offset"] == [0, *np.cumsum([len(t) for t in found["tokens"]])[:-1].tolist()]
    assert [i for i, one in enumerate(found["token_logprobs"]) if one is None] == [0]
    assert found["top_logprobs"][0] is None


def test_log_probs_are_those_of_our_own_scoring(served):
    text = text_of(served) * 9  # several windows, where a window is short
    (choice,) = choices(served, prompt=text, max_tokens=1, echo=True, logprobs=1, temperature=0)
    found = torch.tensor(choice["logprobs"]["token_logprobs"][1:-1], dtype=torch.float64)
    ids = served.tokenizer.encode(text)
    lengths = served.tokenizer.lengths(ids)[1:]
    if bool((lengths == 1).all()):
        torch.testing.assert_close(found.float(), char_log_probs(served.model, text))
    ours = char_log_probs(served.model, text).double().sum()
    torch.testing.assert_close(found.sum(), ours, rtol=1e-6, atol=0)


def test_log_probs_with_a_memory_run_through_the_whole_text():
    served = Served(SoftAR.load(CHECKPOINTS / "tales-window").eval(), "tales-window")
    (choice,) = choices(served, prompt=STORY, max_tokens=0, echo=True, logprobs=0)
    found = torch.tensor(choice["logprobs"]["token_logprobs"][1:])
    torch.testing.assert_close(found, char_log_probs(served.model, STORY))


@pytest.mark.parametrize("best", [0, 1, 7])
def test_the_best_tokens_and_the_token_itself_have_the_same_figures(served, best):
    (choice,) = choices(
        served, prompt=text_of(served), max_tokens=3, echo=True, logprobs=best, seed=1
    )
    found = choice["logprobs"]
    for i, (token, figure) in enumerate(zip(found["tokens"], found["token_logprobs"])):
        if i:
            top = found["top_logprobs"][i]
            assert top[token] == figure  # to the bit: lm-eval compares with ==
            assert list(top.values()) == sorted(top.values(), reverse=True)
            assert len(top) in (best, best + 1) if best else len(top) == 1


def test_impossible_tokens_have_a_figure_that_json_can_hold(units):
    class Certain(type(units.model)):
        def next_log_probs(self, token_ids, memory=None):
            found = torch.full((*token_ids.shape, self.vocab_size), -math.inf)
            return found.index_fill(2, torch.tensor([0]), 0.0)

    model = SoftAR(units.model.config, units.tokenizer)
    model.__class__ = Certain
    text = "café😀"
    assert 0 not in units.tokenizer.encode(text)
    (choice,) = choices(Served(model, "x"), prompt=text, max_tokens=0, echo=True, logprobs=5)
    figures, top = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
    assert set(figures[1:]) == {IMPOSSIBLE}
    assert all(len(one) == 2 for one in top[1:])  # the certain one, and the token itself


def test_writing_is_generation(served):
    prompt, how = text_of(served)[:9], {"temperature": 0.8}
    asked = choices(served, prompt=prompt, max_tokens=30, n=3, seed=11, logprobs=0, **how)
    for choice, seed in zip(asked, (11, 12, 13), strict=True):
        path = generate(served.model, prompt, 30, seed=seed, **how)
        ended = [i for i, one in enumerate(path.token_ids.tolist()) if one in served.end_ids]
        count = ended[0] + 1 if ended else 30
        figures = torch.tensor(choice["logprobs"]["token_logprobs"])
        torch.testing.assert_close(figures, path.log_probs[:count])
        if served.name != "random":  # whose pieces may spell a character with the prompt's
            assert choice["text"] == path.text


def test_writing_with_soft_tokens(tales):
    soft = Served(tales.model, "soft", {"schedule": "every(4)", "feedback": "mixture"})
    (choice,) = choices(soft, prompt="In spring", max_tokens=40, seed=2)
    path = generate(tales.model, "In spring", 40, seed=2, schedule="every(4)", feedback="mixture")
    assert choice["text"] == path.text != choices(tales, prompt="In spring", max_tokens=40, seed=2)


def test_a_prompt_may_be_ids():
    model = SoftAR.load(CHECKPOINTS / "tales-hard").eval()
    ids = model.tokenizer.encode("In spring")
    one, two = generate(model, [ids, "In spring"], 20), generate(model, ids, 20)
    assert one[0].text == one[1].text == two.text
    assert two.prompt == "In spring"


def test_without_a_seed_every_request_draws_anew(tales):
    texts = {choices(tales, prompt="In", max_tokens=200)[0]["text"] for _ in range(3)}
    assert len(texts) == 3  # two alike: about 2 ** -50; 200 characters hold some 0.27 bits each


def test_a_prompt_longer_than_the_context_goes_on_from_its_latest_tokens(tales):
    text, context = STORY * 4, tales.model.context
    assert len(text) > context
    found = choices(tales, prompt=text, max_tokens=20, seed=1)
    assert found == choices(tales, prompt=text[-context:], max_tokens=20, seed=1)


@pytest.mark.parametrize("stop", [".", ["ing", "in"], ["b", "the", "."], "never there"])
def test_stops_end_the_text(tales, stop):
    how = {"prompt": "In spring", "max_tokens": 60, "seed": 4}
    (free,), (choice,) = choices(tales, **how), choices(tales, **how, stop=stop, logprobs=1)
    stops = [stop] if isinstance(stop, str) else stop
    ends = [(free["text"].find(one) + len(one), one) for one in stops if one in free["text"]]
    due = free["text"][: min(ends)[0] - len(min(ends)[1])] if ends else free["text"]
    assert choice["text"] == due == "".join(choice["logprobs"]["tokens"])
    assert choice["finish_reason"] == ("stop" if ends else "length")
    # the tokens that spell the stop were written, too
    assert len(choice["logprobs"]["tokens"]) == (min(ends)[0] if ends else 60)


def test_an_end_token_ends_the_text(random):
    found = choices(random, prompt="the", max_tokens=60, n=16, seed=0, temperature=3, logprobs=0)
    ended = [choice for choice in found if choice["finish_reason"] == "stop"]
    assert ended  # 1 of 600 tokens 60 times: at random none of 16 rows would end in 1 of 5 runs
    for choice in ended:
        assert choice["logprobs"]["tokens"][-1] == ""
        assert "<|im_end|>" not in choice["text"]


def test_null_is_the_default(tales):
    named = dict.fromkeys(("max_tokens", "stop", "suffix", "logprobs", "n", "best_of", "stream"))
    how = {"prompt": "In spring", "seed": 4}
    assert choices(tales, **how, **named) == choices(tales, **how)
    assert len(choices(tales, **how)[0]["text"]) == 16
    assert choices(tales, **how, logprobs=False)[0]["logprobs"] is None
    harmless = {"user": "me", "model": "another", "best_of": 1, "top_p": 1.0, "logit_bias": {}}
    assert choices(tales, **how, **harmless) == choices(tales, **how)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("max_tokens", value) for value in (True, -1, 40_000, "4", 1.5, [1])),
        *(("temperature", value) for value in (-1, True, "hot", math.nan, math.inf)),
        *(("n", value) for value in (0, 65, True)),
        *(("logprobs", value) for value in (True, -1, 1000, "1")),
        *(("stop", value) for value in (3, [""], "", [1], ["a"] * 99)),
        *(("seed", value) for value in (2**63, 1.5, "1", True)),
        *(("echo", 1), ("stream", "yes"), ("stream_options", 3), ("suffix", "x")),
        *(("best_of", 2), ("best_of", True), ("logit_bias", {"1": 5}), ("top_p", 0.5)),
        *(("presence_penalty", 0.1), ("frequency_penalty", 1), ("guided_json", {}), ("user2", 1)),
        *(("prompt", value) for value in (3, [], [1.5], [["a"]], ["a", 1], [[1], "a"], "\ud800")),
        *(("prompt", value) for value in ([99], [-1], [True], "¿", ["a", "¿"], [2**80])),
        *(("prompt", None), ("prompt", "a" * 70_000), ("prompt", ["a"] * 3000)),
    ],
)
def test_what_cannot_be_heeded_is_refused_by_name(tales, field, value):
    with pytest.raises(BadRequest) as refused:
        ask(tales, **{"prompt": "a", field: value})
    assert refused.value.field.split("[")[0] == field
    assert str(refused.value).startswith(field)


# streams


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_says_what_a_whole_answer_says(served, echo):
    text = text_of(served)
    how = {"prompt": [text, text[:7]], "max_tokens": 30, "seed": 5, "n": 2, "echo": echo}
    how |= {"logprobs": 2, "stop": ["the", "zz"]}
    whole = ask(served, **how)
    *chunks, last = ask(served, **how, stream=True, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    for choice in whole["choices"]:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in own) == choice["text"]
        assert [c["finish_reason"] for c in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        for name, entries in choice["logprobs"].items():
            assert [one for c in own for one in c["logprobs"][name]] == entries


# chats


def test_a_chat_is_its_template_continued(random):
    messages = [{"role": "user", "content": [{"type": "text", "text": "the king"}]}]
    how = {"max_tokens": 12, "seed": 3}
    answer = ask(random, "/v1/chat/completions", messages=messages, logprobs=True, **how)
    prompt = random.tokenizer.chat("the king")
    ids = random.tokenizer.encode(prompt).tolist()
    (choice,) = answer["choices"]
    # the template begins with the token that the model reads before every text
    assert answer["usage"]["prompt_tokens"] == len(ids)
    text = choices(random, prompt=prompt, **how)[0]["text"]
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    content = choice["logprobs"]["content"]
    assert "".join(one["token"] for one in content) == text
    assert b"".join(bytes(one["bytes"]) for one in content).decode() == text
    chunks = ask(random, "/v1/chat/completions", messages=messages, stream=True, **how)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == text


def test_a_chat_needs_a_template(tales):
    with pytest.raises(BadRequest, match="messages: this model has no chat template"):
        ask(tales, "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("messages", value) for value in (None, [], "hi", [3], [{"role": "user"}])),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}]),
        ("messages", [{"role": "user", "content": "hi", "tool_calls": []}]),
        *(("tools", [{}]), ("response_format", {"type": "json_object"}), ("echo", True)),
        *(("logprobs", 3), ("top_logprobs", 2), ("functions", [1]), ("reasoning_effort", "high")),
    ],
)
def test_a_chat_refuses_by_name(random, field, value):
    good = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    with pytest.raises(BadRequest) as refused:
        ask(random, "/v1/chat/completions", **{**good, field: value})
    assert refused.value.field.split("[")[0] == field


# embeddings, tokens, models


def test_embeddings_in_both_encodings(served):
    texts = [text_of(served), "the"]
    plain = ask(served, "/v1/embeddings", input=texts)
    packed = ask(served, "/v1/embeddings", input=texts, encoding_format="base64")
    for one, other in zip(plain["data"], packed["data"], strict=True):
        values = np.frombuffer(base64.b64decode(other["embedding"]), "<f4")
        assert values.tolist() == one["embedding"]
    count = sum(len(served.tokenizer.encode(text)) for text in texts)
    assert plain["usage"] == {"prompt_tokens": count, "total_tokens": count}
    for field, value in (("dimensions", 8), ("input", ""), ("encoding_format", "int8")):
        with pytest.raises(BadRequest, match=f"^{field}"):
            ask(served, "/v1/embeddings", **{"input": "the", field: value})


def test_tokens_there_and_back(served):
    text = text_of(served)
    found = ask(served, "/tokenize", prompt=text, add_special_tokens=False, return_token_strs=True)
    assert found["tokens"] == served.tokenizer.encode(text).tolist()
    assert found["count"] == len(found["token_strs"]) == len(found["tokens"])
    assert ask(served, "/detokenize", tokens=found["tokens"]) == {"prompt": text}
    assert GET["/v1/models"](served, {}, lambda: False)["data"][0]["id"] == served.name


def test_a_line_end_is_the_end_token_of_stories(tales, units):
    info = GET["/tokenizer_info"](tales, {}, lambda: False)
    assert info["eos_token"] == "\n"
    assert info["chat_template"] is None
    assert GET["/tokenizer_info"](units, {}, lambda: False)["eos_token"] is None


def test_the_models_own_start_token_is_read_once():
    """Where a tokenizer puts a start token before a text, one that the client sends is this one."""
    from tokenizers.processors import TemplateProcessing

    other = random_pretrained(layers=1)
    library = copy.deepcopy(other.tokenizer.library)
    start = library.bos_token, library.bos_token_id
    library._tokenizer.post_processor = TemplateProcessing(
        single=f"{start[0]} $A", special_tokens=[start]
    )
    model = Pretrained(copy.deepcopy(other.network), library)
    served = Served(model, "started")
    assert served.begin_id == start[1]
    ids = model.tokenizer.encode("the king").tolist()
    how = partial(choices, served, max_tokens=0, echo=True, logprobs=0)
    figures = how(prompt=[start[1], *ids])[0]["logprobs"]["token_logprobs"]
    own = model.log_probs(torch.tensor([ids]))[0]
    torch.testing.assert_close(torch.tensor(figures[1:]), own)
    assert figures[0] is None
    assert ask(served, "/tokenize", prompt="the king")["tokens"] == [start[1], *ids]
    assert how(prompt=ids)[0]["logprobs"]["token_logprobs"][1:] == pytest.approx(own[1:].tolist())


def test_load_knows_checkpoints_of_the_lab_and_others(tmp_path, random):
    model, name = load(str(CHECKPOINTS / "tales-hard"))
    assert (type(model), name) == (SoftAR, "tales-hard")
    random.model.network.save_pretrained(tmp_path)
    random.tokenizer.library.save_pretrained(tmp_path)
    model, name = load(str(tmp_path))
    assert (type(model), name) == (type(random.model), tmp_path.name)
    with pytest.raises(ValueError, match="without a tokenizer"):
        Served(SoftAR(ModelConfig(vocab_size=3, context=4)), "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([str(CHECKPOINTS / "tales-hard"), "--schedule", "sometimes"], "unknown schedule"),
        ([str(CHECKPOINTS / "tales-hard"), "--collapse", "vote(9)"], "a distribution over vectors"),
        (["nowhere.gguf"], "no such file"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


# what a score counts


def test_what_a_score_counts(tales):
    """Three routes score three things of one text; each function says which."""
    text = lab.load_corpus("tales").val.split("\n")[0]  # of docs/serving.md
    model, n = tales.model, len(text)
    without_first = char_log_probs(model, text).double()  # given the first character
    from_start = char_log_probs(model, text, "\n").double()  # given the start slot
    after_line = char_log_probs(model, "\n" + text).double()  # given a line's end: lm-eval's
    assert [len(x) for x in (without_first, from_start, after_line)] == [n - 1, n, n]
    # the first character's own share is all that the start slot adds
    torch.testing.assert_close(from_start[1:], without_first, atol=1e-5, rtol=0)
    ids = model.tokenizer.encode(text)
    first = model.predict(model.start()).log_probs[0, ids[0]].item()
    assert from_start[0].item() == pytest.approx(first, abs=1e-5)
    # a line's end before the text is one more token that every prediction sees
    after = model.log_probs(model.tokenizer.encode("\n" + text)[None])[0, 1:].double()
    torch.testing.assert_close(after_line, after, atol=1e-5, rtol=0)
    sums = [x.sum().item() for x in (without_first, from_start, after_line)]
    documented = re.findall("−([0-9]+[.][0-9]+) [|]$", DOCUMENT, re.M)
    assert sums == pytest.approx([-float(one) for one in documented], abs=1e-3)
    # and what the other functions report
    assert evaluate(model, text) == pytest.approx(-sums[0] / (n - 1))
    assert evaluate(model, text, "\n") == pytest.approx(-sums[1] / n)
    assert judge(text, model).log_probs.sum().item() == pytest.approx(sums[1], abs=1e-4)
    assert judge(text, model, "\n").log_probs.sum().item() == pytest.approx(sums[2], abs=1e-4)
    served = choices(tales, prompt=text, max_tokens=0, echo=True, logprobs=0)[0]["logprobs"]
    assert sum(served["token_logprobs"][1:]) == pytest.approx(sums[0], abs=1e-4)


# over HTTP


@contextmanager
def running(served):
    """A server in a thread of its own; its address without the version."""
    loop, addresses = asyncio.new_event_loop(), Queue()
    task = loop.create_task(serve(served, 0, addresses.put))
    task.add_done_callback(lambda _: loop.stop())
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        yield addresses.get(timeout=600).removesuffix("/v1")
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def client(tales):
    with running(tales) as url, httpx.Client(base_url=url, timeout=600) as one:
        yield one


def test_http_answers_and_streams(client, tales):
    body = {"prompt": "In spring", "max_tokens": 20, "seed": 3}
    answer = client.post("/v1/completions", json=body)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["model"] == "tales-hard"
    text = answer.json()["choices"][0]["text"]
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["transfer-encoding"] == "chunked"
        *events, last = [line[6:] for line in stream.iter_lines() if line]
    assert last == "[DONE]"
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == text
    assert client.get("/v1/models").json()["data"][0]["id"] == "tales-hard"


@pytest.mark.parametrize(
    ("status", "method", "path", "body", "field"),
    [
        *((400, "POST", "/v1/completions", body, "body") for body in (b"", b"{", b"\xff", b"[]")),
        (400, "POST", "/v1/completions", b'{"prompt": NaN}', "body"),
        (400, "POST", "/v1/completions", b"[" * 100_000, "body"),
        (400, "POST", "/v1/completions", b'{"seed": ' + b"9" * 5000 + b"}", "body"),
        (400, "POST", "/v1/completions", b'{"prompt": "a", "temperature": 1e999}', "temperature"),
        (400, "POST", "/v1/completions", b'{"prompt": "\\ud800"}', "prompt"),
        (400, "POST", "/v1/completions", b'{"prompt": "a", "stream": true, "n": 0}', "n"),
        (400, "POST", "/v1/completions", b" " * (16 * 2**20 + 1), "body"),
        (404, "GET", "/", b"", None),
        (404, "POST", "/v1/nothing", b"{}", None),
        (405, "GET", "/v1/completions", b"", None),
        (405, "POST", "/v1/models", b"{}", None),
    ],
)
def test_http_errors_have_openais_format(client, status, method, path, body, field):
    answer = client.request(method, path, content=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["param"] == field
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    assert client.get("/v1/models").status_code == 200


def test_http_a_fault_of_the_model_is_an_answer_too(units, caplog):
    class Broken(type(units.model)):
        def next_log_probs(self, token_ids, memory=None):
            raise ArithmeticError("a fault")

    model = SoftAR(units.model.config, units.tokenizer)
    model.__class__ = Broken
    with running(Served(model, "broken")) as url, httpx.Client(base_url=url, timeout=600) as client:
        body = {"prompt": EMOJI, "echo": True, "logprobs": 1}
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        # a stream that breaks off ends with the error, not with the mark of a good end
        stream = client.post("/v1/completions", json={**body, "stream": True})
        assert "a fault" in stream.text
        assert "[DONE]" not in stream.text
        assert client.get("/v1/models").status_code == 200
    assert [record.message for record in caplog.records if "failed" in record.message]


def test_http_a_client_that_hangs_up_stops_the_work(client):
    body = {"prompt": "In spring", "max_tokens": 4096, "n": 64, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as stream:
        next(stream.iter_lines())
    # answered at once, though the rest would take minutes: nothing waits in the only thread
    assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


# what real clients sent


@pytest.mark.parametrize("number", range(len(CLIENTS)))
def test_recorded_requests_of_clients_are_answered(client, tales, random, number):
    asked = CLIENTS[number]
    assert asked["status"] == 200, "tools/clients.py recorded a refusal"
    if asked["body"] and asked["body"].get("model") == "random":
        answer = ask(random, asked["path"], **asked["body"])
        assert answer
        return
    answer = client.request(asked["method"], asked["path"], json=asked["body"])
    assert answer.status_code == 200
    if asked["path"] != "/v1/completions" or asked["body"].get("stream"):
        return
    found, body = answer.json()["choices"], asked["body"]
    prompts = body["prompt"]
    prompts = [prompts] if isinstance(prompts, str) or isinstance(prompts[0], int) else prompts
    assert [choice["index"] for choice in found] == list(range(len(prompts) * body.get("n", 1)))
    if body.get("echo"):  # lm-eval's: one more entry than tokens, and the sum of the text is ours
        for prompt, choice in zip(prompts, found, strict=True):
            text = prompt if isinstance(prompt, str) else tales.tokenizer.decode(prompt)
            figures = choice["logprobs"]["token_logprobs"]
            assert len(figures) == len(text) + 1
            ours = char_log_probs(tales.model, text).double().sum().item()
            assert math.fsum(figures[1:-1]) == pytest.approx(ours, abs=1e-4)
            top = choice["logprobs"]["top_logprobs"]
            assert all(max(one.values()) >= own for one, own in zip(top[1:], figures[1:]))


def test_the_recorded_clients_are_those_of_the_tool():
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("clients", ROOT / "tools" / "clients.py")
    spec.loader.exec_module(tool := module_from_spec(spec))
    names = {asked["client"].split(",")[0] for asked in CLIENTS}
    pins = (pin.replace("[api]", "").replace("==", " ") for (pin,) in tool.CLIENTS.values())
    assert names == set(pins)
