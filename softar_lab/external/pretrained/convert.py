"""Weights that others trained: Hugging Face's GPT-2, Llama and Mistral as a SoftAR (K21).

`pretrained_rows` takes the rows of a table from a checkpoint. The transformers library is not
needed. A model in memory gives its config and its weights; a folder holds them as config.json and
safetensors.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...core.store import CheckpointError
from ...models.config import PRESETS, ModelConfig
from ...models.embedding_tables import placed
from ...models.soft_ar import SoftAR, pick_device

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_MLP = {"gelu": "gelu", "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh"}
# masks and angles in older files
IGNORED = r"\.attn\.(masked_)?bias$|rotary_emb\.inv_freq$"


def from_hugging_face(
    source: nn.Module | str | Path,
    bos: int | None = None,
    tokenizer: Any = None,
    device: str = "auto",
) -> SoftAR:
    """A SoftAR with the weights and the logits of a GPT-2, Llama or Mistral model of transformers.

    The row of the token `bos` becomes the start slot. So log p(w | ids) here is log p(w | bos, ids)
    in the original, and the context is one token shorter.

    Args:
        source: the model itself, or a folder with config.json and its weights as safetensors, in
            one file or several.
        bos: the id of the token that texts begin with; None: the one that the config names.
        tokenizer: the tokenizer of the SoftAR.
        device: the device of the SoftAR.

    Raises:
        ValueError: where a SoftAR has no place for an architecture, an option or a weight (the
            message names it), or bos is no id.
        CheckpointError: where a file is missing or damaged; the message names it.
    """
    about, weights = _told(source) if isinstance(source, nn.Module) else _read(Path(source))
    config = config_of(about)
    bos = about.get("bos_token_id") if bos is None else bos
    if not isinstance(bos, int) or not 0 <= bos < config.vocab_size:
        last = config.vocab_size - 1
        raise ValueError(
            f"bos must be the id of the token that texts begin with, 0 … {last}, not {bos!r}"
        )
    named, left = _renamed(config, weights, about["model_type"])
    if left:
        raise ValueError(f"there is no place here for the weights {', '.join(sorted(left)[:5])}")
    model = SoftAR(config, tokenizer, rows=named["table.weight"])
    named["body.start"] = named["table.weight"][bos]
    model.load_state_dict({**model.state_dict(), **named})
    model.card = {
        "seed": 0,
        "source": about.get("_name_or_path") or about["model_type"],
        "bos": bos,
    }
    return model.to(pick_device(device)).eval()


def config_of(about: dict[str, Any]) -> ModelConfig:
    """The ModelConfig with the same meaning as the content of a config.json.

    Raises:
        ValueError: where the architecture or an option is not supported; the message names it.
    """
    kind = about.get("model_type")
    if kind not in _SHAPES:
        raise ValueError(f"model_type {kind!r} is not supported; known: {', '.join(_SHAPES)}")
    try:
        shape, foreign = _SHAPES[kind](about)
    except KeyError as error:
        raise ValueError(f"the configuration of a {kind} model lacks {error}") from None
    if wrong := [f"{name}={value!r}" for name, value in foreign.items()]:
        raise ValueError(f"{kind} with {', '.join(wrong)} is not supported")
    return ModelConfig(**shape)


def _gpt2(about: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a ModelConfig for GPT-2, and the options that it has no field for."""
    d, activation = about["n_embd"], about.get("activation_function", "gelu_new")
    usual = {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }
    foreign = {
        name: about[name] for name, value in usual.items() if about.get(name, value) != value
    }
    if activation not in _MLP:
        foreign["activation_function"] = activation
    return {
        **PRESETS["gpt2"],
        "vocab_size": about["vocab_size"],
        "context": about["n_positions"] - 1,
        "n_layers": about["n_layer"],
        "n_heads": about["n_head"],
        "d_model": d,
        "norm_eps": about.get("layer_norm_epsilon", 1e-5),
        "mlp": _MLP.get(activation, "gelu"),
        "mlp_ratio": (about.get("n_inner") or 4 * d) / d,
        "tied": about.get("tie_word_embeddings", True),
    }, foreign


