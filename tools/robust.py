"""Test as other processors compute: what is numerical among the tests, and every notebook, strictly,
under several settings.

usage: python tools/robust.py [--only NAME ...] [--list]        (hours; the same command goes on)

Libraries can be told to use an older processor's kernels, so that one machine shows what most
others will print. A piece of work is the tests under one setting, or one notebook under one
setting. Logs and reports lie in runs/robust/; a piece that passed on this very source is not run
again. The exit code is 1 where anything failed.
"""

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[1]
# {why a file's tests come out the same on every processor: the files}, each tested by `make test` once
NOT_NUMERICAL = {
    "a browser, and the pages it reads": ("browser", "test_picture.py", "test_site.py"),
    "the files of the repository": (
        "test_benchmarks.py",
        "test_contributing.py",
        "test_deploy.py",
        "test_environment.py",
        "test_floors.py",
        "test_hygiene.py",
        "test_readme.py",
        "test_typed.py",
    ),
    "files, processes and connections": (
        "test_corpora.py",
        "test_remote.py",
        "test_robust.py",
        "test_store.py",
        "test_sweeps.py",
        "test_sweeps_ray.py",
    ),
    "text and names": (
        "test_hf_tokenizer.py",
        "test_registry.py",
        "test_tales.py",
        "test_tokenizers.py",
    ),
    "refusals, which the setting `requests` looks for": (
        "test_requests.py",
        "test_serving_requests.py",
    ),
}
# Nor what a killed process leaves on the disk: these tests have "kill" in their names.
NOT_KILLS = "not kill"
# Works for nothing, but never outlives whoever started it.
SPIN = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the libraries are told about the processor, and why that is worth the time.

    threads: of every library; busy: how many processes work beside the tests; paths: the only tests
    that it is for, without notebooks; none: all.
    """

    name: str
    why: str
    threads: int = 1
    busy: int = 0
    kernels: dict[str, str] = field(default_factory=dict)
    paths: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        """The caller's own environment, but for what the setting says."""
        return os.environ | {"OMP_NUM_THREADS": str(self.threads)} | self.kernels


def kernels(aten: str, onednn: str, mkl: str, openblas: str, **more: str) -> dict[str, str]:
    """The variables of torch's own kernels, oneDNN's, MKL's (torch's products), and numpy's and
    scipy's.
    """
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "OPENBLAS_CORETYPE")
    return dict(zip(names, (aten, onednn, mkl, openblas), strict=True)) | more


OLDEST = kernels("default", "SSE41", "COMPATIBLE", "Nehalem")
AVX2 = kernels("avx2", "AVX2", "AVX2", "Haswell")
AVX512 = kernels("avx512", "AVX512_CORE", "AVX512", "SkylakeX")
AMX = AVX512 | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}
WIDTHS = ("default", "avx2", "avx512")
PORTABLE = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "+avx2,+bmi,+bmi2,+f16c,+fma"}

SETTINGS = (
    Setting(
        name="plain-1",
        why="this machine as it is: what `make test` does, and every kind of pretrained model",
        kernels={"SOFTAR_ZOO": "1"},  # read by tests/test_zoo.py
    ),
    Setting(name="plain-2", why="a person's own runs: sums are split among threads", threads=2),
    Setting(
        name="oldest-1", why="the plainest kernels; torch.randn draws other numbers", kernels=OLDEST
    ),
    Setting(
        name="avx2-1",
        why="most laptops, AMD before Zen 4; what numba compiles for any of them",
        kernels=AVX2 | PORTABLE,
    ),
    Setting(name="avx2-2", why="the same processors, sums split", kernels=AVX2, threads=2),
    Setting(name="avx512-1", why="Intel's servers before AMX, AMD's since Zen 4", kernels=AVX512),
    Setting(
        name="amx-2", why="Intel's servers since 2023 (here, if it has AMX)", kernels=AMX, threads=2
    ),
    Setting(name="busy-2", why="other work on the same cores", threads=2, busy=2),
    Setting(
        name="oracles",
        why="100,000 small cases, computed once more from the definitions",
        kernels={"SOFTAR_CASES": "100000"},
        paths=("tests/oracles",),
    ),
    Setting(
        name="requests",
        why="20,000 requests to functions and panels, and as many to the server, most of them wrong",
        kernels={"SOFTAR_CASES": "20000"},
        paths=("tests/test_requests.py", "tests/test_serving_requests.py"),
    ),
)


@cache
def capability() -> str:
    """The widest of torch's own kernels for this processor, read in a process that no setting
    touches.
    """
    read = [sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability())"]
    return subprocess.check_output(read, text=True).strip().lower()


def possible(setting: Setting) -> bool:
    """Whether this processor has the kernels that a setting names."""
    wanted = setting.kernels.get("ATEN_CPU_CAPABILITY", "default")
    return wanted in WIDTHS[: WIDTHS.index(capability()) + 1 if capability() in WIDTHS else 1]


@contextmanager
def busy(count: int) -> Iterator[list[subprocess.Popen]]:
    """So many processes that only compute; they end with the block, whatever happens in it."""
    with ExitStack() as stack:
        spinning = []
        command = [sys.executable, "-c", SPIN, str(os.getpid())]
        for _ in range(count):
            spinning.append(stack.enter_context(subprocess.Popen(command)))
            stack.callback(spinning[-1].kill)
        yield spinning


