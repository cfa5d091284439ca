"""Seconds of training to 1.90 and to 1.88 nats per character on the whole Shakespeare validation
split.

    python benchmarks/training.py --nanogpt ../nanoGPT

Contestants, all of one size, on one corpus, with the same number of processor threads:
  ours           softar_lab.train with its default recipe (softar_lab.TrainConfig); Hugging Face
  transformers' GPT2LMHeadModel, trained with the settings nanoGPT documents for a CPU; nanoGPT
  its own model.py (from a clone you name), in the same loop with the same settings.

How the ratios stay reliable on a noisy machine: everything runs in one process, in turns of a
second or so. After every four steps of ours each peer makes its share, so that at any time all
contestants are at the same part of their own runs, and whatever slows the machine down for longer
than a turn slows all of them alike. Only updates are on the clock: `train` counts its own, and the
peers work inside its `on_step`, where its clock stands still. One run after the other would let a
busy minute hit one contestant alone, and averaging that out over rounds would take hours.

What is scored: windows of 64 characters side by side, every character but the text's first, as
softar_lab.evaluate does (`softar_lab.models.scoring.windows`); nobody sees more than 64 characters.
All are evaluated at the same shares of their runs (at each twentieth: a peer every 100 iterations),
and the moment a loss is reached is interpolated linearly between two evaluations. Where a peer
never reaches it within its documented 2,000 iterations, all its time is a lower bound, ≥.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from peers import (
    NO_TRANSFORMERS,
    has_transformers,
    hugging_face,
    hugging_face_loss,
    machine,
    markdown,
    n_parameters,
    nanogpt,
    nanogpt_loss,
    threads,
    write_json,
)
from torch import Tensor, nn

from softar_lab import CharTokenizer, Corpus, ModelConfig, SoftAR, TrainConfig, load_corpus, train
from softar_lab.models.scoring import windows

CONTEXT = 64
TARGETS = (1.90, 1.88)  # nats per character
MOST_PARAMETERS = 850_000
TURN = 4  # steps of ours before it is the peers' turn

# nanoGPT's README, "I only have a macbook": python train.py config/train_shakespeare_char.py
# --device=cpu
# --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128
# --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0; the rest is from that configuration file and train.py.
ITERATIONS, BATCH, WARMUP, RATE, LEAST_RATE = 2000, 12, 100, 1e-3, 1e-4
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.99), 0.1, 1.0


class Peer:
    """A contestant in training: nanoGPT's loop around any model that has a loss(x, y)."""

    def __init__(
        self, name: str, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], seed: int
    ):
        self.name, self.model, self.loss = name, model.train(), loss
        self.iteration, self.seconds = 0, 0.0
        self.history: list[
            tuple[float, float]
        ] = []  # (seconds of training, nats on the whole split)
        self.generator = torch.Generator().manual_seed(seed)
        parameters = list(model.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS)

    def train_to(
        self, iteration: int, total: int, ids: Tensor, evaluate_every: int, val_ids: Tensor
    ) -> None:
        """Train on until `iteration` of `total` are done; the clock runs for the updates alone."""
        while self.iteration < iteration:
            begin = time.perf_counter()
            for group in self.optimizer.param_groups:
                group["lr"] = rate(self.iteration, total)
            first = torch.randint(len(ids) - CONTEXT, (BATCH,), generator=self.generator)
            rows = ids[first[:, None] + torch.arange(CONTEXT + 1)]  # (B, T+1)
            loss = self.loss(rows[:, :-1], rows[:, 1:])
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            loss.item()
            self.seconds += time.perf_counter() - begin
            self.iteration += 1
            if self.iteration % evaluate_every == 0 or self.iteration == total:
                self.model.eval()
                self.history.append((self.seconds, whole_split(self.loss, val_ids)))
                self.model.train()


def rate(iteration: int, total: int) -> float:
    """nanoGPT's learning rate: a linear rise, then a cosine down to a tenth."""
    if iteration < WARMUP:
        return RATE * (iteration + 1) / (WARMUP + 1)
    share = (iteration - WARMUP) / max(1, total - WARMUP)
    return LEAST_RATE + 0.5 * (1 + math.cos(math.pi * min(1.0, share))) * (RATE - LEAST_RATE)


@torch.inference_mode()
def whole_split(loss: Callable[[Tensor, Tensor], Tensor], ids: Tensor) -> float:
    """Mean nats per character of a whole text, cut and scored as softar_lab.evaluate does."""
    total, scored = 0.0, 0
    pieces = [ids[begin:end] for begin, end, _ in windows(ids, CONTEXT, None)]
    full = [piece for piece in pieces if len(piece) == CONTEXT + 1]
    groups = [torch.stack(full[i : i + 64]) for i in range(0, len(full), 64)]
    groups += [piece[None] for piece in pieces if len(piece) != CONTEXT + 1]
    for rows in groups:
        count = rows.shape[0] * (rows.shape[1] - 1)
        total += loss(rows[:, :-1], rows[:, 1:]).item() * count
        scored += count
    return total / scored


def reached(history: list[tuple[float, float]], target: float) -> float | None:
    """Seconds at which the loss first was at the target, on straight lines between evaluations;
    None: never.
    """
    before = None
    for seconds, nats in history:
        if nats <= target:
            if before is None:
                return seconds
            share = (before[1] - target) / (before[1] - nats)
            return before[0] + share * (seconds - before[0])
        before = (seconds, nats)
    return None


