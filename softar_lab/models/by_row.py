"""Products and softmax of many rows, each computed by itself: what a row gives does not depend on the others.

PyTorch's products do depend on them in their last digits, and a soft path, which feeds back what it predicts, makes
a last digit a first one within some tens of steps. So, on a CPU and where nothing is to be learned, these stand in
for `@` and `log_softmax`: compiled, to the bit the same for a row alone and in a batch.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..threads import for_each
from .compiled import kernels

PIECE = 4  # rows a piece of work, at least: what is read of a matrix serves all of them
LARGE = 2**22  # numbers in a matrix from which on reading it is all the work, and PyTorch does it


def product(rows: Float[Tensor, "*n k"], matrix: Float[Tensor, "k c"]) -> Float[Tensor, "*n c"]:
    """rows @ matrix (but for matrices of more than `LARGE` numbers, and where nothing is compiled)."""
    if matrix.numel() > LARGE or not _fits((torch.float32, torch.float64), rows, matrix):
        return rows @ matrix
    return multiply(rows, as_array(matrix))


def log_softmax(logits: Float[Tensor, "*n V"]) -> tuple[Float[Tensor, "*n V"], Float[Tensor, "*n V"]]:
    """The logarithms of softmax(logits), in nats, and softmax(logits) itself."""
    if logits[..., :1, :].numel() > LARGE or not _fits((torch.float32,), logits):
        log_probs = torch.log_softmax(logits, dim=-1)
        return log_probs, log_probs.exp()
    x = _flat(logits)
    log_probs, probs = np.empty_like(x), np.empty_like(x)
    kernels().softmax(x, log_probs, probs)
    return torch.from_numpy(log_probs).view(logits.shape), torch.from_numpy(probs).view(logits.shape)


def multiply(rows: Float[Tensor, "*n k"], matrix: np.ndarray) -> Float[Tensor, "*n c"]:
    """`product` where the kernels are known to fit."""
    compiled, x = kernels(), _flat(rows)
    out = np.empty((len(x), matrix.shape[1]), x.dtype)
    size = max(PIECE, -(-len(x) // 16 // PIECE) * PIECE)
    work = x.size * out.shape[1]
    for_each(lambda begin, end: compiled.multiply(x[begin:end], matrix, out[begin:end]), len(x), size, work)
    return torch.from_numpy(out).view(*rows.shape[:-1], matrix.shape[1])


def as_array(tensor: Tensor) -> np.ndarray:
    """The tensor's numbers, row by row in memory."""
    return np.ascontiguousarray(tensor.detach().numpy())


def _flat(rows: Float[Tensor, "*n k"]) -> np.ndarray:
    return as_array(rows).reshape(-1, rows.shape[-1])


def _fits(kinds: tuple[torch.dtype, ...], *tensors: Tensor) -> bool:
    """Whether the kernels can do it: numbers of one of these kinds on a CPU, no gradient asked for, and compiled."""
    plain = all(one.dtype == tensors[0].dtype and one.device.type == "cpu" for one in tensors)
    learning = torch.is_grad_enabled() and any(one.requires_grad for one in tensors)
    return plain and tensors[0].dtype in kinds and not learning and kernels() is not None
