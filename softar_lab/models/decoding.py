"""One new slot of one row, in NumPy: what `Transformer.forward` does, without PyTorch's cost per call.

At this size a product takes two microseconds and PyTorch's bookkeeping around it five, so that writing for one reader
is mostly bookkeeping; NumPy's is a fraction of it (benchmarks/README.md). Same weights, same cache, same numbers: a
test holds both together.
"""

import math

import numpy as np
from scipy.special import erf
from torch import Tensor, nn

EPSILON = 1e-5  # of nn.LayerNorm
FAINTEST = -60.0  # attention below e^-60 of the strongest counts as that: smaller numbers are denormal, and slow


class RowDecoder:
    """The weights of a `Transformer` as they are at its making, laid out for products from the left.

    Norm weights are folded into the matrix behind them, 1/√width into the queries, GELU's constants into the layer.
    Layer norm does not see the mean of what it gets, so all that is written to the stream is centred beforehand.
    For rotary positions the same product also gives queries and keys with their halves exchanged.
    """

    def __init__(self, body: nn.Module):
        self.n_heads = body.n_heads
        self.blocks = [
            (
                self._attention_in(_left(block.query_key_value, block.attention_norm), body.positions),
                _centred(_left(block.attention_out)),
                _left(block.mlp_in, block.mlp_norm) * np.float32(0.5**0.5),
                _centred(_left(block.mlp_out)) * np.float32(0.5**0.5),
            )
            for block in body.blocks
        ]
        self.norm_weight = _array(body.norm.weight)
        self.position = _array(body.position) if body.positions == "learned" else None
        self.rotation = _array(body.rotation) if body.positions == "rotary" else None

    def _attention_in(self, matrix: np.ndarray, positions: str) -> np.ndarray:
        """Queries, keys and values; where positions are rotary also turned queries and keys: (d, 3d) -> (d, 3d or 5d)."""
        width = matrix.shape[0] // self.n_heads
        heads = matrix.reshape(len(matrix), 3, self.n_heads, width).copy()
        heads[:, 0] *= width**-0.5
        if positions == "rotary":
            heads = np.concatenate([heads, np.roll(heads[:, :2], width // 2, axis=-1)], axis=1)
        return heads.reshape(len(matrix), -1)

    def __call__(self, x: np.ndarray, cache: np.ndarray, slot: int) -> np.ndarray:
        """Slot input x (d,) -> hidden state (d,). `cache` (layers, 2, heads, capacity, width) is written at `slot`."""
        x = _centred(x + self.position[slot] if self.rotation is None else x)
        seen = slot + 1
        for (attention_in, attention_out, mlp_in, mlp_out), (keys, values) in zip(self.blocks, cache, strict=True):
            heads = (_normed(x) @ attention_in).reshape(
                -1, self.n_heads, x.size // self.n_heads
            )  # (3 or 5, heads, width)
            query_key = heads[:2]
            if self.rotation is not None:
                query_key = query_key * self.rotation[0, slot]
                query_key += heads[3:] * self.rotation[1, slot]
            keys[:, slot], values[:, slot] = query_key[1], heads[2]
            scores = np.matmul(keys[:, :seen], query_key[0, :, :, None])[:, :, 0]  # (heads, seen)
            scores -= scores.max(-1, keepdims=True)
            np.maximum(scores, FAINTEST, out=scores)
            np.exp(scores, out=scores)
            mixed = np.matmul(scores[:, None], values[:, :seen])[:, 0]  # (heads, width)
            mixed /= scores.sum(-1, keepdims=True)
            x += mixed.reshape(-1) @ attention_out
            inner = _normed(x) @ mlp_in  # the GELU layer's input, over √2
            gate = erf(inner)
            gate += 1
            inner *= gate
            x += inner @ mlp_out
        return _normed(x) * self.norm_weight


def _normed(x: np.ndarray) -> np.ndarray:
    """Layer norm, without its weight, of what is centred."""
    return x * (1 / math.sqrt(float(x @ x) / x.size + EPSILON))


def _centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(-1, keepdims=True)


def _left(linear: nn.Linear, norm: nn.LayerNorm | None = None) -> np.ndarray:
    """The matrix (in, out) of x @ matrix, with the norm before it folded in."""
    weight = linear.weight if norm is None else linear.weight * norm.weight
    return np.ascontiguousarray(_array(weight).T)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()
