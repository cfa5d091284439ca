"""The weights in a GGUF file under the names and in the layout of transformers."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import PretrainedError
from .file import GGUFFile

# Undoes what the converter of llama.cpp did: (tensor, its name in the file, config) -> tensor.
Undo = Callable[[Tensor, str, Any], Tensor]
_HEAD = re.compile(r"(.*_layernorm)\.norms\.(\d+)(\.\w+)")  # one norm for each head
_GATE_AND_UP = "gate_up_proj"  # of all experts, in one tensor; two in the file


def weights_of(file: GGUFFile, config: Any) -> tuple[dict[str, Tensor], str]:
    """The weights of a file by the names of transformers, and the class of the network.

    Tied weights occur once.

    Raises:
        PretrainedError: where a weight is missing, or has another shape than the config says.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from transformers import AutoModelForCausalLM

    # 1) the network's names and shapes, without its numbers
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    tied = set(network._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    # 2) their names in the file
    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    known = get_tensor_name_map(kinds[file.architecture], config.num_hidden_layers)
    # 3) one tensor after the other
    found = {}
    for name, like in network.state_dict().items():
        if name not in tied:
            weight = _weight(file, name, known, config)
            found[name] = _shaped(file, name, weight, tuple(like.shape))
    return found, type(network).__name__


def _weight(file: GGUFFile, name: str, known: Any, config: Any) -> Tensor:
    """One weight, put together from the file's tensors."""
    if name.endswith(_GATE_AND_UP) and "experts" in name:
        parts = [name.replace(_GATE_AND_UP, f"{part}_proj") for part in ("gate", "up")]
        return torch.cat([_weight(file, part, known, config) for part in parts], 1)
    row = None
    if in_head := _HEAD.fullmatch(name):
        name, row = in_head[1] + in_head[3], int(in_head[2])
    source = _source(file, name, known)
    weight = UNDO.get(file.architecture, _as_it_is)(file.tensor(source), source, config)
    return weight if row is None else weight[row]


def _source(file: GGUFFile, name: str, known: Any) -> str:
    """The name of a weight in the file."""
    found = re.fullmatch(r"(.*?)(\.weight|\.bias)?", name)
    stem, suffix = found[1], found[2] or ""
    mapped = known.get_name(stem) or known.get_name(stem.partition(".")[2])
    if mapped is None:
        raise PretrainedError(f"{file.path}: GGUF files have no name for the weight {name}")
    return mapped + suffix if mapped + suffix in file.names or suffix else f"{mapped}.weight"


def _shaped(file: GGUFFile, name: str, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A weight in the shape that the network needs, where only dimensions of 1 differ."""
    if [n for n in weight.shape if n > 1] != [n for n in shape if n > 1]:
        file.refuse(f"{name} has the shape {tuple(weight.shape)}, where its entries say {shape}")
    return weight.reshape(shape).contiguous()


# -- what the converter did, undone ----------------------------------------------------------------


def _as_it_is(weight: Tensor, source: str, config: Any) -> Tensor:
    return weight


def _interleaved(weight: Tensor, source: str, config: Any) -> Tensor:
    """Rows of queries and keys in halves, as transformers rotates them; pairs in the file."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    number = heads.get(source.split(".")[-2])
    if number is None:
        return weight
    pairs = weight.reshape(number, weight.shape[0] // number // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _norms_less_one(weight: Tensor, source: str, config: Any) -> Tensor:
    return weight - 1 if source.endswith("norm.weight") else weight


def _transposed(weight: Tensor, source: str, config: Any) -> Tensor:
    """GPT-2's layers hold their matrices as (in, out)."""
    layers = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    return weight.T if source.endswith(layers) else weight


def _head_by_head(weight: Tensor, source: str, config: Any) -> Tensor:
    """Query, key and value of each head side by side; all queries come first in the file."""
    if ".attn_qkv." not in source:
        return weight
    parts = weight.reshape(3, config.num_attention_heads, -1, *weight.shape[1:])
    return parts.transpose(0, 1).reshape(weight.shape)


def _group_by_group(weight: Tensor, source: str, config: Any) -> Tensor:
    """Queries that share a key, the key and its value side by side."""
    if ".attn_qkv." not in source:
        return weight
    heads, groups = config.num_attention_heads, 1
    if config.new_decoder_architecture:
        groups = config.num_kv_heads
    head = config.hidden_size // heads
    q, k, v = weight.split([heads * head, groups * head, groups * head])
    parts = [one.reshape(groups, -1, *weight.shape[1:]) for one in (q, k, v)]
    return torch.cat(parts, 1).reshape(weight.shape)


def _log_of_decay(weight: Tensor, source: str, config: Any) -> Tensor:
    return (-weight.double()).log().float() if source.endswith(".ssm_a") else weight


UNDO: dict[str, Undo] = {
    **dict.fromkeys(("llama", "arcee", "granite", "olmo", "smollm3"), _interleaved),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "nemotron"), _norms_less_one),
    **dict.fromkeys(("bloom", "gptneox"), _head_by_head),
    "gpt2": _transposed,
    "falcon": _group_by_group,
    "mamba": _log_of_decay,
}
