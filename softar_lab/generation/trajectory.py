"""What a generation leaves behind: the text, the path of its soft tokens, and how sure the model was at each step."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..store import StoreError, load_vectors, save_vectors

KIND = "trajectory"
_ARRAYS = ("token_ids", "vectors", "inputs", "log_probs", "entropy", "distance", "collapsed", "top_ids", "top_probs")


@dataclass(frozen=True)
class Trajectory:
    """T steps after a prompt. `token_ids`: the symbols shown; `vectors`: the soft tokens predicted; `inputs`: what was
    fed back. `log_probs` (nats): the model's own log p of each shown symbol; `entropy` (nats); `distance`: from the
    soft token to the closest row, embedding units; `collapsed`: whether a hard token was fed back; `top_ids`,
    `top_probs` (T, k): the best candidates. A model without vectors leaves vectors and inputs 0 wide.
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

    def __len__(self) -> int:
        return len(self.token_ids)

    def candidates(self, step: int) -> list[tuple[str, float]]:
        """The best candidates of a step, most probable first, as (symbol, probability)."""
        return [
            (self.tokens[i], p) for i, p in zip(self.top_ids[step].tolist(), self.top_probs[step].tolist(), strict=True)
        ]

    def save(self, path: str | Path) -> None:
        """Write one .safetensors file, bit-exact."""
        metadata = {"kind": KIND, "prompt": self.prompt, "text": self.text, "tokens": list(self.tokens)}
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        save_vectors(path, arrays, {**metadata, "settings": self.settings})

    @classmethod
    def load(cls, path: str | Path) -> "Trajectory":
        """Read a file written by `save`; StoreError names it and what is wrong with it."""
        arrays, metadata = load_vectors(path)
        if metadata.get("kind") != KIND or set(arrays) != set(_ARRAYS):
            raise StoreError(f"{path}: holds no trajectory")
        return cls(
            metadata["prompt"], metadata["text"], tuple(metadata["tokens"]), **arrays, settings=metadata["settings"]
        )
