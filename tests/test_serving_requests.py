"""Requests that were made up: each is answered, or refused by the name of a field; nothing else."""

import json
import math
from itertools import count

import httpx
import pytest
from amount import per_test
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from test_serving import running

from conftest import enliven
from softar_lab.data.tokenizers.subword import BPETokenizer
from softar_lab.models.config import ModelConfig
from softar_lab.models.soft_ar import SoftAR
from softar_studies.random_model import random_pretrained
from softar_studies.serving.answers import POST
from softar_studies.serving.fields import (
    CHAT,
    COMPLETION,
    DETOKENIZE,
    EMBEDDINGS,
    TOKENIZE,
    BadRequest,
)
from softar_studies.serving.http import error_of, parsed
from softar_studies.serving.served import Served

CASES = per_test(60, 3)
REQUESTS = settings(
    max_examples=CASES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FIELDS = {
    "/v1/completions": COMPLETION,
    "/v1/chat/completions": CHAT,
    "/v1/embeddings": EMBEDDINGS,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
}
GOOD = {
    "/v1/completions": {"prompt": "the king", "max_tokens": 3},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
    "/v1/embeddings": {"input": ["the king", "a"]},
    "/tokenize": {"prompt": "the king"},
    "/detokenize": {"tokens": [3, 1]},
}
MANY = ["/v1/chat/completions", "/v1/completions"]  # those of many fields come up more often
STEPS = 40  # after so many the client hangs up: a valid request may ask for thousands

# where a number is valid, it is a small one
NUMBERS = st.sampled_from(
    [
        *(0, 1, 2, 3, -1, 2**15 + 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**40, True, False),
        *(0.5, 1.0, 2.0, -0.0, 1e-320, 1e308, 99.5, math.nan, math.inf, -math.inf),
    ]
)
TEXTS = st.one_of(
    st.sampled_from(
        ["", "the king", "\n", "\x00", "é", "😀", "\ud800", "\ufdd0", "<|im_end|>", "x" * 70_000]
    ),
    st.text(st.characters(codec=None), max_size=12),
)
VALUES = st.recursive(
    st.one_of(st.none(), NUMBERS, TEXTS),
    lambda some: st.one_of(
        st.lists(some, max_size=4),
        st.dictionaries(TEXTS.map(lambda one: one[:20]), some, max_size=3),
    ),
    max_leaves=8,
)
# values that come closer: texts, ids and lists of them
NEAR = st.one_of(
    st.lists(st.integers(-1, 700), max_size=6),
    st.lists(st.lists(st.integers(0, 50), max_size=6), max_size=3),
    st.lists(TEXTS, max_size=3),
    st.lists(st.fixed_dictionaries({"role": TEXTS, "content": VALUES}), max_size=3),
    st.sampled_from([{"include_usage": True}, {"type": "text"}, "float", "base64", ["text"], {}]),
)


@st.composite
def requests(draw):
    """A path and a body: a good one of which some fields are something else, gone or new."""
    path = draw(st.sampled_from(sorted(POST, key=lambda path: len(FIELDS[path])) + MANY * 2))
    if draw(st.integers(0, 19)) == 0:
        return path, draw(VALUES)
    body = dict(GOOD[path])
    known = st.sampled_from(sorted(FIELDS[path]))
    near = st.one_of(st.booleans(), st.integers(0, 3), NEAR)
    for name in draw(st.lists(known, min_size=1, max_size=4)):
        if draw(st.integers(0, 9)) == 0:
            body.pop(name, None)
        else:
            body[name] = draw(VALUES if draw(st.booleans()) else near)
    if draw(st.integers(0, 9)) == 0:
        body[draw(TEXTS)] = draw(VALUES)
    return path, body


@pytest.fixture(scope="module")
def models():
    tokenizer = BPETokenizer.fit("the king met the queen. the café ", 60)
    shape = {"vocab_size": tokenizer.vocab_size, "context": 40, "n_layers": 1, "n_heads": 2}
    units = enliven(SoftAR(ModelConfig(**shape, d_model=16), tokenizer), 3, 0.3)
    return Served(units, "units"), Served(random_pretrained(layers=1), "random")


@REQUESTS
@given(requests(), st.booleans())
def test_functions_answer_or_refuse_by_name(models, request, pretrained):
    (path, body), calls = request, count()
    try:
        answer = POST[path](models[pretrained], body, lambda: next(calls) > STEPS)
        answer = answer if isinstance(answer, dict) else list(answer)
    except BadRequest as refused:
        assert refused.field
        assert str(refused).startswith(refused.field)
        assert error_of(refused)[0] == 400
        named = refused.field.split("[")[0].split(".")[0]
        event(
            f"{path}: refused, {named if named in FIELDS[path] or named == 'body' else 'unknown'}"
        )
        return
    json.dumps(answer, allow_nan=False)
    event(f"{path}: answered")
    if isinstance(answer, dict) and "choices" in answer:
        assert all(choice["finish_reason"] for choice in answer["choices"])
        found = [choice["index"] for choice in answer["choices"]]
        assert found == list(range(len(found)))
        assert len(found) % (body.get("n") or 1) == 0


@pytest.fixture(scope="module")
def clients(models):
    with (
        running(models[0]) as one,
        running(models[1]) as other,
        httpx.Client(base_url=one, timeout=600) as first,
        httpx.Client(base_url=other, timeout=600) as second,
    ):
        yield first, second


@REQUESTS
@given(requests(), st.booleans(), st.integers(0, 19), st.binary(max_size=3))
def test_http_answers_or_refuses_by_name(clients, request, pretrained, damage, noise):
    (path, body), client = request, clients[pretrained]
    sent = json.dumps(body).encode()
    if damage == 0:  # cut, and with some noise
        sent = sent[: len(sent) // 2] + noise
    answer = client.post(path, content=sent)
    event(f"{path}: {answer.status_code}")
    assert answer.status_code in (200, 400), answer.text[:300]
    if answer.status_code == 400:
        assert answer.json()["error"]["param"]
        assert answer.json()["error"]["message"]
    elif answer.headers["content-type"] == "text/event-stream":
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        answer.json()
    assert client.get("/v1/models").status_code == 200


@REQUESTS
@given(st.binary(max_size=40))
def test_any_bytes_are_json_or_refused(body):
    try:
        parsed(body)
    except BadRequest as refused:
        assert refused.field == "body"
