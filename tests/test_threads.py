"""Who gets how many threads: limits that survive overlapping calls, pieces that all get done, waits
that sleep.
"""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

import softar_lab as lab
from softar_lab.core import threads


def counts() -> tuple:
    """What PyTorch and BLAS are allowed here."""
    return torch.get_num_threads(), *(
        (pool["filepath"], pool["num_threads"]) for pool in threads._pools().info()
    )


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_limit_holds_inside_and_is_gone_afterwards(two_threads):
    before = counts()
    with threads.limited(1):
        assert torch.get_num_threads() == 1
        assert threads.allowed() == 2
        with threads.limited(1):
            assert torch.get_num_threads() == 1
        assert threads.allowed() == 2
    assert counts() == before
    with threads.limited(threads.SMALL):  # large work keeps them all
        assert torch.get_num_threads() == 2


def test_overlapping_calls_leave_all_as_it_was(two_threads, tiny):
    """The second begins while the first runs and ends after it; threads that come later have their
    own numbers.
    """
    before, model, seen = counts(), tiny(), []
    second_runs, first_is_done = threading.Event(), threading.Event()

    def write(stop):
        lab.generate(model, "ab", 10_000, schedule="entropy(0.5)", stop=stop)
        seen.append(torch.get_num_threads())

    def first_stop():
        if not other.is_alive() and not second_runs.is_set():
            other.start()
        return second_runs.wait(60) and len(asked) > 3  # at least one step is written

    def second_stop():
        asked.append(1)
        second_runs.set()
        return len(asked) > 5 and first_is_done.wait(60)

    asked, other = [], threading.Thread(target=write, args=(second_stop,))
    write(first_stop)
    first_is_done.set()
    other.join(60)
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [2, 2, 2]
    assert counts() == before


def test_every_piece_is_done_once_on_any_number_of_threads(two_threads):
    for count, size, work in (
        (0, 4, 1),
        (1, 4, 10**9),
        (33, 4, 10**9),
        (33, 4, 1),
        (8, 100, 10**9),
    ):
        done = []
        threads.for_each(lambda *piece, done=done: done.append(piece), count, size, work)
        assert sorted(i for begin, end in done for i in range(begin, end)) == list(range(count))
        assert all(end - begin <= size for begin, end in done)


def test_large_work_runs_side_by_side_and_small_work_does_not(two_threads):
    for work, expected in ((10**9, 2), (1, 1)):
        used = set()

        def piece(begin, end, used=used):
            used.add(threading.get_ident())
            time.sleep(
                0.01
            )  # so that one thread cannot be done with all of them before the other begins

        threads.for_each(piece, 16, 1, work)
        assert len(used) == expected


def test_an_error_in_a_piece_is_raised(two_threads):
    def piece(begin, end):
        raise ValueError(f"piece {begin}")

    with pytest.raises(ValueError, match="piece"):
        threads.for_each(piece, 16, 1, 10**9)
    threads.for_each(lambda begin, end: None, 16, 1, 10**9)  # and the next goes on


@pytest.mark.parametrize(
    ("given_", "expected"),
    [({}, threads.PASSIVE), ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"})],
)
def test_threads_wait_asleep_unless_the_user_decides(given_, expected):
    bare = {name: value for name, value in os.environ.items() if name not in threads.PASSIVE}
    code = (
        "import os, sys, softar_lab.core.threads as t; "
        "print({n: os.environ[n] for n in t.PASSIVE if n in os.environ}, 'torch' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env=bare | given_, capture_output=True, text=True, check=True
    )
    assert found.stdout.split("\n")[0] == f"{expected} True"
