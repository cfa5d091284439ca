"""The remote judge: our own model served by a process of its own, each server's answer, and servers
that misbehave.
"""

import gzip
import json
import math
import socketserver
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_widgets import wait

import softar_lab as lab
from softar_lab.data.languages.tales import TALES
from softar_lab.external.remote import http as calls
from softar_lab.external.remote.http import (
    Bearer,
    Caller,
    RemoteError,
    SigV4,
    place_of,
    retry_after,
)
from softar_lab.external.remote.judge import RemoteJudge, Scored
from softar_lab.external.remote.protocols import APIS
from softar_lab.models.scoring import char_log_probs

ROOT = Path(__file__).parents[1]
FIXTURES = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in ROOT.glob("tests/fixtures/*.json")
}
SERVED = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in ROOT.glob("tests/fixtures/served/*.json")
}
CHECKPOINT = ROOT / "data" / "checkpoints" / "tales-hard"
KEY = "sk-nobody-may-see-this"
quick = partial(Caller, timeout=300, retries=2, wait=0.01)  # a busy machine has time to answer


# a server of our own, in a process of its own


@pytest.fixture(scope="module")
def served():
    command = [sys.executable, "-W", "error", "-m", "softar_studies.serving", str(CHECKPOINT)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield process.stdout.readline().strip()
        process.kill()


@pytest.fixture(scope="module")
def ours():
    return lab.SoftAR.load(CHECKPOINT).eval()


def test_log_probs_are_our_own_models(served, ours):
    text = "".join(TALES.sample(Random(story)) for story in range(9))[:700]  # several windows
    scored = RemoteJudge(url=served, caller=quick()).log_probs(text)
    torch.testing.assert_close(
        scored.log_probs.float(), char_log_probs(ours, text), atol=1e-5, rtol=0
    )
    assert scored.unscored + "".join(scored.tokens) == text
    assert scored.offsets.tolist() == list(range(1, 700))
    assert math.isclose(scored.bits_per_char, lab.evaluate(ours, text) / math.log(2), abs_tol=1e-5)


def test_embeddings_are_our_own_models(served, ours):
    texts = ["the king", "the queen", "a", "once upon a time " * 20]
    vectors = RemoteJudge(url=served, caller=quick()).embeddings(texts, batch=3)
    assert vectors.shape == (4, ours.config.d_model)
    ids = ours.tokenizer.encode(texts[1])[None]
    with torch.inference_mode():
        torch.testing.assert_close(
            vectors[1], ours.hidden_states(ids)[0].mean(0), atol=1e-5, rtol=0
        )


def test_served_model_says_what_it_cannot_read(served):
    with pytest.raises(RemoteError, match=r"status 400.*unknown character"):
        RemoteJudge(url=served, caller=quick()).log_probs("¿qué?")


# what servers are known to answer


class Answers(socketserver.ThreadingTCPServer):
    """A server that plays one part after the other, the last one for ever, and keeps what it was
    asked.
    """

    daemon_threads, allow_reuse_address, block_on_close = True, True, False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Part)
        self.parts, self.asked, self.over = [], [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        """A client that gave up is no error here."""


class Part(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline().decode().split()
        headers = {}
        while (header := self.rfile.readline().decode().strip()) != "":
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        body = self.rfile.read(int(headers.get("content-length", 0)))
        server = self.server
        part = server.parts[min(len(server.asked), len(server.parts) - 1)]
        server.asked.append(SimpleNamespace(path=line[1], headers=headers, body=body))
        part(self)

    def send(self, *pieces: bytes, pause: float = 0):
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()
            self.server.over.wait(pause)


@pytest.fixture
def server():
    with Answers() as answers:
        threading.Thread(target=answers.serve_forever, args=(0.01,), daemon=True).start()
        yield answers
        answers.over.set()
        answers.shutdown()


def reply(content, status="200 OK", kind="application/json", more="", length=None):
    """A part: one whole answer; `length` lies about how long it is."""
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    said = len(content) if length is None else length
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {said}\r\n"
    return lambda part: part.send(f"{head}{more}Connection: close\r\n\r\n".encode() + content)


def words(text, return_offsets_mapping):
    """A tokenizer of the fixture's three-word vocabulary, as `transformers` has them."""
    ids = ["ab ".index(char) for char in text]
    return {"input_ids": ids, "offset_mapping": [(i, i + 1) for i in range(len(ids))]}


@pytest.mark.parametrize("name", sorted(FIXTURES))
def test_each_servers_answer_is_understood(server, name):
    shape = FIXTURES[name]
    server.parts = [reply(shape["answer"])]
    judge = RemoteJudge(
        url=server.url, model="m", api=shape["api"], path=shape["path"], tokenizer=words
    )
    if "vectors" in shape:
        assert judge.embeddings(shape["texts"]).tolist() == shape["vectors"]
    elif "error" in shape:
        with pytest.raises(RemoteError, match=shape["error"]):
            judge.log_probs(shape["text"])
    else:
        scored = judge.log_probs(shape["text"])
        assert (scored.unscored, list(scored.tokens)) == (shape["unscored"], shape["tokens"])
        assert scored.log_probs.tolist() == pytest.approx(shape["log_probs"], abs=1e-12)
        begins = [shape["text"][begin:] for begin in scored.offsets.tolist()]
        assert all(
            rest.startswith(token) for rest, token in zip(begins, scored.tokens, strict=True)
        )
        assert judge.bits_per_char(shape["text"]) == scored.bits_per_char
    assert json.loads(server.asked[0].body) == shape["request"]
    assert server.asked[0].path == shape["path"]


@pytest.mark.parametrize("name", SERVED)
def test_log_probs_of_a_real_server_are_those_of_the_same_weights(server, name):
    """Texts that begin with, hold or end in characters of several tokens; spaces that get lost."""
    for one in SERVED[name]["answers"]:
        server.parts = [reply(one["answer"])]
        scored = RemoteJudge(url=server.url, model="m", api=one["api"]).log_probs(one["text"])
        assert scored.unscored == one["unscored"]
        assert scored.unscored + "".join(scored.tokens) == one["text"]
        assert scored.log_probs.tolist() == pytest.approx(one["log_probs"], abs=1e-3)


def test_every_api_has_a_fixture():
    assert {shape["api"] for shape in FIXTURES.values()} == set(APIS)
    assert all(shape["source"] for shape in FIXTURES.values())


# an answer that is not what was asked for is never a figure


TEXT = "Hello my name is"


def answer(**changes):
    """vLLM's answer with fields of its log-probs replaced, or `text`."""
    good = json.loads(json.dumps(FIXTURES["vllm_completions"]["answer"]))
    good["choices"][0]["text"] = changes.pop("text", good["choices"][0]["text"])
    good["choices"][0]["logprobs"].update(changes)
    return good


TOKENS = answer()["choices"][0]["logprobs"]["tokens"]
VALUES = answer()["choices"][0]["logprobs"]["token_logprobs"]


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (
            answer(token_logprobs=[None, -4.5, None, -0.5, -0.1, -3]),
            "log-prob of token 1 is missing",
        ),
        (answer(token_logprobs=[None, None, -2.0, -0.5, -0.1, -3]), "missing"),
        (answer(token_logprobs=[None, -4.5, "-2", -0.5, -0.1, -3]), "no number"),
        (answer(token_logprobs=[None, -4.5, True, -0.5, -0.1, -3]), "no number"),
        (answer(token_logprobs=[None, -4.5, 0.5, -0.5, -0.1, -3]), "which none can be"),
        (answer(token_logprobs=[None, -4.5, -9999.0, -0.5, -0.1, -3]), "the server's floor"),
        (answer(token_logprobs=[None, -4.5, -(10**400), -0.5, -0.1, -3]), "the server's floor"),
        (answer(token_logprobs=[None, 0.0, 0.0, 0.0, 0.0, -3]), "exactly 0"),
        (answer(token_logprobs=VALUES[:-1]), "6 tokens and 5 log-probs"),
        (answer(token_logprobs=None), "no token_logprobs"),
        (answer(tokens=TOKENS[:-2] + [" was", " John"]), "another text: at character 13"),
        (answer(tokens=TOKENS[:-1], token_logprobs=VALUES[:-1]), "only 13 of 16"),
        (answer(tokens=TOKENS + ["!"], token_logprobs=VALUES + [-1]), "goes on after.*' John'"),
        (answer(tokens=[*TOKENS[:2], 7, *TOKENS[3:]]), "no text but 7"),
        (answer(tokens=[7, *TOKENS[1:]]), "token 0 is no text but 7"),
        (answer(tokens=[*TOKENS[:2], None, *TOKENS[3:]]), "no text but None"),
        (answer(tokens=[TOKENS[0], ["Hello"], *TOKENS[2:]]), "no text but"),
        ({"choices": ["Hello"]}, "1 choices where one was asked for: .'Hello'"),
        (answer(tokens=[*TOKENS[:2], "\ufffd", *TOKENS[3:]]), "another text"),
        (answer(text="Hello my home is"), "asked to repeat the text"),
        (answer(text=" John"), "does it know echo"),
        ({"choices": []}, "0 choices"),
        ({"choices": [{"text": TEXT, "logprobs": None}]}, "no logprobs"),
        ({"error": {"message": "no such model"}}, "no choices"),
        ([], "no choices"),
        ("Hello", "no choices"),
        (None, "no choices"),
        (answer(tokens=["H"], token_logprobs=[-1.0]), "only of what it wrote itself"),
    ],
)
def test_wrong_answer_is_an_error(server, said, complaint):
    server.parts = [reply(said)]
    with pytest.raises(RemoteError, match=complaint):
        RemoteJudge(url=server.url, caller=quick()).log_probs(TEXT)
    assert len(server.asked) == 1  # it would say the same again


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400])
def test_what_is_no_number_is_an_error(server, value):
    server.parts = [reply(json.dumps(answer()).replace("-2.25", value).encode())]
    with pytest.raises(RemoteError, match=r"no number|which none can be"):
        RemoteJudge(url=server.url, caller=quick()).log_probs(TEXT)