def contest(corpus: Corpus, options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Train all contestants side by side once; one row each, ours first."""
    tokenizer = CharTokenizer.fit(corpus.train + corpus.val + corpus.test)
    ids, val_ids = tokenizer.encode(corpus.train), tokenizer.encode(corpus.val)
    size = tokenizer.vocab_size
    peers = []
    if has_transformers():
        model = hugging_face(size, CONTEXT, seed)
        peers.append(Peer("Hugging Face GPT-2", model, hugging_face_loss(model), seed))
    if options.nanogpt:
        model = nanogpt(options.nanogpt, size, CONTEXT, seed)
        peers.append(Peer("nanoGPT", model, nanogpt_loss(model), seed))
    ours = SoftAR(ModelConfig.preset("shakespeare", vocab_size=size), tokenizer, seed)
    if ours.n_parameters() > MOST_PARAMETERS:
        raise SystemExit(
            f"ours has {ours.n_parameters():,} parameters, more than the {MOST_PARAMETERS:,} allowed"
        )

    def peers_turn(event: dict[str, Any]) -> None:
        if event["step"] % TURN and event["step"] != event["steps"]:
            return
        for peer in peers:
            goal = options.iterations * event["step"] // event["steps"]
            peer.train_to(
                goal,
                options.iterations,
                ids,
                -(-options.iterations // options.evaluations),
                val_ids,
            )

    recipe = replace(
        TrainConfig(),
        steps=options.steps,
        eval_every=-(-options.steps // options.evaluations),
        save_every=0,
    )
    run = train(ours, corpus, recipe, seed=seed, device="cpu", on_step=peers_turn)
    if run.interrupted:
        raise SystemExit("interrupted: no table")
    history = list(zip(run.history["seconds"].tolist(), run.history["val_nats_per_char"].tolist()))
    rows = [row("ours", n_parameters(ours), history, history)]
    return rows + [
        row(peer.name, n_parameters(peer.model), peer.history, history) for peer in peers
    ]


def row(
    name: str, parameters: int, history: list[tuple[float, float]], ours: list[tuple[float, float]]
) -> dict:
    """What one contestant did: seconds to each target, and how many times ours that is.

    `ratios`: {target: (times, whether that is only a lower bound)}; the last target is the
    contestant's own last loss.
    """
    seconds, nats = history[-1]
    to, ratios = {}, {}
    for label, target in (*((f"{target:.2f}", target) for target in TARGETS), ("own", nats)):
        to[label] = seconds if label == "own" else reached(history, target)
        reference = reached(ours, target)
        if reference:
            ratios[label] = ((to[label] or seconds) / reference, to[label] is None)
    return {
        "contestant": name,
        "parameters": parameters,
        "seconds": seconds,
        "nats": nats,
        "to": to,
        "ratios": ratios,
        "history": history,
    }


def table(rounds: list[list[dict[str, Any]]]) -> str:
    """The markdown table: medians over the rounds; a ratio is ≥ where in any round it is a lower
    bound.
    """
    labels = [f"{target:.2f}" for target in TARGETS]
    header = ["contestant", "parameters", "seconds of training", "nats, whole split"]
    header += [f"s to {label}" for label in labels] + [f"× ours to {label}" for label in labels]
    lines = []
    for entries in zip(*rounds):
        line = [entries[0]["contestant"], f"{entries[0]['parameters']:,}"]
        line += [
            f"{median(e['seconds'] for e in entries):.1f}",
            f"{median(e['nats'] for e in entries):.3f}",
        ]
        for label in labels:
            got = [e["to"][label] for e in entries if e["to"][label] is not None]
            missed = len(entries) - len(got)
            parts = ([f"{median(got):.1f}"] if got else []) + (
                [f"never in {missed} of {len(entries)}"] if missed else []
            )
            line.append(", ".join(parts))
        lines.append([*line, *(times(entries, label) for label in (*labels, "own"))])
    return markdown([*header, "× ours to its own last loss"], lines)


def times(entries: tuple[dict[str, Any], ...], label: str) -> str:
    """The median ratio of a target over the rounds; a dash where ours did not get there."""
    ratios = [entry["ratios"].get(label) for entry in entries]
    if None in ratios:
        return "–"
    sign = "≥ " if any(bound for _, bound in ratios) else ""
    return f"{sign}{median(ratio for ratio, _ in ratios):.2f}"


def main(arguments: list[str] | None = None) -> None:
    """Run the contest and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--nanogpt", metavar="FOLDER", help="a clone of karpathy/nanoGPT: the second peer"
    )
    parser.add_argument(
        "--steps", type=int, default=TrainConfig().steps, help="steps of ours (%(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=1, help="whole contests, each with its own seed (%(default)s)"
    )
    parser.add_argument(
        "--evaluations", type=int, default=20, help="evaluations a contestant (%(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="of each contestant (%(default)s)",
    )
    parser.add_argument("--corpus", default="shakespeare", help="name or file (%(default)s)")
    parser.add_argument(
        "--json", metavar="FILE", help="keep everything measured, every evaluation included"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few steps: does it run at all? Its figures say nothing",
    )
    options = parser.parse_args(arguments)
    options.iterations = ITERATIONS
    corpus = load_corpus(options.corpus)
    if options.quick:
        options.steps, options.iterations, options.evaluations = 4, 8, 2
        corpus = replace(corpus, val=corpus.val[:1000])
    if not has_transformers():
        print(NO_TRANSFORMERS)
    with threads(options.threads):
        rounds = [contest(corpus, options, seed) for seed in range(options.rounds)]
        print(
            f"\n{table(rounds)}\n\n{corpus.name}, {len(corpus.val):,} characters scored; {machine()}"
        )
        write_json(
            options.json, {"steps": options.steps, "corpus": corpus.sha256, "rounds": rounds}
        )


if __name__ == "__main__":
    main()
