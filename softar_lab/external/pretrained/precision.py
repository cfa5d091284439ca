"""A network of half precision that computes in float32 for a while, its weights unchanged."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .reading import HALF

AT_ONCE = 2**30  # weights that are held in float32 at once: 4 GB


@contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """Let a network compute in float32; afterwards its weights are what they were, to the bit.

    The weights of a large network are widened block by block, while a block computes.
    """
    held = [*network.parameters(), *network.buffers()]
    if all(one.dtype not in HALF for one in held):
        yield
        return
    blocks = _blocks(network) if sum(one.numel() for one in held) > AT_ONCE else []
    inside = {id(one) for block in blocks for one in _half(block)}
    widened = _Widened(one for one in _half(network) if id(one) not in inside)
    hooks = [hook for block in blocks for hook in _hooked(block)]
    try:
        yield
    finally:
        widened.restore()
        for hook in hooks:
            hook.remove()


class _Widened:
    """Tensors whose content is in float32 until it is restored."""

    def __init__(self, tensors: Iterable[Tensor]):
        self._saved = [(one, one.data) for one in tensors]
        with torch.inference_mode(False), torch.no_grad():
            for one, data in self._saved:
                one.data = data.float()

    def restore(self) -> None:
        """Give each tensor the content that it had."""
        with torch.inference_mode(False), torch.no_grad():
            for one, data in self._saved:
                one.data = data


def _half(module: nn.Module) -> list[Tensor]:
    found = {id(one): one for one in (*module.parameters(), *module.buffers())}
    return [one for one in found.values() if one.dtype in HALF]


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The outermost modules of its lists: its layers."""
    lists = [one for one in network.modules() if isinstance(one, nn.ModuleList)]
    inner = {id(one) for each in lists for block in each for one in block.modules()}
    return [block for each in lists if id(each) not in inner for block in each]


def _hooked(block: nn.Module) -> list[Any]:
    stack: list[_Widened] = []

    def before(*_: Any) -> None:
        stack.append(_Widened(_half(block)))

    def after(*_: Any) -> None:
        stack.pop().restore()

    return [
        block.register_forward_pre_hook(before),
        block.register_forward_hook(after, always_call=True),
    ]
