"""How fast a text is cut into units: the lab's tokenizers beside the library `tokenizers`, which
they stand on.

    python benchmarks/cutting.py

Both have the same units and cut the same words. The library reads the whole text, its own way of
splitting into words included; the lab splits first and asks the library once for every distinct
word. They take turns, so that both meet the same noise, and their ids are compared first.
"""

import argparse
import time
from statistics import median
from typing import Any

from peers import machine, markdown, threads, write_json
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from softar_lab import BPETokenizer, CharTokenizer, GrowingTokenizer, load_corpus

SIZES = (256, 1024)


def alone(tokenizer: BPETokenizer | GrowingTokenizer) -> Tokenizer:
    """The library by itself, with the same units."""
    ids = {token: i for i, token in enumerate(tokenizer.tokens)}
    library = Tokenizer(models.BPE(ids, list(tokenizer.merges)))
    library.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^\s]+|\s"), "isolated")
    return library


def contest(name: str, tokenizer: Any, text: str, runs: int) -> list[Any]:
    """A row of the table: seconds of alternating runs, as megabytes of UTF-8 a second."""
    sides = {"ours": tokenizer.encode}
    if not isinstance(tokenizer, CharTokenizer):
        library = alone(tokenizer)
        sides["library"] = lambda text: library.encode(text).ids
        assert sides["library"](text) == tokenizer.encode(text).tolist(), (
            f"{name}: the two cut differently"
        )
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for run in range(runs + 1):
        for side, encode in sides.items():
            begin = time.perf_counter()
            encode(text)
            if run:  # the first one warms up
                taken[side].append(time.perf_counter() - begin)
    megabytes = len(text.encode()) / 1e6
    speeds = [megabytes / median(times) for times in taken.values()]
    ratio = f"{median(b / a for a, b in zip(*taken.values())):.2f}" if len(taken) == 2 else ""
    return [name, *(f"{speed:.1f}" for speed in speeds), *[""] * (2 - len(speeds)), ratio]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--corpus", default="shakespeare", help="whose training text is cut (%(default)s)"
    )
    parser.add_argument("--runs", type=int, default=9, help="alternating runs (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="keep everything measured")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="little text, few runs: does it run? Its figures say nothing",
    )
    options = parser.parse_args(arguments)
    text = load_corpus(options.corpus).train[: 20_000 if options.quick else None]
    with threads(1):
        made = {"characters": CharTokenizer.fit(text)}
        for size in SIZES:
            made[f"BPE, {size} tokens"] = BPETokenizer.fit(text, size)
            made[f"growing, {size} tokens"] = GrowingTokenizer.fit(text, size)
        rows = [
            contest(name, one, text, 2 if options.quick else options.runs)
            for name, one in made.items()
        ]
    print(f"\n{markdown(['', 'ours, MB/s', 'the library, MB/s', 'ours/library'], rows)}\n")
    print(
        f"{options.corpus}, {len(text):,} characters; medians of {options.runs} runs; {machine()}"
    )
    write_json(options.json, {"rows": rows})


if __name__ == "__main__":
    main()
