"""The fair table (K1, K7, K29): every objective on the same body, text, budget and seeds, read in every way it can be.

A *cell* is one training run: corpus × objective × table × seed. It gives one row a readout, depends on no other cell,
and is kept as a file as soon as it is done, so that an interrupted table goes on where it was.
"""

import json
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from ..batches import TrainConfig, TrainingRows
from ..evaluation import distributions, document_begins, encode, evaluate, scored_windows, separator_id
from ..models.compiled import switched_off
from ..models.config import ModelConfig
from ..models.objectives import make_objective
from ..models.soft_ar import SoftAR, pick_device
from ..models.targets import TABLES
from ..predictor import Predictor
from ..sources.corpora import Corpus
from ..sources.tokenizers import CharTokenizer
from ..training import TrainingDiverged, make_optimizers, train, update
from .metrics import brier_lm, calibration
from .results import cell_path, interval, kept

WAY = ["corpus", "objective", "table", "readout"]
RUN = [*WAY, "seed"]  # what tells one row from all others
TRAINED = ["seconds_per_step", "embedding_rank", "embedding_norm"]
FIGURES = ["bits", "excess", "top1", "brier_1", "brier_2", "brier_3", "brier_4", "brier_lm", "ece"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every cell gets alike: `model`, the body's shape as ModelConfig's fields; `train`, the recipe.

    An "embedding_dim" in `model` does not hold for orthonormal tables, which are as wide as the vocabulary.
    `chars` of validation text (to the end of a document) are scored, `rows` stretches of it give BrierLM.
    `arguments` of readouts: by default votes are counted over 200 draws.
    """

    model: dict[str, Any]
    train: TrainConfig
    chars: int = 20_000
    rows: int = 128
    arguments: dict[str, str] = field(default_factory=lambda: {"votes": "votes(200)"})

    @classmethod
    def from_recipe(cls, told: dict[str, Any]) -> "Budget":
        """The budget written down in a recipe."""
        given = {name: told[name] for name in ("model", "chars", "rows", "arguments")}
        return cls(train=TrainConfig(**told["train"]), **given)

    def config(self, vocab_size: int, objective: str, table: str) -> ModelConfig:
        """The model of a cell. The cheapest readout that training can do with: others are fitted afterwards."""
        shape = dict(self.model)
        if TABLES.name_of(table) == "orthonormal":
            shape.pop("embedding_dim", None)
        config = ModelConfig(vocab_size=vocab_size, objective=objective, table=table, **shape)
        return replace(config, readout="tau") if "tau" in readouts(config) else config


def readouts(config: ModelConfig) -> tuple[str, ...]:
    """The readouts that make sense for a model's objective, the default first."""
    with torch.device("meta"):
        return make_objective(config.objective, None, 1, 1, 1).readouts


def fair_table(
    objectives: Sequence[str],
    targets: Sequence[str],
    corpus: Corpus,
    seeds: int | Sequence[int],
    budget: Budget,
    *,
    truth: Predictor | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train every objective on every target table with every seed, and judge each on the same validation text.

    With `out`, a folder, each cell is kept there when it is done, and cells that are there are not run again. Cells of
    one seed see the same batches. A row a cell and readout: `bits` per character, `excess` over what `truth`, the
    language behind the corpus, needs for the same text (NaN without one), `top1`, `brier_1` … `brier_4`, `brier_lm`,
    `ece`, seconds and multiply-adds a step, parameters trained, the table's effective rank and mean norm at the end.
    `problem` says why figures are missing.
    Raises StoreError where `out` holds a cell of another recipe, or a damaged one; KeyboardInterrupt on Ctrl-C.
    """
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    told, rows = recipe(corpus, budget), []
    cells = list(product(objectives, targets, seeds))
    for objective, table, seed in tqdm(cells, disable=not progress, unit="cell", desc=f"fair table {corpus.name}"):
        path = cell_path(out, corpus.name, objective, table, seed)
        rows += kept(path, told, partial(run_cell, objective, table, corpus, seed, budget, truth))
    return pd.DataFrame(rows)


def recipe(corpus: Corpus, budget: Budget) -> dict[str, Any]:
    """All that decides a cell's figures but for its objective, table and seed; JSON-able."""
    return {"corpus": corpus.name, "sha256": corpus.sha256, **json.loads(json.dumps(asdict(budget)))}


def run_cell(
    objective: str, table: str, corpus: Corpus, seed: int, budget: Budget, truth: Predictor | None = None
) -> list[dict[str, Any]]:
    """One cell: train, then a row a readout. Raises KeyboardInterrupt where training is stopped: that is no cell."""
    tokenizer = CharTokenizer.fit(corpus.train)
    scored = replace(corpus, val=_first_documents(corpus, budget.chars))
    model = SoftAR(budget.config(tokenizer.vocab_size, objective, table), tokenizer, seed).to(pick_device())
    cell = {"corpus": corpus.name, "objective": objective, "table": table, "seed": seed}
    cell |= {"embedding_dim": model.config.embedding_dim, "parameters": model.n_parameters()}
    rows = TrainingRows(model, corpus, budget.train, seed)
    cell["multiply_adds_per_step"] = multiply_adds(model, rows, budget.train)
    ways = [budget.arguments.get(name, name) for name in readouts(model.config)]
    try:
        run = train(model, scored, budget.train, seed=seed, progress=False)
        if run.interrupted:
            raise KeyboardInterrupt
        if not math.isfinite(run.val_bits_per_char):  # finite weights may still be too large to compute with
            raise TrainingDiverged(f"bits per character are {run.val_bits_per_char} at the end")
    except TrainingDiverged as error:
        cell |= dict.fromkeys(TRAINED, math.nan)
        return [{**cell, "readout": way, **dict.fromkeys(FIGURES, math.nan), "problem": str(error)} for way in ways]
    last = run.history.iloc[-1]
    cell |= {"seconds_per_step": last["seconds"] / budget.train.steps}
    cell |= {name: last[name] for name in ("embedding_rank", "embedding_norm")}
    stretches = _stretches(model, corpus, budget.rows)
    floor = math.nan if truth is None else evaluate(truth, scored.val, corpus.separator) / math.log(2)
    return [{**cell, **read(model, way, rows, scored, stretches, floor)} for way in ways]


def read(
    model: SoftAR, readout: str, rows: TrainingRows, corpus: Corpus, stretches: Int[Tensor, "B T"], floor: float
) -> dict[str, Any]:
    """What one readout of a trained model is worth: fitted on training rows, judged on corpus.val."""
    model = model.with_readout(readout)
    rows.calibrate(model)
    log_probs, targets = distributions(model, *scored_windows(model, corpus.val, corpus.separator, "validation"))
    bits = -log_probs.gather(1, targets[:, None]).double().mean().item() / math.log(2)
    drawn = brier_lm(model, stretches, prefixes=range(0, stretches.shape[1] - 3, max(1, stretches.shape[1] // 8)))
    return {
        "readout": readout,
        "bits": bits,
        "excess": bits - floor,
        "top1": (log_probs.argmax(1) == targets).double().mean().item(),
        **{f"brier_{n}": float(value) for n, value in enumerate(drawn.brier, 1)},
        "brier_lm": float(drawn.score),
        "ece": float(calibration(log_probs.exp(), targets).ece),
        "problem": drawn.problem,
    }


def multiply_adds(model: SoftAR, rows: TrainingRows, config: TrainConfig) -> int:
    """Multiply-adds of matrix products in one whole training step, optimizer included; the model stays as it is.

    Attention is spelled out, in full squares: of the CPU's fused kernel the counter would see nothing.
    """
    model = deepcopy(model)
    with switched_off(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        update(model, rows, 0, make_optimizers(model, config), config)
    return counter.get_total_flops() // 2


def summary(frame: pd.DataFrame, value: str = "bits", against: tuple[str, str] | None = None) -> pd.DataFrame:
    """Mean over seeds and its 95 % t interval: a row a corpus, objective, table and readout, the best first.

    `against` (objective, table): each run's difference to the run of that cell with the same seed, which saw the same
    batches, so that what the seeds have in common falls out; of its readouts the best one counts. Runs without a value
    are left out. Columns: mean, low, high, seeds.
    Raises ValueError where there is no run to compare with.
    """
    frame, up = frame.dropna(subset=[value]), value.startswith(("top1", "brier"))  # up: more is better
    if against is not None:
        other = frame[(frame["objective"] == against[0]) & (frame["table"] == against[1])]
        if other.empty:
            raise ValueError(f"no run of {against[0]} on {against[1]} to compare with")
        base = other.groupby(["corpus", "seed"])[value].agg("max" if up else "min").rename("base")
        frame = frame.join(base, on=["corpus", "seed"]).dropna(subset=["base"])
        frame = frame.assign(**{value: frame[value] - frame["base"]})
    rows = [
        {**dict(zip(WAY, key, strict=True)), **interval(group[value].to_numpy())} for key, group in frame.groupby(WAY)
    ]
    found = pd.DataFrame(rows, columns=[*WAY, "mean", "low", "high", "seeds"])
    return found.sort_values(["corpus", "mean"], ascending=[True, not up], ignore_index=True)


# -- parts ------------------------------------------------------------------------------------------------------------


def _first_documents(corpus: Corpus, chars: int) -> str:
    """The first `chars` characters of validation text, and the rest of the document they end in."""
    if corpus.separator is None or len(corpus.val) <= chars:
        return corpus.val[:chars]
    end = corpus.val.find(corpus.separator, chars - 1)
    return corpus.val if end < 0 else corpus.val[: end + len(corpus.separator)]


def _stretches(model: SoftAR, corpus: Corpus, rows: int) -> Int[Tensor, "B T"]:
    """Rows of the model's context, evenly spread over the validation text; of documents, from where one begins."""
    ids, length = encode(model, corpus.val, "validation"), model.config.tokens
    begins = torch.arange(len(ids))
    if corpus.separator:
        begins = document_begins(ids, separator_id(model, corpus.separator))
    begins = begins[begins <= len(ids) - length]
    chosen = begins[torch.linspace(0, len(begins) - 1, min(rows, len(begins))).long()]
    return ids[chosen[:, None] + torch.arange(length)]
