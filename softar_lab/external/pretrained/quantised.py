"""Matrices in NF4 by the library bitsandbytes, and what a bit costs (K32).

NF4 stores each weight as one of 16 quantiles of a normal distribution, times a scale for 64 of
them; the scales are stored in 8 bits. Such a network is frozen: adapters are trained in front of
it. What it loses is measured on a copy in float32 that holds the rounded matrices.

Source:
    QLoRA, arXiv 2305.14314; SpQR, arXiv 2306.03078, for the weights that stay exact.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .errors import PretrainedError
from .weights import Int8

QUANTISED = ("nf4",)


@lru_cache
def bitsandbytes() -> Any:
    """The library, loaded when it is first needed.

    Raises:
        PretrainedError: where it is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise PretrainedError('bitsandbytes missing: pip install "softar-lab[adapting]"')
    # it asks a hub for faster kernels, and says so where it cannot
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes as library

    return library


# -- a network in NF4 ------------------------------------------------------------------------------


def matrices(network: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a causal language model by name, without its head."""
    head = network.get_output_embeddings()
    layers = network.named_modules()
    return {name: one for name, one in layers if type(one) is nn.Linear and one is not head}


def to_nf4(network: nn.Module) -> nn.Module:
    """Replace the linear layers of a causal language model by layers in NF4; the head stays.

    The network is changed. It computes in float32.

    Raises:
        PretrainedError: where bitsandbytes is missing, or there is nothing to store in NF4.
    """
    found = matrices(network)
    if not found:
        kind = network.config.model_type
        raise PretrainedError(f"{kind} has no linear layers of PyTorch's that NF4 could store")
    for name, layer in found.items():
        network.set_submodule(name, nf4_layer(layer))
    network.is_loaded_in_4bit = True  # by this, peft knows which layers it adapts
    return network


def nf4_layer(layer: nn.Linear) -> nn.Linear:
    """A linear layer with its matrix in NF4.

    On processors with AVX512-BF16 the library would rearrange the matrix in the first evaluation.
    A product with that arrangement has no gradient, and no error says so: every adapter behind it
    would stop to learn. So this is turned off.
    """
    library = bitsandbytes()
    options = {"compute_dtype": torch.float32, "quant_type": "nf4", "device": "meta"}
    new = library.nn.Linear4bit(layer.in_features, layer.out_features, bias=False, **options)
    new.bias = layer.bias
    new.support_avx512bf16_for_cpu = False
    new.weight = library.nn.Params4bit(
        layer.weight.detach().float().contiguous(),
        requires_grad=False,
        quant_type="nf4",
        compress_statistics=True,
    )
    return new.to(layer.weight.device)


def is_nf4(layer: nn.Module) -> bool:
    """Whether a layer's matrix is stored in NF4; a layer inside an adapter counts, too."""
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    return type(weight).__name__ == "Params4bit"


def holds_nf4(network: nn.Module) -> bool:
    """Whether any matrix of a network is stored in NF4."""
    return any(is_nf4(layer) for layer in network.modules())


def matrix_of(layer: nn.Module) -> Float[Tensor, "out in"]:
    """The matrix of a layer, in float32; of one in NF4, what the library makes of it."""
    if not is_nf4(layer):
        return layer.weight.detach().float()
    weight = layer.weight
    return bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state).float()


# -- what a bit costs ------------------------------------------------------------------------------


def nf4(matrix: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """A matrix as NF4 stores it."""
    library = bitsandbytes().functional
    codes, state = library.quantize_4bit(
        matrix.float().contiguous(), compress_statistics=True, quant_type="nf4"
    )
    return library.dequantize_4bit(codes, state).float()


def int8(matrix: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """A matrix in 8 bits, each row with a scale of its own."""
    return Int8(tuple(matrix.shape), [matrix]).matrix()


ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {"nf4": nf4, "int8": int8}


def with_exact(
    matrix: Float[Tensor, "out in"],
    exact: Bool[Tensor, "out in"],
    rounding: Callable[[Tensor], Tensor] = nf4,
) -> Float[Tensor, "out in"]:
    """A matrix whose marked weights stay exact, to the bit; the others are rounded without them.

    The marked weights stand apart, so they do not stretch the scales of their blocks.
    """
    rest = rounding(matrix.masked_fill(exact, 0))
    return torch.where(exact, matrix, rest)


def largest(scores: Float[Tensor, "out in"], share: float | int) -> Bool[Tensor, "out in"]:
    """Which entries belong to the largest `share` of all; of equal ones the first.

    Raises:
        ValueError: unless the share lies in [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], not {share!r}")
    order = scores.flatten().sort(descending=True, stable=True).indices
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    chosen[order[: round(share * len(order))]] = True
    return chosen.view(scores.shape)


def importance(
    network: nn.Module, token_ids: Int[Tensor, "B T"]
) -> dict[str, Float[Tensor, "out in"]]:
    """How much each weight matters on a text: w² times the mean square of what it multiplies.

    Args:
        network: a causal language model in float32.
        token_ids: the text it reads.
    """
    squares: dict[str, Tensor] = {}
    layers = matrices(network)

    def measuring(name: str) -> Callable:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            squares[name] = inputs[0].float().square().flatten(0, -2).mean(0)

        return hook

    hooks = [one.register_forward_pre_hook(measuring(name)) for name, one in layers.items()]
    try:
        with torch.inference_mode():
            network(input_ids=token_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: layers[name].weight.detach().square() * one for name, one in squares.items()}


@contextmanager
def rounded(
    network: nn.Module,
    kind: str,
    exact: dict[str, Bool[Tensor, "out in"]] | None = None,
    only: Callable[[str], bool] = lambda name: True,
) -> Iterator[nn.Module]:
    """A network that computes with rounded matrices as long as the block lasts.

    Args:
        network: a causal language model in float32; afterwards it is as before, to the bit.
        kind: one of ROUNDINGS.
        exact: which weights stay exact, by layer.
        only: which layers are rounded.

    Raises:
        ValueError: for another kind.
    """
    if kind not in ROUNDINGS:
        raise ValueError(f"kind must be one of {', '.join(ROUNDINGS)}, not {kind!r}")
    rounding = ROUNDINGS[kind]
    layers = {name: one for name, one in matrices(network).items() if only(name)}
    before = {name: one.weight.data for name, one in layers.items()}
    try:
        with torch.no_grad():
            for name, layer in layers.items():
                marked = (exact or {}).get(name)
                whole = before[name]
                layer.weight.data = (
                    rounding(whole) if marked is None else with_exact(whole, marked, rounding)
                )
        yield network
    finally:
        for name, layer in layers.items():
            layer.weight.data = before[name]


def sharing_copy(module: nn.Module) -> nn.Module:
    """A copy of a module with modules of its own, which share every weight with the original."""
    held = [*module.parameters(), *module.buffers()]
    return deepcopy(module, {id(one): one for one in held})
