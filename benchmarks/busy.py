"""How quick the lab is on a machine that is busy with something else.

    python benchmarks/busy.py                      idle, beside 2 and beside 5 busy processes
    python benchmarks/busy.py --other ../before    beside another checkout, in the same run

Pieces of work: `generate` at batch 1, 16 and 32, hard and soft (positions 256 to 512, prompts that
differ); ten steps of training; the barycentric weights of 64 soft tokens; one redraw of the
generation panel's picture. A busy process is a loop that does nothing; one for each processor is
what a browser or another notebook comes to.

Each checkout runs in a process of its own, which waits asleep until it is asked. They take turns,
piece by piece, so that what slows the machine down hits both; figures are medians over rounds.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parents[1]
ROWS = (1, 16, 32)
SPIN = (
    "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"  # ends with whoever started it
)
OURS, STEPS = "this", 256
WAITING = (
    "OMP_WAIT",
    "GOMP_",
    "KMP_",
)  # a checkout sets these itself, or does not: that is what is measured


class Worker:
    """A process that runs pieces of work from one checkout of the lab when it is told to."""

    def __init__(self, checkout: Path, steps: int):
        command = [sys.executable, str(Path(__file__).resolve()), "--work", str(steps)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(WAITING)}
        environment = kept | {"PYTHONPATH": str(checkout)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, cwd=checkout, **pipes)
        self.pieces = json.loads(self.process.stdout.readline())

    def seconds(self, piece: str) -> float:
        """How long it takes, on the clock."""
        self.process.stdin.write(piece + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def end(self) -> None:
        """Let the process end."""
        with self.process:  # which closes its input, and waits
            pass


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many busy processes beside."""
    others = [
        subprocess.Popen([sys.executable, "-c", SPIN, str(os.getpid())]) for _ in range(count)
    ]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def pieces(new: int) -> dict[str, Callable[[], object]]:
    """The pieces of work, of the checkout on the path; `new` symbols are written after as many."""
    import tempfile

    import softar_lab as lab  # isort: split
    import torch  # after the lab, which says how torch's threads wait

    from softar_lab.models.simplex import barycentric
    from softar_lab.widgets import GenerationPanel

    with contextlib.suppress(ImportError):
        from softar_lab.models import compiled

        compiled.prepare()
    tokenizer = lab.CharTokenizer.fit("".join(map(chr, range(48, 48 + 65))))
    generator = torch.Generator().manual_seed(0)
    texts = [
        tokenizer.decode(torch.randint(65, (new,), generator=generator)) for _ in range(max(ROWS))
    ]
    config = lab.ModelConfig.preset("shakespeare", vocab_size=65, context=2 * new)
    model, mixtures = lab.SoftAR(config, tokenizer).eval(), torch.rand(64, 65, generator=generator)
    soft = mixtures / mixtures.sum(-1, keepdim=True) @ model.embedding
    corpus = lab.Corpus(name="random", train="".join(texts) * 4, val=texts[0], test=texts[1])

    def write(rows: int, schedule: str) -> Callable[[], object]:
        return lambda: lab.generate(
            model, texts[:rows], new, schedule=schedule, seed=list(range(rows))
        )

    def train() -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stderr(io.StringIO()),
        ):  # its progress
            lab.train(
                lab.SoftAR(config, tokenizer),
                corpus,
                lab.TrainConfig(steps=10),
                out=f"{folder}/run",
            )

    panel = GenerationPanel(model, prompt=texts[0][:32])
    panel.steps.value, panel.first.schedule.value = min(new, 80), "never"
    kinds = {"hard": "always", "soft": "never"}
    found = {
        f"{rows} rows, {name}": write(rows, schedule)
        for rows in ROWS
        for name, schedule in kinds.items()
    }
    found["training, 10 steps"] = train
    found["barycentric, 64 soft tokens"] = lambda: barycentric(soft, model.embedding)
    found["panel: 80 soft steps, drawn"] = panel.generate
    return found


def work(new: int) -> None:
    """What the process of a `Worker` does: it says which pieces it knows, then does those it is
    told to.
    """
    known = pieces(new)
    print(json.dumps(list(known)), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        known[line.strip()]()
        print(time.perf_counter() - begin, flush=True)


def measure(
    workers: dict[str, Worker], names: list[str], rounds: int, beside: int
) -> list[dict[str, Any]]:
    """Rounds of turns beside so many busy processes; one row for each piece and worker."""
    taken = {(name, who): [] for name in names for who in workers}
    with busy(beside):
        for _ in range(rounds):
            for name in names:
                for who, worker in workers.items():
                    taken[name, who].append(worker.seconds(name))
    return [
        {"busy": beside, "piece": name, "who": who, "seconds": took}
        for (name, who), took in taken.items()
    ]


def table(rows: list[dict[str, Any]], others: list[str]) -> str:
    """Milliseconds of this checkout; its speed against its own on an idle machine, and against the
    other checkout.
    """
    import peers

    seconds = {(row["busy"], row["piece"], row["who"]): row["seconds"] for row in rows}
    idle, lines = min(row["busy"] for row in rows), []
    for beside, piece, who in seconds:
        if who != OURS:
            continue
        ours = seconds[beside, piece, OURS]
        ratios = [
            f"{median(b / a for a, b in zip(ours, seconds[beside, piece, o])):.2f}" for o in others
        ]
        own = median(seconds[idle, piece, OURS]) / median(ours)
        their_own = [
            f"{median(seconds[idle, piece, o]) / median(seconds[beside, piece, o]):.2f}"
            for o in others
        ]
        lines.append(
            [piece, beside, f"{1000 * median(ours):,.0f}", f"{own:.2f}", *their_own, *ratios]
        )
    header = ["piece of work", "busy processes", "ms", "of its idle speed"]
    header += [f"{other}: of its idle speed" for other in others] + [
        f"times as fast as {other}" for other in others
    ]
    return peers.markdown(header, lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--other",
        type=Path,
        metavar="FOLDER",
        help="another checkout of the lab, to take turns with",
    )
    parser.add_argument(
        "--busy", type=int, nargs="+", default=[0, 2, 5], help="busy processes beside (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each piece (%(default)s)")
    parser.add_argument("--only", default="", help="pieces whose name holds this")
    parser.add_argument("--json", metavar="FILE", help="keep everything measured")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few steps: does it run at all? Its figures say nothing",
    )
    parser.add_argument("--work", type=int, metavar="STEPS", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        return work(options.work)
    if options.quick:
        options.busy, options.rounds = [0, 1], 1
    steps = 8 if options.quick else STEPS
    workers = {OURS: Worker(HERE, steps)}
    try:
        if options.other:
            workers["the other"] = Worker(options.other.resolve(), steps)
        names = [name for name in workers[OURS].pieces if options.only in name]
        for worker in workers.values():  # warm up
            for name in names:
                worker.seconds(name)
        rows = [
            row
            for beside in options.busy
            for row in measure(workers, names, options.rounds, beside)
        ]
    finally:
        for worker in workers.values():
            worker.end()
    import peers  # only now: it loads torch, and a worker must be the first to

    text = table(rows, [who for who in workers if who != OURS])
    print(f"\n{text}\n\nmedians of {options.rounds} rounds; {peers.machine()}")
    peers.write_json(options.json, {"rounds": options.rounds, "rows": rows})


if __name__ == "__main__":
    main()
