"""What a window's memory is worth (K8, K9): how much it recovers, and which facts it retains."""

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from softar_lab.data.languages.tales import answer, question_parts

AGES = (0, 40, 80, 120, 160)  # characters: where the bins of a fact's age begin
_ASKED = re.compile(r"the (.+?)(?: have)?\?$")


def facts(documents: Sequence[str]) -> pd.DataFrame:
    """The place of each answer of `tales` and the age of the fact that it needs; one row per story.

    Returns:
        Columns begin, end, age. `begin` and `end` count characters of all documents one after the
        other; the answer ends with its full stop. `age` is the number of characters between the end
        of the sentence that states the fact and the answer. That sentence is the one that last
        changed the answer. Where no sentence changed it, it is the last one of the opening that
        names the person or thing asked for.
    """
    rows, at = [], 0
    for document in documents:
        text, question, reply = question_parts(document)
        begin = at + len(text) + len(question)
        rows.append(
            {
                "begin": begin,
                "end": begin + len(reply.rstrip()),
                "age": begin - at - _fact_end(text, question),
            }
        )
        at += len(document)
    return pd.DataFrame(rows)


def _fact_end(text: str, question: str) -> int:
    """Where the sentence ends that decided the answer to a question about `text`."""
    # 1) go back, sentence by sentence, to the one that last changed the answer
    ends = [match.start() + 2 for match in re.finditer(r"\. ", text)]
    answers = []
    for end in reversed(ends):
        try:
            answers.append(answer(text[:end] + question))
        except ValueError:  # nothing has happened yet, or nobody can ask this yet
            break
        if answers[-1] != answers[0]:
            return ends[len(ends) - len(answers) + 1]
    # 2) where none did: the last sentence of the opening that names what is asked for
    asked = _ASKED.search(question.strip()).group(1)
    opening = ends[: len(ends) - len(answers) + 1]
    sentences = [text[a:b] for a, b in zip([0, *opening], opening)]
    return next(
        (e for e, sentence in zip(reversed(opening), reversed(sentences)) if asked in sentence),
        opening[0],
    )


def answers_by_age(bits: Float[Tensor, " S"], known: pd.DataFrame) -> pd.DataFrame:
    """The bits of each answer of `facts`, summed over its characters, beside the age of its fact.

    Args:
        bits: bits of every character of the documents (S,), as `char_log_probs` scores them.
        known: the result of `facts`.

    Returns:
        Columns age and bits.
    """
    total = torch.cat([bits.new_zeros(1), bits.cumsum(0)])
    begin, end = (torch.tensor(known[name].to_numpy()) for name in ("begin", "end"))
    return pd.DataFrame({"age": known["age"], "bits": (total[end] - total[begin]).numpy()})


def recovered(table: pd.DataFrame, control: str = "masked", best: str = "full") -> pd.DataFrame:
    """The share of a gap that a layout's memory recovers: (negative - own) / (negative - positive).

    One row per corpus, measure, layout and seed.

    Args:
        table: data/results/window.csv.
        control: gives `negative`. "masked" or "other": the same model with this control of its
            memory. "plain": a model with as many slots that never had a memory, and so has learned
            to do without.
        best: the layout that gives `positive`. "full": a model from which nothing is hidden.
            "truth": the language, which in addition makes no errors.

    Returns:
        The column `share` holds the result; NaN where the gap is negligible.
    """
    keys = ["corpus", "measure", "seed"]
    bits = table[table["measure"].str.endswith("bits") & table["age"].isna()].set_index(keys)
    own = bits[(bits["control"] == "own") & ~bits["layout"].isin(["truth", "full", "plain"])]
    full = bits.loc[bits["layout"] == best, "value"]
    if control == "plain":
        negative = own.join(bits.loc[bits["layout"] == "plain", "value"].rename("negative"))[
            "negative"
        ]
    else:
        hidden = (
            bits[bits["control"] == control]
            .set_index("layout", append=True)["value"]
            .rename("negative")
        )
        negative = (
            own.set_index("layout", append=True).join(hidden).reset_index("layout")["negative"]
        )
    found = own[["layout", "value"]].assign(negative=negative.to_numpy())
    found = found.join(full.rename("positive")).reset_index()
    gap = found["negative"] - found["positive"]
    found["share"] = ((found["negative"] - found["value"]) / gap).where(gap > 0.005)
    return found


def rows_of(values: dict[str, Any], **names: Any) -> list[dict[str, Any]]:
    """Tidy rows from pairs (value, n), one row per measure.

    A key (measure, age) gives a row with that age.
    """
    rows = []
    for measure, (value, n) in values.items():
        measure, age = measure if isinstance(measure, tuple) else (measure, None)
        rows.append({**names, "measure": measure, "age": age, "value": float(value), "n": int(n)})
    return rows
