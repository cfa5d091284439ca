"""A memory on Vespa: golden files, a stand-in that speaks the engine's protocol, and refusals."""

import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from amount import total

from softar_lab import StoreError, VectorMemory

vespa = pytest.importorskip("vespa.package", reason="pyvespa is not installed")

from softar_lab.memory.vespa import application, feed  # noqa: E402
from softar_lab.memory.vespa.client import VespaFailure, VespaMemory  # noqa: E402
from softar_lab.memory.vespa.tensors import TensorType  # noqa: E402

# pyvespa's own: an import of asyncio's that Python 3.14 will move
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SCHEMA = """schema memory {
    document memory {
        field number type long {
            indexing: attribute | summary
        }
        field text type string {
            indexing: index | summary
            index: enable-bm25
        }
        field payload type string {
            indexing: summary
        }
        field dense type tensor<float>(d[2]) {
            indexing: attribute | index | summary
            attribute {
                distance-metric: angular
            }
            index {
                hnsw {
                    max-links-per-node: 16
                    neighbors-to-explore-at-insert: 200
                }
            }
        }
        field sparse type tensor<float>(w{}) {
            indexing: attribute | summary
        }
        field multi type tensor<float>(t{},d[2]) {
            indexing: attribute | summary
        }
    }
"""


@pytest.fixture
def small():
    memory = VectorMemory(2, "cosine")
    memory.add(torch.tensor([[1.0, 0.1], [0.0, -2.0]]), [{"text": "to be"}, None])
    return memory


