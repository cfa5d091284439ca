"""Kills savers and trainers for real (SIGKILL), between any two file operations or at any moment.

A program of its own, run by test_store and killed.py: torch is imported once and every victim
is a fork, which is safe while this process holds one thread only. It prints what it saw as JSON.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch

from softar_lab.core import store
from softar_lab.core.store import load_folder, save_folder
from softar_lab.data.corpora import Corpus
from softar_lab.data.tasks import load_task
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.models.config import ModelConfig
from softar_lab.models.scoring import calibrate, evaluate
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.config import TrainConfig
from softar_lab.training.loop import train
from softar_lab.training.reinforcement import ReinforceConfig, reinforce
from softar_lab.training.task_run import TaskResult
from softar_lab.training.update import make_optimizers


class HalfWriter:
    """A file whose every write pauses in the middle, with the first half already on its way to the
    disk.
    """

    def __init__(self, file, tick):
        self.file, self.tick = file, tick

    def write(self, data):
        for half in (data[: len(data) // 2], data[len(data) // 2 :]):
            self.tick()
            self.file.write(half)
            self.file.flush()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.tick()
        self.file.close()
        self.tick()


def arm(moment: int | None) -> None:
    """Let this process die at the moment-th pause; there is one before and after each file
    operation.
    """
    pauses = count()

    def tick():
        if next(pauses) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def pausing(operation):
        def paused(*args, **kwargs):
            tick()
            result = operation(*args, **kwargs)
            tick()
            return result

        return paused

    for name in ("mkdir", "open", "close", "fsync", "rename", "replace", "unlink", "remove"):
        setattr(os, name, pausing(getattr(os, name)))
    store.open = lambda *args, **kwargs: HalfWriter(pausing(open)(*args, **kwargs), tick)


def fork(
    work: Callable[[], object], moment: int | None = None, seconds: float | None = None
) -> bool:
    """Do the work in a process that dies at a moment, or after some seconds; True where it lived to
    the end.
    """
    child = os.fork()
    if child == 0:
        try:
            if moment is not None:
                arm(moment)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(
            child, signal.SIGKILL
        )  # it stays a zombie until waited for, so its id can't be another's by now
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"a victim ended with {code}")
    return code == 0


# -- saving a folder --------------------------------------------------------------------------------------------------

VERSIONS = [
    {"one": bytes([n]) * 5000, "two": bytes([n]) * 300, "same": b"never changes"} for n in range(4)
]


def save(folder: Path, n: int) -> None:
    save_folder(folder, {"format": "test", "version": 1, "n": n}, VERSIONS[n], "manifest.json")


def found(folder: Path) -> int:
    """Which version lies there; an error where it is a mixture."""
    manifest, files = load_folder(folder, "manifest.json", "test")
    if files != VERSIONS[manifest["n"]]:
        raise SystemExit(f"{folder} holds a mixture")
    return manifest["n"]


def kill_savers(root: Path) -> dict:
    """Every single moment; then pairs of moments: the second saver finds what the first one
    left.
    """
    seen, chance = [], random.Random(0)
    for moment in count():
        folder = root / f"single-{moment}"
        save(folder, 0)
        done = fork(lambda: save(folder, 1), moment)  # noqa: B023
        seen.append(found(folder))
        if done:
            break
    leftovers = []
    for pair in range(50):
        folder = root / f"pair-{pair}"
        save(folder, 0)
        versions = [0]
        for n in (1, 2):
            fork(lambda: save(folder, n), chance.randrange(moment))  # noqa: B023
            versions.append(found(folder))
        if not versions[0] <= versions[1] <= versions[2] or (versions[2] == 1 and versions[1] == 0):
            raise SystemExit(f"went back or jumped: {versions}")
        save(folder, 3)
        if found(folder) != 3:
            raise SystemExit("the save after two kills did not take")
        names = {path.name for path in folder.iterdir()}
        leftovers += sorted(names - {"manifest.json", *VERSIONS[3]})
    return {"seen": seen, "leftovers": leftovers}


def kill_memories(root: Path) -> dict:
    """Every fifth moment of saving a memory over another one, and what a next save leaves there."""
    from softar_lab.memory import VectorMemory

    torch.set_num_threads(1)
    seen, leftovers = [], []
    for moment in count(step=5):
        folder, memory = root / str(moment), VectorMemory(2)
        memory.add(torch.zeros(3, 2), ["old"] * 3)
        memory.save(folder)
        memory.delete([1])
        memory.add(torch.ones(2, 2), ["new"] * 2)
        done = fork(lambda: memory.save(folder), moment)  # noqa: B023
        found = VectorMemory.load(folder, verify=True)
        payloads = [found.payload(number) for number in found.ids.tolist()]
        if payloads not in (["old"] * 3, ["old"] * 2 + ["new"] * 2):
            raise SystemExit(f"a mixture: {payloads}")
        seen.append(len(payloads))
        if done:
            break
        found.save(folder)  # removes what the killed one left
        leftovers += [path.name for path in folder.glob("segment-*")][2 * len(found._segments) :]
        leftovers += [path.name for path in folder.glob(".segment-*")]
    return {"seen": seen, "leftovers": leftovers}


# -- training ---------------------------------------------------------------------------------------------------------

TEXT = "the quick brown fox jumps over the lazy dog. " * 8
CORPUS = Corpus(name="fox", train=TEXT, val=TEXT[:90], test=TEXT[:50])


RECIPE = TrainConfig(steps=6, batch_size=2, save_every=2, eval_every=2)


def fresh(objective: str) -> SoftAR:
    tokenizer = CharTokenizer.fit(TEXT)
    shape = {
        "vocab_size": tokenizer.vocab_size,
        "context": 8,
        "n_layers": 1,
        "n_heads": 1,
        "d_model": 8,
    }
    return SoftAR(ModelConfig(**shape, objective=objective, table="joint"), tokenizer, seed=1)


def warm_up() -> None:
    """Import what training needs and load the compiled kernels once for all victims, which would
    spend most of their time on it. A backward pass here would start threads, and so would generation.
    """
    model = fresh("ce")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in make_optimizers(model, RECIPE):
        optimizer.step()
    model = fresh("mse")
    calibrate(model, model.tokenizer.encode(TEXT)[:18].view(2, 9))
    evaluate(model, CORPUS.val)


def rewarded(out: Path) -> TaskResult:
    """Six steps of reinforcement on a task of 27 problems."""
    task = load_task("minimum-sum(3, 3)")
    shape = {"context": task.length + 4, "n_layers": 1, "n_heads": 2, "d_model": 8}
    model = SoftAR(ModelConfig(vocab_size=task.vocab_size, **shape), task.tokenizer, seed=1)
    recipe = ReinforceConfig(steps=6, problems=4, group=4, eval_every=2, save_every=2)
    return reinforce(model, task, "gaussian", recipe, out=out, seed=5, progress=False)


def run(out: Path, objective: str) -> None:
    """Six steps with three saves and three evaluations; the resulting weights are written beside
    `out`. The objective "rewards" is no objective: it asks for reinforcement.
    """
    if objective == "rewards":
        done = rewarded(out)
    else:
        done = train(fresh(objective), CORPUS, RECIPE, out=out, seed=5, progress=False)
    model = done.model
    result = {
        "weights": {
            name: tensor.numpy().tobytes().hex() for name, tensor in model.state_dict().items()
        },
        "history": done.history.drop(columns="seconds").to_dict("list"),
    }
    out.with_suffix(".result").write_text(json.dumps(result))


def kill_trainers(root: Path, objective: str) -> dict:
    """Kill at random moments (some runs many times), and between file operations; compare what
    comes out in the end.
    """

    def train_there(name):
        return lambda: run(root / name, objective)

    def outcome(name):
        return json.loads((root / f"{name}.result").read_text())

    warm_up()
    begin = time.perf_counter()
    fork(train_there("whole"))
    duration, expected = time.perf_counter() - begin, outcome("whole")
    chance, kills, different = random.Random(int(objective == "mse")), 0, []
    for n in range(100):
        if kills >= 12:  # a run that ends before its kill comes does not count
            break
        name = f"random-{n}"
        for _ in range(chance.choice([1, 1, 3])):
            kills += not fork(train_there(name), seconds=chance.uniform(0, duration))
        fork(train_there(name))
        different += [name] if outcome(name) != expected else []
    file_kills = 0
    for moment in range(chance.randrange(12), 10_000, 12):
        name = f"file-{moment}"
        if fork(train_there(name), moment=moment):
            break
        file_kills += 1
        fork(train_there(name))
        different += [name] if outcome(name) != expected else []
    loaded = SoftAR.load(root / "random-0", "cpu").state_dict()
    same = {name: tensor.numpy().tobytes().hex() for name, tensor in loaded.items()} == expected[
        "weights"
    ]
    return {
        "kills": kills,
        "file_kills": file_kills,
        "different": different,
        "saved_is_trained": same,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    # What a killed process wrote is not lost; flushing guards against power cuts, and takes longer
    # than all the rest. Its moments stay among those at which a victim dies.
    os.fsync = lambda descriptor: None
    what, where, *more = sys.argv[1:]
    program = {"saving": kill_savers, "memory": kill_memories, "training": kill_trainers}[what]
    print(json.dumps(program(Path(where), *more)))
