"""compare(): the same prompts and seeds written in every way, collapse × schedule × feedback, and what that is worth.

A *cell* is one way: it depends on no other, holds a row a seed, and is kept as a file as soon as it is done.
"""

import hashlib
import math
from collections.abc import Collection, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from ..generation import Trajectory, collapse, feedback, generate, schedule
from ..generation.schedule import Always
from ..predictor import Predictor
from .free_texts import score_texts
from .results import cell_path, interval, kept

WAY = ["collapse", "schedule", "feedback"]
CONTROLS = ("shown", "mean", "other", "nearest", "pause")  # feedbacks that ask what a soft token was good for
_AXES = {"collapse": collapse.COLLAPSES, "schedule": schedule.SCHEDULES, "feedback": feedback.FEEDBACKS}


def compare(
    model: Predictor,
    prompts: Sequence[str],
    *,
    collapses: Sequence[Any] = ("softmax",),
    schedules: Sequence[Any] = ("always", "never"),
    feedbacks: Sequence[Any] = ("mixture", "shown"),
    judge: Predictor,
    seeds: int = 3,
    **options: Any,
) -> pd.DataFrame:
    """Write every prompt with every seed in every way, and judge what was written: a row a way, the best first.

    Of each figure of `write_all`, which takes the `options`, the mean over seeds and its 95 % t interval: bits,
    bits_low, bits_high, and so on. `control` marks feedbacks that put something else in the soft token's place;
    "shown" puts the symbol itself there: the same rule and temperatures with hard tokens. A way that the model cannot
    go, such as "vote" without a sampler, has no figures but a `problem` that says why.
    """
    frame = write_all(model, prompts, collapses, schedules, feedbacks, judge, seeds, **options)
    return summary(frame)


