"""The lab on a GPU: python tools/gpu_test.py [--device cuda] [--quick]

In at most 8 minutes: every answer of the device is compared with the CPU's (one step at a time,
from equal states, within bounds derived from float32's rounding), then a training, generation of
one row and of 32 rows, and a pretrained model are timed on both, taking turns. It prints a table
and ends with exit code 1 where an answer is wrong. `--device cpu` tries the script itself.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch

import softar_lab as lab
from softar_lab.core.predictor import Predictor
from softar_studies.random_model import random_pretrained

UNIT = 2.0**-24  # float32's unit roundoff
SETTINGS = {"objective": ("ce", "mse", "energy"), "schedule": ("always", "never", "every(4)")}
PROMPT = "Once upon a time "


def models(device: str, quick: bool) -> Iterator[tuple[str, Predictor, Predictor]]:
    """(name, on the CPU, on the device) of one model for each objective and a pretrained one."""
    corpus = lab.load_corpus("topics")
    tokenizer = lab.CharTokenizer.fit(corpus.train)
    for objective in SETTINGS["objective"][: 1 if quick else None]:
        config = lab.ModelConfig(vocab_size=tokenizer.vocab_size, objective=objective)
        model = lab.SoftAR(config, tokenizer)
        twin = lab.SoftAR(config, tokenizer)
        twin.load_state_dict(model.state_dict())
        yield objective, model.eval(), twin.to(device).eval()
    yield "pretrained", random_pretrained(), random_pretrained.__wrapped__().to(device)


@torch.inference_mode()
def step_error(on_cpu: Predictor, on_device: Predictor) -> tuple[float, float]:
    """(largest difference of log-probs over 64 steps from equal texts, what rounding explains).

    The bound: a sum of n terms is off by at most n units of its terms' size; the logits of these
    models are sums over fewer than 1,024 terms of size about 1, through fewer than 16 layers.
    """
    ids = on_cpu.tokenizer.encode(PROMPT * 4)[:64][None]
    cpu = on_cpu.log_probs(ids)
    other = on_device.log_probs(ids.to(on_device.device)).cpu()
    return float((cpu - other).abs().max()), 1024 * 16 * UNIT


def alternating(cpu: Callable[[], object], device: Callable[[], object], rounds: int) -> float:
    """How many times as fast the device is: the median over rounds in which both take turns."""
    cpu(), device()  # compile, fill caches
    ratios = []
    for _ in range(rounds):
        seconds = []
        for work in (cpu, device):
            begin = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
        ratios.append(seconds[0] / seconds[1])
    return median(ratios)


def writing(model: Predictor, rows: int, schedule: str, steps: int) -> Callable[[], object]:
    return lambda: lab.generate(model, [PROMPT] * rows, steps=steps, schedule=schedule, seed=0)


def training(device: str, steps: int) -> Callable[[], object]:
    corpus = lab.load_corpus("topics")
    tokenizer = lab.CharTokenizer.fit(corpus.train)
    config = lab.ModelConfig(vocab_size=tokenizer.vocab_size, objective="mse")
    recipe = lab.TrainConfig(steps=steps, eval_every=0, save_every=0)

    def work() -> object:
        model = lab.SoftAR(config, tokenizer).to(device)
        return lab.train(model, corpus, recipe, progress=False)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else None)
    parser.add_argument("--quick", action="store_true", help="one model, few steps")
    given = parser.parse_args()
    if given.device is None:
        sys.exit("no GPU that PyTorch can use: nothing to test (--device cpu tries the script)")
    steps, rounds = (16, 1) if given.quick else (128, 3)
    wrong = []
    # 1) the answers
    pairs = list(models(given.device, given.quick))
    for name, on_cpu, on_device in pairs:
        error, bound = step_error(on_cpu, on_device)
        print(
            f"{name:<12} log-probs differ by {error:.1e}, rounding explains {bound:.1e}", flush=True
        )
        wrong += [name] * (error > bound)
        for schedule in SETTINGS["schedule"]:
            texts = writing(on_device, 2, schedule, steps)()
            whole = all(len(one.token_ids) == steps for one in texts)
            print(f"{name:<12} writes {schedule}: {'whole' if whole else 'WRONG'}", flush=True)
            wrong += [f"{name} {schedule}"] * (not whole)
    # 2) the time, as a ratio
    print("\nwhat                      times the CPU's speed")
    ratio = alternating(training("cpu", steps), training(given.device, steps), rounds)
    print(f"training                  {ratio:.2f}", flush=True)
    for name, on_cpu, on_device in (pairs[0], pairs[-1]):
        for rows in (1, 32):
            cpu, device = (writing(m, rows, "never", steps) for m in (on_cpu, on_device))
            print(
                f"{name:<12} {rows:>3} rows     {alternating(cpu, device, rounds):.2f}", flush=True
            )
    sys.exit(f"wrong: {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
