"""The compiled forward pass of new slots through a body, on a CPU, for any number of rows.

`kernels.py` has the arithmetic; this module prepares its arguments. The result of a slot depends on
its row alone, bit for bit: a prompt gives the same numbers whether it is read in one pass, slot by
slot, or in a batch.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.threads import for_each
from .by_row import as_array, multiply
from .cache import Cache
from .compiled import kernels

PIECE = 4  # rows in a piece of work: each number read from a matrix serves all of them


class CompiledDecoder:
    """The weights of an input map and a body, arranged for the kernels when the decoder is made.

    The weights and biases of each norm are folded into the linear map after it, and 1/√width into
    the queries.
    """

    reads_forks = True  # a fork's beginning lies in another cache

    @staticmethod
    def suits(body: nn.Module) -> bool:
        """Whether the kernels apply to this body: float32, on a CPU, and compiled."""
        return (
            body.start.dtype == torch.float32
            and body.start.device.type == "cpu"
            and kernels() is not None
        )

    def __init__(self, input: nn.Linear, body: nn.Module):
        config, self.kernels = body.config, kernels()
        self.input = as_array(input.weight.T)  # (m, d)
        activations = {
            "gelu": self.kernels.GELU,
            "gelu-tanh": self.kernels.GELU_TANH,
            "swiglu": self.kernels.SWIGLU,
        }
        window = config.attention_window or config.context + 1
        shape = (config.n_heads, window, config.norm == "rms", activations[config.mlp])
        layers = [_folded(block, config.n_heads) for block in body.blocks]
        ends = np.stack([as_array(body.norm.weight), as_array(_bias(body.norm, config.d_model))])
        positions = (
            np.zeros((0, config.d_model), np.float32)
            if body.position is None
            else as_array(body.position)
        )
        rotation = (
            np.zeros((0, 0, 0), np.float32) if body.rotation is None else as_array(body.rotation)
        )
        stacked = tuple(np.stack(parts) for parts in zip(*layers, strict=True))
        self.body = (shape, np.float32(config.norm_eps), stacked, ends, (positions, rotation))
        self.work = sum(part.size for part in stacked)  # multiply-adds per slot

    def embed(self, vectors: Float[Tensor, "*n m"]) -> Float[Tensor, "*n d"]:
        """The input map: tokens (..., m) -> slots as they enter the first block (..., d)."""
        return multiply(vectors, self.input)

    def __call__(self, stream: Float[Tensor, "B n d"], cache: Cache) -> Float[Tensor, "B n d"]:
        """The hidden states of n embedded slots, which are added to the cache.

        Where all rows begin with the same slots, these are computed for one row only. Attention
        then reads one copy of them for all rows.
        """
        slots = stream.numpy()
        alike = self._alike(slots, cache)
        parts = []
        # 1) slots that are the same in all rows: compute row 0, copy its keys and values
        if alike:
            begin = cache.filled
            parts.append(
                np.broadcast_to(
                    self._read(slots[:1, :alike], cache), (len(slots), alike, slots.shape[2])
                )
            )
            cache.repeat(begin)
        # 2) the other slots, row by row
        if alike < slots.shape[1]:
            parts.append(self._read(slots[:, alike:], cache))
        return torch.from_numpy(np.concatenate(parts, 1))

    def _alike(self, slots: np.ndarray, cache: Cache) -> int:
        """How many of the first of these slots (B, n, d) are the same in all rows.

        0 where the rows already differ in the cache.
        """
        if cache.shared < cache.filled:
            return 0
        differs = (slots != slots[:1]).any((0, 2))  # (n,)
        return int(differs.argmax()) if differs.any() else len(differs)

    def _read(self, slots: np.ndarray, cache: Cache) -> np.ndarray:
        """Let the first B rows of the cache read n slots each: (B, n, d) -> (B, n, d)."""
        x = np.ascontiguousarray(slots)
        out = np.empty_like(x)
        arguments = (x, cache.filled, *self.body, self.arrays(cache), out)
        work = self.work * x.shape[0] * x.shape[1]
        for_each(lambda begin, end: self.kernels.read(begin, end, *arguments), len(x), PIECE, work)
        cache.filled += x.shape[1]
        return out

    @staticmethod
    def arrays(cache: Cache) -> tuple[np.ndarray | int, ...]:
        """A cache in the form that `kernels.read` and `kernels.write` expect."""
        own = (cache.keys.mT.numpy(), cache.values.numpy())
        if (begin := cache.beginning) is None:
            return *own, cache.shared, 0, *own, np.zeros(cache.keys.shape[1], np.int64)
        return (
            *own,
            begin.length,
            begin.length,
            begin.keys.mT.numpy(),
            begin.values.numpy(),
            begin.rows.numpy(),
        )


def _folded(block: nn.Module, n_heads: int) -> tuple[np.ndarray, ...]:
    """A block's matrices (in, out), each followed by its bias (out,)."""
    d = block.attention_out.in_features
    scale = torch.ones(block.query_key_value.out_features, dtype=torch.float64)
    scale[:d] = (d // n_heads) ** -0.5  # the queries: then query · key is the score
    attention = _linear(block.query_key_value, block.attention_norm, scale)
    return (
        *attention,
        *_linear(block.attention_out),
        *_linear(block.mlp_in, block.mlp_norm),
        *_linear(block.mlp_out),
    )


def _linear(
    linear: nn.Linear, norm: nn.Module | None = None, scale: Tensor | float = 1.0
) -> tuple[np.ndarray, ...]:
    """The matrix (in, out) and the bias (out,) of a linear map.

    The norm before it, if any, is folded in. `scale` multiplies the outputs.
    """
    matrix, bias = linear.weight.detach().double().T, _bias(linear, linear.out_features).double()
    if norm is not None:
        bias = bias + _bias(norm, linear.in_features).double() @ matrix
        matrix = norm.weight.detach().double()[:, None] * matrix
    return as_array((matrix * scale).float()), as_array((bias * scale).float())


def _bias(module: nn.Module, width: int) -> Tensor:
    """A module's bias (width,); zeros where it has none."""
    bias = dict(module.named_parameters()).get("bias")
    return torch.zeros(width) if bias is None else bias.detach()
