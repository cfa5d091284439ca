"""One new slot of one row, in NumPy: what input and `Transformer.forward` do, without PyTorch's cost per call.

At this size a product takes two microseconds and PyTorch's bookkeeping around it five, so that writing for one reader
is mostly bookkeeping; NumPy's is a fraction of it (benchmarks/README.md). Same weights, same cache, same numbers: a
test holds both together.
"""

import math

import numpy as np
from scipy.special import erf
from torch import Tensor, nn

EPSILON = 1e-5  # of nn.LayerNorm
KIND = {"norm": "layer", "norm_eps": EPSILON, "mlp": "gelu", "bias": False, "queries_per_key": 1,
        "attention_window": None}  # fmt: skip
FAINTEST = -60.0  # attention below e^-60 of the strongest counts as that: smaller numbers are denormal, and slow


class RowDecoder:
    """The weights of a `Transformer` as they are at its making, laid out for products from the left.

    For bodies of the lab's own KIND, whatever their positions; of others PyTorch does the work.

    Norm weights are folded into the matrix behind them, 1/√width into the queries, GELU's constants into the layer.
    Layer norm does not see the mean of what it gets, so all that is written to the stream is centred beforehand.
    """

    @staticmethod
    def suits(body: nn.Module) -> bool:
        """Whether a body, on a CPU, is of the KIND that is known here."""
        return body.start.device.type == "cpu" and all(
            getattr(body.config, name) == value for name, value in KIND.items()
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
            halves = np.arange(2 * d).reshape(2 * self.n_heads, 2, -1)  # of each query's and key's width
            self.turned = halves[:, ::-1].ravel()
            self.rotation = np.tile(_array(body.rotation), 2 * self.n_heads)  # (2, slots, 2d)

    def _attention_in(self, matrix: np.ndarray) -> np.ndarray:
        """Queries scaled by 1/√width, keys and values as they are: (d, 3d)."""
        queries = matrix[:, : len(matrix)]
        queries *= (len(matrix) // self.n_heads) ** -0.5
        return matrix

    def embed(self, vectors: np.ndarray) -> np.ndarray:
        """Tokens (..., m) -> what enters the first block (..., d)."""
        return vectors @ self.input

    def __call__(self, x: np.ndarray, all_keys: np.ndarray, all_values: np.ndarray, slot: int) -> np.ndarray:
        """Embedded token (d,) -> hidden state (d,). Writes `slot` of keys, values (layers, heads, capacity, width)."""
        seen, turning = slot + 1, 2 * x.size
        x = x + self.position[slot] if self.position is not None else x.copy()
        if self.rotation is not None:
            cosine, sine = self.rotation[:, slot]
        ones = np.ones(seen, x.dtype)
        for weights, keys, values in zip(self.blocks, all_keys, all_values, strict=True):
            attention_in, attention_out, mlp_in, mlp_out = weights
            flat = _normed(x).dot(attention_in)  # (3d,): queries, keys, values
            if self.rotation is not None:
                turned = flat[self.turned]
                turned *= sine
                flat[:turning] *= cosine
                flat[:turning] += turned
            query, keys[:, slot], values[:, slot] = flat.reshape(3, self.n_heads, -1)  # (heads, width) each
            scores = np.matmul(keys[:, :seen], query[:, :, None])[:, :, 0]  # (heads, seen)
            scores -= scores.max(-1, keepdims=True)
            np.maximum(scores, FAINTEST, out=scores)
            np.exp(scores, out=scores)
            mixed = np.matmul(scores[:, None], values[:, :seen])[:, 0]  # (heads, width)
            mixed /= scores.dot(ones)[:, None]
            x += mixed.ravel().dot(attention_out)
            inner = _normed(x).dot(mlp_in)  # the GELU layer's input, over √2
            gate = erf(inner)
            gate += 1
            inner *= gate
            x += inner.dot(mlp_out)
        return _normed(x) * self.norm_weight


def _normed(x: np.ndarray) -> np.ndarray:
    """Layer norm, without its weight, of what is centred."""
    return x * (1 / math.sqrt(x.dot(x).item() / x.size + EPSILON))


def _centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(-1, keepdims=True)


def _left(linear: nn.Linear, norm: nn.LayerNorm | None = None) -> np.ndarray:
    """The matrix (in, out) of x @ matrix, with the norm before it folded in."""
    weight = linear.weight if norm is None else linear.weight * norm.weight
    return np.ascontiguousarray(_array(weight).T)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()
