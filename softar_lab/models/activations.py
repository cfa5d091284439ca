"""The activations of a transformer's wide layers."""

from functools import partial

from torch import Tensor
from torch.nn import functional as F


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) · up, where x holds gate and up side by side: (..., 2n) -> (..., n).

    Source:
        arXiv 2002.05202.
    """
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


MLPS = {"gelu": F.gelu, "gelu-tanh": partial(F.gelu, approximate="tanh"), "swiglu": swiglu}
