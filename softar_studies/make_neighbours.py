"""What a memory of hidden states saves: python -m softar_studies.make_neighbours

Small models are trained for seconds, three seeds each, on stories and on Shakespeare.
Each then asks a memory of its training text (`NeighbourPredictor`), at three sizes. The share and
the temperature are fitted on one half of the judged documents, for the largest memory, and the
other half judges all sizes, and the control: the same memory with its followers shuffled. Every
cell is saved in runs/neighbours; the same command goes on. It writes data/results/neighbours.csv
and .json.
"""

import math
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from softar_lab import CharTokenizer, Corpus, ModelConfig, SoftAR, TrainConfig, load_corpus, train
from softar_lab.core.cells import cell_path, load_or_run, save_results
from softar_lab.memory.neighbour_predictor import NeighbourPredictor

ROOT = Path(__file__).parents[1]
RESULTS, RUNS = ROOT / "data" / "results" / "neighbours.csv", ROOT / "runs" / "neighbours"
CORPORA, STEPS, SEEDS = ("tales-words", "shakespeare"), (120,), (0, 1, 2)
CONTEXT = 64
SHAPE = {"context": CONTEXT, "n_layers": 1, "n_heads": 2, "d_model": 48}
SIZES = (60, 240, 960)  # stretches of CONTEXT symbols in the memory
JUDGED = 200  # stretches: the first half fits, the second judges
NEIGHBOURS = 16
SHARES, TEMPERATURES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0.3, 1.0, 3.0, 10.0, 30.0)


def recipe(corpus: str, steps: int, seed: int) -> dict:
    """Everything that decides the rows of one cell."""
    return {
        "corpus": corpus,
        "model": SHAPE,
        "training": vars(TrainConfig(steps=steps, eval_every=0)),
        "seed": seed,
        "sizes": list(SIZES),
        "judged": JUDGED,
        "neighbours": NEIGHBOURS,
        "shares": list(SHARES),
        "temperatures": list(TEMPERATURES),
    }


def stretches(corpus: Corpus, split: str, count: int) -> list[str]:
    """The first so many pieces of a split of at most CONTEXT symbols, each of one document."""
    found: list[str] = []
    for document in corpus.documents(split):
        pieces = range(0, len(document), CONTEXT)
        found += [document[begin : begin + CONTEXT] for begin in pieces]
        if len(found) >= count:
            break
    return [piece for piece in found if len(piece) > 1][:count]


class Reading(NamedTuple):
    """What a model makes of texts, at all their N symbols together."""

    hidden: Float[Tensor, "N d"]
    log_probs: Float[Tensor, "N V"]
    symbols: Int64[Tensor, " N"]  # what stands there

    def bits(self, log_probs: Float[Tensor, "N V"]) -> float:
        """Bits per symbol under some probabilities."""
        found = log_probs.gather(1, self.symbols[:, None]).double()
        return -float(found.mean()) / math.log(2)


@torch.no_grad()
def read(model: SoftAR, texts: list[str]) -> Reading:
    """A model's hidden states and predictions, each text by itself."""
    ids = [model.tokenizer.encode(text) for text in texts]
    hidden = [model.hidden_states(one[None, :-1])[0] for one in ids]
    log_probs = [model.next_log_probs(one[None])[0] for one in ids]
    return Reading(torch.cat(hidden), torch.cat(log_probs), torch.cat(ids))


def trained(corpus: Corpus, steps: int, seed: int) -> SoftAR:
    """A model trained from a seed."""
    tokenizer = CharTokenizer.fit(corpus.train)
    model = SoftAR(ModelConfig(vocab_size=tokenizer.vocab_size, **SHAPE), tokenizer, seed)
    recipe = TrainConfig(steps=steps, eval_every=0)
    return train(model, corpus, recipe, seed=seed, progress=False).model


def fitted(model: SoftAR, told: list[str], reading: Reading) -> NeighbourPredictor:
    """A mixture with the share and the temperature that are best on some texts."""
    asks = NeighbourPredictor(model, NEIGHBOURS)
    asks.remember(told)
    found, costs = asks.memory.search(reading.hidden, NEIGHBOURS), {}
    for asks.share, asks.temperature in product(SHARES, TEMPERATURES):
        cost = reading.bits(asks.mixture(found, reading.log_probs))
        costs[asks.share, asks.temperature] = cost
    asks.share, asks.temperature = min(costs, key=costs.get)
    return asks


def rows(name: str, steps: int, seed: int) -> list[dict]:
    """The rows of one cell: what each memory saves, and the control of the largest."""
    corpus = load_corpus(name)
    model = trained(corpus, steps, seed)
    told, judged = stretches(corpus, "train", max(SIZES)), stretches(corpus, "val", JUDGED)
    half = JUDGED // 2
    asks = fitted(model, told, read(model, judged[:half]))
    judging = read(model, judged[half:])
    own = judging.bits(judging.log_probs)
    about = {"share": asks.share, "temperature": asks.temperature, "model": own}

    def row(memory: str, some: NeighbourPredictor) -> dict:
        saved = own - judging.bits(some.mixed(judging.hidden, judging.log_probs))
        return {"memory": memory, "size": len(some.memory), "saved": saved, **about}

    found = []
    for size in SIZES:
        some = NeighbourPredictor(model, NEIGHBOURS, asks.share, asks.temperature)
        some.remember(told[:size])
        found.append(row("followers", some))
    order = torch.randperm(len(some.symbols), generator=torch.Generator().manual_seed(seed))
    some.symbols = some.symbols[order]
    return [*found, row("shuffled", some)]


def main() -> None:
    found, recipes = [], []
    for steps, name, seed in product(STEPS, CORPORA, SEEDS):
        recipes.append(recipe(name, steps, seed))
        cell = cell_path(RUNS, name, steps, seed)
        own = load_or_run(cell, recipes[-1], lambda: rows(name, steps, seed))  # noqa: B023
        found += [{"corpus": name, "steps": steps, "seed": seed, **row} for row in own]
        print(name, steps, seed, [round(row["saved"], 4) for row in own], flush=True)
    keys = ["corpus", "steps", "memory", "size", "seed"]
    save_results(pd.DataFrame(found), recipes, RESULTS, keys)
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
