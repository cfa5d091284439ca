"""Tiny networks of transformers as GGUF files, written as llama.cpp's converter writes them."""

import re

import numpy as np
import torch
from tokenizers import pre_tokenizers

MERGES = ["t h", "th e", "Ġ the", "k i", "ki n", "kin g", "Ġ king", "1 2", "Ġ h", "Ġ ²"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MARKS = ["<pad>", "<s>", "</s>"]
TOKENS = [*MARKS, *ALPHABET, *("".join(pair.split()) for pair in MERGES[:-1])]
BYTE_LEVEL = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] * len(MARKS) + [1] * (len(TOKENS) - len(MARKS)),
    "tokenizer.ggml.merges": MERGES[:-1],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 0,
}
SIZES = {
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def network(model_type, **settings):
    """A network with random weights that are multiples of 1/1024, so that w + 1 - 1 is w."""
    import transformers

    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **settings})
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            noise = torch.randn_like(weight) * (0.3 if weight.ndim < 2 else 0.2)
            weight.copy_(weight if "A_log" in name else ((weight + noise) * 1024).round() / 1024)
    made.tie_weights()
    return made


def entries(kind, made, **more):
    """The entries of a file that most kinds have, and some more by their names after the kind's."""
    config = made.config
    names = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
    eps = next((getattr(config, name) for name in names if hasattr(config, name)), 1e-5)
    norm = "rms_" if hasattr(config, "rms_norm_eps") or kind in ("lfm2", "mamba") else ""
    common = {
        "context_length": 64,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": getattr(config, "intermediate_size", 4 * config.hidden_size),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", 4),
        f"attention.layer_norm_{norm}epsilon": float(eps),
    }
    rotary = getattr(config, "rope_parameters", None) or {}
    theta = rotary.get("full_attention", rotary).get("rope_theta", 10_000.0)
    if theta != 10_000.0:  # what files that do not say it mean
        common["rope.freq_base"] = float(theta)
    theirs = {f"{kind}.{name}": value for name, value in {**common, **more}.items()}
    return {**BYTE_LEVEL, **theirs}


def tensors(kind, made):
    """The tensors of a file: names and layout of the format."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    of_name = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
    known = get_tensor_name_map(of_name[kind], made.config.num_hidden_layers)
    tied = set(made._tied_weights_keys or ()) if made.config.tie_word_embeddings else set()
    found, norms = {}, {}
    for name, weight in made.state_dict().items():
        if name in tied:
            continue
        if name.endswith("experts.gate_up_proj"):
            for part, half in zip(("gate", "up"), weight.chunk(2, 1), strict=True):
                found[_named(known, name.replace("gate_up_proj", f"{part}_proj.weight"))] = half
            continue
        if one := re.fullmatch(r"(.*_layernorm)\.norms\.(\d+)(\.weight)", name):
            norms.setdefault(one[1] + one[3], []).append(weight)
            continue
        suffix = ".weight" if name.endswith("experts.down_proj") else ""
        found[_named(known, name + suffix)] = _changed(kind, name, weight, made.config)
    found |= {_named(known, name): torch.stack(rows) for name, rows in norms.items()}
    return {name: weight.float().contiguous().numpy() for name, weight in found.items()}


def write(path, kind, about, weights, writer=None, **options):
    """A GGUF file of entries and tensors."""
    from gguf import GGUFWriter

    writer = (writer or GGUFWriter)(path, kind, **options)
    for name, value in about.items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        add[type(value)](name, value)
    for name, weight in weights.items():
        writer.add_tensor(name, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _named(known, name):
    options = (".weight", ".bias")
    found = known.get_name(name, options) or known.get_name(name.partition(".")[2], options)
    assert found, name
    return found


def _changed(kind, name, weight, config):
    """A weight in the layout of the format."""
    heads, width = config.num_attention_heads, config.hidden_size
    if kind in ("llama", "arcee", "granite", "olmo", "smollm3") and re.search(r"[qk]_proj", name):
        number = heads if "q_proj" in name else config.num_key_value_heads
        halves = weight.reshape(number, 2, len(weight) // number // 2, *weight.shape[1:])
        return halves.swapaxes(1, 2).reshape(weight.shape)
    if kind in ("gemma", "gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return weight + 1
    if kind == "gpt2" and re.search(r"c_(attn|proj|fc)\.weight", name):
        return weight.T
    if kind in ("bloom", "gptneox") and "query_key_value" in name:
        parts = weight.reshape(heads, 3, width // heads, *weight.shape[1:])
        return torch.cat([parts[:, i].reshape(width, *weight.shape[1:]) for i in range(3)])
    if kind == "falcon" and "query_key_value" in name:
        groups = config.num_kv_heads if config.new_decoder_architecture else 1
        parts = weight.reshape(groups, heads // groups + 2, width // heads, width)
        cut = (parts[:, :-2], parts[:, -2:-1], parts[:, -1:])
        return torch.cat([one.reshape(-1, width) for one in cut])
    if name.endswith("A_log"):
        return -weight.exp()
    if "conv1d.weight" in name or "conv.conv.weight" in name:
        return weight.squeeze(1)
    return weight.squeeze(0) if "shared_expert_gate" in name else weight
