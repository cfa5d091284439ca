"""Where the cells of a sweep run: in this process, on all cores, or on a Ray cluster."""

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.threads import limited
from .journal import Outcome

Arguments = Mapping[str, Any]
Finished = Iterator[tuple[int, Outcome]]  # (place in the list of cells, outcome), in any order

AHEAD = 2  # cells sent ahead per worker, so that none waits for the driver
TRIES = 3  # how often a cell may end its process before it counts as failed


@dataclass(frozen=True)
class Task:
    """A function and the arguments that all its cells share."""

    cell: Callable[..., Any]
    common: dict[str, Any]

    def run(self, arguments: Arguments) -> Outcome:
        """Run one cell on one thread; an error in it becomes the outcome's problem."""
        begin = time.perf_counter()
        try:
            with limited(work=0):
                rows = _rows(self.cell(**arguments, **self.common), arguments)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            return Outcome([], time.perf_counter() - begin, problem)
        return Outcome(rows, time.perf_counter() - begin)


def run_here(
    task: Task, cells: Sequence[Arguments], workers: int | None, address: str | None
) -> Finished:
    """Run the cells one after the other in this process."""
    for number, arguments in enumerate(cells):
        yield number, task.run(arguments)


# -- one process per core --------------------------------------------------------------------------


def run_on_cores(
    task: Task, cells: Sequence[Arguments], workers: int | None, address: str | None
) -> Finished:
    """Run the cells in processes of this machine, by loky.

    Where a process dies, the cells that were being done are run again, one at a time, so that the
    one that ends its process is found; after TRIES times it has failed.
    """
    pool = _Pool(task, min(workers or os.cpu_count() or 1, max(len(cells), 1)))
    waiting, suspects, deaths = deque(range(len(cells))), deque(), Counter()
    try:
        while waiting or suspects or pool.flying:
            # 1) a cell that may have ended its process runs alone
            if suspects and not pool.flying:
                pool.send(suspects[0], cells[suspects[0]])
            # 2) otherwise there is work ahead for every process
            while waiting and not suspects and len(pool.flying) < AHEAD * pool.size:
                number = waiting.popleft()
                pool.send(number, cells[number])
            # 3) what has arrived
            arrived, lost = pool.receive()
            for number, outcome in arrived:
                if suspects and suspects[0] == number:
                    suspects.popleft()
                yield number, outcome
            if lost and suspects:  # it was alone: it is the one
                number = suspects.popleft()
                deaths[number] += 1
                if deaths[number] < TRIES:
                    suspects.append(number)
                else:
                    yield number, _ended_its_process(TRIES)
            elif lost:
                suspects.extend(lost)
    finally:
        pool.close()


class _Pool:
    """loky's processes with one task, and the cells that were sent to them."""

    def __init__(self, task: Task, size: int):
        import cloudpickle

        self.size, self.flying = size, {}
        self._task, self._executor = cloudpickle.dumps(task), None

    def send(self, number: int, arguments: Arguments) -> None:
        import cloudpickle
        from loky import ProcessPoolExecutor

        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self.size, timeout=None, initializer=_prepare, initargs=(self._task,)
            )
        future = self._executor.submit(_run_in_worker, cloudpickle.dumps(arguments))
        self.flying[future] = number

    def receive(self) -> tuple[list[tuple[int, Outcome]], list[int]]:
        """Wait; return the finished cells, and those that were lost with their process."""
        done, _ = wait(self.flying, return_when=FIRST_COMPLETED)
        arrived, lost = [], []
        for future in done:
            number = self.flying.pop(future)
            try:
                arrived.append((number, future.result()))
            except BrokenExecutor:
                lost.append(number)
        if lost:
            lost += self.flying.values()
            self.flying.clear()
            self.close()
        return arrived, sorted(lost)

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(kill_workers=True)
            self._executor = None


_TASK: dict[str, Task] = {}  # of a worker process: the task it was started for


