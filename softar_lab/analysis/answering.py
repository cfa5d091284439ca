"""Does soft thinking help? Shares of right answers, each paired, question by question, with its own control (K30)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..estimates import Estimate
from .texts import distinct_n

RIGHT, WRONG = "x", "."  # one letter a question, so that a table can be paired with another later


def answer_lengths(trajectory: Any, decode: Callable[[Any], str], said: Callable[[str], Any]) -> int:
    """How many tokens were shown when the text first said what it says in the end; all of them where it says nothing.

    `said` reads a text: what it answers, or None. `trajectory` has the `token_ids` (T,).
    """
    ids = trajectory.token_ids
    final = said(decode(ids))
    if final is None:
        return len(ids)
    return next((n for n in range(1, len(ids) + 1) if said(decode(ids[:n])) == final), len(ids))


def answer_row(
    texts: Sequence[str], right: Sequence[bool], lengths: Sequence[int], log_probs: Sequence[float]
) -> dict[str, Any]:
    """What one run of all questions is worth: share right, mean tokens to the answer, distinct_4, judge's log p.

    `log_probs`: what a judge gives each text, nats a token. `answers` keeps every verdict, "x" or ".", in order.
    """
    said = [text for text in texts if text]
    return {
        "right": float(np.mean(right)),
        "tokens": float(np.mean(lengths)),
        "distinct_4": float(np.nanmean([distinct_n(text, 4) for text in said])) if said else float("nan"),
        "judge_log_prob": float(np.nanmean(log_probs)),
        "answers": "".join(RIGHT if one else WRONG for one in right),
    }


def verdicts(answers: pd.Series) -> np.ndarray:
    """`answers` of several seeds as the share right of each question (N,)."""
    return np.mean([[letter == RIGHT for letter in row] for row in answers], axis=0)


def paired_shares(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a setting: its share right, and by how much that beats its control, with 95 % intervals over questions.

    `frame` has the columns setting, control (the name of another setting, "" for none), seed and answers. Seeds are
    averaged question by question first, and differences are taken question by question, so that how hard a question
    is falls out. Columns: right, low, high, gain, gain_low, gain_high (NaN without a control), seeds.
    Raises ValueError for a control that is not there.
    """
    groups = dict(iter(frame.groupby("setting", sort=False)))  # dict() alone takes its keys for a mapping's
    shares = {name: verdicts(group["answers"]) for name, group in groups.items()}
    rows = []
    for name, group in groups.items():
        control = group["control"].iloc[0]
        row = {"setting": name, "control": control, **_interval(shares[name], ("right", "low", "high"))}
        if control:
            if control not in shares:
                raise ValueError(f"{name!r} has the control {control!r}, which is not in the table")
            row |= _interval(shares[name] - shares[control], ("gain", "gain_low", "gain_high"))
        rows.append({**row, "seeds": len(group)})
    return pd.DataFrame(rows)


def _interval(values: np.ndarray, names: tuple[str, str, str]) -> dict[str, float]:
    found = Estimate.mean(values)
    half = 1.96 * found.standard_error
    return dict(zip(names, (float(found), found - half, found + half), strict=True))
