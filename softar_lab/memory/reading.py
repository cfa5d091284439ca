"""Vectors of a text, as a model has them: after each token, word or stretch, at any layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..core.checks import whole_number
from ..core.predictor import Predictor
from ..models.vector_predictor import without_gradients

EVERY = ("token", "word", "text")


def read(
    model: Predictor, text: str, layer: int = -1, every: str | int = "token"
) -> tuple[Float[Tensor, "n d"], list[dict[str, Any]]]:
    """The vectors of a text, and what each stands for.

    A text longer than the model's context is read in windows, each of which begins with half a
    context that was read before.

    Args:
        model: a model that reads vectors, with a tokenizer.
        text: what to read.
        layer: 0: the rows of the embedding table; 1 … n: what a block of the model hands on; -1:
            the hidden state that predicts the next token.
        every: "token": after each token; "word": after the last token of each word; n: after each
            n-th token; "text": the mean over all tokens.

    Returns:
        Vectors (n, d), and for each {"text", "begin", "end"}: the characters since the one before.

    Raises:
        ValueError: where the model has no hidden states or the layer, for an empty text, or an
            unknown `every`.
    """
    if not isinstance(model, nn.Module) or model.embedding is None or model.tokenizer is None:
        raise ValueError(f"{type(model).__name__} has no hidden states of texts to read")
    ids, lengths = model.tokenizer.encode_with_lengths(text)
    if not len(ids):
        raise ValueError("a text without tokens has no vectors")
    states, ends = _states(model, ids, layer), lengths.cumsum(0)
    if every == "text":
        return states.mean(0, keepdim=True), [{"text": text, "begin": 0, "end": len(text)}]
    at = _places(text, ends, every)
    pieces, begin = [], 0
    for end in ends[at].tolist():
        pieces.append({"text": text[begin:end], "begin": begin, "end": end})
        begin = end
    return states[at], pieces


def mean_vectors(model: Predictor, texts: Sequence[str], layer: int = -1) -> Float[Tensor, "N d"]:
    """One vector per text: the mean over its tokens (N, d)."""
    return torch.cat([read(model, text, layer, "text")[0] for text in texts])


def _places(text: str, ends: Int64[Tensor, " T"], every: str | int) -> Int64[Tensor, " n"]:
    """The tokens whose vectors are wanted; the last one is always among them."""
    last = len(ends) - 1
    if every == "token":
        return torch.arange(len(ends))
    if every == "word":
        word = [
            end < len(text) and text[end - 1].isalnum() and not text[end].isalnum()
            for end in ends.tolist()
        ]
        word[last] = True
        return torch.tensor(word).nonzero().flatten()
    if isinstance(every, str):
        raise ValueError(f"every must be a number or one of {', '.join(EVERY)}, not {every!r}")
    n = whole_number("every", every)
    return torch.tensor(sorted({*range(n - 1, last + 1, n), last}))


@without_gradients
def _states(model: Any, ids: Int64[Tensor, " T"], layer: int) -> Float[Tensor, "T d"]:
    """The vector after each token at a layer (T, d), in float32, on the CPU."""
    ids = ids.to(model.device)
    if layer == 0:
        return model.embedding[ids].float().cpu()
    context = model.context or len(ids)
    step, found, done = max(1, context // 2), [], 0
    with _layer(model, layer) as last:
        while done < len(ids):
            begin = 0 if not done else max(0, done + step - context)
            end = min(begin + context, len(ids))
            hidden = model.hidden_states(ids[None, begin:end])
            hidden = hidden if layer == -1 else last()
            found.append(hidden[0, hidden.shape[1] - (end - done) :].float().cpu())
            done = end
    return torch.cat(found)


@contextmanager
def _layer(model: nn.Module, layer: int) -> Iterator[Callable[[], Tensor]]:
    """A function that gives what a block has handed on last, (B, slots, d)."""
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList)]
    blocks = max(lists, key=len, default=[])
    if layer != -1 and not 1 <= layer <= len(blocks):
        raise ValueError(f"layer must be -1, 0 or a block from 1 to {len(blocks)}, not {layer}")
    seen: list[Tensor] = []

    def hold(_: nn.Module, __: Any, output: Any) -> None:
        seen[:] = [output[0] if isinstance(output, tuple) else output]

    handle = blocks[layer - 1].register_forward_hook(hold) if layer != -1 else None
    try:
        yield lambda: seen[0]
    finally:
        if handle is not None:
            handle.remove()
