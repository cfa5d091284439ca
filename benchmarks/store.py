"""Vectors on disk beside torch.save and numpy.save: time to save them, to their first row and to
all of them.

    python benchmarks/store.py

Three contents: one array of 100,000 × 64 float32 (25.6 MB), a list of 10,000 vectors of 64, and a
trajectory of 200 steps. In every round each contestant saves a file anew and loads it twice, once
up to its first row and once for the sum of everything in it. They take turns, each round begun by
the next one. What comes back is compared bit by bit.

Ours checksums what it saves, flushes it to the disk and renames it into place; it maps what it
loads and compares the checksum first. The peers appear as they come, and flushed and mapped as ours
is. Files are read as they are found right after writing: from memory, not from the disk.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from peers import machine, markdown, threads, write_json
from torch import Tensor

from softar_lab.core.store import load_vectors, save_vectors
from softar_lab.generation import Trajectory

WIDTH = 64
MEASURES = ("save", "first row", "everything")


class Contestant(NamedTuple):
    """`save(path)` writes the content, or None: as the one before; `load(path)` gives it back."""

    name: str
    save: Callable[[Path], Any] | None
    load: Callable[[Path], Any]


class Content(NamedTuple):
    """`first(loaded)` is its first row, `arrays(loaded)` everything in it, whatever form a
    contestant gave it.
    """

    name: str
    contestants: list[Contestant]
    first: Callable[[Any], Any]
    arrays: Callable[[Any], Iterable[Any]]


def flushed(save: Callable[[Path], Any]) -> Callable[[Path], None]:
    """`save`, and then wait for the disk."""

    def save_and_wait(path: Path) -> None:
        save(path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())

    return save_and_wait


def from_torch(path: Path, mmap: bool = False) -> Any:
    """Without its unpickler's dangers."""
    return torch.load(path, weights_only=True, mmap=mmap)


def keepers_of(vectors: Tensor | list[Tensor]) -> list[Contestant]:
    """Who keeps an array (N, m), or a list of N vectors (m,); numpy knows no such list and stacks
    it.
    """

    def by_torch(path: Path) -> None:
        torch.save(vectors, path)

    def by_numpy(path: Path) -> None:
        array = (
            vectors.numpy()
            if isinstance(vectors, Tensor)
            else np.stack([row.numpy() for row in vectors])
        )
        with open(path, "wb") as file:  # given a name, numpy would add .npy to it
            np.save(file, array)

    return [
        Contestant(
            "ours", lambda path: save_vectors(path, vectors), lambda path: load_vectors(path)[0]
        ),
        Contestant("ours, verify=False", None, lambda path: load_vectors(path, verify=False)[0]),
        Contestant("torch", by_torch, from_torch),
        Contestant("torch, flushed, mmap", flushed(by_torch), partial(from_torch, mmap=True)),
        Contestant("numpy", by_numpy, np.load),
        Contestant("numpy, flushed, mmap", flushed(by_numpy), partial(np.load, mmap_mode="r")),
    ]


def keepers_of_trajectory(trajectory: Trajectory) -> list[Contestant]:
    """Who keeps nine arrays and some text: torch as a dictionary, numpy as an .npz with the text as
    JSON.
    """
    parts = vars(trajectory)
    tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
    text = json.dumps({name: part for name, part in parts.items() if name not in tensors})

    def by_torch(path: Path) -> None:
        torch.save(parts, path)

    def by_numpy(path: Path) -> None:
        with open(path, "wb") as file:
            np.savez(
                file,
                text=np.array(text),
                **{name: tensor.numpy() for name, tensor in tensors.items()},
            )

    def from_numpy(path: Path) -> dict[str, Any]:
        with np.load(path) as file:
            arrays = dict(file)
        return {**json.loads(str(arrays.pop("text"))), **arrays}

    return [
        Contestant("ours", trajectory.save, lambda path: vars(Trajectory.load(path))),
        Contestant("torch", by_torch, from_torch),
        Contestant("torch, flushed, mmap", flushed(by_torch), partial(from_torch, mmap=True)),
        Contestant("numpy", by_numpy, from_numpy),
        Contestant("numpy, flushed", flushed(by_numpy), from_numpy),
    ]


