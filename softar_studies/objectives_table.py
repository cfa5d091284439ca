"""The fair table (K1, K7, K29): every objective on the same body, text, budget and seeds.

Every trained model is read by each readout that suits it. A *cell* is one training run: corpus ×
objective × table × seed. It gives one row per readout and depends on no other cell. It is saved as
a file when it is done, so that an interrupted table resumes where it stopped.
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

from softar_lab.core.cells import cell_path, load_or_run
from softar_lab.core.estimates import interval
from softar_lab.core.predictor import Predictor
from softar_lab.data.corpora import Corpus
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.metrics.distributions import brier_lm, calibration
from softar_lab.models.compiled import switched_off
from softar_lab.models.config import ModelConfig
from softar_lab.models.device import pick_device
from softar_lab.models.embedding_tables import TABLES
from softar_lab.models.objectives import OBJECTIVES, READOUTS, make_objective
from softar_lab.models.scoring import (
    distributions,
    document_begins,
    encode,
    evaluate,
    scored_windows,
    separator_id,
)
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.config import TrainConfig
from softar_lab.training.data import TrainingRows
from softar_lab.training.loop import Run, TrainingDiverged, train
from softar_lab.training.update import make_optimizers, update

CONDITION = ["corpus", "objective", "table", "readout"]
RUN = [*CONDITION, "seed"]  # identifies a row
TRAINED = ["seconds_per_step", "embedding_rank", "embedding_norm"]
FIGURES = ["bits", "excess", "top1", "brier_1", "brier_2", "brier_3", "brier_4", "brier_lm", "ece"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The shape, training and scoring that all cells share.

    Args:
        model: the body's shape, as fields of ModelConfig. "embedding_dim" is ignored for
            orthonormal tables, which are as wide as the vocabulary.
        train: the recipe of training.
        chars: characters of validation text that are scored, extended to the end of a document.
        rows: stretches of validation text that BrierLM uses.
        arguments: arguments of readouts; by default votes are counted over 200 draws.
    """

    model: dict[str, Any]
    train: TrainConfig
    chars: int = 20_000
    rows: int = 128
    arguments: dict[str, str] = field(default_factory=lambda: {"votes": "votes(200)"})

    @classmethod
    def from_recipe(cls, recorded: dict[str, Any]) -> "Budget":
        """The budget recorded in a recipe."""
        given = {name: recorded[name] for name in ("model", "chars", "rows", "arguments")}
        return cls(train=TrainConfig(**recorded["train"]), **given)

    def config(self, vocab_size: int, objective: str, table: str) -> ModelConfig:
        """The config of a cell, with the cheapest readout that training can use.

        The other readouts are fitted afterwards.
        """
        shape = dict(self.model)
        if TABLES.name_of(table) == "orthonormal":
            shape.pop("embedding_dim", None)
        config = ModelConfig(vocab_size=vocab_size, objective=objective, table=table, **shape)
        return replace(config, readout="tau") if "tau" in readouts(config) else config


def readouts(config: ModelConfig) -> tuple[str, ...]:
    """The readouts that suit a model's objective, the default first."""
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
    """Train every objective on every table with every seed; judge all on the same validation text.

    Cells of one seed see the same batches.

    Args:
        objectives: names of objectives.
        targets: names of embedding tables.
        corpus: the text of all cells.
        seeds: the seeds, or their number.
        budget: what all cells share.
        truth: the language behind the corpus.
        out: a folder in which each finished cell is saved; saved cells are not run again.
        progress: whether to show a progress bar.

    Returns:
        One row per cell and readout: `bits` per character; `excess` over the bits that `truth`
        needs for the same text (NaN without one); `top1`, `brier_1` … `brier_4`, `brier_lm`, `ece`;
        seconds and multiply-adds per step; trained parameters; effective rank and mean norm of the
        table at the end. `problem` gives the reason for missing figures.

    Raises:
        StoreError: where `out` holds a damaged cell or one of another recipe.
        KeyboardInterrupt: on Ctrl-C.
    """
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    settings, rows = recipe(corpus, budget), []
    cells = list(product(objectives, targets, seeds))
    for objective, table, seed in tqdm(
        cells, disable=not progress, unit="cell", desc=f"fair table {corpus.name}"
    ):
        path = cell_path(out, corpus.name, objective, table, seed)
        rows += load_or_run(
            path, settings, partial(run_cell, objective, table, corpus, seed, budget, truth)
        )
    return pd.DataFrame(rows)


