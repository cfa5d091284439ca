"""compare(): the same prompts and seeds under every condition, and what each condition is worth.

A condition is one collapse, schedule and feedback. It is one *cell*: it depends on no other, holds
one row per seed, and is saved as a file as soon as it is done.
"""

import math
from collections.abc import Collection, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from .core.cells import cell_path, load_or_run
from .core.checks import sequence, whole_number
from .core.estimates import interval
from .core.fingerprint import fingerprint
from .core.predictor import Predictor
from .generation import Trajectory, collapse, feedback, generate, schedule
from .generation.config import NO_PROMPT, GenerationConfig
from .generation.schedule import Always
from .metrics.drift_readers import HELD_OUT, harm_by_text
from .metrics.free_texts import score_texts

CONDITION = ["collapse", "schedule", "feedback"]
# Feedbacks that test what a soft token was good for.
CONTROLS = ("shown", "mean", "other", "other-text", "nearest", "pause")
_AXES = {
    "collapse": collapse.COLLAPSES,
    "schedule": schedule.SCHEDULES,
    "feedback": feedback.FEEDBACKS,
}


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
    """Write every prompt with every seed under every condition, and judge the texts.

    Args:
        model: writes the texts.
        prompts: what the texts begin with.
        collapses, schedules, feedbacks: names or instances; every combination is a condition.
        judge: the predictor whose bits are counted.
        seeds: how many times each prompt is written.
        options: those of `run_conditions`.

    Returns:
        One row per condition, the best first, named without the parameters that are defaults. Each
        figure of `run_conditions` has its mean over seeds and its 95 % t interval: bits, bits_low,
        bits_high, and so on. `control` marks
        feedbacks that put something else in the soft token's place; "shown" puts the symbol itself
        in its place: the same rule and temperatures with hard tokens. A condition that the model
        does not allow, such as "vote" without a sampler, has no figures but a `problem` that gives
        the reason.
    """
    frame = run_conditions(model, prompts, collapses, schedules, feedbacks, judge, seeds, **options)
    return summary(short_names(frame))


