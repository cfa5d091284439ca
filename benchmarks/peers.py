"""What the benchmarks share: peers of the lab's size, the machine they all run on, and tables to
paste.
"""

import contextlib
import importlib.util
import io
import json
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHAPE = {
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
}  # nanoGPT's documented CPU model, and the lab's "shakespeare"
NO_TRANSFORMERS = "Hugging Face transformers is not installed, so that peer is left out (`make bench` installs it)."


def has_transformers() -> bool:
    """Whether the first peer can be had; the scripts say so and go on without it where it can't."""
    return importlib.util.find_spec("transformers") is not None


def hugging_face(vocab_size: int, positions: int, seed: int = 0, tuned: bool = True) -> nn.Module:
    """Hugging Face's GPT-2, new and small: no dropout, no end-of-text symbol to look out for, its
    defaults otherwise.

    `tuned`: its GELU in one kernel instead of eight, the same function; whoever uses the defaults
    is slower.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    changes = {
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if tuned:
        changes["activation_function"] = "gelu_pytorch_tanh"
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocab_size, n_positions=positions, **SHAPE, **changes)
    )


def nanogpt(folder: str | Path, vocab_size: int, positions: int, seed: int = 0) -> nn.Module:
    """nanoGPT's own model, from the model.py of a clone of karpathy/nanoGPT, as its train.py makes
    it: no biases.

    Raises SystemExit where the folder holds no model.py.
    """
    module = _module(Path(folder) / "model.py")
    torch.manual_seed(seed)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its size
        shape = module.GPTConfig(
            block_size=positions, vocab_size=vocab_size, dropout=0.0, bias=False, **SHAPE
        )
        return module.GPT(shape)


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise SystemExit(
            f"--nanogpt: there is no {path}; git clone https://github.com/karpathy/nanoGPT makes it"
        )
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hugging_face_loss(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Mean nats: token ids x (B, T) and what follows each of them y (B, T) -> a scalar."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(
            model(input_ids=x, use_cache=False).logits.flatten(0, 1), y.flatten()
        )

    return loss


def nanogpt_loss(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The same of nanoGPT, which computes it itself."""
    return lambda x, y: model(x, y.contiguous())[1]


def n_parameters(model: nn.Module) -> int:
    """Trained parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """So many processor threads inside, as many as before outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> str:
    """One line about the machine, for under a table."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
            model,
        )
    capability = torch.backends.cpu.get_cpu_capability()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    if has_transformers():
        from importlib.metadata import version

        versions += f", transformers {version('transformers')}"
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {capability}; {versions}"


def markdown(header: list[str], rows: list[list[Any]]) -> str:
    """A markdown table: the first column to the left, figures to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_json(path: str | None, result: dict[str, Any]) -> None:
    """Keep everything measured, where a file is named."""
    if path:
        Path(path).write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")