def recipe(corpus: Corpus, budget: Budget) -> dict[str, Any]:
    """Everything that determines a cell's figures except objective, table and seed; JSON-able."""
    return {
        "corpus": corpus.name,
        "sha256": corpus.sha256,
        **json.loads(json.dumps(asdict(budget))),
    }


def run_cell(
    objective: str,
    table: str,
    corpus: Corpus,
    seed: int,
    budget: Budget,
    truth: Predictor | None = None,
) -> list[dict[str, Any]]:
    """Train one cell, then give one row per readout.

    Raises:
        KeyboardInterrupt: where training is stopped, because such a run is no cell.
    """
    # 1) the model, its batches and their price
    tokenizer = CharTokenizer.fit(corpus.train)
    scored = replace(corpus, val=_first_documents(corpus, budget.chars))
    config = budget.config(tokenizer.vocab_size, objective, table)
    model = SoftAR(config, tokenizer, seed).to(pick_device())
    rows = TrainingRows(model, corpus, budget.train, seed)
    cell = _description(model, corpus, seed)
    cell["multiply_adds_per_step"] = multiply_adds(model, rows, budget.train)
    # 2) its readouts
    specs = [
        READOUTS.complete(budget.arguments.get(name, name), None, None)
        for name in readouts(model.config)
    ]
    # 3) train; a run that diverges gives rows without figures
    try:
        run = _finite_run(model, scored, budget.train, seed)
    except TrainingDiverged as error:
        cell |= dict.fromkeys(TRAINED, math.nan)
        missing = {**dict.fromkeys(FIGURES, math.nan), "problem": str(error)}
        return [{**cell, "readout": spec, **missing} for spec in specs]
    # 4) judge each readout
    last = run.history.iloc[-1]
    cell |= {"seconds_per_step": last["seconds"] / budget.train.steps}
    cell |= {name: last[name] for name in ("embedding_rank", "embedding_norm")}
    stretches = _stretches(model, corpus, budget.rows)
    floor = (
        math.nan if truth is None else evaluate(truth, scored.val, corpus.separator) / math.log(2)
    )
    return [{**cell, **read(model, spec, rows, scored, stretches, floor)} for spec in specs]


