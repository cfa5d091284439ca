"""Matrices in fewer bits: bfloat16, int8 by rows, int4 by groups of 32 (K31).

A step of a language model waits for its weights, so fewer bytes are fewer milliseconds. Only the
matrices are packed. The embedding table, norms, attention and everything between the matrices stay
float32; what goes into a matrix is rounded to bfloat16, because the kernels are fast for it alone.
Every row of a batch is multiplied by itself, in one order: int8 and int4 give it the same digits
in any company.

The kernels that round the activations to int8, too (`torch._int_mm` and all that stand on it), are
not used: on processors without VNNI their sums saturate without an error.
"""

import ctypes
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = ("float32", "bfloat16", "int8", "int4")
GROUP = 32  # weights of one row that share a scale and a zero in int4
_ROUNDS = 4  # of fitting a grid: each takes the error down by less than the one before
_SMALL = 32  # a matrix of fewer rows (a gate, a router) is read in no time and stays float32
_BLOCK = 2**18  # weights packed at once: 1 MB of float32
_ATEN = torch.ops.aten


class Packed(nn.Module):
    """A linear layer y = xWᵀ + b whose matrix W (out, in) is stored in fewer bits.

    x may have any float type; y has the same. Buffers hold bfloat16 as int16, bit by bit, so that a
    change of the network's type, double() say, leaves them as their kernel needs them.

    Args:
        shape: (out, in).
        blocks: the rows of the matrix in order, some at a time.
        bias: (out,), or None.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        shape: tuple[int, int],
        blocks: Iterable[Float[Tensor, "rows in"]],
        bias: Float[Tensor, " out"] | None = None,
    ):
        super().__init__()
        self.out_features, self.in_features = shape
        self.bias = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)
        for name, value in self.packed(shape, blocks).items():
            self.register_buffer(name, value)

    @classmethod
    def fits(cls, rows: int, columns: int) -> bool:
        """Whether the kernel multiplies by matrices of this shape."""
        return True

    @staticmethod
    def packed(shape: tuple[int, int], blocks: Iterable[Tensor]) -> dict[str, Tensor]:
        """The buffers that hold a matrix."""
        raise NotImplementedError

    def product(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        """The product xWᵀ of vectors in bfloat16."""
        raise NotImplementedError

    def matrix(self) -> Float[Tensor, "out in"]:
        """The matrix as it is stored, in float32."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """Not there: a network that computes with the matrix itself cannot be packed.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"this network reads the weights of a layer itself, and they are packed as {self.kind}; "
            "load it with weights='float32'"
        )

    def forward(self, x: Float[Tensor, "*n in"]) -> Float[Tensor, "*n out"]:
        rows = x.reshape(-1, self.in_features).bfloat16()
        y = self.product(rows).to(x.dtype)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], self.out_features)


