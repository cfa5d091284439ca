"""Products and softmax of many rows, where the result of a row does not depend on the other rows.

In PyTorch's products the last digits of a row depend on the other rows. A soft path feeds its
predictions back, so a difference in the last digit reaches the first digit within some tens of
steps. Therefore these compiled functions replace `@` and `log_softmax` on a CPU where no gradient
is needed. A row gives the same result alone and in a batch, bit for bit.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.threads import for_each
from .compiled import kernels

PIECE = 4  # least rows in a piece of work: each number read from a matrix serves all of them
LARGE = 2**22  # numbers in a matrix; above this, reading it takes most time, and PyTorch does it
_WIDE = 1024  # a wider row is not sorted as a whole to order its first few


def product(rows: Float[Tensor, "*n k"], matrix: Float[Tensor, "k c"]) -> Float[Tensor, "*n c"]:
    """rows @ matrix, each row by itself.

    PyTorch computes it where the matrix has more than `LARGE` numbers or the kernels do not apply.
    """
    if matrix.numel() > LARGE or not _fits((torch.float32, torch.float64), rows, matrix):
        return rows @ matrix
    return multiply(rows, as_array(matrix))


def log_softmax(
    logits: Float[Tensor, "*n V"],
) -> tuple[Float[Tensor, "*n V"], Float[Tensor, "*n V"]]:
    """log softmax(logits), in nats, and softmax(logits) itself, each row by itself."""
    if logits[..., :1, :].numel() > LARGE or not _fits((torch.float32,), logits):
        log_probs = torch.log_softmax(logits, dim=-1)
        return log_probs, log_probs.exp()
    x = _flat(logits)
    log_probs, probs = np.empty_like(x), np.empty_like(x)
    kernels().softmax(x, log_probs, probs)
    return torch.from_numpy(log_probs).view(logits.shape), torch.from_numpy(probs).view(
        logits.shape
    )


def largest(scores: Float[Tensor, "N V"], count: int) -> Int[Tensor, "N count"]:
    """The ids of the `count` largest entries of each row, the largest first.

    Of equal ones the smaller id comes first, which PyTorch's topk does not promise.
    """
    # one more than is asked for: only where two of them are equal does the order need care
    best, ids = scores.topk(min(count + 1, scores.shape[1]))
    ids, tied = ids[:, :count], (best[:, 1:] == best[:, :-1]).any(1)
    if tied.any() and scores.shape[1] <= _WIDE:
        ids[tied] = scores[tied].sort(descending=True, stable=True).indices[:, :count]
    elif tied.any():  # a whole row need not be sorted for its first few
        for row in tied.nonzero()[:, 0]:
            at = (scores[row] >= best[row, ids.shape[1] - 1]).nonzero()[:, 0]
            ids[row] = at[scores[row, at].sort(descending=True, stable=True).indices[:count]]
    return ids


def single(x: Float[Tensor, "*n k"]) -> Float[Tensor, "*n k"]:
    """The same numbers in float32, or as they are where they are float64."""
    return x if x.dtype == torch.float64 else x.float()


def multiply(rows: Float[Tensor, "*n k"], matrix: np.ndarray) -> Float[Tensor, "*n c"]:
    """As `product`, for callers that know that the kernels apply."""
    compiled, x = kernels(), _flat(rows)
    out = np.empty((len(x), matrix.shape[1]), x.dtype)
    size = max(PIECE, -(-len(x) // 16 // PIECE) * PIECE)
    work = x.size * out.shape[1]
    for_each(
        lambda begin, end: compiled.multiply(x[begin:end], matrix, out[begin:end]),
        len(x),
        size,
        work,
    )
    return torch.from_numpy(out).view(*rows.shape[:-1], matrix.shape[1])


def as_array(tensor: Tensor) -> np.ndarray:
    """The tensor as a NumPy array in row-major order; a copy only where it has to be."""
    return np.ascontiguousarray(tensor.detach().numpy())


def _flat(rows: Float[Tensor, "*n k"]) -> np.ndarray:
    return as_array(rows).reshape(-1, rows.shape[-1])


def _fits(kinds: tuple[torch.dtype, ...], *tensors: Tensor) -> bool:
    """Whether the kernels apply: one of these types, on a CPU, no gradient needed, and compiled."""
    plain = all(one.dtype == tensors[0].dtype and one.device.type == "cpu" for one in tensors)
    learning = torch.is_grad_enabled() and any(one.requires_grad for one in tensors)
    return plain and tensors[0].dtype in kinds and not learning and kernels() is not None