def test_application_is_the_golden_one(small, tmp_path):
    multi = {0: torch.tensor([[1.0, 0.0], [0.5, 0.25]]), 1: torch.zeros(1, 2)}
    feed.to_vespa(tmp_path, small, sparse={0: {"be": 1.5}, 1: {}}, multi=multi)
    schema = (tmp_path / "application" / "schemas" / "memory.sd").read_text()
    assert schema.startswith(SCHEMA)
    profiles = re.findall(r"rank-profile (\w+)", schema)
    assert profiles == ["dense", "words", "hybrid", "sparse", "multi"]
    assert "sum(reduce(sum(query(qt) * attribute(multi), d), max, t), qt)" in schema
    assert "cos(distance(field, dense))" in schema
    assert (tmp_path / "application" / "services.xml").exists()
    lines = [json.loads(line) for line in (tmp_path / "feed.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "put": "id:memory:memory::0",
        "fields": {
            "number": 0,
            "payload": '{"text": "to be"}',
            "text": "to be",
            "dense": {"values": [1.0, float(torch.tensor(0.1))]},
            "sparse": {"cells": {"be": 1.5}},
            "multi": {"blocks": {"0": [1.0, 0.0], "1": [0.5, 0.25]}},
        },
    }
    assert "text" not in lines[1]["fields"]
    assert "payload" not in lines[1]["fields"]


def bits(tensor: torch.Tensor) -> list:
    """Which numbers there are, to the bit."""
    return tensor.view(torch.int32).tolist()


def test_collections_come_back_bit_equal_or_are_refused(tmp_path, monkeypatch):
    """Through the writer of the feed and its reader. Any float32 numbers, among them -0, subnormal
    ones, NaN and infinity; labels and texts of any characters. SOFTAR_CASES=1000 tries as many.
    """
    monkeypatch.setattr(feed, "package", Mock())  # the application has tests of its own
    rng, equal, refused = np.random.default_rng(0), 0, 0
    letters = ["a", " ", "é", "blocks", "\n", '"', "\U0001f600", "\x00", "\ud800", "\uffff"]
    odds = [0.3, 0.25, 0.2, 0.1, 0.05, 0.05, 0.035, 0.005, 0.005, 0.005]
    for _ in range(total(60)):
        n, m = int(rng.integers(1, 4)), int(rng.integers(1, 5))
        rows = torch.from_numpy(rng.integers(0, 2**32, (n + 3, m), np.uint32).view(np.float32))
        rows[0, 0] = -0.0
        texts = ["".join(rng.choice(letters, 4, p=odds)) for _ in range(n)]
        memory = VectorMemory(m, str(rng.choice(["l2", "dot", "cosine"])))
        memory.add(rows[:n].nan_to_num(0, 1, -1), [{"text": text} for text in texts])
        multi = {i: rows[n : n + int(rng.integers(4))] for i in range(n)}
        sparse = {i: {texts[i]: float(rows[n + 1, 0]), "b": 0.5} for i in range(n)}
        try:
            feed.to_vespa(tmp_path, memory, sparse=sparse, multi=multi)
        except ValueError as error:
            assert re.match(
                r"id \d: .*(does not hold|no text with U\+|no vector of zeros)", str(error)
            )
            refused += 1
            continue
        for i, one in enumerate(feed.read_feed(tmp_path / "feed.jsonl", m)):
            assert bits(one["dense"]) == bits(memory.vector(i))
            assert [bits(row) for row in one["multi"].values()] == [bits(row) for row in multi[i]]
            assert list(one["sparse"].items()) == list(sparse[i].items())
            assert (json.loads(one["payload"]), one["text"]) == ({"text": texts[i]}, texts[i])
        equal += 1
    assert equal > 2 * refused > 0


@pytest.mark.parametrize(
    ("payload", "sparse", "message"),
    [
        (None, {0: {}}, "sparse has nothing for the id 1"),
        ({"text": 5}, None, "id 2: 5 is no text"),
        ({"text": "\x07"}, None, r"id 2: the engine takes no text with U\+0007"),
    ],
)
def test_what_the_engine_would_refuse_is_named(small, tmp_path, payload, sparse, message):
    small.add(small.vector(0), [payload])
    with pytest.raises(ValueError, match=message):
        feed.to_vespa(tmp_path, small, sparse=sparse)


@pytest.mark.parametrize(
    ("type_", "message"),
    [
        ("tensor<flot>(d[2])", "is no tensor type"),
        ("tensor(d[2])", "is no tensor type"),
        ("tensor<float>(d[0])", "at least one number"),
        ("tensor<float>(d{2})", "has a dimension that is none"),
        ("tensor<float>(d{},d[2])", "two names"),
        ("tensor<float>(a{},b{})", "at most one mapped"),
    ],
)
def test_types_that_are_none_are_refused(type_, message):
    with pytest.raises(ValueError, match=message):
        TensorType.parse(type_)


@pytest.mark.parametrize(
    ("type_", "value", "message"),
    [
        ("tensor<float>(d[2])", [1.0], "a vector has 2 numbers, not 1"),
        ("tensor<float>(d[2])", [1.0, float("inf")], "does not hold inf"),
        ("tensor<float>(d[2])", [1.0, "NaN"], "'NaN' is no number"),
        ("tensor<float>(d[2])", [1.0, None], "None is no number"),
        ("tensor<float>(d[2])", [1.0, 0.1], "does not hold 0.1"),
        ("tensor<bfloat16>(d[1])", [1.001953125], "does not hold"),
        ("tensor<int8>(d[1])", [1.5], "does not hold 1.5"),
        ("tensor<float>(w{})", {1: 1.0}, "a label must be a text"),
        ("tensor<float>(w{})", {"": 1.0}, "a label must be a text"),
        ("tensor<float>(w{})", [1.0], "needs labels"),
    ],
)
def test_values_that_would_be_stored_otherwise_are_refused(type_, value, message):
    with pytest.raises(ValueError, match=message):
        TensorType.parse(type_).encode(value)


def test_unwrapped_cells_are_refused_when_read():
    with pytest.raises(ValueError, match="is written as {'cells': …}"):
        TensorType.parse("tensor<float>(w{})").decode({"blocks": 1.0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([vespa.Field("a.b", "string")], "the field 'a.b' must be letters"),
        ([vespa.Field("id", "string")], "the field 'id' must be"),
        ([vespa.Field("a", "string"), vespa.Field("a", "long")], "the field 'a' is there twice"),
        ([vespa.Field("a", "tensor<float>(d[2],t{})")], r"write tensor<float>\(t{},d\[2\]\)"),
        (
            [vespa.Field("a", "tensor<float>(d[2])", indexing=["index"], ann=vespa.HNSW("cosine"))],
            "unknown metric 'cosine'; known: euclidean",
        ),
        (
            [vespa.Field("a", "tensor<float>(d[2])", indexing=["attribute"], ann=vespa.HNSW())],
            "HNSW needs `index`",
        ),
    ],
)
def test_fields_that_pyvespa_would_write_wrongly_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        application.checked_fields(fields)


def test_ids_profiles_and_zero_vectors_are_checked():
    profile = vespa.RankProfile("a", "1")
    with pytest.raises(ValueError, match="the rank profile 'a' is there twice"):
        application.checked_profiles([profile, profile])
    for wrong in ("", "..", "a/b", "a..b", "é"):
        with pytest.raises(ValueError, match="must be letters"):
            feed.checked_id(wrong)
    with pytest.raises(ValueError, match="id 3: Vespa's angular metric knows no vector of zeros"):
        feed.document(3, torch.zeros(2), metric="cosine")


def test_a_feed_is_read_back(small, tmp_path):
    feed.to_vespa(tmp_path, small)
    found = list(feed.read_feed(tmp_path / "feed.jsonl", 2))
    for number, one in enumerate(found):
        assert torch.equal(one["dense"], small.vector(number))
    (tmp_path / "feed.jsonl").write_text('{"fields": {"dense": [1, 2]}}\n')
    with pytest.raises(StoreError, match="line 1 is no document"):
        list(feed.read_feed(tmp_path / "feed.jsonl", 2))
    (tmp_path / "feed.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(StoreError, match="line 1 is no document"):
        list(feed.read_feed(tmp_path / "feed.jsonl", 2))
    with pytest.raises(StoreError, match="cannot read .*No such file"):
        list(feed.read_feed(tmp_path / "nowhere.jsonl", 2))


# -- a stand-in for the engine ---------------------------------------------------------------------


class StandIn(BaseHTTPRequestHandler):
    """Speaks /document/v1 and /search; searches by brute force in float64."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.paths.append(self.path)
        if self.path.startswith("/document/v1/"):
            self._put(unquote(self.path.split("?")[0]).split("/")[-1], body)
        else:
            self._answer(*self.server.spoil(self._search(body)))

    def _put(self, number, body):
        if number in self.server.full:
            return self._answer(507, {"message": "the disk is full"})
        self.server.documents[int(number)] = body["fields"]
        return self._answer(200, {"id": number})

    def _search(self, body):
        query = torch.tensor(body["input.query(q)"]["values"]).double()
        hits, inside = [], re.search(r"number in \(([\d, ]*)\)", body["yql"])
        for number, fields in self.server.documents.items():
            if inside and str(number) not in inside[1].split(", "):
                continue
            row = torch.tensor(fields["dense"]["values"]).double()
            shown = {"number": number}
            if "payload" in fields:
                shown["payload"] = fields["payload"]
            hits.append({"relevance": -float((row - query).norm()), "fields": shown})
        hits.sort(key=lambda hit: -hit["relevance"])
        coverage = {"coverage": 100, "full": True}
        root = {"fields": {"totalCount": len(hits)}, "coverage": coverage}
        return {"root": root | {"children": hits[: body["hits"]]}}

    def _answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def engine():
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.documents, server.full, server.paths = {}, set(), []
    server.spoil = lambda answer: (200, answer)
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def remote(engine):
    return VespaMemory(f"http://127.0.0.1:{engine.server_address[1]}", 4)


def test_served_memory_finds_what_the_exact_one_finds(engine, remote):
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    payloads = [{"text": f"passage {i}"} for i in range(60)]
    here = VectorMemory(4)
    ids = here.add(rows, payloads).tolist()
    report = remote.add(rows, payloads, ids=ids)
    assert sorted(report.stored) == ids
    assert all(path.startswith("/document/v1/memory/memory/docid/") for path in engine.paths)
    queries = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    mine, theirs = here.search(queries, 5), remote.search(queries, 5)
    assert torch.equal(mine.ids, theirs.ids)
    assert mine.payloads == theirs.payloads
    assert mine.score == theirs.score == "squared distance"
    # a root and a square: each rounds once, relative to 2^-53
    torch.testing.assert_close(mine.scores, theirs.scores, rtol=8 * 2.0**-53, atol=0)
    assert remote.search(queries[0], 3, where=[7, 9]).ids.sort().values.tolist() == [7, 9]


def test_documents_that_fail_are_counted_with_their_reason(engine, remote):
    engine.full = {"1"}
    with pytest.raises(VespaFailure, match=r"2 of 3 documents stored; id 1: 507: .*full") as raised:
        remote.add(torch.zeros(3, 4), ids=[0, 1, 2])
    assert sorted(raised.value.report.stored) == [0, 2]
    assert list(raised.value.report.failed) == [1]


def test_a_lost_answer_is_a_failure(remote, monkeypatch):
    monkeypatch.setattr(remote._app, "feed_iterable", lambda *_, **__: None)
    with pytest.raises(VespaFailure, match="0 of 1 documents stored; id 5: no answer"):
        remote.add(torch.zeros(1, 4), ids=[5])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda answer: (404, {"message": "no such path"}), "404|no such path"),
        (lambda answer: (200, {"root": answer["root"] | {"errors": [{"code": 12}]}}), "'code': 12"),
        (
            lambda answer: (
                200,
                {"root": answer["root"] | {"coverage": {"coverage": 50, "full": False}}},
            ),
            "only 50 %",
        ),
        (
            lambda answer: (
                200,
                {"root": answer["root"] | {"children": [{"relevance": "-Infinity"}]}},
            ),
            "the relevance '-Infinity'",
        ),
        (lambda answer: (200, {}), "no result"),
        (lambda answer: (503, {"root": {}}), "VespaError|503"),
    ],
)
def test_answers_that_are_not_whole_are_failures(engine, remote, spoil, message):
    remote.add(torch.zeros(1, 4), ids=[0])
    engine.spoil = spoil
    with pytest.raises(VespaFailure, match=message):
        remote.search(torch.zeros(4), 1)


def test_nothing_leaves_that_is_wrong(engine, remote):
    for call in (
        lambda: remote.add(torch.tensor([[0.0] * 4, [float("nan")] * 4]), ids=[0, 1]),
        lambda: remote.add(torch.zeros(2, 4), ids=[3, 3]),
        lambda: remote.add(torch.zeros(2, 3), ids=[0, 1]),
        lambda: remote.search(torch.zeros(3), 1),
        lambda: remote.search(torch.zeros(4), 401),
    ):
        with pytest.raises(ValueError, match=r"nan|twice|vectors must be|4 numbers|at most 400"):
            call()
    assert engine.paths == []


@pytest.mark.skipif("SOFTAR_VESPA_URL" not in os.environ, reason="SOFTAR_VESPA_URL names no engine")
def test_a_real_engine_ranks_as_brute_force_does():
    """Against a deployed application of `to_vespa(folder, VectorMemory(4))`."""
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    here, remote = VectorMemory(4), VespaMemory(os.environ["SOFTAR_VESPA_URL"], 4)
    ids = here.add(rows, [{"text": f"passage {i}"} for i in range(60)]).tolist()
    remote.add(rows, [here.payload(i) for i in ids], ids=ids)
    found = remote.search(rows[:5], 5, where=ids)
    assert torch.equal(found.ids, here.search(rows[:5], 5).ids)
