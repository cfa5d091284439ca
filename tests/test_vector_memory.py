"""VectorMemory is exact to the last rank, and saved whole or not at all."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from amount import total

from softar_lab import StoreError, VectorMemory
from softar_lab.memory import parts, screening

METRICS = ("l2", "dot", "cosine")
KINDS = ("normal", "near", "copies", "zeros", "far", "signs", "soft", "huge", "tiny", "one far")


def collection(kind: str, n: int, m: int, generator: torch.Generator) -> torch.Tensor:
    """Rows (n, m) that are awkward in one respect."""
    x = torch.randn(n, m, generator=generator)
    pick = torch.randint(max(1, n // 5), (n,), generator=generator)
    match kind:
        case "near":
            return x[:1] + 1e-4 * x
        case "copies":
            return x[pick]
        case "zeros":
            x[torch.rand(n, generator=generator) < 0.3] = 0
        case "far":
            x[:, 0] += 2000
        case "signs":
            return x.sign()
        case "soft":  # mixtures of three rows, half of them copies with a little noise
            weights = torch.rand(n, 3, generator=generator)
            x = torch.einsum("nk,nkm->nm", weights, x[torch.stack([pick, pick.flip(0), pick], 1)])
            return x[pick] + 1e-4 * torch.randn(n, m, generator=generator)
        case "huge":
            return x * 1e30
        case "tiny":
            return x * 1e-38
        case "one far":
            x[0] *= 1e6
    return x


def exact_ranks(rows: torch.Tensor, query: torch.Tensor, k: int, metric: str) -> list[int]:
    """The k closest rows in fractions; equal ones by id."""
    q = [Fraction(one) for one in query.tolist()]

    def score(row: list[float]) -> Fraction:
        x = [Fraction(one) for one in row]
        product = sum(a * b for a, b in zip(x, q))
        if metric == "l2":
            return sum((a - b) ** 2 for a, b in zip(x, q))
        square = sum(a * a for a in x) if metric == "cosine" else 1
        power = product * abs(product) if metric == "cosine" else product
        return -power / square if square else Fraction(0)

    scores = [score(row) for row in rows.tolist()]
    return sorted(range(len(scores)), key=lambda i: (scores[i], i))[:k]


def float64_ranks(rows: torch.Tensor, query: torch.Tensor, k: int, metric: str) -> list[int]:
    """The same by brute force in extended precision, in which these collections have no near ties
    but those of equal rows.
    """
    x, q = rows.numpy().astype(np.longdouble), query.numpy().astype(np.longdouble)
    scores = np.square(x - q).sum(-1) if metric == "l2" else -(x * q).sum(-1)
    if metric == "cosine":
        lengths = np.sqrt(np.square(x).sum(-1))
        scores = np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)
    return np.lexsort((np.arange(len(x)), scores))[:k].tolist()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_search_is_exact_to_the_last_rank(kind, metric):
    generator = torch.Generator().manual_seed(KINDS.index(kind))
    for n, m in ((1, 3), (40, 5), (130, 8)):
        rows = collection(kind, n, m, generator)
        memory = VectorMemory(m, metric)
        memory.add(rows[: n // 2])
        memory.add(rows[n // 2 :])
        queries = torch.cat([rows[:2], torch.randn(1, m, generator=generator), torch.zeros(1, m)])
        found = memory.search(queries, 7)
        for i, query in enumerate(queries):
            assert found.ids[i].tolist() == exact_ranks(rows, query, 7, metric)
            alone = memory.search(query, 7)
            assert torch.equal(alone.ids, found.ids[i])
            assert torch.equal(alone.scores, found.scores[i])


def random_memory(rng: np.random.Generator) -> tuple[VectorMemory, torch.Tensor, torch.Tensor]:
    """A memory of an awkward collection, added in pieces, with some of it deleted; all rows that
    were added, and which are left.
    """
    kinds = ("normal", "near", "copies", "zeros", "far", "soft", "one far")
    n, m = int(rng.choice([1, 60, 300, 300, 1500])), int(rng.choice([3, 8, 64]))
    generator = torch.Generator().manual_seed(int(rng.integers(2**40)))
    rows = collection(str(rng.choice(kinds)), n, m, generator)
    memory = VectorMemory(m, str(rng.choice(METRICS)))
    for some in rows.split(int(rng.integers(1, n + 1)) if n < 100 else n // 3):
        memory.add(some)
    gone = rng.permutation(n)[: int(rng.choice([0, 0, n // 5]))].tolist()
    memory.delete(gone)
    return memory, rows, torch.tensor([i for i in range(n) if i not in set(gone)])


def test_search_is_brute_force_on_random_collections():
    """SOFTAR_CASES=1000 tries as many; alone and in batches that go to compiled code and to
    products.
    """
    rng = np.random.default_rng(0)
    for case in range(total(30)):
        memory, rows, left = random_memory(rng)
        noise = torch.from_numpy(rng.normal(size=(1, memory.width))).float()
        queries = torch.cat([rows[:3], rows[-1:] + 1e-4 * noise, noise, 0 * noise])
        k = int(rng.choice([1, 10, 70]))
        found = memory.search(queries, k)
        for i, query in enumerate(queries):
            right = left[float64_ranks(rows[left], query, k, memory.metric)]
            assert torch.equal(found.ids[i], right), (case, i)
            alone = memory.search(query, k)
            assert torch.equal(alone.ids, right), (case, i)
            assert torch.equal(alone.scores, found.scores[i]), (case, i)


def test_search_is_exact_where_products_are_rounded_to_bfloat16(monkeypatch):
    """Lower precision of products only leaves more to float64."""
    rows = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    memory = VectorMemory(16)
    memory.add(rows)
    was = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = memory.search(rows[3], 20)
    finally:
        torch.set_float32_matmul_precision(was)
    assert found.ids.tolist() == float64_ranks(rows, rows[3], 20, "l2")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_of_float32_scores_hold(kind, metric, monkeypatch):
    """No score is farther from its exact value than the error that is stated for its group."""
    generator = torch.Generator().manual_seed(2)
    rows = collection(kind, 200, 24, generator)
    part = parts.Part.of(rows, torch.arange(200), metric)
    queries = torch.randn(3, 24, generator=generator).double()
    if metric == "cosine":
        queries /= queries.norm(dim=-1, keepdim=True)
    moved, lengths, offset = parts.prepared([part], queries, metric)
    x = rows.double()
    exact = -(queries @ x.T)
    if metric == "l2":
        exact = (queries[:, None] - x).square().sum(-1)
    if metric == "cosine":
        exact = torch.where(x.norm(dim=-1) > 0, exact / x.norm(dim=-1), 0)
    exact = torch.nn.functional.pad(exact, (0, 56), value=torch.inf).view(3, 4, 64).amin(-1)
    errors = parts.errors(part.reach.numpy(), lengths.numpy(), offset.numpy(), 24, metric)
    known = torch.from_numpy(errors) < torch.inf
    for few in (4, 0):
        monkeypatch.setattr(screening, "FEW", few)
        screen = screening.Screen(part, None, moved[0], metric)
        found = screen.least().double() + offset
        assert ((found - exact).abs().numpy() <= errors)[known.numpy()].all()
        for i in range(3):  # no row is left out that may be the closest of its group
            ceilings = (exact - offset + torch.from_numpy(errors))[i].numpy()
            closest = screen.below(i, np.arange(4), ceilings)
            assert {*(closest // 64).tolist()} >= {*known[i].nonzero().flatten().tolist()}
    assert known.all() == (kind != "huge" and (kind, metric) != ("tiny", "cosine"))


def test_scores_are_what_they_are_called():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    expected = {
        "l2": ("squared distance", [(2, 0.0), (1, 1.0), (0, 20.0)]),
        "dot": ("inner product", [(0, 3.0), (2, 1.0), (1, 0.0)]),
        "cosine": ("cosine", [(2, 1.0), (0, 0.6), (1, 0.0)]),
    }
    for metric, (name, ranks) in expected.items():
        memory = VectorMemory(2, metric)
        memory.add(rows)
        found = memory.search(torch.tensor([1.0, 0.0]), 5)
        assert found.score == name
        assert list(zip(found.ids.tolist(), found.scores.tolist())) == ranks
        nothing = memory.search(torch.zeros(2), 2)
        order = {"l2": [1, 2], "dot": [0, 1], "cosine": [0, 1]}[metric]
        assert nothing.ids.tolist() == order  # a query of zeros: product and cosine 0 with all


def test_delete_filter_payloads_and_few_rows():
    memory = VectorMemory(1)
    ids = memory.add(torch.arange(6.0)[:, None], [{"n": n} for n in range(6)])
    assert ids.tolist() == [0, 1, 2, 3, 4, 5]
    memory.delete([0, 4])
    assert len(memory) == 4
    assert 4 not in memory
    found = memory.search(torch.tensor([[0.0], [9.0]]), 10)
    assert found.ids.tolist() == [[1, 2, 3, 5], [5, 3, 2, 1]]
    assert found.payloads[1][0] == {"n": 5}
    even = memory.search(torch.zeros(1), 10, where=lambda payload: payload["n"] % 2 == 0)
    assert even.ids.tolist() == [2]
    assert memory.search(torch.zeros(1), 10, where=[5, 0, 3]).ids.tolist() == [3, 5]
    assert memory.search(torch.zeros(1), 10, where=[]).ids.tolist() == []
    assert memory.add(torch.zeros(1), [None]).tolist() == [6]  # an id is never used twice
    assert VectorMemory(3).search(torch.zeros(2, 3)).ids.shape == (2, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.add(torch.zeros(2, 3)), r"vectors must be \(N, 2\)"),
        (
            lambda m: m.add(torch.tensor([[0.0, 0.0], [0.0, float("nan")]])),
            r"vectors\[1\] holds NaN",
        ),
        (lambda m: m.add(torch.tensor([[0.1, 0.2]]).double() / 3), "would be rounded"),
        (lambda m: m.add(torch.tensor([[1e300, 0.0]]).double()), "more than float32 holds"),
        (lambda m: m.add(torch.zeros(2, 2), ["a"]), "2 vectors need 2 payloads, not 1"),
        (lambda m: m.search(torch.tensor([0.0, float("inf")])), r"queries\[0\] holds NaN"),
        (lambda m: m.search(torch.zeros(2), 0), "k must be a whole number of at least 1"),
        (lambda m: VectorMemory(2, "euclid"), "unknown metric 'euclid'; known: l2, dot, cosine"),
        (lambda m: VectorMemory(0), "width must be a whole number of at least 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(VectorMemory(2))


def test_unknown_ids_are_named():
    memory = VectorMemory(2)
    memory.add(torch.zeros(2, 2))
    for call in (
        lambda: memory.delete([0, 7]),
        lambda: memory.vector(7),
        lambda: memory.payload(7),
    ):
        with pytest.raises(KeyError, match="no vector has the id 7"):
            call()
    with pytest.raises(KeyError, match="twice"):
        memory.delete([1, 1])
    assert len(memory) == 2


def test_save_and_load_are_bit_exact_and_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("softar_lab.memory.vector_memory.SIZE", 128)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 8, generator=generator)
    rows[0] = -0.0
    memory = VectorMemory(8, "cosine")
    memory.add(rows[:300], [{"text": f"é{i}\n"} for i in range(300)])
    memory.add(rows[300:])
    memory.delete([5, 299])
    before = memory.search(rows[:4], 12)
    memory.save(tmp_path / "memory")
    loaded = VectorMemory.load(tmp_path / "memory", verify=True)
    assert (loaded.width, loaded.metric, len(loaded)) == (8, "cosine", 498)
    assert loaded.ids.tolist() == [i for i in range(500) if i not in (5, 299)]
    back = torch.stack([loaded.vector(i) for i in loaded.ids.tolist()])
    assert back.numpy().tobytes() == rows[loaded.ids].numpy().tobytes()
    after = loaded.search(rows[:4], 12)
    assert torch.equal(before.ids, after.ids)
    assert torch.equal(before.scores, after.scores)
    assert before.payloads == after.payloads
    assert loaded.payload(298) == {"text": "é298\n"}
    # what is there is not written again
    files = {path.name for path in (tmp_path / "memory").glob("segment-*")}
    assert loaded.add(rows[:1]).tolist() == [500]
    loaded.save(tmp_path / "memory")
    assert len(files & {path.name for path in (tmp_path / "memory").glob("segment-*")}) >= 4
    assert len(VectorMemory.load(tmp_path / "memory")) == 499
    loaded.save(tmp_path / "copy")
    assert torch.equal(VectorMemory.load(tmp_path / "copy").ids, loaded.ids)


def test_an_empty_memory_is_saved_with_its_width(tmp_path):
    VectorMemory(5, "dot").save(tmp_path)
    loaded = VectorMemory.load(tmp_path)
    assert (loaded.width, loaded.metric, len(loaded)) == (5, "dot", 0)


def test_damage_is_named(tmp_path):
    memory = VectorMemory(2)
    memory.add(torch.zeros(3, 2), ["a", "b", "c"])
    memory.save(tmp_path)
    with pytest.raises(StoreError, match="holds no vector memory"):
        VectorMemory.load(tmp_path / "nowhere")
    text = next(tmp_path.glob("*.jsonl"))
    whole = text.read_bytes()
    text.write_bytes(whole[:-1])
    with pytest.raises(StoreError, match="11 bytes, and its segment says 12"):
        VectorMemory.load(tmp_path)
    text.write_bytes(whole.replace(b"b", b"x"))
    with pytest.raises(StoreError, match="checksum"):
        VectorMemory.load(tmp_path, verify=True)
    vectors = next(tmp_path.glob("*.safetensors"))
    vectors.write_bytes(vectors.read_bytes()[:-4])
    with pytest.raises(StoreError, match="damaged|cut short"):
        VectorMemory.load(tmp_path)
    manifest = tmp_path / "memory.json"
    manifest.write_text(manifest.read_text().replace('"width": 2', '"width": 3'))
    with pytest.raises(StoreError, match="checksum"):
        VectorMemory.load(tmp_path)
    bad = VectorMemory(2)
    bad.add(torch.zeros(2), [float("nan")])
    with pytest.raises(StoreError, match="the payload of id 0 is no JSON"):
        bad.save(tmp_path / "bad")


@pytest.mark.slow
def test_a_kill_while_saving_leaves_the_old_memory_or_the_new(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), "memory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    found = json.loads(done.stdout)
    assert len(found["seen"]) > 20  # moments
    assert found["seen"] == sorted(found["seen"])  # the old one, and from some moment on the new
    assert {found["seen"][0], found["seen"][-1]} == {3, 4}
    assert found["leftovers"] == []