def _prepare(task: bytes) -> None:
    """Load the task once in each worker process, which has one thread."""
    import cloudpickle
    import torch

    torch.set_num_threads(1)
    _TASK["task"] = cloudpickle.loads(task)


def _run_in_worker(arguments: bytes) -> Outcome:
    import cloudpickle

    return _TASK["task"].run(cloudpickle.loads(arguments))


# -- Ray -------------------------------------------------------------------------------------------


def run_on_ray(
    task: Task, cells: Sequence[Arguments], workers: int | None, address: str | None
) -> Finished:
    """Run the cells as tasks of a Ray cluster, each on one processor core.

    Ray runs a cell again whose process or node is lost; after TRIES times it has failed.
    """
    import cloudpickle

    ray = _connected(workers, address)
    payload = cloudpickle.dumps(task)
    sent, name = ray.put(payload), str(hash(payload))
    remote = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_run_by_ray)
    flying: dict[Any, int] = {}
    waiting = deque(enumerate(cells))
    try:
        while waiting or flying:
            cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
            while waiting and len(flying) < _sent_at_once(workers, cores):
                number, arguments = waiting.popleft()
                flying[remote.remote(sent, name, cloudpickle.dumps(arguments))] = number
            for reference in ray.wait(list(flying), num_returns=1)[0]:
                number = flying.pop(reference)
                try:
                    yield number, ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield number, _ended_its_process(TRIES, str(error).partition("\n")[0])
    finally:
        for reference in flying:
            ray.cancel(reference, force=True)


def _sent_at_once(workers: int | None, cores: int) -> int:
    """How many cells a cluster may hold: some ahead, unless it would run more than `workers`."""
    return AHEAD * cores if workers is None or workers >= cores else workers


def _connected(workers: int | None, address: str | None) -> Any:
    """Ray, connected to a cluster: the one there is, the one at `address`, or a local one."""
    try:
        import ray
    except ImportError as error:
        raise ImportError("backend='ray' needs Ray: pip install 'softar-lab[cluster]'") from error
    if not ray.is_initialized():
        # A busy machine needs longer than Ray waits for its own agents.
        os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's default, and that of no older one
        here = {"num_cpus": workers or os.cpu_count(), "include_dashboard": False}
        ray.init(
            address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(here if address is None else {}),
        )
    return ray


def _run_by_ray(task: bytes, name: str, arguments: bytes) -> Outcome:
    """A task of Ray; a worker process loads what the cells share only once."""
    import cloudpickle

    if name not in _TASK:
        _TASK.clear()
        _TASK[name] = cloudpickle.loads(task)
    return _TASK[name].run(cloudpickle.loads(arguments))


# -- outcomes --------------------------------------------------------------------------------------


def _ended_its_process(times: int, reason: str = "it ended its process") -> Outcome:
    return Outcome([], float("nan"), f"{reason}, {times} times")


def _rows(figures: Any, arguments: Arguments) -> list[dict[str, Any]]:
    """A cell's figures as rows of plain numbers and texts.

    Raises:
        TypeError: where a cell returned something else.
        ValueError: where a figure has the name of an argument or of a column, and another value.
    """
    rows = [figures] if isinstance(figures, Mapping) else figures
    if not isinstance(rows, Sequence) or not all(isinstance(row, Mapping) for row in rows):
        raise TypeError(f"a cell must return a dict of figures, not {type(figures).__name__}")
    for row in rows:
        for name in ("seconds", "problem", *arguments):
            if name in row and (name not in arguments or row[name] != arguments[name]):
                raise ValueError(f"a figure must not be called {name!r}: the table has that column")
    return [{str(name): _plain(str(name), value) for name, value in row.items()} for row in rows]


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"the figure {name!r} must be a number or a text, not {type(value).__name__}")


BACKENDS = {"here": run_here, "cores": run_on_cores, "ray": run_on_ray}
