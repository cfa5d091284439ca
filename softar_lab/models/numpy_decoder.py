"""The forward pass of one new slot of one row in NumPy, without PyTorch's cost per call.

It does what the input map and `Transformer.forward` do. At this size a product takes two
microseconds, and PyTorch's bookkeeping around it takes five, so generation with a batch of one is
mostly bookkeeping. NumPy's is a fraction of that (benchmarks/README.md). Weights, cache and numbers
are the same; a test compares both.
"""

import math

import numpy as np
import torch
from scipy.special import erf
from torch import Tensor, nn

EPSILON = 1e-5  # the default of nn.LayerNorm
KIND = {"norm": "layer", "norm_eps": EPSILON, "mlp": "gelu", "bias": False, "queries_per_key": 1,
        "attention_window": None}  # fmt: skip
# Attention weights below e^-60 of the largest are raised to that: denormal numbers would be slow.
FAINTEST = -60.0


class RowDecoder:
    """The weights of a `Transformer`, arranged for x @ matrix when the decoder is made.

    It works for bodies of the lab's own KIND, with any positions; PyTorch computes the others.

    The weights of each norm are folded into the matrix after it, 1/√width into the queries, and
    GELU's constants into the MLP. Layer norm ignores the mean of its input, so everything that is
    added to the residual stream is centred beforehand.
    """

    reads_forks = False  # a fork's beginning lies in another cache

    @staticmethod
    def suits(body: nn.Module) -> bool:
        """Whether a body is on a CPU, in float32 and of the KIND that this decoder knows."""
        return (
            body.start.device.type == "cpu"
            and body.start.dtype == torch.float32
            and all(getattr(body.config, name) == value for name, value in KIND.items())
        )

    def __init__(self, input: nn.Linear, body: nn.Module):
        self.n_heads, d = body.config.n_heads, body.config.d_model
        self.input = _centred(_left(input))
        self.blocks = [
            (
                self._attention_in(_left(block.query_key_value, block.attention_norm)),
                _centred(_left(block.attention_out)),
                _left(block.mlp_in, block.mlp_norm) * 0.5**0.5,
                _centred(_left(block.mlp_out)) * 0.5**0.5,
            )
            for block in body.blocks
        ]
        self.norm_weight = _array(body.norm.weight)
        self.position = self.rotation = None
        if body.position is not None:
            self.position = _centred(_array(body.position))
        if body.rotation is not None:
            # indices that swap the two halves of each query and each key
            halves = np.arange(2 * d).reshape(2 * self.n_heads, 2, -1)
            self.turned = halves[:, ::-1].ravel()
            self.rotation = np.tile(_array(body.rotation), 2 * self.n_heads)  # (2, slots, 2d)

    def _attention_in(self, matrix: np.ndarray) -> np.ndarray:
        """The matrix (d, 3d), its query part scaled in place by 1/√width."""
        queries = matrix[:, : len(matrix)]
        queries *= (len(matrix) // self.n_heads) ** -0.5
        return matrix

    def embed(self, vectors: np.ndarray) -> np.ndarray:
        """The input map: tokens (..., m) -> slots as they enter the first block (..., d)."""
        return vectors @ self.input

    def __call__(
        self, x: np.ndarray, all_keys: np.ndarray, all_values: np.ndarray, slot: int
    ) -> np.ndarray:
        """Embedded token (d,) -> hidden state (d,).

        Args:
            x: the embedded token (d,).
            all_keys: the cached keys (layers, heads, capacity, width); entry `slot` is written.
            all_values: the cached values, in the same shape; entry `slot` is written.
            slot: the position of the token; the slots before it are in the cache.
        """
        seen, turning = slot + 1, 2 * x.size
        x = x + self.position[slot] if self.position is not None else x.copy()
        if self.rotation is not None:
            cosine, sine = self.rotation[:, slot]
        ones = np.ones(seen, x.dtype)
        for weights, keys, values in zip(self.blocks, all_keys, all_values, strict=True):
            attention_in, attention_out, mlp_in, mlp_out = weights
            # 1) queries, keys and values; the new key and value join the cache
            flat = _normed(x).dot(attention_in)  # (3d,): queries, keys, values
            if self.rotation is not None:
                turned = flat[self.turned]
                turned *= sine
                flat[:turning] *= cosine
                flat[:turning] += turned
            # (heads, width) each
            query, keys[:, slot], values[:, slot] = flat.reshape(3, self.n_heads, -1)
            # 2) attention over all slots up to this one
            scores = np.matmul(keys[:, :seen], query[:, :, None])[:, :, 0]  # (heads, seen)
            scores -= scores.max(-1, keepdims=True)
            np.maximum(scores, FAINTEST, out=scores)
            np.exp(scores, out=scores)
            mixed = np.matmul(scores[:, None], values[:, :seen])[:, 0]  # (heads, width)
            mixed /= scores.dot(ones)[:, None]
            x += mixed.ravel().dot(attention_out)
            # 3) MLP: x Φ(x) = (x/√2) (1 + erf(x/√2)) / √2; the last factor is in mlp_out
            inner = _normed(x).dot(mlp_in)  # the input of GELU, divided by √2
            gate = erf(inner)
            gate += 1
            inner *= gate
            x += inner.dot(mlp_out)
        return _normed(x) * self.norm_weight


def _normed(x: np.ndarray) -> np.ndarray:
    """Layer norm, without its weight, of a vector whose mean is already zero."""
    return x * (1 / math.sqrt(x.dot(x).item() / x.size + EPSILON))


def _centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(-1, keepdims=True)


def _left(linear: nn.Linear, norm: nn.LayerNorm | None = None) -> np.ndarray:
    """The matrix (in, out) for x @ matrix, with the weights of the norm before it folded in."""
    weight = linear.weight if norm is None else linear.weight * norm.weight
    return np.ascontiguousarray(_array(weight).T)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()