def test_single_token_without_a_start_token_has_no_figure(server):
    server.parts = [
        reply(answer(text="Hello John", tokens=["Hello", " John"], token_logprobs=[None, -1.0]))
    ]
    with pytest.raises(RemoteError, match="single token"):
        RemoteJudge(url=server.url).log_probs("Hello")


def test_first_character_of_several_tokens_counts_as_in_evaluate(server):
    """Its first token is only read, its second one has a log-prob as every other token."""

    def cut(text, return_offsets_mapping):
        return {"input_ids": [0, 1, 0], "offset_mapping": [(0, 1), (0, 1), (1, 2)]}

    server.parts = [reply({"choices": [{"context_logits": [[0.0, 0.0], [3.0, 3.0], [0.0, 9.0]]}]})]
    scored = RemoteJudge(url=server.url, api="context_logits", tokenizer=cut).log_probs("é!")
    assert (scored.unscored, scored.tokens) == ("é", ("", "!"))
    assert scored.log_probs.tolist() == pytest.approx([-math.log(2)] * 2)
    assert math.isclose(scored.bits_per_char, 2.0)


def test_text_cut_off_before_it_is_scored_is_an_error(server):
    server.parts = [reply(FIXTURES["vllm_prompt_logprobs"]["answer"])]
    with pytest.raises(RemoteError, match="only the last 11 of 216 characters"):
        RemoteJudge(url=server.url, api="prompt_logprobs").log_probs("once " * 40 + TEXT)


