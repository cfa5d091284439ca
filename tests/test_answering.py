"""Shares of right answers, paired with their controls; and the stored table is what its tool
says.
"""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from softar_lab.core.cells import load_results
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_studies.answering import answer_lengths, answer_row, paired_shares, verdicts

ROOT = Path(__file__).parents[1]


def rows(**settings):
    """setting=(control, answers of each seed)."""
    return pd.DataFrame(
        {"setting": name, "control": control, "seed": seed, "answers": answers}
        for name, (control, several) in settings.items()
        for seed, answers in enumerate(several)
    )


def test_gains_are_taken_question_by_question():
    found = paired_shares(rows(hard=("", ["xx..x"]), soft=("hard", ["x...x", "....x"]))).set_index(
        "setting"
    )
    assert found.loc["hard", "right"] == pytest.approx(0.6)
    assert pd.isna(found.loc["hard"].get("gain"))
    assert found.loc["soft", "right"] == pytest.approx(0.3)
    assert found.loc["soft", "gain"] == pytest.approx(-0.3)
    assert found.loc["soft", "seeds"] == 2
    differences = pd.Series([-0.5, -1, 0, 0, 0])
    half = 1.96 * differences.std() / 5**0.5
    assert found.loc["soft", "gain_high"] - found.loc["soft", "gain"] == pytest.approx(half)


def test_the_same_answers_gain_nothing_for_sure():
    found = paired_shares(rows(hard=("", ["x.x."]), soft=("hard", ["x.x."]))).iloc[1]
    assert (found["gain"], found["gain_low"], found["gain_high"]) == (0, 0, 0)


def test_a_missing_control_is_named():
    with pytest.raises(
        ValueError, match="'soft' has the control 'hard', which is not in the table"
    ):
        paired_shares(rows(soft=("hard", ["x"])))


def test_a_row_keeps_every_verdict():
    row = answer_row(["It is 7.", ""], [True, False], [3, 5], [-1.0, float("nan")])
    assert row["answers"] == "x."
    assert (row["right"], row["tokens"], row["judge_log_prob"]) == (0.5, 4, -1)
    assert verdicts(pd.Series(["x.", "xx"])).tolist() == [1, 0.5]


def test_length_is_that_of_the_first_text_that_says_it():
    model = CharTokenizer.fit("so 7 it is")
    path = SimpleNamespace(token_ids=model.encode("so 7 it is 7"))
    assert answer_lengths(path, model.decode, lambda text: "7" if "7" in text else None) == 4
    assert answer_lengths(path, model.decode, lambda text: None) == 12


def test_stored_table_is_what_the_tool_makes():
    pytest.importorskip("transformers")
    from softar_studies import make_pretrained

    frame, recipes = load_results(make_pretrained.RESULTS)
    assert recipes == [make_pretrained.recipe(name) for name in make_pretrained.SETTINGS]
    seeds = frame.groupby("setting")["seed"].nunique()
    assert seeds.to_dict() == {
        name: setting.seeds for name, setting in make_pretrained.SETTINGS.items()
    }
    assert (frame["answers"].str.len() == 200).all()
    assert ((frame["answers"].str.count("x") / 200 - frame["right"]).abs() < 1e-9).all()
