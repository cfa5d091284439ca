"""Does a step cost more the longer the text was? A structured window beside plain attention.

    python benchmarks/window.py

Contestants, each asked for the same number of steps (predict, then read one more token) behind
1,000 characters of text and behind 100,000:
  structured window   the default: aggregate, two segment sums, 97 hard tokens and 28 soft ones,
  each kind of memory; plain attention     the same body over everything read so far, with its
  key-value cache.

The steps measured span whole cycles of a window, from renewal to renewal, so that each side pays
for as many. The plain model's cache is filled with numbers, not text: it costs the same. Weights
are untrained: speed does not depend on them. "state" is what has to be kept to read on.

The two lengths take turns, round after round, and a ratio is the median over rounds of ratios
within one round.
"""

import argparse
import time
from statistics import median
from typing import Any

import torch
from peers import machine, markdown, threads, write_json

import softar_lab as lab
from softar_lab.models.state import SoftState

SIZE, SHAPE = 65, {"n_layers": 4, "n_heads": 4, "d_model": 128}
KINDS = ["sum", "ema", "rotated", "bound", "gist"]


def windowed(kind: str, lengths: list[int]) -> tuple[lab.SoftAR, list[SoftState], int]:
    """A model with the default window, its states behind texts of these lengths, and the steps of
    two windows.

    The lengths are rounded down to where a window is just full, so that both states are in the same
    place of a cycle.
    """
    config = lab.ModelConfig(vocab_size=SIZE, context=128, window=lab.Window(kind=kind), **SHAPE)
    model = lab.SoftAR(config).eval()
    ids = torch.randint(SIZE, (1, max(lengths)), generator=torch.Generator().manual_seed(0))
    states, state, read, stride = [], model.start(), 0, config.layout.stride(config.context)
    for length in lengths:
        length -= (length - config.tokens) % stride
        for piece in ids[:, read:length].split(1000, 1):
            state = model.read(state, piece)
        read = length
        states.append(state)
    return model, states, 2 * stride


def plain(lengths: list[int], steps: int) -> tuple[lab.SoftAR, list[SoftState], int]:
    """The same without a window: states whose caches are as full as these texts would leave
    them.
    """
    config = lab.ModelConfig(vocab_size=SIZE, context=max(lengths) + steps, **SHAPE)
    model, states = lab.SoftAR(config).eval(), []
    for length in lengths:
        state = model.start()
        cache = state.cache.reserve(1, length + steps)
        for one in (cache.keys, cache.values):
            one.uniform_(generator=torch.Generator().manual_seed(0))
        cache.filled = cache.shared = length + 1
        states.append(
            SoftState(cache, length, state.hidden, (torch.zeros(1, length, config.embedding_dim),))
        )
    return model, states, steps


@torch.inference_mode()
def seconds(model: lab.SoftAR, state: SoftState, steps: int) -> float:
    """How long so many steps take from a state."""
    state.cache.filled = (
        state.length + model.n_front
    )  # what an earlier round wrote behind it is written over
    token_id, begin = torch.zeros(1, dtype=torch.long), time.perf_counter()
    for _ in range(steps):
        model.predict(state)
        state = model.advance(state, token_ids=token_id)
    return time.perf_counter() - begin


def kilobytes(state: SoftState, model: lab.SoftAR) -> float:
    """What a state holds: cache, tokens of the window, memory."""
    read = slice(state.length + model.n_front)
    kept = [one[..., read, :] for one in (state.cache.keys, state.cache.values)] + [
        *state.inputs,
        *state.memory_state,
    ]
    return sum(one.numel() * one.element_size() for one in kept) / 1024


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns of each length (%(default)s)")
    parser.add_argument(
        "--lengths", type=int, nargs=2, default=[1000, 100_000], help="characters read before"
    )
    parser.add_argument("--threads", type=int, default=1, help="processor threads (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="keep everything measured")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few steps: does it run at all? Its figures say nothing",
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.lengths = 1, [200, 400]
    rows: list[dict[str, Any]] = []
    with threads(options.threads):
        for name in [*KINDS, "plain attention"]:
            model, states, steps = (
                plain(options.lengths, 64) if name not in KINDS else windowed(name, options.lengths)
            )
            sizes = [kilobytes(state, model) for state in states]
            taken: list[list[float]] = [[], []]
            for _ in range(options.rounds + 1):  # the first warms up
                for state, times in zip(states, taken):
                    times.append(1000 * seconds(model, state, steps) / steps)
            short, long = (times[1:] for times in taken)
            ratios = sorted(b / a for a, b in zip(short, long))
            rows.append(
                {"contestant": name, "ms": [short, long], "ratios": ratios, "kilobytes": sizes}
            )
        header = [
            "memory",
            "ms a step",
            "behind the longer text",
            "ratio",
            "lowest – highest",
            "state, KiB",
            "longer",
        ]
        lines = [
            [
                r["contestant"],
                *(f"{median(ms):.3f}" for ms in r["ms"]),
                f"{median(r['ratios']):.3f}",
            ]
            + [
                f"{r['ratios'][0]:.2f} – {r['ratios'][-1]:.2f}",
                *(f"{size:,.0f}" for size in r["kilobytes"]),
            ]
            for r in rows
        ]
        texts = " and ".join(f"{length:,}" for length in options.lengths)
        print(
            f"\n{markdown(header, lines)}\n\nbehind {texts} characters; {options.rounds} rounds; {machine()}"
        )
        write_json(
            options.json, {"rounds": options.rounds, "lengths": options.lengths, "rows": rows}
        )


if __name__ == "__main__":
    main()
