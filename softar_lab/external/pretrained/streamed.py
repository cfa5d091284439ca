"""A folder of safetensors read matrix by matrix, each packed before the next one is read (K31).

So a model in 4 bits never needs the memory of one in 32. transformers would read everything first.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from .convert import IGNORED, INDEX, WEIGHTS
from .weights import pack

_BUILDING = threading.Lock()


def streamed(folder: Path, kind: str) -> nn.Module | None:
    """The network in a folder with its matrices packed, everything else in float32.

    Args:
        folder: holds config.json and safetensors, in one file or several.
        kind: how matrices are stored, one of `weights.WEIGHTS`.

    Returns:
        None where the files do not hold exactly the weights of the network under its own names (or
        hold packed ones): transformers must read them.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    files = _files(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if not files or getattr(config, "quantization_config", None) is not None:
        return None
    with _without_memory():
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    network.tie_weights()
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    # each parameter, tied ones once, has its value in the files, and none is left over
    sources = {one: [name for name in all_ if name in files] for one, all_ in names.items()}
    left = set(files) - {name for found in sources.values() for name in found}
    if left or not all(len(found) == 1 for found in sources.values()):
        return None
    if any(_shape(files[found[0]], found[0]) != one.shape for one, found in sources.items()):
        return None

    def read(parameter: nn.Parameter, begin: int, end: int) -> Tensor:
        name = sources[parameter][0]
        return _rows(files[name], name, begin, end).clone()

    table = network.get_input_embeddings().weight
    pack(network, kind, read)
    for parameter in list(network.parameters()):
        if parameter.is_meta:
            # the table stays in its file, and takes memory for the rows that are looked up
            name = sources[parameter][0]
            value = _rows(files[name], name, 0, len(parameter)).float()
            value = nn.Parameter(
                value if parameter is table else value.clone(), requires_grad=False
            )
            for name in names[parameter]:
                _put(network, name, value)
    return network.eval()


def _files(folder: Path) -> dict[str, Path]:
    """The file of every weight in a folder, by the weight's name."""
    from safetensors import safe_open

    if (folder / INDEX).exists():
        places = json.loads((folder / INDEX).read_text(encoding="utf-8")).get("weight_map", {})
        found = {name: folder / file for name, file in places.items()}
    elif (folder / WEIGHTS).exists():
        with safe_open(folder / WEIGHTS, "pt") as file:
            found = dict.fromkeys(file.keys(), folder / WEIGHTS)
    else:
        found = {}
    return {name: file for name, file in found.items() if not re.search(IGNORED, name)}


def _shape(file: Path, name: str) -> torch.Size:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return torch.Size(opened.get_slice(name).get_shape())


def _rows(file: Path, name: str, begin: int, end: int) -> Tensor:
    """Some rows of a weight, mapped to the file until the tensor is no more.

    The file is opened anew each time, because mapped pages that were read count as memory in use.
    """
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.get_slice(name)[begin:end]


def _put(network: nn.Module, name: str, value: nn.Parameter) -> None:
    """Set a parameter, unless its layer has been packed."""
    place, _, last = name.rpartition(".")
    layer = network.get_submodule(place)
    if last in layer._parameters:
        setattr(layer, last, value)


@contextmanager
def _without_memory() -> Iterator[None]:
    """Inside the block, parameters of new modules have a shape and no memory; buffers have both.

    It holds for modules of this thread.
    """
    owner, register = threading.get_ident(), nn.Module.register_parameter

    def without(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and threading.get_ident() == owner:
            parameter = nn.Parameter(parameter.data.to("meta"), requires_grad=False)
        register(module, name, parameter)

    with _BUILDING:
        nn.Module.register_parameter = without
        try:
            yield
        finally:
            nn.Module.register_parameter = register
