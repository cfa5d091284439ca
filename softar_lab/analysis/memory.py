"""What a window's memory is worth (K8, K9): how much of what was hidden comes back, and which facts are still known."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..evaluation import distributions, scored_windows
from ..predictor import Predictor
from ..sources.tales import answer, question_parts

AGES = (0, 40, 80, 120, 160)  # characters, where the bins of a fact's age begin
_ASKED = re.compile(r"the (.+?)(?: have)?\?$")


def facts(documents: Sequence[str]) -> pd.DataFrame:
    """Where the answers of tales stand and how old what they ask for is: columns begin, end, age; a row a story.

    `begin`, `end` count characters of all documents in a row; the answer ends with its full stop. A fact's `age` is how
    many characters lie between the end of the sentence that told it and the answer: the one that last changed the
    answer, or, where it was never changed, the last of the opening that names who or what is asked for.
    """
    rows, at = [], 0
    for document in documents:
        told, question, said = question_parts(document)
        begin = at + len(told) + len(question)
        rows.append({"begin": begin, "end": begin + len(said.rstrip()), "age": begin - at - _told(told, question)})
        at += len(document)
    return pd.DataFrame(rows)


def _told(told: str, question: str) -> int:
    """Where the sentence ends that decided the answer."""
    ends = [match.start() + 2 for match in re.finditer(r"\. ", told)]
    answers = []
    for end in reversed(ends):
        try:
            answers.append(answer(told[:end] + question))
        except ValueError:  # nothing had happened yet, or nobody could ask this
            break
        if answers[-1] != answers[0]:
            return ends[len(ends) - len(answers) + 1]
    asked = _ASKED.search(question.strip()).group(1)
    opening = ends[: len(ends) - len(answers) + 1]
    sentences = [told[a:b] for a, b in zip([0, *opening], opening)]
    return next((e for e, sentence in zip(reversed(opening), reversed(sentences)) if asked in sentence), opening[0])


def answers_by_age(model: Predictor, documents: Sequence[str], known: pd.DataFrame) -> pd.DataFrame:
    """For each answer of `facts`: its age, its bits (of all characters together), right (each the most probable)."""
    ids, pieces = scored_windows(model, "".join(documents), "\n", "given")
    log_probs, targets = distributions(model, ids, pieces)
    bits = -log_probs.gather(1, targets[:, None])[:, 0].double().numpy() / np.log(2)
    right = (log_probs.argmax(1) == targets).numpy()
    spans = [slice(begin, end) for begin, end in zip(known["begin"], known["end"])]
    return pd.DataFrame(
        {"age": known["age"], "bits": [bits[s].sum() for s in spans], "right": [right[s].all() for s in spans]}
    )


def recovered(table: pd.DataFrame, control: str = "masked") -> pd.DataFrame:
    """The share of a gap that each layout's memory recovers, a row a corpus, measure, layout and seed.

    `table` is data/results/window.csv. (negative - own) / (negative - positive): nothing hidden is layout "full"; all
    hidden is the same model whose memory is `control`led, or, for control "plain", a model of as many slots that never
    had a memory, which has learned to do without. A share of NaN: there is no gap to speak of.
    """
    keys = ["corpus", "measure", "seed"]
    bits = table[table["measure"].str.endswith("bits") & table["age"].isna()].set_index(keys)
    own = bits[(bits["control"] == "own") & ~bits["layout"].isin(["full", "plain"])]
    full = bits.loc[bits["layout"] == "full", "value"]
    if control == "plain":
        negative = own.join(bits.loc[bits["layout"] == "plain", "value"].rename("negative"))["negative"]
    else:
        hidden = bits[bits["control"] == control].set_index("layout", append=True)["value"].rename("negative")
        negative = own.set_index("layout", append=True).join(hidden).reset_index("layout")["negative"]
    found = own[["layout", "value"]].assign(negative=negative.to_numpy())
    found = found.join(full.rename("positive")).reset_index()
    gap = found["negative"] - found["positive"]
    found["share"] = ((found["negative"] - found["value"]) / gap).where(gap > 0.005)
    return found


def rows_of(values: dict[str, Any], **names: Any) -> list[dict[str, Any]]:
    """Tidy rows, one a measure: (value, n) each, with an age where the measure's name is a pair (measure, age)."""
    rows = []
    for measure, (value, n) in values.items():
        measure, age = measure if isinstance(measure, tuple) else (measure, None)
        rows.append({**names, "measure": measure, "age": age, "value": float(value), "n": int(n)})
    return rows
