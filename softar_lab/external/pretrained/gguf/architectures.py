"""The kinds of networks that are read from GGUF files: one entry of ARCHITECTURES for each.

What an entry of a file means is what llama.cpp, which defines the format, makes of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .file import GGUFFile

Step = Callable[[GGUFFile, dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a kind of network is written in GGUF files.

    Attributes:
        model_type: the name in transformers.
        names: other names of config fields than the usual ones.
        settings: config fields that are the same in every file of this kind.
        steps: readers of what only this kind has.
        rotary: whether positions rotate queries and keys; "partial" where a part of a head may.
        norm: "rms_" or "", the kind of layer norm whose epsilon counts.
        idle: entries that decide nothing.
    """

    model_type: str
    names: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    rotary: bool | str = True
    norm: str = "rms_"
    idle: tuple[str, ...] = ()


# -- what only some kinds have ---------------------------------------------------------------------


def _set(**fields: str) -> Step:
    """A step that reads an entry into each field; the entry must be there."""

    def step(file: GGUFFile, about: dict[str, Any]) -> None:
        about.update({field: file.need(entry) for field, entry in fields.items()})

    return step


def _biases(file: GGUFFile, about: dict[str, Any]) -> None:
    about["attention_bias"] = "blk.0.attn_q.bias" in file.names
    about["mlp_bias"] = "blk.0.ffn_up.bias" in file.names


def _mixtral(file: GGUFFile, about: dict[str, Any]) -> None:
    """A file of the architecture llama that has experts is a Mixtral."""
    count, used = file.own("expert_count", 0), file.own("expert_used_count", 0)
    if count:
        about |= {"model_type": "mixtral", "num_local_experts": count, "num_experts_per_tok": used}
        about["sliding_window"] = None


def _experts(file: GGUFFile, about: dict[str, Any]) -> None:
    about["num_experts"] = file.need("expert_count")
    about["num_experts_per_tok"] = file.need("expert_used_count")
    file.expect("expert_gating_func", 1)  # softmax


def _gemma2(file: GGUFFile, about: dict[str, Any]) -> None:
    about["attn_logit_softcapping"] = float(file.own("attn_logit_softcapping", 50.0))
    about["final_logit_softcapping"] = float(file.own("final_logit_softcapping", 30.0))
    about["sliding_window"] = file.need("attention.sliding_window")
    about["query_pre_attn_scalar"] = _queries(about, 46)


def _gemma3(file: GGUFFile, about: dict[str, Any]) -> None:
    cap = file.own("final_logit_softcapping")
    about["final_logit_softcapping"] = cap if cap is None else float(cap)
    about["query_pre_attn_scalar"] = _queries(about, 62)
    # every sixth layer sees everything; without a window all do
    window, period = file.own("attention.sliding_window"), 6
    file.expect("attention.sliding_window_pattern", period)
    local = float(file.own("rope.freq_base_swa", 10_000.0))
    about["layer_types"] = [
        "sliding_attention" if window and (i + 1) % period else "full_attention"
        for i in range(about["num_hidden_layers"])
    ]
    about["sliding_window"] = window or about["max_position_embeddings"]
    about["rope_parameters"] = {
        "full_attention": about["rope_parameters"],
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }


def _queries(about: dict[str, Any], largest: int) -> int:
    """What queries are scaled by the root of: in the largest model, it is not a head's width.

    No entry says so; it goes by the number of layers.
    """
    share = about["hidden_size"] // about["num_attention_heads"]
    return share if about["num_hidden_layers"] == largest else about["head_dim"]


def _phi3(file: GGUFFile, about: dict[str, Any]) -> None:
    about["sliding_window"] = file.own("attention.sliding_window") or None
    original = about["rope_parameters"].get("original_max_position_embeddings")
    about["original_max_position_embeddings"] = original or about["max_position_embeddings"]


def _falcon(file: GGUFFile, about: dict[str, Any]) -> None:
    file.expect("tensor_data_layout", "jploski")
    if about.pop("head_dim") * about["num_attention_heads"] != about["hidden_size"]:
        file.refuse("falcon.attention.key_length is not the width of a head")
    grouped = about["num_key_value_heads"] > 1
    two = "blk.0.attn_norm_2.weight" in file.names
    about |= {"new_decoder_architecture": grouped, "num_ln_in_parallel_attn": 1 + two}
    about |= {"multi_query": not grouped, "parallel_attn": True, "bias": False, "alibi": False}


def _four_times(file: GGUFFile, about: dict[str, Any]) -> None:
    if about.pop("intermediate_size") != 4 * about["hidden_size"]:
        file.refuse(f"{file.architecture}.feed_forward_length is not four times the width")


def _parallel(file: GGUFFile, about: dict[str, Any]) -> None:
    about["use_parallel_residual"] = bool(file.own("use_parallel_residual", True))


def _stablelm(file: GGUFFile, about: dict[str, Any]) -> None:
    about["use_qkv_bias"] = "blk.0.attn_q.bias" in file.names
    about["qk_layernorm"] = "blk.0.attn_q_norm.weight" in file.names
    parallel = "blk.0.ffn_norm.weight" not in file.names
    file.expect("use_parallel_residual", parallel)
    about["use_parallel_residual"] = parallel


def _mamba(file: GGUFFile, about: dict[str, Any]) -> None:
    file.expect("ssm.dt_b_c_rms", False)
    about["expand"] = about["intermediate_size"] // about["hidden_size"]
    about["use_conv_bias"] = "blk.0.ssm_conv1d.bias" in file.names