def some_trajectory(steps: int) -> Trajectory:
    """Random, of the lab's size."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(66, (steps, 11), generator=generator)
    numbers = torch.rand(steps, 3 + 10, generator=generator)
    vectors, inputs = torch.randn(2, steps, WIDTH, generator=generator)
    return Trajectory(
        prompt="Once upon a time ",
        text="x" * steps,
        tokens=tuple(chr(33 + i) for i in range(66)),
        token_ids=ids[:, 0],
        vectors=vectors,
        inputs=inputs,
        log_probs=-numbers[:, 0],
        entropy=numbers[:, 1],
        distance=numbers[:, 2],
        collapsed=numbers[:, 2] > 0.5,
        top_ids=ids[:, 1:],
        top_probs=numbers[:, 3:],
        settings={"temperature": 1.0, "seed": 0},
    )


def contents(quick: bool) -> list[Content]:
    """What is kept; a hundredth of it where nothing is to be measured."""
    generator = torch.Generator().manual_seed(0)
    array = torch.randn(1_000 if quick else 100_000, WIDTH, generator=generator)
    rows = [row.clone() for row in array[: 100 if quick else 10_000]]
    trajectory = some_trajectory(200)
    return [
        Content(f"{len(array):,} × {WIDTH}", keepers_of(array), lambda x: x[0], lambda x: [x]),
        Content(f"list of {len(rows):,} × {WIDTH}", keepers_of(rows), lambda x: x[0], lambda x: x),
        Content(
            f"trajectory of {len(trajectory)}",
            keepers_of_trajectory(trajectory),
            lambda x: x["vectors"][0],
            lambda x: [x[name] for name in sorted(x) if isinstance(x[name], Tensor | np.ndarray)],
        ),
    ]


def contest(content: Content, rounds: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round by contestant and measure, after a first round in which all prove that
    they are exact.
    """
    paths, before = {}, None
    for contestant in content.contestants:
        if contestant.save:
            before = folder / f"{content.name}, {contestant.name}"
            contestant.save(before)
        paths[contestant] = before
    exact = {
        b"".join(np.asarray(a).tobytes() for a in content.arrays(c.load(p)))
        for c, p in paths.items()
    }
    assert len(exact) == 1, f"{content.name}: not all loaded the same"
    taken = {contestant.name: {measure: [] for measure in MEASURES} for contestant in paths}
    for number in range(rounds):
        turn = number % len(paths)
        for contestant in [*paths][turn:] + [*paths][:turn]:
            for measure, spent in zip(MEASURES, once(content, contestant, paths[contestant])):
                taken[contestant.name][measure] += spent
    return taken


def once(content: Content, contestant: Contestant, path: Path) -> Iterator[list[float]]:
    """Seconds of each measure; none where a contestant loads what another one saved."""

    def first_row() -> None:
        np.asarray(content.first(contestant.load(path))).sum()

    def everything() -> None:
        for array in content.arrays(contestant.load(path)):
            np.asarray(array).sum()

    for work in (contestant.save and partial(contestant.save, path), first_row, everything):
        begin = time.perf_counter()
        if work:
            work()
        yield [time.perf_counter() - begin] if work else []


def table(results: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """Medians, and the medians of how many times as long as ours the same round took."""
    lines = []
    for content, taken in results.items():
        for name, times in taken.items():
            lines.append([f"{content}, {name}"])
            for measure, spent in times.items():
                ratios = [a / b for a, b in zip(spent, taken["ours"][measure])]
                lines[-1] += (
                    [f"{1e3 * median(spent):.2f}", f"{median(ratios):.2f}"]
                    if spent
                    else ["as above", ""]
                )
    return markdown(
        ["", *(title for measure in MEASURES for title in (f"{measure}, ms", "times ours"))], lines
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="(%(default)s)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)"
    )
    parser.add_argument(
        "--folder", help="where to write: on the disk to be measured (the system's temporary one)"
    )
    parser.add_argument("--json", metavar="FILE", help="keep everything measured")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="little of all, twice: does it run? Its figures say nothing",
    )
    options = parser.parse_args(arguments)
    with threads(options.threads), tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rounds = 2 if options.quick else options.rounds
        results = {
            content.name: contest(content, rounds, Path(folder))
            for content in contents(options.quick)
        }
        print(f"\n{table(results)}\n\nmedians of {rounds} rounds; {machine()}")
        write_json(options.json, {"results": results})


if __name__ == "__main__":
    main()
