"""What drafting can gain: passes of several slots, and heads that are always right.

    python benchmarks/drafting.py

A draft saves passes, but a pass of several slots costs more than one of a single slot. Two figures
of untrained models, by their width:
  pass of k slots     its processor time beside that of one slot, behind 200 tokens;
  heads always right  plain generation's time beside drafted generation's, where every proposal is
                      right: a bound that no heads pass.

All heads are zero, so they agree; texts at temperature 0. Plain and drafted texts take turns, and a
ratio is the median over rounds of ratios within one round.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from peers import machine, markdown, threads, write_json

import softar_lab as lab
from softar_lab.models.compiled_decoder import CompiledDecoder

SIZE, SLOTS, MOST = 65, (2, 4, 8), 8


def model_of(width: int) -> lab.SoftAR:
    """A model whose objective and heads say the same: each symbol is as probable as any other."""
    config = lab.ModelConfig(
        vocab_size=SIZE, context=512, d_model=width, levels=f"multi-token({MOST})"
    )
    tokenizer = lab.CharTokenizer.fit("".join(map(chr, range(48, 48 + SIZE))))
    model = lab.SoftAR(config, tokenizer).eval()
    for head in (model.objective.head, *(one.objective.head for one in model.levels.levels)):
        head.weight.data.zero_()
    return model


def took(function: Callable[[], object]) -> float:
    """Seconds of this thread's processor time."""
    begin = time.thread_time()
    function()
    return time.thread_time() - begin


@torch.inference_mode()
def passes(model: lab.SoftAR, rounds: int) -> list[float]:
    """What a pass of each of SLOTS costs beside one of a single slot, in compiled code alone."""
    state = model.read(model.start(), torch.zeros(1, 200, dtype=torch.long))
    cache = state.cache.reserve(201, MOST)
    decoder, times = cache.decoder, {count: [] for count in (1, *SLOTS)}
    if not isinstance(decoder, CompiledDecoder):
        raise SystemExit("there is no compiled code here: numba is missing, or still compiling")
    arrays = decoder.arrays(cache)
    for _ in range(rounds):
        for count, found in times.items():
            x = np.zeros((1, count, model.config.d_model), np.float32)
            about = (x, 201, *decoder.body, arrays, np.empty_like(x))
            found.append(took(lambda about=about: decoder.kernels.read(0, 1, *about)))
    return [
        median(many / one for one, many in zip(times[1], times[count], strict=True))
        for count in SLOTS
    ]


def always_right(model: lab.SoftAR, rounds: int, steps: int) -> float:
    """The time of plain generation beside that of drafted generation."""
    choices, ratios = {"steps": steps, "temperature": 0}, []
    for _ in range(rounds + 1):  # the first warms up
        plain = took(lambda: lab.generate(model, "", **choices))
        ratios.append(
            plain / took(lambda: lab.generate(model, "", **choices, draft=f"levels({MOST}, 0)"))
        )
    return median(ratios[1:])


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns (%(default)s)")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 512, 1024])
    parser.add_argument("--json", metavar="FILE", help="keep everything measured")
    parser.add_argument("--quick", action="store_true", help="does it run at all?")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.widths = 1, [16]
    rows = []
    with threads(1):
        for width in options.widths:
            model = model_of(width)
            steps = 20 if options.quick else max(40, 40_000 // width)
            costs = passes(model, 20 * options.rounds)
            rows.append([width, *costs, always_right(model, options.rounds, min(steps, 256))])
    header = ["width", *(f"pass of {count} slots" for count in SLOTS), "heads always right"]
    lines = [[str(width), *(f"{one:.2f}" for one in figures)] for width, *figures in rows]
    print(f"\n{markdown(header, lines)}\n\n4 layers; {options.rounds} rounds; {machine()}")
    write_json(options.json, {"rounds": options.rounds, "header": header, "rows": rows})


if __name__ == "__main__":
    main()
