"""The config of the network in a GGUF file."""

from typing import Any

from ..errors import PretrainedError
from .architectures import ARCHITECTURES
from .file import GGUFFile
from .rotation import rotation
from .vocabulary import special_ids


def config_of(file: GGUFFile) -> Any:
    """The config of transformers that a file stands for.

    Raises:
        PretrainedError: where the architecture is not read here, or an entry has no place.
    """
    from transformers import AutoConfig

    # 1) the architecture
    kind = ARCHITECTURES.get(file.architecture)
    if kind is None:
        file.refuse(f"this architecture is not read; known: {', '.join(ARCHITECTURES)}")
    # 2) sizes, rotation, and what only this kind has
    about = _sizes(file, kind.norm)
    if kind.rotary:
        about["rope_parameters"] = rotation(
            file, about["head_dim"], about["max_position_embeddings"], kind.rotary == "partial"
        )
    for step in kind.steps:
        step(file, about)
    file.expect("attention.causal", True)
    for name in kind.idle:
        file.own(name)
    # 3) under the names of transformers
    about = {**about, **kind.settings}
    named = {kind.names.get(name, name): value for name, value in about.items()}
    model_type = named.pop("model_type", kind.model_type)
    try:
        return AutoConfig.for_model(model_type, **named)
    except Exception as error:  # whatever a config's own checks raise
        raise PretrainedError(
            f"{file.path}: no {model_type} can be made of it ({error})"
        ) from error


def _sizes(file: GGUFFile, norm: str) -> dict[str, Any]:
    """Sizes and ids that most kinds have, under their usual names."""
    width, heads = file.need("embedding_length"), file.need("attention.head_count")
    heads_of_keys = file.own("attention.head_count_kv", heads)
    head_dim = file.own("attention.key_length", width // heads if heads else 0)
    file.expect("attention.value_length", head_dim)
    rows = file.shape("token_embd.weight")[0]
    file.expect("vocab_size", rows)
    found = {
        "max_position_embeddings": file.need("context_length"),
        "num_hidden_layers": file.need("block_count"),
        "hidden_size": width,
        "intermediate_size": file.need("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads_of_keys,
        "head_dim": head_dim,
        "vocab_size": rows,
        "rms_norm_eps" if norm else "layer_norm_eps": file.need(
            f"attention.layer_norm_{norm}epsilon"
        ),
        "tie_word_embeddings": "output.weight" not in file.names,
    }
    ids = special_ids(file)
    return found | {f"{name}_token_id": ids.get(name) for name in ("bos", "eos", "pad")}
