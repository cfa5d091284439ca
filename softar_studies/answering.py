"""Does soft thinking help? Shares of right answers, paired question by question (K30).

Each setting is compared with its own control.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from softar_lab.core.estimates import interval
from softar_lab.metrics.texts import distinct_n

NORMAL = 1.96  # standard errors on each side of a mean over many questions: 95 %
RIGHT, WRONG = "x", "."  # one letter per question, so that a table can be paired with another later


def answer_lengths(
    trajectory: Any, decode: Callable[[Any], str], find_answer: Callable[[str], Any]
) -> int:
    """How many tokens pass until the text gives its final answer; all of them where it gives none.

    Args:
        trajectory: has the `token_ids` (T,).
        decode: turns token ids into a text.
        find_answer: reads the answer from a text; None where it finds none.
    """
    ids = trajectory.token_ids
    final = find_answer(decode(ids))
    if final is None:
        return len(ids)
    return next(
        (n for n in range(1, len(ids) + 1) if find_answer(decode(ids[:n])) == final), len(ids)
    )


def answer_row(
    texts: Sequence[str], right: Sequence[bool], lengths: Sequence[int], log_probs: Sequence[float]
) -> dict[str, Any]:
    """The figures of one run over all questions.

    Args:
        texts: one generated text per question.
        right: whether each text is right.
        lengths: tokens up to each answer.
        log_probs: what a judge model gives each text, nats per token; NaN where it was not judged.

    Returns:
        `right`, the share of right answers; `tokens`, the mean number of tokens to the answer;
        `distinct_4`; `judge_log_prob`, the judge's mean; `answers`, every verdict in order, "x" or
        ".".
    """
    written = [text for text in texts if text]
    return {
        "right": float(np.mean(right)),
        "tokens": float(np.mean(lengths)),
        "distinct_4": float(np.nanmean([distinct_n(text, 4) for text in written]))
        if written
        else float("nan"),
        "judge_log_prob": float(np.nanmean(log_probs)),
        "answers": "".join(RIGHT if one else WRONG for one in right),
    }


def verdicts(answers: pd.Series) -> np.ndarray:
    """The share of seeds with a right answer to each question (N,), from their `answers`."""
    return np.mean([[letter == RIGHT for letter in row] for row in answers], axis=0)


def paired_shares(frame: pd.DataFrame) -> pd.DataFrame:
    """Each setting's share right and its gain over the control, with 95 % intervals over questions.

    One row per setting. Seeds are averaged per question first. Differences are taken per question,
    so that the difficulty of a question cancels out.

    Args:
        frame: columns setting, control (the name of another setting, "" for none), seed, answers.

    Returns:
        Columns setting, control, right, low, high, gain, gain_low, gain_high (NaN without a
        control) and seeds.

    Raises:
        ValueError: where a control is not in the table.
    """
    groups = dict(iter(frame.groupby("setting", sort=False)))  # dict() alone would ask for .keys()
    shares = {name: verdicts(group["answers"]) for name, group in groups.items()}
    rows = []
    for name, group in groups.items():
        control = group["control"].iloc[0]
        row = {
            "setting": name,
            "control": control,
            **_interval(shares[name], ("right", "low", "high")),
        }
        if control:
            if control not in shares:
                raise ValueError(f"{name!r} has the control {control!r}, which is not in the table")
            row |= _interval(shares[name] - shares[control], ("gain", "gain_low", "gain_high"))
        rows.append({**row, "seeds": len(group)})
    return pd.DataFrame(rows)


def _interval(values: np.ndarray, names: tuple[str, str, str]) -> dict[str, float]:
    found = interval(values, NORMAL)
    return dict(zip(names, (found["mean"], found["low"], found["high"]), strict=True))
