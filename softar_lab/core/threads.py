"""How many processor threads a piece of work gets, and how idle threads wait.

The whole package decides this here. The products of small models are short: to hand one to a second
thread costs more than that thread saves. Where the machine is busy with other work, threads that
wait by spinning block each other. So small work runs on one thread, rows of a batch run side by
side in compiled pieces, and PyTorch's own threads wait passively.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

# Work of fewer multiply-adds than this stays on one thread.
SMALL = 20_000_000
# OpenMP's threads wait asleep. This works only if PyTorch is loaded after this module.
PASSIVE = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


if not any(name in os.environ for name in PASSIVE):  # what a user has set stays as it is
    os.environ.update(PASSIVE)


class _Limit:
    """The threads that PyTorch and BLAS had before the first of several overlapping calls."""

    def __init__(self):
        self.lock, self.users, self.torch, self.blas = threading.Lock(), 0, 1, None


_LIMIT = _Limit()


def allowed() -> int:
    """How many threads the user lets PyTorch have, whatever `limited` allows at the moment."""
    import torch

    with _LIMIT.lock:
        return _LIMIT.torch if _LIMIT.users else torch.get_num_threads()


@contextmanager
def limited(work: int) -> Iterator[None]:
    """Give PyTorch and BLAS one thread inside the block if `work` is less than `SMALL`.

    `work` is the multiply-adds of one step, which the block repeats. Calls may overlap, in one
    thread or several: the limit ends with the last of them, and then all is as it was before the
    first.
    """
    if work >= SMALL:
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    import torch

    with _LIMIT.lock:
        if _LIMIT.users == 0:
            _LIMIT.torch = torch.get_num_threads()
            _LIMIT.blas = _warden().submit(_limit_blas).result()
        _LIMIT.users += 1
        torch.set_num_threads(1)


def _leave() -> None:
    import torch

    with _LIMIT.lock:
        _LIMIT.users -= 1
        torch.set_num_threads(_LIMIT.torch)  # PyTorch keeps a number for each Python thread
        if _LIMIT.users == 0:
            _warden().submit(_LIMIT.blas.__exit__, None, None, None).result()


@cache
def _pools() -> "ThreadpoolController":
    """The thread pools behind NumPy; to find them takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _limit_blas() -> Any:
    return _pools().limit(limits=1, user_api="blas").__enter__()


@cache
def _warden() -> ThreadPoolExecutor:
    """One thread that sets and lifts the limits on BLAS.

    OpenBLAS obeys only the thread that set the first limit.
    """
    return ThreadPoolExecutor(1, "softar-limits")


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, "softar")


def for_each(function: Callable[[int, int], object], count: int, size: int, work: int) -> None:
    """Call `function(begin, end)` for all pieces of range(count), on as many threads as pay off.

    An error in a piece is raised here.

    Args:
        function: must release Python's lock; its pieces must not depend on each other.
        count: how many items there are.
        size: how many items a piece has; the last one may have fewer.
        work: the multiply-adds of all pieces together.
    """
    pieces = [(begin, min(begin + size, count)) for begin in range(0, count, size)]
    helpers = min(len(pieces), allowed(), 1 + work // (SMALL // 8)) - 1
    others = [_workers().submit(_take, function, pieces) for _ in range(helpers)]
    try:
        _take(function, pieces)
    finally:
        for other in others:
            if not other.cancel():
                other.result()


def _take(function: Callable[[int, int], object], pieces: list[tuple[int, int]]) -> None:
    """Work on the pieces that are left; other threads take from the same list."""
    while pieces:
        try:
            piece = pieces.pop()
        except IndexError:  # another thread was quicker
            return
        function(*piece)