def write_all(
    model: Predictor,
    prompts: Sequence[str],
    collapses: Sequence[Any],
    schedules: Sequence[Any],
    feedbacks: Sequence[Any],
    judge: Predictor,
    seeds: int = 3,
    *,
    truth: Predictor | None = None,
    words: Collection[str] | None = None,
    separator: str | None = None,
    steps: int = 256,
    temperature: float | int = 1.0,
    soft_temperature: float | int | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The runs behind `compare`: a row a collapse, schedule, feedback and seed, means over prompts.

    Columns: those of `free_texts.score_texts` by `judge` (bits per character, distinct_4, …; known_words where `words`
    are given); with `truth`, the language the texts should be of, `held`, how many characters a text goes on before one
    that truth holds impossible; `share` of tokens collapsed; `own_bits`, what the model itself gives what it shows.
    All prompts and seeds of a way are written side by side. With `out`, a folder, each way is kept there when it is
    done, and not run again; the folder's name is for the model: it belongs to one.
    Raises ValueError for an unknown name or no prompt, StoreError where `out` holds a cell of another recipe.
    """
    if not len(prompts):
        raise ValueError("no prompt given; an empty string starts from nothing")
    judges = {"judge": judge, "truth": truth}
    told = {
        "prompts": hashlib.sha256("\0".join(prompts).encode()).hexdigest(),
        "seeds": seeds,
        "steps": steps,
        "temperature": temperature,
        "soft_temperature": soft_temperature,
        **{name: type(one).__name__ for name, one in judges.items()},
    }
    settings = {"steps": steps, "temperature": temperature, "soft_temperature": soft_temperature}
    scoring = {**judges, "words": words, "separator": separator}
    ways = [
        tuple(_AXES[name].resolve(part) for name, part in zip(WAY, way, strict=True))
        for way in product(collapses, schedules, feedbacks)
    ]
    rows: list[dict[str, Any]] = []
    always: dict[str, list] = {}  # by collapse: no feedback is ever asked there
    for way in tqdm(ways, disable=not progress, unit="way", desc="compare"):
        names = {name: _AXES[name].spec(part) for name, part in zip(WAY, way, strict=True)}
        run = partial(_run_way, model, prompts, seeds, way, settings, scoring)
        if isinstance(way[1], Always):
            if names["collapse"] not in always:
                always[names["collapse"]] = kept(cell_path(out, names["collapse"], "always"), told, run)
            found = always[names["collapse"]]
        else:
            found = kept(cell_path(out, *names.values()), told, run)
        control = names["feedback"].partition("(")[0] in CONTROLS
        rows += [{**names, "control": control, **row} for row in found]
    return pd.DataFrame(rows)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with their 95 % t intervals: a row a way, fewest bits first; ways with a problem last."""
    by = [name for name in runs if name in ("corpus", "model", *WAY, "soft_temperature", "control", "problem")]
    figures = [name for name in runs.select_dtypes("number") if name not in (*by, "seed")]
    rows = []
    for key, group in runs.groupby(by, sort=False, dropna=False):
        row = {**dict(zip(by, key, strict=True)), "seeds": len(group)}
        for name in figures:
            found = interval(group[name].to_numpy())
            row |= {name: found["mean"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
        rows.append(row)
    found = pd.DataFrame(rows)
    problem = found.pop("problem")
    return found.assign(problem=problem).sort_values("bits", kind="stable", ignore_index=True)


def against_control(runs: pd.DataFrame, figure: str = "bits") -> pd.DataFrame:
    """What softness is worth: a way's `figure` minus that of its same-rule hard control, seed by seed: a row a way.

    The control is feedback "shown" with the same collapse, schedule and temperatures; other controls, schedule "always"
    and ways with a problem have no row. Columns besides the way's: mean, low, high (95 % t interval), seeds; below 0
    the soft tokens cost fewer bits. Raises ValueError where a way has no control.
    """
    runs = runs[(runs["problem"] == "") & (runs["schedule"] != "always")]
    same = [name for name in ("corpus", "model", "collapse", "schedule", "soft_temperature") if name in runs]
    control = runs[runs["feedback"] == "shown"].set_index([*same, "seed"])[figure]
    soft = runs[~runs["control"]].set_index([*same, "seed", "feedback"])[figure]
    less = (soft - control.reindex(soft.index.droplevel("feedback")).to_numpy()).rename("less").reset_index()
    if less["less"].isna().any():
        way = less[less["less"].isna()].iloc[0][["collapse", "schedule", "feedback"]].tolist()
        raise ValueError(f"{way} has no control: measure the same ways with feedback 'shown'")
    groups = less.groupby([*same, "feedback"], sort=False)["less"]
    rows = [{**dict(zip([*same, "feedback"], key)), **interval(group.to_numpy())} for key, group in groups]
    return pd.DataFrame(rows)


def _run_way(
    model: Predictor, prompts: Sequence[str], seeds: int, way: tuple, settings: dict[str, Any], scoring: dict[str, Any]
) -> list[dict[str, Any]]:
    """One way, all prompts and seeds in one batch: a row a seed."""
    count = len(prompts)
    how = dict(zip(WAY, way, strict=True))
    try:
        written = generate(model, [*prompts] * seeds, **how, **settings, seed=range(seeds * count))
    except ValueError as error:
        return [{"seed": seed, "bits": math.nan, "problem": str(error)} for seed in range(seeds)]
    scored = _score(written, **scoring)
    per_seed = scored.groupby(scored.index // count).mean()
    return [
        {"seed": seed, **row, "problem": ""} for seed, row in zip(per_seed.index.tolist(), per_seed.to_dict("records"))
    ]


def _score(
    written: list[Trajectory],
    judge: Predictor,
    truth: Predictor | None,
    words: Collection[str] | None,
    separator: str | None,
) -> pd.DataFrame:
    """A row a text."""
    scored = score_texts(written, judge, words, separator)
    if truth is not None:
        scored["held"] = score_texts(written, truth, None, separator)["scored"].astype(float)
    scored["share"] = [float(one.collapsed.double().mean()) for one in written]
    scored["own_bits"] = [-float(one.log_probs.double().mean()) / math.log(2) for one in written]
    return scored