def run_conditions(
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
    refit: Sequence[str] | None = None,
    steps: int = 256,
    temperature: float | int = 1.0,
    soft_temperature: float | int | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The runs behind `compare`: one row per condition and seed, with means over prompts.

    All prompts and seeds of a condition are written side by side.

    Args:
        model, prompts, collapses, schedules, feedbacks, judge, seeds: as in `compare`.
        truth: the language that the texts should be of, if it is known.
        words: the words that count as known.
        separator: the symbol that ends a document.
        refit: beginnings of training texts. From each the model writes one more text, and the
            readers of `metrics.drift_readers` are fitted on these.
        steps: symbols per text.
        temperature, soft_temperature: as in `generate`.
        out: a folder in which each condition is saved when it is done, so that it is not run again.
            It belongs to one model, judge and setting: a cell of another is an error.
        progress: whether to show a progress bar.

    Returns:
        The columns of `free_texts.score_texts` by `judge` (bits per character, distinct_4, …;
        known_words where `words` are given). With `truth` also `held`: how many characters a text
        goes on before one that truth holds impossible. `share`: of the tokens collapsed.
        `own_bits`: what the model itself gives the symbols it emits. With `refit` also, in bits per
        symbol, `harm`: the drift from what the same model predicts after the same symbols, all
        hard; the parts of it, `misread`, which a linear reader refitted on soft paths gets back, and
        `forgotten`, which it does not; `nothing_known`: the drift of one distribution for all
        steps. They are NaN where a path cannot be read again (a schedule that grounds late) or the
        model has no hidden states.

    Raises:
        ValueError: for an unknown name, no prompt, or fewer than 4 texts in `refit`.
        StoreError: where `out` holds a cell of another recipe.
    """
    _check(model, judge, truth, words, separator)
    prompts, seeds = sequence("prompts", prompts, "texts", NO_PROMPT), whole_number("seeds", seeds)
    GenerationConfig(steps=steps, temperature=temperature, soft_temperature=soft_temperature)
    # 1) what a cell depends on
    settings = {"steps": steps, "temperature": temperature, "soft_temperature": soft_temperature}
    scoring = {"judge": judge, "truth": truth, "words": words, "separator": separator}
    if refit is not None:
        scoring["refit"] = _refit_texts(refit)
    recipe = _recipe(model, prompts, seeds, settings, scoring) if out is not None else {}
    # 2) run every condition, or load its cell
    rows: list[dict[str, Any]] = []
    always: dict[str, list] = {}  # rows by collapse: "always" uses no feedback
    conditions = _conditions(collapses, schedules, feedbacks)
    for condition in tqdm(conditions, disable=not progress, unit="way", desc="compare"):
        names = _names(condition)
        run = partial(_run_condition, model, prompts, seeds, condition, settings, scoring)
        if not isinstance(condition[1], Always):
            found = load_or_run(cell_path(out, *names.values()), recipe, run)
        elif names["collapse"] in always:
            found = always[names["collapse"]]
        else:
            found = load_or_run(cell_path(out, names["collapse"], "always"), recipe, run)
            always[names["collapse"]] = found
        rows += _labelled(found, names)
    return pd.DataFrame(rows)


def short_names(runs: pd.DataFrame) -> pd.DataFrame:
    """The same rows with defaults left out of the names of strategies, for labels."""
    labels = {
        column: runs[column].map({name: axis.short(name) for name in runs[column].unique()})
        for column, axis in _AXES.items()
    }
    return runs.assign(**labels)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with their 95 % t intervals, one row per condition.

    The condition with the fewest bits comes first; conditions with a problem come last.
    """
    by = [
        name
        for name in runs
        if name in ("corpus", "model", *CONDITION, "soft_temperature", "control", "problem")
    ]
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
    """What softness is worth: a condition's `figure` minus that of its hard control, seed by seed.

    The control is feedback "shown" with the same collapse, schedule and temperatures: the same rule
    with hard tokens.

    Returns:
        One row per condition, with mean, low, high (95 % t interval) and seeds. Below 0 the soft
        tokens cost fewer bits. Other controls, schedule "always" and conditions with a problem have
        no row.

    Raises:
        ValueError: where a condition has no control.
    """
    runs = runs[(runs["problem"] == "") & (runs["schedule"] != "always")]
    same = [
        name
        for name in ("corpus", "model", "collapse", "schedule", "soft_temperature")
        if name in runs
    ]
    control = runs[runs["feedback"] == "shown"].set_index([*same, "seed"])[figure]
    soft = runs[~runs["control"]].set_index([*same, "seed", "feedback"])[figure]
    less = (
        (soft - control.reindex(soft.index.droplevel("feedback")).to_numpy())
        .rename("less")
        .reset_index()
    )
    if less["less"].isna().any():
        condition = less[less["less"].isna()].iloc[0][["collapse", "schedule", "feedback"]].tolist()
        raise ValueError(f"{condition} has no control: measure the same ways with feedback 'shown'")
    groups = less.groupby([*same, "feedback"], sort=False)["less"]
    rows = [
        {**dict(zip([*same, "feedback"], key)), **interval(group.to_numpy())}
        for key, group in groups
    ]
    return pd.DataFrame(rows)


def _recipe(
    model: Predictor,
    prompts: Sequence[str],
    seeds: int,
    settings: dict[str, Any],
    scoring: dict[str, Any],
) -> dict[str, Any]:
    """What decides the rows of a cell, except its condition; JSON-able."""
    return {
        "prompts": fingerprint([*prompts]),
        "seeds": seeds,
        **settings,
        "model": fingerprint(model),
        **{name: fingerprint(one) for name, one in scoring.items()},
    }


def _check(model: Any, judge: Any, truth: Any, words: Any, separator: Any) -> None:
    """Raise ValueError for what is no model, no words or no separator."""
    for name, one in (("model", model), ("judge", judge), ("truth", truth)):
        if not isinstance(one, Predictor) and not (name == "truth" and one is None):
            raise ValueError(f"{name} must be a predictor, such as a SoftAR, not {one!r:.80}")
    if words is not None and not all(
        isinstance(word, str) for word in sequence("words", words, "texts")
    ):
        raise ValueError(f"words must be a collection of texts, not {words!r:.80}")
    if not isinstance(separator, str | None):
        raise ValueError(f"separator must be a text or None, not {separator!r:.80}")


def _refit_texts(refit: Sequence[str]) -> list[str]:
    """The beginnings as a list; ValueError where they are too few."""
    texts = list(sequence("refit", refit, "texts", "no beginning to fit readers on"))
    if len(texts) < HELD_OUT:
        raise ValueError(f"refit needs at least {HELD_OUT} beginnings, not {len(texts)}")
    return texts


def _conditions(
    collapses: Sequence[Any], schedules: Sequence[Any], feedbacks: Sequence[Any]
) -> list[tuple[Any, ...]]:
    """Every combination of a collapse, a schedule and a feedback, as strategies.

    Raises:
        ValueError: where two of one axis have the same name, which would make their rows one.
    """
    axes = []
    for name, specs in zip(CONDITION, (collapses, schedules, feedbacks), strict=True):
        axis, specs = _AXES[name], sequence(f"{name}s", specs, "names or instances")
        strategies = {axis.spec(one): one for one in (axis.resolve(spec) for spec in specs)}
        if len(strategies) < len(specs):
            names = [axis.spec(axis.resolve(spec)) for spec in specs]
            twice = next(one for one in names if names.count(one) > 1)
            raise ValueError(
                f"two {name}s are named {twice!r}: leave one out, or give a function a name of its own "
                "(register it, or set its __name__)"
            )
        axes.append(strategies.values())
    return list(product(*axes))


def _names(condition: tuple[Any, ...]) -> dict[str, str]:
    """The names of a condition's strategies, with all parameters, by axis."""
    return {name: _AXES[name].spec(part) for name, part in zip(CONDITION, condition, strict=True)}


def _labelled(rows: list[dict[str, Any]], names: dict[str, str]) -> list[dict[str, Any]]:
    """The rows of a condition with its names, and whether it is a control."""
    control = names["feedback"].partition("(")[0] in CONTROLS
    return [{**names, "control": control, **row} for row in rows]


def _run_condition(
    model: Predictor,
    prompts: Sequence[str],
    seeds: int,
    condition: tuple,
    settings: dict[str, Any],
    scoring: dict[str, Any],
) -> list[dict[str, Any]]:
    """One condition, all prompts and seeds in one batch: one row per seed."""
    count = len(prompts)
    how = dict(zip(CONDITION, condition, strict=True))
    try:
        written = generate(model, [*prompts] * seeds, **how, **settings, seed=range(seeds * count))
    except ValueError as error:
        return [{"seed": seed, "bits": math.nan, "problem": str(error)} for seed in range(seeds)]
    refit = scoring.get("refit")
    scored = _score(written, **{name: one for name, one in scoring.items() if name != "refit"})
    if refit is not None:
        first = seeds * count  # seeds of their own
        again = range(first, first + len(refit))
        fitted = generate(model, refit, **how, **settings, seed=again)
        scored = scored.join(harm_by_text(written, fitted, model))
    per_seed = scored.groupby(scored.index // count).mean()
    return [
        {"seed": seed, **row, "problem": ""}
        for seed, row in zip(per_seed.index.tolist(), per_seed.to_dict("records"))
    ]


def _score(
    written: list[Trajectory],
    judge: Predictor,
    truth: Predictor | None,
    words: Collection[str] | None,
    separator: str | None,
) -> pd.DataFrame:
    """One row per text."""
    scored = score_texts(written, judge, words, separator)
    if truth is not None:
        scored["held"] = score_texts(written, truth, None, separator)["scored"].astype(float)
    scored["share"] = [float(one.collapsed.double().mean()) for one in written]
    scored["own_bits"] = [-float(one.log_probs.double().mean()) / math.log(2) for one in written]
    return scored