class BFloat16(Packed):
    """Each weight rounded to bfloat16: 2 bytes."""

    kind = "bfloat16"

    @staticmethod
    def packed(shape: tuple[int, int], blocks: Iterable[Tensor]) -> dict[str, Tensor]:
        codes = torch.empty(shape, dtype=torch.bfloat16)
        for at, rows in _numbered(blocks):
            codes[at] = rows
        return {"codes": codes.view(torch.int16)}

    def product(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        return F.linear(x, self.codes.view(torch.bfloat16))

    def matrix(self) -> Float[Tensor, "out in"]:
        return self.codes.view(torch.bfloat16).float()


class Int8(Packed):
    """Each row on a grid of its own, −127 … 127 times a scale: 1 byte."""

    kind = "int8"

    @classmethod
    def fits(cls, rows: int, columns: int) -> bool:
        return columns % 16 == 0  # with another width the kernel gives wrong sums

    @staticmethod
    def packed(shape: tuple[int, int], blocks: Iterable[Tensor]) -> dict[str, Tensor]:
        codes = torch.empty(shape, dtype=torch.int8)
        scales = torch.empty(shape[0], dtype=torch.bfloat16)
        for at, rows in _numbered(blocks):
            scales[at] = (rows.abs().amax(1) / 127).clamp_min(_TINY)
            codes[at] = (rows / scales[at, None].float()).round_().clamp_(-127, 127)
        return {"codes": codes, "scales": scales.view(torch.int16)}

    def product(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        return _ATEN._weight_int8pack_mm(x, self.codes, self.scales.view(torch.bfloat16))

    def matrix(self) -> Float[Tensor, "out in"]:
        return self.codes.float() * self.scales.view(torch.bfloat16)[:, None].float()


class Int4(Packed):
    """Groups of 32 weights, each on a grid of 16 points that is fitted to it: 5/8 of a byte."""

    kind = "int4"

    @classmethod
    def fits(cls, rows: int, columns: int) -> bool:
        return rows % 16 == 0 and columns % GROUP == 0

    @staticmethod
    def packed(shape: tuple[int, int], blocks: Iterable[Tensor]) -> dict[str, Tensor]:
        codes = torch.empty(shape, dtype=torch.int32)
        grids = torch.empty(shape[1] // GROUP, shape[0], 2, dtype=torch.bfloat16)
        for at, rows in _numbered(blocks):
            some, scales, zeros = fitted(rows.unflatten(1, (-1, GROUP)))
            codes[at] = some.flatten(1)
            grids[:, at, 0], grids[:, at, 1] = scales.T, zeros.T
        codes = _ATEN._convert_weight_to_int4pack_for_cpu(codes, 1)
        return {"codes": codes, "grids": grids.view(torch.int16)}

    def product(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        grids = self.grids.view(torch.bfloat16)
        return _ATEN._weight_int4pack_mm_for_cpu(x, self.codes, GROUP, grids)

    def matrix(self) -> Float[Tensor, "out in"]:
        # the layout of the codes is the processor's: the products of unit vectors are the columns
        return self.product(torch.eye(self.in_features, dtype=torch.bfloat16)).float().T


def _numbered(blocks: Iterable[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows in float32, each with its place."""
    begin = 0
    for rows in blocks:
        yield slice(begin, begin + len(rows)), rows.float()
        begin += len(rows)


PACKINGS: dict[str, type[Packed]] = {one.kind: one for one in (BFloat16, Int8, Int4)}
_TINY = torch.finfo(torch.bfloat16).tiny


# -- the grid of int4 ------------------------------------------------------------------------------


def fitted(
    groups: Float[Tensor, "*n 32"],
) -> tuple[Int[Tensor, "*n 32"], Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """Codes 0 … 15 (int32), scale and zero (bfloat16) of groups: w ≈ (code - 8) scale + zero.

    The grid begins with the least and the greatest weight at its ends. Then least squares: codes
    for the grid, a grid for the codes, by turns. What lies on a grid already stays on it, but for
    the rounding of scale and zero to bfloat16; the codes are those of the rounded grid.
    """
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / 15).clamp_min_(_TINY)
    zero = low + 8 * scale
    mean = groups.mean(-1, keepdim=True)
    for _ in range(_ROUNDS):
        codes = _codes(groups, scale, zero)
        middle = codes.mean(-1, keepdim=True)
        spread = codes - middle
        slope = (spread * groups).sum(-1, keepdim=True)
        scale = slope.div_(spread.square_().sum(-1, keepdim=True)).nan_to_num_(0).clamp_min_(_TINY)
        zero = mean - scale * middle
    scale = scale.bfloat16().float()
    zero = (mean - scale * _codes(groups, scale, zero).mean(-1, keepdim=True)).bfloat16().float()
    codes = _codes(groups, scale, zero).add_(8).int()
    return codes, scale.squeeze(-1).bfloat16(), zero.squeeze(-1).bfloat16()


def _codes(groups: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The nearest points of a grid, counted from -8 to 7."""
    return (groups - zero).div_(scale).round_().clamp_(-8, 7)


# -- what is used where ----------------------------------------------------------------------------


def in_use(wanted: str, device: str) -> tuple[str, str]:
    """The kind of weights that is used for the wanted one, and why it is another one (or "").

    Raises:
        ValueError: where there is no such kind, or none of it for the device.
    """
    if wanted not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, not {wanted!r}")
    if wanted in ("float32", "bfloat16"):
        return wanted, ""
    if device != "cpu":
        raise ValueError(
            f"weights={wanted!r} are multiplied on a CPU only: give device='cpu', or 'float32' or "
            f"'bfloat16' on {device}"
        )
    capability = torch.backends.cpu.get_cpu_capability()
    if not capability.startswith("AVX"):
        return "float32", f"without AVX2 (here: {capability}) their kernels are slower than float32"
    for kind in ("int4", "int8")[wanted == "int8" :]:
        if is_right(kind):
            why = f"the kernel of {wanted} is missing or wrong here" if kind != wanted else ""
            return kind, why
    return "float32", f"the kernel of {wanted} is missing or wrong here"


@lru_cache
def is_right(kind: str) -> bool:
    """Whether a kernel is there and multiplies rightly, for 1 and 5 rows of a known product.

    Against float64 of the same bfloat16 numbers. The kernel sums n products in float32, in any
    order, and rounds the sum to bfloat16 (Higham, Accuracy and Stability of Numerical Algorithms,
    section 3.1); int4 rounds every weight once more.
    """
    generator = torch.Generator().manual_seed(0)
    matrix, x = (torch.randn(n, 128, generator=generator) for n in (96, 5))
    x = x.bfloat16()
    try:
        layer = PACKINGS[kind](tuple(matrix.shape), [matrix])
        found = torch.cat([layer.product(x), layer.product(x[:1])]).double()
    except (RuntimeError, AttributeError):  # no such kernel in this build
        return False
    stored = _stored(layer, matrix).double()
    exact = torch.cat([x, x[:1]]).double() @ stored.T
    sums = torch.cat([x, x[:1]]).double().abs() @ stored.abs().T
    bound = 2**-8 * exact.abs() + (128 + 2) * 2**-23 * sums
    return bool(((found - exact).abs() <= bound).all())


def _stored(layer: Packed, matrix: Tensor) -> Tensor:
    """What a layer should hold of a matrix, without asking its kernel."""
    if not isinstance(layer, Int4):
        return layer.matrix()
    codes, scale, zero = fitted(matrix.unflatten(1, (-1, GROUP)))
    return ((codes - 8) * scale[..., None].float() + zero[..., None].float()).flatten(1)


# -- a network -------------------------------------------------------------------------------------

Read = Callable[[nn.Parameter, int, int], Tensor]


def _part(parameter: nn.Parameter, begin: int, end: int) -> Tensor:
    return parameter.detach()[begin:end]


def pack(network: nn.Module, kind: str, read: Read = _part) -> nn.Module:
    """Replace the linear layers of a causal language model by packed ones, one after the other.

    The head has at least 8 bits. A layer whose shape the kernel does not fit takes the next larger
    kind that does, and float32 where none does.

    Args:
        network: the model; it is changed.
        kind: one of `WEIGHTS`.
        read: gives rows of a parameter: the parameter, the first row, the row after the last.
    """
    head = network.get_output_embeddings()
    for name, layer in list(network.named_modules()):
        if not (turned := _is_turned(layer)) and type(layer) is not nn.Linear:
            continue
        weight, bias = layer.weight, layer.bias
        shape = tuple(weight.shape[:: -1 if turned else 1])
        packing = _packing("int8" if layer is head and kind == "int4" else kind, *shape)
        if packing is None:
            continue
        if turned:
            blocks: Iterable[Tensor] = [read(weight, 0, len(weight)).T]
        else:
            step = max(1, _BLOCK // shape[1])
            blocks = (read(weight, i, min(i + step, shape[0])) for i in range(0, shape[0], step))
        bias = None if bias is None else read(bias, 0, len(bias))
        network.set_submodule(name, packing(shape, blocks, bias))
        _trim()(0)
    return network


@lru_cache
def _trim() -> Callable[[int], int]:
    """What gives freed memory back to the system: glibc keeps up to 400 MB of temporary tensors."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another system
        return lambda _: 0


def _is_turned(layer: nn.Module) -> bool:
    """Whether a layer is the Conv1D of transformers: a linear one that stores (in, out)."""
    return (
        type(layer).__name__ == "Conv1D" and type(layer).__module__ == "transformers.pytorch_utils"
    )


def _packing(kind: str, rows: int, columns: int) -> type[Packed] | None:
    """The packing of a matrix: of the kind, or the next larger one that fits; None: float32."""
    kinds = {"int4": (Int4, Int8), "int8": (Int8,), "bfloat16": (BFloat16,)}.get(kind, ())
    if rows < _SMALL:
        return None
    return next((one for one in kinds if one.fits(rows, columns)), None)


def stored(network: nn.Module) -> dict[str, int]:
    """Number of weights by how they are stored, the packed ones first; tied ones count once."""
    counts: dict[str, int] = {}
    for layer in network.modules():
        if isinstance(layer, Packed):
            weights = layer.in_features * layer.out_features
            counts[layer.kind] = counts.get(layer.kind, 0) + weights
    for one in network.parameters():
        kind, number = str(one.dtype).removeprefix("torch."), one.numel()
        if type(one).__name__ == "Params4bit":  # of bitsandbytes, which holds two in a byte
            kind, number = "nf4", one.quant_state.shape.numel()
        counts[kind] = counts.get(kind, 0) + number
    return counts


def precision(network: nn.Module) -> torch.dtype:
    """The coarsest type that a network rounds to between its input and its output."""
    if any(isinstance(layer, Packed) for layer in network.modules()):
        return torch.bfloat16
    return network.get_input_embeddings().weight.dtype