def test_echo_ignored_is_not_mistaken_for_the_text(server):
    """A server without echo that happens to write the text itself: nothing tells them apart, so no
    figure.
    """
    server.parts = [reply(answer(text="Hello", tokens=["Hello"], token_logprobs=[-1.0]))]
    with pytest.raises(RemoteError, match="wrote itself"):
        RemoteJudge(url=server.url).log_probs("Hello")


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"data": [{"index": 0, "embedding": [1.0]}]}, "1 embeddings for 2 texts"),
        (
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [2.0]}]},
            "not numbered",
        ),
        (
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [2.0, 3.0]}]},
            "different widths",
        ),
        (
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [None]}]},
            "finite numbers",
        ),
        (
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1e300]}]},
            "finite numbers",
        ),
        (
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [10**400]}]},
            "finite numbers",
        ),
        (
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": []}]},
            "finite numbers",
        ),
        (
            {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": "AACAPw=="}]},
            "no embedding",
        ),
        ({"data": None}, "no data"),
    ],
)
def test_wrong_embeddings_are_an_error(server, said, complaint):
    server.parts = [reply(said)]
    with pytest.raises(RemoteError, match=complaint):
        RemoteJudge(url=server.url, caller=quick()).embeddings(["one", "two"])


@given(st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=6), st.booleans())
def test_tokens_lie_along_the_text_exactly(tokens, started):
    from softar_lab.external.remote import judge as remote

    text = "".join(tokens)
    pairs = [(token, None if not i and not started else -1.0) for i, token in enumerate(tokens)]
    pairs = [("<|start of a text|>", None)] * started + pairs
    scored = remote._scored(pairs, text)
    assert scored.tokens == tuple(tokens[not started :])
    assert scored.unscored == ("" if started else tokens[0])
    assert scored.bits_per_char == pytest.approx(
        len(scored.tokens) / math.log(2) / len("".join(scored.tokens))
    )


