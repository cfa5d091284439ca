"""Every kind of causal language model that transformers knows, as a tiny network of random weights.

A kind's default configuration is shrunk by the names that configurations share (SIZES); what does
not fit a kind stands in OWN.
"""

from functools import cache
from typing import Any

import torch
from torch import nn

SPECIAL = ("<pad>", "<s>", "</s>")
LETTERS = " abcdefghijklmnopqrstuvwxyz.,!?'-:;()"
V = len(SPECIAL) + len(LETTERS)  # 40
CONTEXT, WINDOW = 48, 8


def _each(names: str, value: Any) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


SIZES = {
    "vocab_size": V,
    "vocab_size_per_layer_input": V,
    "unpadded_vocab_size": V,
    **_each(
        "hidden_size d_model n_embd dim emb_dim embedding_size embedding_dim word_embed_proj_dim "
        "input_embedding_size output_embedding_size attention_hidden_size dim_model_base lru_width "
        "mamba_d_ssm",
        32,
    ),
    **_each(
        "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim moe_intermediate_size d_inner "
        "shared_expert_intermediate_size ffn_hidden_size intermediate_size_mlp n_inner dff dim_ff "
        "feed_forward_size shared_intermediate_size dense_intermediate_size "
        "moe_shared_expert_intermediate_size expert_ffn_hidden_size "
        "shared_experts_intermediate_size",
        64,
    ),
    **_each(
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_blocks "
        "num_encoder_layers num_decoder_layers max_window_layers",
        2,
    ),
    **_each(
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads mamba_n_heads "
        "decoder_attention_heads attention_heads num_encoder_attention_heads mamba_num_heads "
        "num_decoder_attention_heads swa_num_attention_heads linear_num_value_heads "
        "linear_num_heads num_query_groups n_mamba_heads",
        4,
    ),
    **_each("num_key_value_heads swa_num_key_value_heads num_kv_heads linear_num_key_heads", 2),
    **_each(
        "head_dim swa_head_dim v_head_dim qk_nope_head_dim linear_key_head_dim d_head dim_head "
        "linear_value_head_dim linear_head_dim attention_head_size kv_channels index_head_dim "
        "attention_head_dim rotary_dim qk_rope_head_dim kv_head_dim mamba_d_state state_size "
        "ssm_state_size chunk_size mamba_chunk_size index_topk hidden_size_per_layer_input",
        8,
    ),
    "index_n_heads": 16,  # fewer may all give 0, and equal scores leave open what is attended to
    **_each("qk_head_dim mamba_d_head mamba_head_dim kv_lora_rank q_lora_rank o_lora_rank", 16),
    **_each("num_experts n_routed_experts num_local_experts moe_num_experts", 4),
    **_each("time_step_rank mamba_dt_rank laurel_rank", 4),
    **_each("num_experts_per_tok moe_topk moe_k num_experts_per_token", 2),
    **_each(
        "topk_group n_group n_shared_experts num_shared_experts moe_num_shared_experts o_groups "
        "num_expert_group first_k_dense_replace mamba_n_groups n_groups num_dense_layers",
        1,
    ),
    **_each(
        "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions "
        "context_length model_max_length",
        CONTEXT,
    ),
    **_each(
        "sliding_window sliding_window_size window_size attention_window_size local_attention "
        "attention_chunk_size",
        WINDOW,
    ),
}
TOKENS = {
    **_each("pad_token_id", 0),
    **_each("bos_token_id decoder_start_token_id start_token_id", 1),
    **_each("eos_token_id sep_token_id", 2),
    **_each("forced_eos_token_id forced_bos_token_id", None),
}
_LATENT = {"num_key_value_heads": 4}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_SHARED = {
    "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    "num_hidden_layers": 3,
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
}
_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
OWN: dict[str, dict[str, Any]] = {
    **_each(
        "axk1 axk2 bailing_hybrid deepseek_v3 deepseek_v32 dots3_note_text "
        "glm4_moe_lite glm_moe_dsa sarvam_mla longcat_flash minicpm3 youtu kimi_linear",
        _LATENT,
    ),
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "moe_top_k": 2},
    },
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2},
    "dory": {
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "num_hidden_layers": 3,
        "n_input_layers": 1,
        "n_output_layers": 1,
    },
    "dots1": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "dots3_note": {"text_config": _LATENT, "audio_config": {"adapter_in_dim": 32}},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "intermediate_size": 64,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": _HYBRID,
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "axial_pos_shape": [8, 6],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "xlm": {"causal": True},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "chunk_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": _SHARED,
    "zamba2": _SHARED,
    "zaya": {"num_experts_per_tok": 1},
}


def small(default: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The options that make a configuration small.

    Args:
        default: a configuration as it is by default.
        own: options of this kind, which have the last word.
    """
    found = {
        name: size
        for name, size in SIZES.items()
        if type(default.get(name)) is int and default[name] > 0
    }
    # tokens of pictures and the like lie outside so small a vocabulary
    found |= {
        name: 0
        for name, token in default.items()
        if name.endswith(("_token_id", "_token_index")) and type(token) is int and token >= V
    }
    found |= {name: token for name, token in TOKENS.items() if name in default}
    # one layer of each sort
    if types := default.get("layer_types"):
        sorts = list(dict.fromkeys(types))
        found["layer_types"] = sorts if len(sorts) > 1 else sorts * 2
        found["num_hidden_layers"] = len(found["layer_types"])
    if types := default.get("mlp_layer_types"):
        sorts, count = list(dict.fromkeys(types)), found.get("num_hidden_layers", 2)
        found["mlp_layer_types"] = (sorts + sorts[-1:] * count)[:count]
    return found | own


def config_of(kind: str) -> Any:
    """The small configuration of a kind, as a decoder."""
    from transformers import CONFIG_MAPPING

    family, own = CONFIG_MAPPING[kind], dict(OWN.get(kind, {}))
    default = family().to_dict()
    for name in family.sub_configs:
        if isinstance(default.get(name), dict):
            own[name] = small(default[name], own.get(name, {}))
    config = family(**small(default, own))
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    return config


def kinds() -> list[str]:
    """Every kind of causal language model that the library knows."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def network_of(kind: str) -> nn.Module:
    """A tiny network of a kind, every weight random, so that each part has its say."""
    from transformers import GenerationConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = config_of(kind)
    family = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not isinstance(config, family.config_class or object):
        config = config.get_text_config(decoder=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = family(config).eval()
    generator = torch.Generator().manual_seed(1)
    for weight in network.parameters():
        scale = 0.5 / weight.shape[-1] ** 0.5 if weight.ndim > 1 else 0.1
        weight.data += scale * torch.randn(weight.shape, generator=generator)
    network.generation_config = GenerationConfig(pad_token_id=0)
    return network


@cache
def letters_tokenizer() -> Any:
    """A tokenizer of transformers whose pieces are single letters; it puts nothing before a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {piece: i for i, piece in enumerate((*SPECIAL, *LETTERS))}
    pieces = Tokenizer(models.WordLevel(ids, unk_token="?"))
    pieces.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    pieces.decoder = decoders.Fuse()
    pad, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token=pad, bos_token=bos, eos_token=eos
    )