def read(
    model: SoftAR,
    readout: str,
    rows: TrainingRows,
    corpus: Corpus,
    stretches: Int[Tensor, "B T"],
    floor: float,
) -> dict[str, Any]:
    """What one readout of a model achieves: fitted on training rows, judged on corpus.val."""
    model = model.with_readout(readout)
    rows.calibrate(model)
    log_probs, targets = distributions(
        model, *scored_windows(model, corpus.val, corpus.separator, "validation")
    )
    bits = -log_probs.gather(1, targets[:, None]).double().mean().item() / math.log(2)
    drawn = brier_lm(
        model, stretches, prefixes=range(0, stretches.shape[1] - 3, max(1, stretches.shape[1] // 8))
    )
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
    """Multiply-adds of the matrix products in one training step, optimizer included.

    The model is not changed. Attention is computed as plain products of full squares, because the
    counter cannot see inside the CPU's fused kernel.
    """
    model = deepcopy(model)
    with switched_off(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        update(model, rows, 0, make_optimizers(model, config), config)
    return counter.get_total_flops() // 2


def short_names(frame: pd.DataFrame) -> pd.DataFrame:
    """The same rows, with defaults left out of the names of objective, table and readout.

    The short names are for labels.
    """
    registries = {"objective": (OBJECTIVES, 3), "table": (TABLES, 3), "readout": (READOUTS, 2)}
    labels = {
        column: frame[column].map(
            {name: registry.short(name, *[None] * first) for name in frame[column].unique()}
        )
        for column, (registry, first) in registries.items()
    }
    return frame.assign(**labels)


def summary(
    frame: pd.DataFrame, value: str = "bits", against: tuple[str, str] | None = None
) -> pd.DataFrame:
    """Mean over seeds and its 95 % t interval, the best first.

    One row per corpus, objective, table and readout. Runs without a value are left out.

    Args:
        frame: rows of `fair_table`.
        value: the figure to average.
        against: (objective, table) of a cell to compare with. Each run then counts by its
            difference to the run of that cell with the same seed, which saw the same batches, so
            that what the seeds have in common cancels out. The best readout of that run is used.

    Returns:
        Columns corpus, objective, table, readout, mean, low, high, seeds.

    Raises:
        ValueError: where `against` names a cell without a run.
    """
    # up: a larger value is better
    frame, up = frame.dropna(subset=[value]), value.startswith(("top1", "brier"))
    if against is not None:
        other = frame[(frame["objective"] == against[0]) & (frame["table"] == against[1])]
        if other.empty:
            raise ValueError(f"no run of {against[0]} on {against[1]} to compare with")
        base = other.groupby(["corpus", "seed"])[value].agg("max" if up else "min").rename("base")
        frame = frame.join(base, on=["corpus", "seed"]).dropna(subset=["base"])
        frame = frame.assign(**{value: frame[value] - frame["base"]})
    rows = [
        {**dict(zip(CONDITION, key, strict=True)), **interval(group[value].to_numpy())}
        for key, group in frame.groupby(CONDITION)
    ]
    found = pd.DataFrame(rows, columns=[*CONDITION, "mean", "low", "high", "seeds"])
    return found.sort_values(["corpus", "mean"], ascending=[True, not up], ignore_index=True)


# -- parts -----------------------------------------------------------------------------------------


def _description(model: SoftAR, corpus: Corpus, seed: int) -> dict[str, Any]:
    """What identifies a cell, and the size of its model."""
    return {
        "corpus": corpus.name,
        "objective": model.config.objective,
        "table": model.config.table,
        "seed": seed,
        "embedding_dim": model.config.embedding_dim,
        "parameters": model.n_parameters(),
    }


def _finite_run(model: SoftAR, corpus: Corpus, config: TrainConfig, seed: int) -> Run:
    """Train to the end, without a progress bar.

    Raises:
        TrainingDiverged: where a number is not finite in training or in the last evaluation.
        KeyboardInterrupt: where training is stopped.
    """
    run = train(model, corpus, config, seed=seed, progress=False)
    if run.interrupted:
        raise KeyboardInterrupt
    # finite weights may still be too large to compute with
    if not math.isfinite(run.val_bits_per_char):
        raise TrainingDiverged(f"bits per character are {run.val_bits_per_char} at the end")
    return run


def _first_documents(corpus: Corpus, chars: int) -> str:
    """The first `chars` characters of validation text, up to the end of the last document."""
    if corpus.separator is None or len(corpus.val) <= chars:
        return corpus.val[:chars]
    end = corpus.val.find(corpus.separator, chars - 1)
    return corpus.val if end < 0 else corpus.val[: end + len(corpus.separator)]


def _stretches(model: SoftAR, corpus: Corpus, rows: int) -> Int[Tensor, "B T"]:
    """Rows as long as the model's context, spread evenly over the validation text.

    In a corpus of documents, each row begins where a document begins.
    """
    ids, length = encode(model, corpus.val, "validation"), model.config.tokens
    begins = torch.arange(len(ids))
    if corpus.separator:
        begins = document_begins(ids, separator_id(model, corpus.separator))
    begins = begins[begins <= len(ids) - length]
    chosen = begins[torch.linspace(0, len(begins) - 1, min(rows, len(begins))).long()]
    return ids[chosen[:, None] + torch.arange(length)]