def source(root: Path) -> str:
    """The commit, and a hash of what has been changed since."""
    git = partial(subprocess.check_output, cwd=root)
    commit = git(["git", "rev-parse", "--short=12", "HEAD"], text=True).strip()
    changed = git(["git", "diff", "HEAD"])
    return f"{commit}-{sha256(changed).hexdigest()[:8]}" if changed else commit


def pieces(root: Path, setting: Setting) -> dict[str, list[str]]:
    """{name of a piece of work: pytest's arguments}, the longest first."""
    if setting.paths:
        return {"tests": [*setting.paths]}
    left_out = [f"--ignore=tests/{name}" for names in NOT_NUMERICAL.values() for name in names]
    notebooks = sorted(root.glob("notebooks/**/*.ipynb"), key=lambda path: -path.stat().st_size)
    found = [path.relative_to(root) for path in notebooks if ".ipynb_checkpoints" not in path.parts]
    return {"tests": ["tests", *left_out, "-k", NOT_KILLS]} | {
        f"{path.with_suffix('')}": [f"{path}"] for path in found
    }


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a piece of work; failed: the ids of what failed."""

    passed: int
    skipped: int
    failed: tuple[str, ...]
    seconds: float


def read(report: Path) -> Outcome | None:
    """What a report of pytest's says; None where there is none."""
    if not report.exists():
        return None
    cases = list(ET.parse(report).iter("testcase"))
    ends = [{child.tag for child in case} for case in cases]
    bad = [case for case, end in zip(cases, ends, strict=True) if end & {"failure", "error"}]
    return Outcome(
        passed=sum(not end & {"failure", "error", "skipped"} for end in ends),
        skipped=sum("skipped" in end for end in ends),
        failed=tuple(f"{case.get('classname')}::{case.get('name')}" for case in bad),
        seconds=sum(float(case.get("time", 0)) for case in cases),
    )


def run(setting: Setting, piece: tuple[str, list[str]], folder: Path, root: Path) -> Outcome:
    """Run a piece under a setting, unless it has passed before; print what came of it."""
    name, arguments = piece
    report = folder / setting.name / f"{name.replace(os.sep, '-')}.xml"
    outcome = read(report)
    if outcome is None or outcome.failed:
        report.parent.mkdir(parents=True, exist_ok=True)
        draft, log = report.with_suffix(".draft"), report.with_suffix(".log")
        command = [sys.executable, "-m", "pytest", *arguments, "-p", "no:cacheprovider"]
        begin = time.perf_counter()
        with log.open("w") as out:
            code = subprocess.run(
                [*command, f"--junitxml={draft}"],
                cwd=root, env=setting.environment(), stdout=out, stderr=out, check=False,
            ).returncode  # fmt: skip
        if code in (0, 1):  # else it was interrupted, or died, and its report is not the whole
            draft.replace(report)
            outcome = read(report)
        else:
            trouble = f"{name}: pytest ended with {code}, see {log.relative_to(root)}"
            outcome = Outcome(
                passed=0, skipped=0, failed=(trouble,), seconds=time.perf_counter() - begin
            )
    print(
        f"{setting.name:10} {name:45} {outcome.passed:5} passed, {len(outcome.failed)} failed",
        flush=True,
    )
    return outcome


def table(found: dict[str, dict[str, Outcome]]) -> str:
    """One line per setting, and below it the first ids that failed."""
    lines = [
        f"{'setting':10} {'tests passed / failed / skipped':>32} {'notebooks passed / failed':>26} {'s':>7}"
    ]
    for name, outcomes in found.items():
        tests, bad = outcomes["tests"], [each for one in outcomes.values() for each in one.failed]
        broken = sum(bool(one.failed) for piece, one in outcomes.items() if piece != "tests")
        counts = f"{tests.passed} / {len(tests.failed)} / {tests.skipped}"
        notebooks = f"{len(outcomes) - 1 - broken} / {broken}"
        seconds = sum(one.seconds for one in outcomes.values())
        lines.append(f"{name:10} {counts:>32} {notebooks:>26} {seconds:7.0f}")
        lines += [f"    {each}" for each in bad[:3]]
    return "\n".join(lines)


def main(
    arguments: list[str] | None = None, root: Path = ROOT, settings: tuple[Setting, ...] = SETTINGS
) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=[one.name for one in settings], help="these settings"
    )
    parser.add_argument(
        "--list", action="store_true", help="name the settings and their reasons, and do nothing"
    )
    asked = parser.parse_args(arguments)
    chosen = [one for one in settings if not asked.only or one.name in asked.only]
    for one in chosen:
        print(
            f"{one.name:10} {one.why}{'' if possible(one) else ' (left out: this processor cannot)'}"
        )
    if asked.list:
        return 0
    folder, found = root / "runs" / "robust" / source(root), {}
    for setting in filter(possible, chosen):
        work = pieces(root, setting)
        at_once = max(1, (os.cpu_count() or 1) // setting.threads)
        with busy(setting.busy), ThreadPoolExecutor(at_once) as pool:
            outcomes = pool.map(partial(run, setting, folder=folder, root=root), work.items())
            found[setting.name] = dict(zip(work, outcomes, strict=True))
    print(table(found))
    return int(any(one.failed for outcomes in found.values() for one in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
