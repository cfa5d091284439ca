"""What a sweep costs beside its cells: python benchmarks/sweep.py [--backends here cores ray]

Three measurements, on a machine that does nothing else:

* cells that work for 10 ms, on one worker: the seconds a cell needs beyond its work, for each
  backend in turn, and the seconds until the first cell is back;
* 10,000 cells that do nothing: the driver's memory, the seconds to write and to read the table;
* trainings of about a second on one worker and on two, taking turns: the speed-up.

`--write` puts the first and the last into data/results/scaling.csv.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from peers import machine, markdown

from softar_lab import sweep
from softar_lab.core.cells import save_results

ROOT = Path(__file__).parents[1]
WORK, CELLS, MANY = 0.01, 200, 10_000


def works(number: int) -> dict:
    """Ten milliseconds of work."""
    end = time.perf_counter() + WORK
    while time.perf_counter() < end:
        pass
    return {"square": number * number}


def nothing(number: int) -> dict:
    return {"square": number * number, "text": f"cell {number}"}


def trains(number: int) -> dict:
    """A training of about a second on one thread."""
    torch.manual_seed(number)
    net = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Tanh(), torch.nn.Linear(512, 256))
    optimizer = torch.optim.Adam(net.parameters())
    inputs = torch.randn(256, 256)
    for _ in range(200):
        loss = (net(inputs) - inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"loss": loss.item()}


def seconds(cell, count: int, backend: str, workers: int) -> float:
    begin = time.perf_counter()
    sweep(cell, {"number": range(count)}, backend=backend, workers=workers, progress=False)
    return time.perf_counter() - begin


def overhead(backend: str, rounds: int) -> dict:
    """Seconds beyond its work per cell, and until the very first one is back.

    The rounds' median, each against one cell alone, whose start-up is the same.
    """
    start, per_cell = seconds(works, 1, backend, 1) - WORK, []
    for _ in range(rounds):
        alone = seconds(works, 1, backend, 1)
        per_cell.append((seconds(works, CELLS + 1, backend, 1) - alone) / CELLS - WORK)
    return {"backend": backend, "start": start, "per_cell": median(per_cell)}


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


def speed_up(backend: str, rounds: int) -> float:
    """One worker's seconds over those of two, for 16 trainings; start-up taken off; median."""
    ratios = []
    for _ in range(rounds):
        took = {n: seconds(trains, 16, backend, n) - seconds(trains, n, backend, n) for n in (1, 2)}
        ratios.append(took[1] / 15 / (took[2] / 14))
    return median(ratios)


def main() -> None:
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
        if row["backend"] == "cores":
            row["speed_up"] = speed_up("cores", given.rounds)
    for table in (pd.DataFrame(rows), pd.DataFrame([many()])):
        print(markdown(list(table), [[f"{x:.3g}" if isinstance(x, float) else x for x in row]
                                     for row in table.to_numpy(dtype=object)]))  # fmt: skip
    if given.write:
        recipe = {"cells": CELLS, "work": WORK, "rounds": given.rounds, "machine": machine()}
        save_results(pd.DataFrame(rows), [recipe], ROOT / "data/results/scaling.csv", ["backend"])


if __name__ == "__main__":
    main()
