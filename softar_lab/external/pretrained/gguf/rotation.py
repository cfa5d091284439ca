"""How a GGUF file rotates queries and keys, as the rope_parameters of transformers."""

import math
from typing import Any

from .file import GGUFFile

_SAME = "rope_freqs.weight"  # a divisor for each frequency (Llama 3.1 and later)
_SHORT, _LONG = "rope_factors_short.weight", "rope_factors_long.weight"  # and two (Phi 3)


def rotation(file: GGUFFile, head_dim: int, context: int, partial: bool) -> dict[str, Any]:
    """The rope_parameters that a file stands for.

    Args:
        file: the file.
        head_dim: the width of a head.
        context: the number of positions.
        partial: whether the network can rotate a part of each head.

    Raises:
        PretrainedError: where the network cannot rotate as the file says.
    """
    found: dict[str, Any] = {"rope_theta": float(file.own("rope.freq_base", 10_000.0))}
    # 1) how much of a head is rotated
    width = file.own("rope.dimension_count", head_dim)
    if width != head_dim:
        if not partial or width > head_dim:
            file.refuse(f"it rotates {width} of {head_dim} coordinates of each head")
        found["partial_rotary_factor"] = _share(width, head_dim)
    # 2) how the frequencies are scaled
    file.own("rope.scaling.finetuned")
    return found | _scaling(file, context)


def _scaling(file: GGUFFile, context: int) -> dict[str, Any]:
    """The part of rope_parameters that scales frequencies."""
    kind = file.own("rope.scaling.type", "linear")
    factor = float(file.own("rope.scaling.factor", file.own("rope.scale_linear", 1.0)))
    original = file.own("rope.scaling.original_context_length", context)
    tensors = sorted({_SAME, _SHORT, _LONG} & file.names)
    if tensors:
        if kind == "yarn" or (kind == "linear" and factor != 1):
            file.refuse(f"its frequencies are scaled twice, by {tensors[0]} and by {kind}")
        return _by_tensors(file, tensors, context, original)
    if kind == "none" or (kind == "linear" and factor == 1):
        return {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        file.refuse(f"{file.architecture}.rope.scaling.type = {kind!r} without its factors")
    betas = {name: file.own(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
    given = {name: float(value) for name, value in betas.items() if value is not None}
    scaled = {"factor": factor, "original_max_position_embeddings": original}
    return {"rope_type": "yarn", **scaled, **given}


def _by_tensors(file: GGUFFile, names: list[str], context: int, original: int) -> dict[str, Any]:
    """Frequencies divided by a tensor's numbers; transformers has this as longrope."""
    short, long = (_SAME, _SAME) if names == [_SAME] else (_SHORT, _LONG)
    short, long = ([float(f) for f in file.tensor(name)] for name in (short, long))
    attention = 1.0 if names == [_SAME] else float(file.own("rope.scaling.attn_factor", 1.0))
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "factor": context / original,
        "attention_factor": attention,
        "original_max_position_embeddings": original,
    }


def _share(width: int, head_dim: int) -> float:
    """A factor f with int(f · head_dim) = width, which is how transformers reads it."""
    factor = width / head_dim
    return factor if int(factor * head_dim) == width else math.nextafter(factor, math.inf)
