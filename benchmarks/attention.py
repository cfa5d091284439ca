"""Why training in bf16 on a CPU spells attention out: the backward pass of torch's fused kernel
beside three products.

    python benchmarks/attention.py

Both compute causal attention of 16 rows × 4 heads × width 32 in bf16, as softar_lab trains them:
once by torch's scaled_dot_product_attention, once as `softar_lab.models.transformer.attend` does.
They take turns, so that both meet the same noise; the minimum is what the processor can do, the
median what it did.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from peers import machine, markdown, threads, write_json
from torch import Tensor
from torch.nn import functional as F

from softar_lab.models.transformer import attend

ROWS, HEADS, WIDTH = 16, 4, 32
LENGTHS = (65, 257, 401)


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Torch's own kernel, (B, heads, T, width)."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def spelled_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What the lab does instead, (B, heads, T, width)."""
    return attend(query, key, value, None)


def once(
    attention: Callable[..., Tensor], inputs: list[Tensor], gradient: Tensor
) -> tuple[float, float]:
    """Seconds forward and backward."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    begin = time.perf_counter()
    mixed = attention(*leaves)
    middle = time.perf_counter()
    torch.autograd.grad(mixed, leaves, gradient)
    return middle - begin, time.perf_counter() - middle


def contest(length: int, runs: int) -> dict[str, Any]:
    """Alternating runs at one length; seconds of each."""
    generator = torch.Generator().manual_seed(length)
    shape = (4, ROWS, length, HEADS, WIDTH)  # heads cut from one row of features, as in a model
    *inputs, gradient = torch.randn(shape, generator=generator).to(torch.bfloat16).transpose(2, 3)
    difference = (fused(*inputs).float() - spelled_out(*inputs).float()).abs().max().item()
    assert difference < 0.05, f"the two differ by {difference}"
    taken = {fused: [], spelled_out: []}
    for run in range(runs + 2):
        for attention, times in taken.items():
            seconds = once(attention, inputs, gradient)
            if run >= 2:  # the first two warm up
                times.append(seconds)
    return {"length": length, "fused": taken[fused], "spelled_out": taken[spelled_out]}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--runs", type=int, default=40, help="alternating runs a length (%(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="(%(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="keep everything measured")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few runs: does it run at all? Its figures say nothing",
    )
    options = parser.parse_args(arguments)
    with threads(options.threads):
        results = [contest(length, 2 if options.quick else options.runs) for length in LENGTHS]
        lines = []
        for result in results:
            for name, of in (
                ("forward", lambda s: s[0]),
                ("backward", lambda s: s[1]),
                ("both", sum),
            ):
                a, b = (
                    [of(seconds) for seconds in result[side]] for side in ("fused", "spelled_out")
                )
                milliseconds = [f"{1e3 * f(side):.2f}" for side in (a, b) for f in (min, median)]
                ratios = [f"{min(a) / min(b):.2f}", f"{median(x / y for x, y in zip(a, b)):.2f}"]
                lines.append([f"{result['length']}, {name}", *milliseconds, *ratios])
        header = [
            "T, pass",
            "fused ms: min",
            "median",
            "spelled out ms: min",
            "median",
            "fused/spelled: min",
            "median",
        ]
        print(
            f"\n{markdown(header, lines)}\n\nbf16, {ROWS} rows × {HEADS} heads × width {WIDTH}; {machine()}"
        )
        write_json(options.json, {"results": results})


if __name__ == "__main__":
    main()
