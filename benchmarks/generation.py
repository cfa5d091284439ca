"""Characters per second, writing positions 256 to 512: ours hard, ours soft, and two peers of the
same size.

    python benchmarks/generation.py --nanogpt ../nanoGPT

Contestants, each given a prompt of 256 characters and asked for 256 more, drawn at temperature 1:
  ours, hard          softar_lab.generate, every token collapsed before it is fed back; ours, soft
  mixture  the same model, never collapsed: the mixture pE is fed back (a symbol is drawn and
  shown); ours, soft raw      a model trained by regression ("mse"), its predicted vector itself fed
  back; Hugging Face        transformers' GPT2LMHeadModel.generate, with its cache, as it comes;
  Hugging Face, tuned the same with GELU in one kernel and without its default top-k filter; nanoGPT
  its own generate, which has no cache (from a clone of it you name).

Weights are untrained: speed does not depend on them. The clock covers the whole call, reading the
prompt included, and for ours everything a Trajectory keeps (vectors, entropy, distances,
candidates). Ours chooses its number of threads itself; each peer gets one or all of them, whichever
was faster in a warm-up, so that none is held back.

How the ratios stay reliable on a noisy machine: the contestants take turns, round after round, and
a ratio is the median over rounds of ratios within one round, where both sides met the same noise.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from peers import (
    NO_TRANSFORMERS,
    has_transformers,
    hugging_face,
    machine,
    markdown,
    nanogpt,
    threads,
    write_json,
)

import softar_lab as lab

PROMPT, NEW = 256, 256  # characters
LETTERS = "".join(map(chr, range(48, 48 + 65)))  # as many symbols as Tiny Shakespeare has
HARD = "ours, hard"


@dataclass
class Contestant:
    """`write(batch, new)` makes `new` characters a row; `threads` None: it chooses for itself."""

    name: str
    write: Callable[[int, int], Any]
    threads: int | None = None

    def seconds(self, batch: int, new: int, count: int | None = None) -> float:
        """How long it takes, on the clock."""
        with threads(count or self.threads or torch.get_num_threads()):
            begin = time.perf_counter()
            self.write(batch, new)
            return time.perf_counter() - begin


def contestants(nanogpt_folder: str | None, prompt: int, new: int) -> list[Contestant]:
    """Everyone there is; ours, hard, first."""
    tokenizer = lab.CharTokenizer.fit(LETTERS)
    size, context = tokenizer.vocab_size, prompt + new
    draws = torch.randint(size, (prompt,), generator=torch.Generator().manual_seed(0))
    text, ids = tokenizer.decode(draws), draws[None]

    def ours(objective: str, **choices: str) -> Callable[[int, int], Any]:
        config = lab.ModelConfig.preset(
            "shakespeare", vocab_size=size, context=context, objective=objective
        )
        model = lab.SoftAR(config, tokenizer).eval()
        return lambda batch, new: lab.generate(
            model, [text] * batch, steps=new, seed=list(range(batch)), **choices
        )

    found = [
        Contestant(HARD, ours("ce", schedule="always")),
        Contestant("ours, soft mixture", ours("ce", schedule="never", feedback="mixture")),
        Contestant("ours, soft raw", ours("mse", schedule="never", feedback="raw")),
    ]
    if has_transformers():

        def hugging_face_writes(tuned: bool) -> Callable[[int, int], Any]:
            model, choices = (
                hugging_face(size, context, tuned=tuned).eval(),
                {"top_k": 0} if tuned else {},
            )

            def write(batch: int, new: int) -> None:
                rows = ids.expand(batch, -1)
                made = model.generate(
                    rows,
                    attention_mask=torch.ones_like(rows),
                    do_sample=True,
                    use_cache=True,
                    min_new_tokens=new,
                    max_new_tokens=new,
                    pad_token_id=0,
                    **choices,
                )
                assert made.shape == (batch, prompt + new), made.shape

            return write

        found.append(Contestant("Hugging Face GPT-2", hugging_face_writes(tuned=False), threads=1))
        found.append(
            Contestant("Hugging Face GPT-2, tuned", hugging_face_writes(tuned=True), threads=1)
        )
    if nanogpt_folder:
        gpt = nanogpt(nanogpt_folder, size, context).eval()
        found.append(
            Contestant(
                "nanoGPT", lambda batch, new: gpt.generate(ids.expand(batch, -1), new), threads=1
            )
        )
    return found


def contest(everyone: list[Contestant], batch: int, rounds: int, new: int) -> list[dict[str, Any]]:
    """Rounds of turns at one batch size; one row each."""
    choices = sorted({1, torch.get_num_threads()})
    for contestant in everyone:  # warm up, and let the peers choose
        short = min(new, 32)
        if contestant.threads is None:
            contestant.seconds(batch, short)
        else:
            tried = {count: [] for count in choices}
            for _ in range(2):
                for count in choices:
                    tried[count].append(contestant.seconds(batch, short, count))
            contestant.threads = min(choices, key=lambda count: min(tried[count]))
    taken = {contestant.name: [] for contestant in everyone}
    for _ in range(rounds):
        for contestant in everyone:
            taken[contestant.name].append(contestant.seconds(batch, new))
    return [
        {
            "batch": batch,
            "contestant": contestant.name,
            "threads": contestant.threads,
            "seconds": taken[contestant.name],
            "per_second": median(batch * new / s for s in taken[contestant.name]),
            "ours_is_faster": median(
                s / hard for s, hard in zip(taken[contestant.name], taken[HARD])
            ),
        }
        for contestant in everyone
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run the contest and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--nanogpt", metavar="FOLDER", help="a clone of karpathy/nanoGPT: the second peer"
    )
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 16, 32], help="prompts at once (%(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns of each contestant (%(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="at most (%(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="keep everything measured")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few steps: does it run at all? Its figures say nothing",
    )
    options = parser.parse_args(arguments)
    prompt, new = PROMPT, NEW
    if options.quick:
        options.batches, options.rounds, prompt, new = [1, 2], 1, 16, 4
    if not has_transformers():
        print(NO_TRANSFORMERS)
    with threads(options.threads):
        everyone = contestants(options.nanogpt, prompt, new)
        rows = []
        for batch in options.batches:
            rows += contest(everyone, batch, options.rounds, new)
        header = ["contestant", "batch", "threads", "characters/s", "times ours, hard, is faster"]
        lines = [
            [r["contestant"], r["batch"], r["threads"] or "own choice", f"{r['per_second']:,.0f}"]
            + [f"{r['ours_is_faster']:.2f}"]
            for r in rows
        ]
        print(f"\n{markdown(header, lines)}\n\npositions {prompt} to {prompt + new}; {machine()}")
        write_json(
            options.json, {"rounds": options.rounds, "prompt": prompt, "new": new, "rows": rows}
        )


if __name__ == "__main__":
    main()