def _llama(about: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same for Llama and Mistral, whose configs differ only in the sliding window."""
    d, heads, rotary = (
        about["hidden_size"],
        about["num_attention_heads"],
        dict(about.get("rope_parameters") or {}),
    )
    biases = {name: about.get(name, False) for name in ("attention_bias", "mlp_bias")}
    foreign = biases if len(set(biases.values())) > 1 else {}
    scaling = about.get("rope_scaling") or rotary
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        foreign["rope_scaling"] = scaling
    if about.get("hidden_act", "silu") not in ("silu", "swish"):
        foreign["hidden_act"] = about["hidden_act"]
    if (about.get("head_dim") or d // heads) * heads != d:
        foreign["head_dim"] = about["head_dim"]
    return {
        **PRESETS[about["model_type"].replace("llama", "llama2")],
        "vocab_size": about["vocab_size"],
        "context": about["max_position_embeddings"] - 1,
        "n_layers": about["num_hidden_layers"],
        "n_heads": heads,
        "d_model": d,
        "norm_eps": about.get("rms_norm_eps", 1e-6),
        "mlp_ratio": about["intermediate_size"] / d,
        "bias": all(biases.values()),
        "queries_per_key": heads // (about.get("num_key_value_heads") or heads),
        "rotary_base": rotary.get("rope_theta", about.get("rope_theta", 10_000.0)),
        "attention_window": about.get("sliding_window"),
        "tied": about.get("tie_word_embeddings", False),
    }, foreign


_SHAPES: dict[str, Callable] = {"gpt2": _gpt2, "llama": _llama, "mistral": _llama}

# Our names, and theirs in the order in which the weights are joined; {i} is the layer.
_GPT2_NAMES = {
    "table": ["wte"], "body.position": ["wpe"], "body.norm": ["ln_f"], "objective.head": ["lm_head"],
    "attention_norm": ["h.{i}.ln_1"], "query_key_value": ["h.{i}.attn.c_attn"],
    "attention_out": ["h.{i}.attn.c_proj"], "mlp_norm": ["h.{i}.ln_2"],
    "mlp_in": ["h.{i}.mlp.c_fc"], "mlp_out": ["h.{i}.mlp.c_proj"],
}  # fmt: skip
_LLAMA_NAMES = {
    "table": ["embed_tokens"], "body.norm": ["norm"], "objective.head": ["lm_head"],
    "attention_norm": ["layers.{i}.input_layernorm"],
    "query_key_value": [f"layers.{{i}}.self_attn.{one}_proj" for one in "qkv"],
    "attention_out": ["layers.{i}.self_attn.o_proj"], "mlp_norm": ["layers.{i}.post_attention_layernorm"],
    "mlp_in": [f"layers.{{i}}.mlp.{one}_proj" for one in ("gate", "up")], "mlp_out": ["layers.{i}.mlp.down_proj"],
}  # fmt: skip


def _renamed(
    config: ModelConfig, weights: dict[str, Tensor], kind: str
) -> tuple[dict[str, Tensor], set[str]]:
    """The weights under our names, in float32, and the names of those that are left over.

    Matrices are joined and transposed to our layout.
    """
    # 1) drop the prefix of the body
    weights = {
        re.sub(r"^(transformer|model)\.", "", name): tensor for name, tensor in weights.items()
    }
    left = {name for name in weights if not re.search(IGNORED, name)}
    turned = kind == "gpt2"  # its linear layers hold matrices (in, out), ours (out, in)
    # 2) collect each of our weights from one or several of theirs
    found = {}
    for ours, theirs in (_GPT2_NAMES if kind == "gpt2" else _LLAMA_NAMES).items():
        in_block = "{i}" in theirs[0]
        if ours == "objective.head" and config.tied:
            left.discard("lm_head.weight")  # a copy of the table
            continue
        for i in range(config.n_layers if in_block else 1):
            for part in ("weight", "bias"):
                names = [f"{one.format(i=i)}.{part}" for one in theirs]
                if part == "bias" and not set(names) & set(weights):
                    continue
                if missing := set(names) - set(weights):
                    raise ValueError(f"the weights {', '.join(sorted(missing))} are missing")
                left -= set(names)
                joined = torch.cat([weights[name].detach().float().cpu() for name in names])
                where = f"body.blocks.{i}.{ours}" if in_block else ours
                name = where if ours == "body.position" else f"{where}.{part}"
                found[name] = joined.T if turned and in_block and joined.ndim == 2 else joined
    return found, left


def _told(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of a model in memory."""
    if not hasattr(getattr(model, "config", None), "to_dict"):
        kind = type(model).__name__
        raise ValueError(
            f"source must be a model of the transformers library or a folder, not a {kind}"
        )
    return model.config.to_dict(), model.state_dict()


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights in a folder."""
    about = _json(folder / "config.json")
    if (folder / INDEX).exists():
        files: Iterable[str] = sorted(set(_json(folder / INDEX).get("weight_map", {}).values()))
    else:
        files = [WEIGHTS]
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(folder / file)
        except FileNotFoundError:
            how = (
                "; save_pretrained() of the transformers library writes it"
                if file == WEIGHTS
                else ""
            )
            raise CheckpointError(f"{folder / file} is missing{how}") from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder / file}: damaged ({error})") from None
    return about, weights


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: no folder of a Hugging Face model") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no JSON ({error})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: not the JSON of a configuration")
    return found


def pretrained_rows(
    folder: str | Path, part: str = "table", sphere: bool = True
) -> Float[Tensor, "V m"]:
    """Rows of a checkpoint, centred and scaled: its table (V, m), or a hard model's head (V, d).

    With `sphere` each row gets norm 1; otherwise all are scaled alike to mean norm 1.

    Args:
        folder: the folder of the checkpoint.
        part: "table" or "head".
        sphere: whether each row gets norm 1.

    Raises:
        CheckpointError: where the folder holds no model.
        ValueError: where the part is unknown, or the head has no rows.
    """
    model = SoftAR.load(folder, "cpu")
    if part not in ("table", "head") or (part == "head" and model.config.objective != "ce"):
        raise ValueError(
            f"part must be 'table', or 'head' of a model with the objective 'ce', not {part!r}"
        )
    return placed(
        model.embedding if part == "table" else model.objective.head.weight.detach(), sphere
    )
