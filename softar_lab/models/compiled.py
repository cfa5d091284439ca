"""Compiles and loads the functions of `kernels.py`: once per processor, saved beside the code.

Compiling takes about ten seconds, and generation should not wait for it. `make venv` compiles.
Where that was not done, the first call starts a process that compiles, and PyTorch computes in the
meantime. PyTorch also computes on processors without fused multiply-add and where SOFTAR_COMPILED=0
is set. Its numbers are the same up to rounding, it is slower, and the last digits of a row depend
on its batch.

To compile now: python -c "from softar_lab.models import compiled; compiled.prepare()"
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np

_ready = False
_switched_off = 0  # how many `switched_off` blocks are active
_background: subprocess.Popen | None = None


def kernels() -> ModuleType | None:
    """The module of compiled functions; None where they are switched off or not (yet) compiled."""
    global _ready
    if _switched_off or os.environ.get("SOFTAR_COMPILED") == "0" or not _supported():
        return None
    if not _ready:
        _ready = _marker().exists()
        if not _ready:
            _compile_in_background()
            return None
    return _module()


@contextmanager
def switched_off() -> Iterator[None]:
    """Let PyTorch compute inside this block, for code that counts PyTorch's operations."""
    global _switched_off
    _switched_off += 1
    try:
        yield
    finally:
        _switched_off -= 1


def prepare() -> bool:
    """Compile now, unless that has been done; return False where this machine cannot."""
    global _ready
    if not _supported():
        return False
    if not _ready and not _marker().exists():
        module = _module()
        _call_each(module)
        _marker().touch()
    _ready = True
    return True


@cache
def _module() -> ModuleType:
    """kernels.py, loaded directly from its file.

    So no import hook rewrites its functions, as jaxtyping's does in tests: numba could not compile
    them then.
    """
    spec = spec_from_file_location(f"{__package__}.kernels", Path(__file__).with_name("kernels.py"))
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _supported() -> bool:
    """Whether numba is available and the processor has fused multiply-add."""
    try:
        from numba.core import config
    except ImportError:
        return False
    if config.DISABLE_JIT:
        return False
    name, features = _processor()
    return "x86" not in name or "+fma" in features.split(",")


@cache
def _processor() -> tuple[str, str]:
    """What numba compiles for: architecture and processor, and features such as "+fma,+avx2"."""
    from llvmlite import binding
    from numba.core import config

    name = config.CPU_NAME or binding.get_host_cpu_name()
    features = config.CPU_FEATURES
    if features is None:
        features = "" if config.CPU_NAME == "generic" else binding.get_host_cpu_features().flatten()
    return f"{binding.get_process_triple()} {name}", features


@cache
def _marker() -> Path:
    """A file that exists once these kernels are compiled, by this numba and for this processor."""
    import llvmlite
    import numba

    module = _module()
    source = Path(module.__file__).stat()
    made_of = (
        source.st_size,
        source.st_mtime_ns,
        numba.__version__,
        llvmlite.__version__,
        *_processor(),
    )
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    return Path(module.read.stats.cache_path) / f"kernels-{digest}.ready"


def _compile_in_background() -> None:
    global _background
    if _background is None:
        quiet = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }
        command = [sys.executable, "-c", f"from {__name__} import prepare; prepare()"]
        _background = subprocess.Popen(command, start_new_session=True, **quiet)


def _call_each(module: ModuleType) -> None:
    """Call each function once, on the smallest shapes, with the types that callers always use."""

    def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
        return np.zeros(shape, dtype)

    layers = (zeros(1, 2, 6), zeros(1, 6), zeros(1, 2, 2), zeros(1, 2)) + (
        zeros(1, 2, 2),
        zeros(1, 2),
    ) * 2
    body = (
        (1, 1, False, module.GELU),
        np.float32(1e-5),
        layers,
        zeros(2, 2),
        (zeros(0, 2), zeros(0, 0, 0)),
    )
    own = (zeros(1, 1, 1, 2, 2), zeros(1, 1, 1, 2, 2))
    cache = (*own, 0, 0, *own, np.zeros(1, np.int64))
    for kind in (np.float32, np.float64):
        module.multiply(zeros(1, 2, dtype=kind), zeros(2, 2, dtype=kind), zeros(1, 2, dtype=kind))
    module.softmax(zeros(1, 2), zeros(1, 2), zeros(1, 2))
    table, lows, ids = zeros(2, 2), zeros(1, 1), zeros(1, dtype=np.int64)
    module.screen(zeros(1, 2), table, module.L2, np.float32(1e-5), lows, zeros(1), ids)
    found, some = (table, zeros(2), zeros(2), zeros(2)), np.zeros(1, np.int64)
    module.least_of_groups(0, 1, zeros(1, 2), *found, zeros(1, 1))
    module.rows_below(zeros(2), *found, some, np.zeros(1), np.zeros(64, np.int64))
    module.read(0, 1, zeros(1, 1, 2), 0, *body, cache, zeros(1, 1, 2))
    kinds = (np.float64, np.int64, np.bool_)
    uniform, forced, hard = (zeros(1, 1, dtype=kind) for kind in kinds)
    objective = (zeros(2, 2), zeros(2, 2), zeros(2), zeros(2, 2), zeros(2, 2))
    made = (zeros(1, 1, dtype=np.int64), zeros(1, 1, 2), zeros(1, 1, 2))
    choices = (uniform, forced, hard, module.SHOWN, (1.0, 1.0))
    module.write(0, 1, zeros(1, 2), 0, *body, cache, *objective, *choices, *made)
    recurrent = (zeros(2, 2), zeros(2, 2), zeros(2, 2), zeros(2, 2), zeros(2))
    proposing = (1.0, 3, 0.5, (zeros(2, 4), zeros(4)), recurrent)
    passes = zeros(1, 1, dtype=np.int64)
    drafted = (uniform, forced, *proposing, *made[:2], passes)
    module.draft(0, 1, zeros(1, 2), 0, *body, cache, *objective, *drafted)
