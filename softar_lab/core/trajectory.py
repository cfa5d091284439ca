"""What a generation returns: the text, the path of its soft tokens, and how sure the model was."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .store import StoreError, load_vectors, save_vectors

KIND = "trajectory"
# The axes of each array, by their letters.
_AXES = {
    **dict.fromkeys(("token_ids", "log_probs", "entropy", "distance", "collapsed"), "T"),
    **dict.fromkeys(("vectors", "inputs"), "Tm"),
    **dict.fromkeys(("top_ids", "top_probs"), "Tk"),
}
_OPTIONAL = {"layers": "T", "passes": "T"}  # where a text took less than every layer or pass


@dataclass(frozen=True)
class Trajectory:
    """T steps after a prompt.

    A model without vectors leaves `vectors` and `inputs` 0 wide.

    Attributes:
        prompt, text: what was given, and what was written.
        tokens: the vocabulary.
        token_ids: the emitted symbols (T,).
        vectors: the predicted soft tokens (T, m).
        inputs: what was fed back, or replaced it in the context later (T, m).
        log_probs: the model's own log p of each emitted symbol (T,), in nats.
        entropy: of the model's distribution (T,), in nats.
        distance: from the soft token to the closest row (T,), in embedding units; NaN without a
            table.
        collapsed: whether `inputs` is a hard token (T,).
        top_ids, top_probs: the best candidates and their probabilities (T, k).
        settings: how it was made.
        layers: from which layer each symbol was read (T,), counted from 1; None: from the last.
        passes: how many passes of the network each symbol took (T,): 0 where it shared the pass of
            the one before; None: one each.
    """

    prompt: str
    text: str
    tokens: tuple[str, ...] = field(repr=False)
    token_ids: Int[Tensor, " T"] = field(repr=False)
    vectors: Float[Tensor, "T m"] = field(repr=False)
    inputs: Float[Tensor, "T m"] = field(repr=False)
    log_probs: Float[Tensor, " T"] = field(repr=False)
    entropy: Float[Tensor, " T"] = field(repr=False)
    distance: Float[Tensor, " T"] = field(repr=False)
    collapsed: Bool[Tensor, " T"] = field(repr=False)
    top_ids: Int[Tensor, "T k"] = field(repr=False)
    top_probs: Float[Tensor, "T k"] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    layers: Int[Tensor, " T"] | None = field(default=None, repr=False)
    passes: Int[Tensor, " T"] | None = field(default=None, repr=False)

    ARRAYS: ClassVar[tuple[str, ...]] = tuple(_AXES)  # what each step adds to

    def __len__(self) -> int:
        return len(self.token_ids)

    def candidates(self, step: int) -> list[tuple[str, float]]:
        """The best candidates of a step as (symbol, probability), the most probable first."""
        return [
            (self.tokens[i], p)
            for i, p in zip(self.top_ids[step].tolist(), self.top_probs[step].tolist(), strict=True)
        ]

    def save(self, path: str | Path) -> None:
        """Write one .safetensors file, bit-exact."""
        metadata = {
            "kind": KIND,
            "prompt": self.prompt,
            "text": self.text,
            "tokens": list(self.tokens),
        }
        arrays = {name: getattr(self, name) for name in _AXES}
        more = {name: getattr(self, name) for name in _OPTIONAL}
        arrays |= {name: one for name, one in more.items() if one is not None}
        save_vectors(path, arrays, {**metadata, "settings": self.settings})

    @classmethod
    def load(cls, path: str | Path) -> "Trajectory":
        """Read a file written by `save`.

        Raises:
            StoreError: where it cannot be read or holds no trajectory; the message names it.
        """
        arrays, metadata = load_vectors(path)
        texts = [metadata.get(name) for name in ("prompt", "text")]
        tokens, settings = metadata.get("tokens"), metadata.get("settings")
        if (
            metadata.get("kind") != KIND
            or not isinstance(arrays, dict)
            or not set(_AXES) <= set(arrays) <= {*_AXES, *_OPTIONAL}
        ):
            raise StoreError(f"{path}: holds no trajectory")
        of_type = all(isinstance(text, str) for text in texts) and isinstance(settings, dict)
        if not (of_type and isinstance(tokens, list) and _fit(arrays, len(tokens))):
            raise StoreError(f"{path}: holds no trajectory whose parts fit together")
        return cls(*texts, tuple(tokens), **arrays, settings=settings)


def _fit(arrays: dict[str, Tensor], vocab_size: int) -> bool:
    """Whether the arrays agree on T, m and k, and all ids lie in the vocabulary."""
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        axes, shape = (_AXES | _OPTIONAL)[name], array.shape
        if len(shape) != len(axes) or any(
            sizes.setdefault(axis, n) != n for axis, n in zip(axes, shape)
        ):
            return False
    ids = [arrays[name] for name in ("token_ids", "top_ids")]
    inside = all(
        ((row >= 0) & (row < vocab_size)).all() and not row.is_floating_point() for row in ids
    )
    return inside and arrays["collapsed"].dtype == torch.bool
