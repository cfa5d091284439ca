"""Many steps in one compiled call give what the loop gives, to the bit; and a row does not depend
on its batch.
"""

import pytest
import torch

import softar_lab as lab
from softar_lab.generation import collapse, fast_path, feedback, numpy_path
from softar_lab.generation.recorder import FLUSH
from softar_lab.models import compiled

ARRAYS = (
    "token_ids",
    "vectors",
    "inputs",
    "log_probs",
    "entropy",
    "distance",
    "collapsed",
    "top_ids",
    "top_probs",
)
PROMPTS = ["abcdefg", "k", "", "hij ab", "cc", "abcdefg", "ba", "ggg"]
SCHEDULES = (
    "always", "never", "every(3)", "random(0.5)", "retro(3)", "liquid(4)", "entropy(0.5)", "distance(0.2)",
    "off-hull(0.05)", "oracle(0.1)", "once(2.2)",
)  # fmt: skip
FEEDBACKS = [
    *(name for name in feedback.names() if not name.startswith("other")),
    "mixture(0.6, 5)",
    "gumbel(0.5)",
]
pytestmark = pytest.mark.skipif(
    compiled.kernels() is None, reason="no compiled kernels: see models/compiled.py"
)


def same(one, other) -> bool:
    """Whether two trajectories are equal, to the bit."""
    return one.text == other.text and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ARRAYS
    )


@pytest.fixture
def slowly(monkeypatch):
    """generate() without the fast path."""

    def write(*arguments, **choices):
        with monkeypatch.context() as patched:
            patched.setattr(fast_path, "suits", lambda *_: False)
            patched.setattr(numpy_path, "suits", lambda *_: False)
            return lab.generate(*arguments, **choices)

    return write


@pytest.mark.parametrize("objective", ["ce", "mse", "metric", "vmf"])
@pytest.mark.parametrize(
    "how", ["always", "never-mixture", "never-raw", "every(3)-raw", "every(2)-shown"]
)
@pytest.mark.parametrize("temperature", [0, 1, 0.7])
def test_the_fast_path_writes_what_the_loop_writes(
    tiny, slowly, monkeypatch, objective, how, temperature
):
    model = tiny(objective=objective, context=12, scale=0.15)  # 60 steps go through several windows
    schedule, _, fed_back = how.partition("-")
    choices = {"schedule": schedule, "feedback": fed_back or "mixture", "temperature": temperature}
    choices["soft_temperature"] = 0.5
    used, write = [], fast_path.write
    monkeypatch.setattr(fast_path, "write", lambda *a: used.append(a) or write(*a))
    found = lab.generate(model, PROMPTS, 60, seed=list(range(8)), **choices)
    assert bool(used) == (objective != "vmf" or fed_back != "raw")
    for one, other in zip(
        found, slowly(model, PROMPTS, 60, seed=list(range(8)), **choices), strict=True
    ):
        assert same(one, other)


def test_a_stream_hands_over_what_generate_writes_in_pieces_of_one_size(tiny):
    model = tiny(context=50)
    whole = lab.generate(model, "ab", 300, seed=3)
    pieces = list(lab.stream(model, "ab", 300, seed=3))
    assert [len(piece) for piece in pieces] == [FLUSH, FLUSH, 300 - 2 * FLUSH]
    assert torch.equal(torch.cat([piece.vectors for piece in pieces]), whole.vectors)


def test_stop_is_asked_at_every_step(tiny):
    model, asked = tiny(), []  # whose context ends several times on the way
    found = lab.generate(model, "ab", 200, seed=3, stop=lambda: asked.append(1) or len(asked) > 45)
    assert len(found) == 45
    assert same(found, lab.generate(model, "ab", 45, seed=3))


# -- a row in a batch is the row alone ---------------------------------------------------------------------------------


def check(model, sizes=(2, 3, 16, 32), steps=10, **choices):
    prompts = (PROMPTS * 4)[: max(sizes)]
    alone = {}
    for size in sizes:
        many = lab.generate(model, prompts[:size], steps, seed=list(range(size)), **choices)
        for row in {1, size - 1}:
            if row not in alone:
                alone[row] = lab.generate(model, prompts[row], steps, seed=row, **choices)
            assert same(many[row], alone[row]), (size, row)


@pytest.fixture(scope="module", params=[1, 2], ids="{} threads".format)
def any_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("objective", ["ce", "mse"])
def test_under_every_schedule(tiny, any_threads, objective, schedule):
    check(
        tiny(objective=objective, context=12),
        schedule=schedule,
        feedback="mixture" if objective == "ce" else "raw",
    )


@pytest.mark.parametrize("fed_back", FEEDBACKS)
@pytest.mark.parametrize("objective", ["ce", "mse"])
def test_with_every_feedback(tiny, any_threads, objective, fed_back):
    check(tiny(objective=objective, context=12), schedule="entropy(1.5)", feedback=fed_back)


@pytest.mark.parametrize("name", collapse.names())
def test_with_every_collapse(tiny, any_threads, name):
    model = tiny(objective="energy(4)" if name == "vote" else "mse", mixing=4)
    check(model, (3, 16), 12, schedule="never", feedback="raw", collapse=name, temperature=0.7)


@pytest.mark.parametrize(
    "objective", ["metric", "cosine", "vmf", "mixture(2)", "energy(4)", "flow(3)"]
)
def test_of_every_objective(tiny, any_threads, objective):
    check(tiny(objective=objective), (3, 16), schedule="never", feedback="raw")


@pytest.mark.parametrize("kind", ["sum", "ema", "rotated", "bound", "gist"])
def test_behind_every_memory(tiny, any_threads, kind):
    window = lab.Window(1, 1, hard=6, soft=6, kind=kind)
    check(
        tiny(objective="mse", context=16, window=window), (3, 16), schedule="never", feedback="raw"
    )


@pytest.mark.parametrize(
    "changes", [{"table": "orthonormal"}, {"readout": "barycentric"}, {"readout": "affine"}]
)
def test_fast_path_with_every_table_and_readout(tiny, any_threads, changes):
    check(
        tiny(objective="mse", **changes),
        (3, 16),
        schedule="never",
        feedback="raw",
        collapse="barycentric",
    )
