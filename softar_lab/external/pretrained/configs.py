"""What the configs of transformers say, each under names of its own."""

from typing import Any

from torch import nn

LENGTH = 10  # tokens of a text, unless a window is longer
LONGEST = 40  # tokens of a text that passes a window
# How the configs of transformers call the number of positions.
_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
    "context_length",
)
# ... and the number of latest tokens that a layer attends to.
_WINDOWS = (
    "sliding_window",
    "attention_chunk_size",
    "window_size",
    "local_attention",
    "attention_window_size",
)


def positions(network: nn.Module, text: Any) -> int:
    """How many tokens a network reads at most, by its config.

    A table of positions with padding has rows that no token gets.
    """
    lengths = [getattr(text, name, None) for name in _LENGTHS]
    found = next((n for n in lengths if isinstance(n, int) and n > 0), 2048)
    tables = [one for one in network.modules() if isinstance(one, nn.Embedding)]
    unused = [
        one.padding_idx + 1
        for one in tables
        if one.num_embeddings == found
        and one is not network.get_input_embeddings()
        and one.padding_idx is not None
    ]
    return found - max(unused, default=0)


def special_ids(config: Any) -> set[int]:
    """The ids to which a config gives a meaning of their own, such as that of padding."""
    found: set[int] = set()
    for name, value in config.to_dict().items():
        if name.endswith(("_token_id", "_token_index")):
            values = value if isinstance(value, list) else [value]
            found |= {one for one in values if isinstance(one, int)}
    return found


def text_length(config: Any, context: int) -> int:
    """How many tokens a text has: enough to pass the windows of a network.

    A window that is too long is not passed. But what hashes its tokens at random does so only
    behind two of its chunks, so that these are passed always.

    Args:
        config: the config of the network.
        context: how many tokens it may have.
    """
    windows = [n for name in _WINDOWS if isinstance(n := getattr(config, name, None), int)]
    lengths = [n + 4 for n in windows if n + 4 <= LONGEST]
    chunk = getattr(config, "lsh_attn_chunk_length", None)
    hashed = 2 * chunk + 4 if isinstance(chunk, int) else 0
    return min(context, max([LENGTH, hashed, *lengths]))


def logits_of(config: Any) -> tuple[float, float | None]:
    """How a network changes its logits: a factor, and the bound of a soft cap (None: no cap)."""
    scale = (getattr(config, "logit_scale", None) or 1.0) / (
        getattr(config, "logits_scaling", None) or 1.0
    )
    return scale, getattr(config, "final_logit_softcapping", None)