def decoded_alone(data: bytes) -> str:
    """A token's bytes as most servers send them: U+FFFD for each part of a character."""
    return data.decode("utf-8", "replace")


def decoded_in_place(pieces: list[bytes]) -> list[str]:
    """Tokens as vLLM sends them: parts of a character are "", and the last one has it.

    It looks back at most four tokens, but never at the first one. So of a character that begins
    with the text the first part is U+FFFD, and the character never comes.
    """
    sent = [decoded_alone(pieces[0])]
    for i, piece in enumerate(pieces[1:], 1):
        text = decoded_alone(piece)
        if text.endswith("\ufffd"):
            spelled = (spelled_after(pieces[k:i], piece) for k in range(i - 1, max(0, i - 5), -1))
            text = next(filter(None, spelled), "")
        sent.append(text)
    return sent


def spelled_after(before: list[bytes], piece: bytes) -> str:
    """The text of a token and of the parts of characters just before it; "" where it has none."""
    text = decoded_alone(b"".join(before) + piece)
    while before and decoded_alone(before[-1]).endswith("\ufffd"):
        before = before[:-1]
    return "" if text.endswith("\ufffd") else text[len(decoded_alone(b"".join(before))) :]


@st.composite
def cut_texts(draw):
    """A text, and its bytes cut into tokens: whole characters, or one character in several parts.

    A space may stand before the first part.
    """
    text = draw(st.text(st.sampled_from("ab é日本😀\u0301\t"), min_size=2, max_size=9))
    pieces: list[bytes] = []
    for char in text:
        data = char.encode()
        cuts = [i for i in range(1, len(data)) if draw(st.booleans())]
        parts = [data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)])]
        if pieces and draw(st.booleans()) and (pieces[-1] == b" " if cuts else whole(pieces[-1])):
            parts[0] = pieces.pop() + parts[0]
        pieces += parts
    return text, pieces


def whole(data: bytes) -> bool:
    return "\ufffd" not in decoded_alone(data)


