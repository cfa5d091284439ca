"""What a memory is worth: facts and their ages, shares of a gap; and the stored table is what its
tool says.
"""

import pandas as pd
import pytest
import torch

from softar_lab.core.cells import load_results
from softar_lab.data.corpora import load_corpus
from softar_lab.data.languages.tales import question_parts
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_studies import make_window
from softar_studies.recall import answers_by_age, facts, recovered

# a story cut where the fact that is asked for has just been told: what comes after is its age
TOLD = [
    ("Once the brother worked in the barn. He held the ring. Then the shepherd came from the hill with his bell. "
     "The shepherd gave the bell to the brother. ", "Where is the bell? ", "In the barn.\n"),
    ("At dawn the nun was all alone in the church. She held the net. ",
     "Soon the mother was far away in the forest with the map. She told her tale. The mother went to the church and "
     "lost the map. They went to the hill. Who has the net? ", "The nun.\n"),
    ("Long ago the shepherdess sang in the meadow. In her bag was the potion. Then the queen came from the market with "
     "the wand. The queen went to the castle and lost the wand. Then the queen went to the palace. ",
     "The shepherdess went to the castle and found the wand. Where is the queen? ", "In the palace.\n"),
]  # fmt: skip


def test_facts_are_as_old_as_the_sentence_that_decided_them():
    found, whole = (
        facts(["".join(parts) for parts in TOLD]),
        "".join("".join(parts) for parts in TOLD),
    )
    assert found["age"].tolist() == [len(later) for _, later, _ in TOLD]
    assert [whole[b:e] for b, e in zip(found["begin"], found["end"])] == [
        said.strip() for _, _, said in TOLD
    ]


@pytest.mark.slow
def test_facts_of_every_tale_lie_before_their_question():
    documents = load_corpus("tales").documents("test")
    found = facts(documents)
    assert len(found) == len(documents)
    questions = [len(question_parts(document).question) for document in documents]
    assert (found["age"] >= questions).all()
    assert (found["age"] < [len(document) for document in documents]).all()
    assert found["age"].std() > 20


def test_answers_by_age_add_up_the_bits_of_each_answer():
    known = pd.DataFrame({"begin": [1, 4], "end": [3, 5], "age": [7, 9]})
    found = answers_by_age(torch.tensor([1.0, 2, 4, 8, 16, 32]), known)
    assert found["bits"].tolist() == [6.0, 16.0]
    assert found["age"].tolist() == [7, 9]


def test_recovered_is_the_share_of_the_gap():
    def row(layout, control, value, measure="bits", seed=0, age=None):
        return {"corpus": "c", "layout": layout, "control": control, "measure": measure, "age": age, "value": value,
                "seed": seed}  # fmt: skip

    rows = [row("full", "own", 1.0), row("plain", "own", 2.0), row("truth", "own", 0.5)]
    rows += [
        row("sum", "own", 1.25),
        row("sum", "masked", 3.0),
        row("sum", "other", 4.25),
        row("sum", "own", 9, age=40),
    ]
    rows += [row(layout, control, 5.0, "late bits") for layout, control in
             (("full", "own"), ("sum", "own"), ("sum", "masked"), ("sum", "other"), ("plain", "own"))]  # fmt: skip
    table = pd.DataFrame(rows).astype({"age": float})

    def share(measure="bits", **how):
        (found,) = recovered(table, **how).query("measure == @measure and layout == 'sum'")["share"]
        return found

    assert share() == pytest.approx((3.0 - 1.25) / (3.0 - 1.0))
    assert share(control="other") == pytest.approx((4.25 - 1.25) / (4.25 - 1.0))
    assert share(control="plain") == pytest.approx(0.75)
    assert share(control="plain", best="truth") == pytest.approx(0.5)
    assert pd.isna(share("late bits"))  # no gap


def test_every_layout_of_the_tool_is_a_model_of_as_many_slots():
    tokenizer = CharTokenizer.fit("abc")
    for name, task in make_window.TASKS.items():
        for layout in task.layouts:
            config = make_window.config_of(name, layout, tokenizer)
            assert config.context == task.slots == config.tokens + config.layout.memory
        assert make_window.config_of(name, "full", tokenizer).tokens == task.full


def test_stored_table_is_what_the_tool_makes():
    frame, recipes = load_results(make_window.RESULTS)
    told = {one["corpus"]: one for one in recipes}
    assert set(told) == set(make_window.TASKS)
    for name, task in make_window.TASKS.items():
        seeds = told[name]["seeds"]
        if name != "shakespeare":  # whose text may not be here
            assert told[name] == make_window.recipe(name, seeds)
        here = frame[frame["corpus"] == name]
        truth = {"truth"} & set(here["layout"])
        assert set(here["layout"]) == {"full", *task.layouts, *truth}
        found = here.groupby(["layout", "control", "measure", "age"], dropna=False)[
            "seed"
        ].nunique()
        for layout, some in found.groupby("layout"):
            assert (some == seeds - make_window.MISSING.get((name, layout), 0)).all()
        own = here[here["layout"].isin(["truth", "full", "plain"])]
        assert set(own["control"]) == {"own"}
        assert set(here[~here.index.isin(own.index)]["control"]) == {"own", "masked", "other"}
    assert frame["value"].ge(0).all()
