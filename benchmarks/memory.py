"""Exact search beside the bare matrix product, reading the rows once, and faiss, in one run.

    python benchmarks/memory.py

A million vectors of width 64 are saved, loaded and searched for the 10 closest of 100 queries and
of one. The contestants take turns. Times are the processor's, of all threads together, so that other
work on the machine counts little. The peer faiss-cpu is left out where it is not installed.
"""

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from peers import machine, markdown, threads, write_json

from softar_lab.memory import VectorMemory

WIDTH, K = 64, 10


def contestants(
    memory: VectorMemory, rows: torch.Tensor, queries: torch.Tensor
) -> dict[str, Callable[[], object]]:
    """What is timed: our search, the least it could take, and the peer."""
    block = min(len(rows), 2**18 // len(queries))
    buffer = torch.empty(len(queries) * block)

    def product() -> None:
        for some in rows.split(block):
            size = len(queries) * len(some)
            torch.mm(queries, some.T, out=buffer[:size].view(len(queries), -1))

    found = {
        "ours": lambda: memory.search(queries, K),
        "the product": product,
        "reading once": lambda: rows.sum(),
    }
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        index = faiss.IndexFlatL2(WIDTH)
        index.add(rows.numpy())
        found["faiss flat"] = lambda: index.search(queries.numpy(), K)
    return found


def contest(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round, after one that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, one in work.items():
            begin = time.process_time()
            one()
            if number:
                taken[name].append(time.process_time() - begin)
    return taken


def private() -> float:
    """Megabytes that this process holds beside mapped files (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="keep everything measured")
    parser.add_argument("--quick", action="store_true", help="little of all: does it run?")
    options = parser.parse_args(arguments)
    rounds, n = (2, 2_000) if options.quick else (options.rounds, 1_000_000)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n, WIDTH, generator=generator)
    with threads(options.threads), tempfile.TemporaryDirectory() as folder:
        memory = VectorMemory(WIDTH)
        memory.add(rows)
        memory.save(folder)
        del memory
        # 1) loading, and what a search holds beside the mapped file
        before, begin = private(), time.perf_counter()
        memory = VectorMemory.load(folder)
        loading = time.perf_counter() - begin
        queries = torch.randn(100, WIDTH, generator=generator)
        memory.search(queries, K)
        held = private() - before
        # 2) the times
        results = {}
        for count in (100, 1):
            work = contestants(memory, rows, queries[:count])
            results[f"{count} queries"] = contest(work, rounds)
    lines = []
    for name, taken in results.items():
        for who, spent in taken.items():
            ratios = [a / b for a, b in zip(taken["ours"], spent)]
            lines.append([f"{name}, {who}", f"{1e3 * median(spent):.1f}", f"{median(ratios):.2f}"])
    print(f"\n{markdown(['', 'ms', 'ours / this'], lines)}\n")
    raw = rows.numel() * 4 / 2**20
    print(
        f"loading {loading:.3f} s; beside the mapped file {held:.1f} MB ({held / raw:.2f} of raw)"
    )
    print(f"medians of {rounds} rounds; {machine()}")
    write_json(options.json, {"results": results, "loading": loading, "held": held})


if __name__ == "__main__":
    main()