@given(cut_texts())
def test_characters_that_tokens_spell_together_are_found(cut):
    """However the characters of a text are cut, and however a server sends what is no text."""
    from softar_lab.external.remote.alignment import aligned

    text, pieces = cut
    for sent in (list(map(decoded_alone, pieces)), decoded_in_place(pieces)):
        parts = aligned(sent, text)
        assert len(parts) == len(pieces)
        assert "".join(parts) == text
        if "\ufffd" not in "".join(sent):
            assert parts == sent
        assert "".join(aligned([None, *sent[1:]], text)) == text
        with pytest.raises(ValueError, match="scored"):
            aligned(sent, text + "!")
        with pytest.raises(ValueError, match="scored|goes on"):
            aligned(sent, text[:-1] + "z")


# servers that misbehave: a retry or an error, soon


def hang(part):
    part.server.over.wait(60)


def drip(part):
    part.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n", *[b" "] * 600, pause=0.1
    )


def drip_headers(part):
    part.send(b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 600, pause=0.1)


GOOD = reply(answer())
HALF = json.dumps(answer()).encode()[:200]


@pytest.mark.parametrize(
    "bad",
    [
        reply({"error": "slow down"}, "429 Too Many Requests"),
        reply(b"oops", "500 Internal Server Error", "text/plain"),
        reply(b"", "503 Service Unavailable", more="Retry-After: 0\r\n"),
        reply(HALF, length=5_000),
        lambda part: None,
        lambda part: part.send(b"HTTP/1.1 200 OK\r\nContent-Ty"),
        lambda part: part.send(b"no HTTP at all\r\n\r\n"),
        hang,
        drip,
        drip_headers,
    ],
    ids=[
        "429",
        "500",
        "503",
        "half",
        "closed",
        "half a head",
        "no http",
        "hangs",
        "drips",
        "drips headers",
    ],
)
def test_passing_trouble_is_tried_again(server, bad):
    slow = bad in (hang, drip, drip_headers)  # each for a minute
    caller = quick(timeout=0.3) if slow else quick()
    server.parts = [bad, GOOD]
    scored = RemoteJudge(url=server.url, caller=replace(caller, retries=9)).log_probs(TEXT)
    assert scored.log_probs.tolist() == VALUES[1:5]
    assert len(server.asked) == 2 or (
        slow and len(server.asked) > 2
    )  # a good answer may come too late as well
    server.asked.clear()
    server.parts = [bad]
    complaint = r"no whole answer within 0\.3 s, tried 3 times" if slow else "tried 3 times"
    with pytest.raises(RemoteError, match=complaint):
        RemoteJudge(url=server.url, caller=caller).log_probs(TEXT)
    wait(lambda: len(server.asked) >= 3)  # an attempt may be given up before the server has read it
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (reply(b"{'text': 1}"), "no JSON"),
        (reply(HALF), "no JSON"),
        (reply(b""), "no JSON"),
        (reply(b"[" * 100_000), "no JSON"),
        (reply(b"\xff\xfe"), "no JSON"),
        (reply(b"<h1>Welcome</h1>", kind="text/html"), "text/html, not JSON.*Welcome"),
        (reply(answer(), kind=""), "of no stated type"),
        (reply(b" " * 300_000), "longer than 200,000 bytes"),
        (
            reply(b"", "301 Moved", more="Location: http://127.0.0.1:9/v1\r\n"),
            "redirects, which is not followed",
        ),
        (reply(b"", "307 Temporary", more="Location: /elsewhere\r\n"), "redirects"),
        (reply({"error": "bad key"}, "401 Unauthorized"), "status 401.*bad key"),
        (reply({"error": "no model m"}, "404 Not Found"), "status 404.*no model m"),
        (reply(b"", "429 Slow", more="Retry-After: 86400\r\n"), "left alone for 86400 s"),
        (
            reply(gzip.compress(b" " * 300_000), more="Content-Encoding: gzip\r\n"),
            "longer than 200,000 bytes",
        ),
        (reply(answer(), more="Content-Encoding: gzip\r\n"), "cannot be unpacked"),
    ],
)
def test_lasting_trouble_is_reported_at_once(server, bad, complaint):
    server.parts = [bad]
    with pytest.raises(RemoteError, match=complaint) as caught:
        RemoteJudge(url=server.url, caller=quick(max_bytes=200_000)).log_probs(TEXT)
    assert str(caught.value).startswith(f"{server.url}/completions: ")
    assert len(server.asked) == 1


