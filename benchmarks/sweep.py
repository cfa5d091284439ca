"""What a sweep costs beside its cells: python benchmarks/sweep.py [--backends here cores ray]

Three measurements, on a machine that does nothing else:

* cells that work for 10 ms, on one worker: the seconds a cell needs beyond its work, for each
  backend in turn, and the seconds until the first cell is back;
* 10,000 cells that do nothing: the driver's memory, the seconds to write and to read the table;
* trainings of half a second on one worker and on two, taking turns: the speed-up. Ray's two workers
  are two nodes on this machine.

`--write` puts the first and the last into data/results/scaling.csv.
"""

import argparse
import logging
import os
import resource
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from peers import machine, markdown

from softar_lab import sweep
from softar_lab.core.cells import save_results

ROOT = Path(__file__).parents[1]
WORK, CELLS, MANY = 0.01, 200, 10_000
TRAININGS = 12


def works(number: int) -> dict:
    """Ten milliseconds of work."""
    end = time.perf_counter() + WORK
    while time.perf_counter() < end:
        pass
    return {"square": number * number, "at": time.time()}


def nothing(number: int) -> dict:
    return {"square": number * number, "text": f"cell {number}"}


def trains(number: int) -> dict:
    """A training of about half a second on one thread."""
    torch.manual_seed(number)
    net = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Tanh(), torch.nn.Linear(512, 256))
    optimizer = torch.optim.Adam(net.parameters())
    inputs = torch.randn(256, 256)
    for _ in range(100):
        loss = (net(inputs) - inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"loss": loss.item(), "at": time.time()}


def pace(cell, count: int, backend: str, workers: int) -> tuple[float, float]:
    """Seconds until the first cell is done, and from then on seconds per cell."""
    begin = time.time()
    frame = sweep(cell, {"number": range(count)}, backend=backend, workers=workers, progress=False)
    at = sorted(frame["at"])
    return at[0] - begin, (at[-1] - at[workers - 1]) / (count - workers)


def overhead(backend: str, rounds: int) -> dict:
    """Seconds until the first cell is back, the first time, and per cell beyond its work: medians."""
    found = [pace(works, CELLS, backend, 1) for _ in range(rounds)]
    per_cell = median(each for _, each in found) - WORK
    return {"backend": backend, "start": found[0][0] - WORK, "per_cell": per_cell}


def many() -> dict:
    """What 10,000 cells cost the driver."""
    with tempfile.TemporaryDirectory() as out:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        grid = {"number": range(MANY)}
        sweep(nothing, {"number": range(100)}, out=out, progress=False)
        begin = time.perf_counter()
        sweep(nothing, grid, out=out, progress=False)
        run = time.perf_counter() - begin
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        begin = time.perf_counter()
        frame = sweep(nothing, grid, out=out, progress=False)
        again = time.perf_counter() - begin
        begin = time.perf_counter()
        save_results(frame, [{}], Path(out, "again.csv"), ["number"])
        table = time.perf_counter() - begin
    return {"run": run, "read again": again, "table written": table, "memory (MB)": grown / 1024}


def speed_up(backend: str, rounds: int) -> dict:
    """One worker's seconds per training over those of two: the median, the least, the largest."""
    ratios = []
    for _ in range(rounds):
        one, two = (pace(trains, TRAININGS, backend, workers)[1] for workers in (1, 2))
        ratios.append(one / two)
    return {"speed_up": median(ratios), "least": min(ratios), "largest": max(ratios)}


@contextmanager
def two_nodes():
    """A Ray cluster of two nodes of one core each, on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()  # overhead() left a cluster of one core
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_agent_register_timeout_ms": "120000"}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", default=["here", "cores", "ray"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    print(machine())
    rows = [overhead(backend, given.rounds) for backend in given.backends]
    for row in rows:
        if row["backend"] != "here":
            with two_nodes() if row["backend"] == "ray" else nullcontext():
                row |= speed_up(row["backend"], given.rounds)
        row["load"] = os.getloadavg()[0]
    for table in (pd.DataFrame(rows), pd.DataFrame([many()])):
        print(markdown(list(table), [[f"{x:.3g}" if isinstance(x, float) else x for x in row]
                                     for row in table.to_numpy(dtype=object)]))  # fmt: skip
    if given.write:
        recipe = {"cells": CELLS, "work": WORK, "trainings": TRAININGS}
        recipe |= {"rounds": given.rounds, "machine": machine()}
        save_results(pd.DataFrame(rows), [recipe], ROOT / "data/results/scaling.csv", ["backend"])


if __name__ == "__main__":
    main()