def _lfm2(file: GGUFFile, about: dict[str, Any]) -> None:
    heads = about["num_key_value_heads"]
    about["layer_types"] = ["full_attention" if n else "conv" for n in heads]
    about["num_key_value_heads"] = max(heads)
    if set(heads) - {0, max(heads)}:
        file.refuse(f"its layers have unequal numbers of key heads, {heads}")
    about["conv_bias"] = any(name.endswith("shortconv.conv.bias") for name in file.names)


def _olmo(file: GGUFFile, about: dict[str, Any]) -> None:
    about["clip_qkv"] = file.own("attention.clamp_kqv")
    if about.pop("layer_norm_eps") != np.float32(1e-5):
        file.refuse("olmo.attention.layer_norm_epsilon is not 1e-5")


def _granite(file: GGUFFile, about: dict[str, Any]) -> None:
    scale = float(file.own("attention.scale", 0.0))
    about["attention_multiplier"] = scale or about["head_dim"] ** -0.5
    about["embedding_multiplier"] = float(file.own("embedding_scale", 1.0))
    about["residual_multiplier"] = float(file.own("residual_scale", 1.0))
    about["logits_scaling"] = float(file.own("logit_scale", 1.0))


def _cohere(file: GGUFFile, about: dict[str, Any]) -> None:
    about["use_qk_norm"] = "blk.0.attn_q_norm.weight" in file.names
    about["attention_bias"] = "blk.0.attn_q.bias" in file.names


_EXPERT_SIZE = _set(moe_intermediate_size="expert_feed_forward_length")
_LAYER_NORM = {"layer_norm_eps": "layer_norm_epsilon"}

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        model_type="llama", steps=(_biases, _mixtral), idle=("tensor_data_layout",)
    ),
    "arcee": Architecture(model_type="arcee", steps=(_biases,)),
    "qwen2": Architecture(model_type="qwen2"),
    "qwen3": Architecture(model_type="qwen3", steps=(_biases,)),
    "qwen2moe": Architecture(
        model_type="qwen2_moe",
        steps=(
            _experts,
            _EXPERT_SIZE,
            _set(shared_expert_intermediate_size="expert_shared_feed_forward_length"),
        ),
        settings={"norm_topk_prob": False},
    ),
    "qwen3moe": Architecture(
        model_type="qwen3_moe", steps=(_experts, _EXPERT_SIZE), settings={"norm_topk_prob": True}
    ),
    "gemma": Architecture(model_type="gemma"),
    "gemma2": Architecture(model_type="gemma2", steps=(_gemma2,)),
    "gemma3": Architecture(model_type="gemma3_text", steps=(_gemma3,)),
    "phi2": Architecture(norm="", model_type="phi", rotary="partial"),
    "phi3": Architecture(model_type="phi3", rotary="partial", steps=(_phi3,)),
    "starcoder2": Architecture(
        norm="",
        model_type="starcoder2",
        names={"layer_norm_eps": "norm_epsilon"},
        settings={"sliding_window": None},
    ),
    "falcon": Architecture(
        norm="",
        model_type="falcon",
        steps=(_falcon,),
        names={
            **_LAYER_NORM,
            "num_key_value_heads": "num_kv_heads",
            "intermediate_size": "ffn_hidden_size",
        },
    ),
    "gpt2": Architecture(
        norm="",
        model_type="gpt2",
        rotary=False,
        names={**_LAYER_NORM, "intermediate_size": "n_inner"},
    ),
    "gptneox": Architecture(norm="", model_type="gpt_neox", rotary="partial", steps=(_parallel,)),
    "bloom": Architecture(
        norm="",
        model_type="bloom",
        rotary=False,
        steps=(_four_times,),
        names={**_LAYER_NORM, "max_position_embeddings": "seq_length"},
    ),
    "stablelm": Architecture(norm="", model_type="stablelm", rotary="partial", steps=(_stablelm,)),
    "nemotron": Architecture(
        norm="",
        model_type="nemotron",
        rotary="partial",
        names={"layer_norm_eps": "norm_eps"},
        idle=("attention.layer_norm_rms_epsilon",),
    ),
    "mamba": Architecture(
        model_type="mamba",
        rotary=False,
        names={"rms_norm_eps": "layer_norm_epsilon"},
        steps=(
            _set(
                conv_kernel="ssm.conv_kernel",
                state_size="ssm.state_size",
                time_step_rank="ssm.time_step_rank",
                intermediate_size="ssm.inner_size",
            ),
            _mamba,
        ),
    ),
    "lfm2": Architecture(
        model_type="lfm2",
        names={"rms_norm_eps": "norm_eps"},
        settings={"block_auto_adjust_ff_dim": False},
        steps=(_set(conv_L_cache="shortconv.l_cache"), _lfm2),
    ),
    "olmo": Architecture(norm="", model_type="olmo", steps=(_olmo,)),
    "olmo2": Architecture(model_type="olmo2", steps=(_biases,)),
    "olmoe": Architecture(
        model_type="olmoe", steps=(_experts,), settings={"norm_topk_prob": False}
    ),
    "granite": Architecture(model_type="granite", steps=(_biases, _granite)),
    "command-r": Architecture(
        norm="", model_type="cohere", steps=(_set(logit_scale="logit_scale"), _cohere)
    ),
    "cohere2": Architecture(
        norm="",
        model_type="cohere2",
        steps=(_set(logit_scale="logit_scale", sliding_window="attention.sliding_window"),),
    ),
    "smollm3": Architecture(model_type="smollm3", steps=(_biases,)),
}