def test_an_unreachable_server_is_an_error(server):
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(RemoteError, match=r"connection failed.*tried 3 times"):
        RemoteJudge(url=url, caller=quick()).log_probs(TEXT)


def test_retry_after_is_waited_for(server, monkeypatch):
    waited = []
    monkeypatch.setattr(calls.time, "sleep", waited.append)
    server.parts = [reply(b"", "429 Slow", more="Retry-After: 7\r\n"), reply(b"", "502 Bad"), GOOD]
    RemoteJudge(url=server.url, caller=quick(wait=1.0)).log_probs(TEXT)
    assert waited[0] == 7
    assert 1.0 <= waited[1] <= 3.0  # doubled, jittered by half


def test_retry_after_reads_seconds_and_dates():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30))
    assert retry_after("12") == 12
    assert 25 < retry_after(later) <= 30
    assert retry_after(format_datetime(datetime.now(UTC) - timedelta(days=1))) == 0
    for unreadable in (None, "soon", "-3", "²", "٣", ""):
        assert retry_after(unreadable) is None


@given(st.text())
def test_retry_after_reads_any_header(value):
    assert (retry_after(value) or 0) >= 0


def test_address_that_no_client_takes_is_an_error():
    with pytest.raises(RemoteError, match="the address cannot be used"):
        RemoteJudge(url="http://localhost/a\x07", caller=quick()).log_probs(TEXT)


# who asks


def test_bearer_is_sent_and_never_printed(server):
    server.parts = [reply({"error": f"unknown key {KEY}"}, "403 Forbidden")]
    judge = RemoteJudge(url=server.url, caller=quick(auth=Bearer(KEY)))
    with pytest.raises(RemoteError, match=r"unknown key \*\*\*") as caught:
        judge.log_probs(TEXT)
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in f"{judge!r} {caught.value!r} {caught.value}"
    server.parts = [
        reply({"choices": [{"text": KEY, "logprobs": {"tokens": [], "token_logprobs": []}}]})
    ]
    with pytest.raises(RemoteError) as caught:
        judge.log_probs(TEXT)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("key", ["", "two words", "a\nb", "schlüssel"])
def test_bearer_refuses_what_no_header_can_hold(key):
    with pytest.raises(ValueError, match="bearer"):
        Bearer(key)


def signature(asked, secret, region, service):
    """Signature Version 4 of a request as it arrived, computed as AWS documents it, without
    botocore.
    """
    import hashlib
    import hmac

    def keyed(key, text):
        return hmac.new(key, text.encode(), hashlib.sha256).digest()

    fields = dict(
        part.split("=", 1) for part in asked.headers["authorization"].split(" ", 1)[1].split(", ")
    )
    signed = fields["SignedHeaders"].split(";")
    canonical = ["POST", asked.path, "", *[f"{name}:{asked.headers[name]}" for name in signed], ""]
    canonical = "\n".join([*canonical, ";".join(signed), hashlib.sha256(asked.body).hexdigest()])
    when = asked.headers["x-amz-date"]
    scope = f"{when[:8]}/{region}/{service}/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{when}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{secret}".encode()
    for part in (when[:8], region, service, "aws4_request"):
        key = keyed(key, part)
    return fields, hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()


@pytest.mark.parametrize("token", [None, "a-session-token"])
def test_sigv4_signs_what_arrives(server, token):
    auth = SigV4(
        "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "eu-west-1", session_token=token
    )
    server.parts = [reply(b"", "500 Oops"), GOOD]
    judge = RemoteJudge(
        url=f"{server.url}/endpoints/mine/invocations", path="", caller=quick(auth=auth)
    )
    judge.log_probs(TEXT)
    for asked in server.asked:  # signed anew each time
        fields, expected = signature(asked, auth.secret_key, "eu-west-1", "sagemaker")
        assert fields["Signature"] == expected
        assert {"content-type", "host", "x-amz-date"} <= set(fields["SignedHeaders"].split(";"))
        assert asked.headers.get("x-amz-security-token") == token
    assert auth.secret_key not in repr(judge)
    assert "a-session-token" not in repr(judge)


def test_sigv4_is_awss_published_example(monkeypatch):
    """`post-vanilla` of AWS's own Signature Version 4 test suite."""
    import botocore.auth

    moment = datetime(2015, 8, 30, 12, 36, 0, tzinfo=UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: moment)
    auth = SigV4("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "us-east-1", "service")
    headers = auth.headers("https://example.amazonaws.com/", {}, b"")
    assert headers["Authorization"].endswith(
        "Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
    )


def test_sigv4_finds_credentials_in_the_environment(monkeypatch):
    for name, value in (
        ("ACCESS_KEY_ID", "AK"),
        ("SECRET_ACCESS_KEY", "SK"),
        ("SESSION_TOKEN", "ST"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    assert SigV4.from_environment("eu-west-1") == SigV4("AK", "SK", "eu-west-1", session_token="ST")


# what is asked wrongly


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: RemoteJudge(url="localhost:8000"), "begins with http"),
        (lambda: RemoteJudge(url=f"https://me:{KEY}@host/v1"), "name or password"),
        (lambda: RemoteJudge(url="http://localhost:80000"), "[Pp]ort"),
        (lambda: RemoteJudge(url="http://localhost:http"), "[Pp]ort"),
        (lambda: RemoteJudge(url="http://local host"), "names a host"),
        (lambda: RemoteJudge(url="http://h", api="chat"), "api must be one of completions"),
        (lambda: RemoteJudge(url="http://h", api="context_logits"), "needs tokenizer"),
        (lambda: RemoteJudge(url="http://h").log_probs(""), "empty"),
        (lambda: RemoteJudge(url="http://h").log_probs("a\ud800"), "lone surrogate at character 1"),
        (lambda: RemoteJudge(url="http://h").embeddings([]), "at least one text"),
        (lambda: RemoteJudge(url="http://h").embeddings("one"), "at least one text"),
        (lambda: Caller(timeout=0), "timeout must be at least"),
        (lambda: Caller(retries=-1), "retries must be at least 0"),
        (lambda: Caller(timeout=float("nan")), "timeout must be at least"),
    ],
)
def test_wrong_use_is_refused(make, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        make()
    assert KEY not in str(caught.value)


def test_a_key_in_the_address_is_not_printed():
    assert place_of(f"https://host/v1/completions?api-key={KEY}") == "https://host/v1/completions"


@pytest.mark.parametrize("missing", ["httpx", "botocore"])
def test_missing_extra_is_named(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    auth = SigV4("AK", "SK", "eu-west-1")
    with pytest.raises(
        RemoteError, match=rf"{missing} is missing; pip install .softar-lab\[remote\]"
    ):
        RemoteJudge(url="http://127.0.0.1:9", caller=quick(auth=auth)).log_probs(TEXT)


def test_scored_offsets_and_bits_of_a_known_text():
    scored = Scored(
        "abcd", "a", ("bc", "d"), torch.tensor([-math.log(4), -math.log(2)], dtype=torch.float64)
    )
    assert scored.offsets.tolist() == [1, 3]
    assert math.isclose(scored.bits_per_char, 1.0)
