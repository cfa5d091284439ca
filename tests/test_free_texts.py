"""Many texts at once are judged as each alone, and as by hand where a model has a context."""

import math

import numpy as np
import pytest
import torch
from bounds import exact
from test_distributions import Chain, Q

from softar_lab.data.languages import Markov
from softar_lab.generation import generate
from softar_lab.metrics.free_texts import judge_texts, known_words, score_texts
from softar_lab.metrics.texts import distinct_n, judge

STRICT = Markov([[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]])


def test_judge_texts_of_a_language_is_judge_of_each():
    texts, prompts = ["abbc", "aacb", "c"], ["a", "", "bc"]
    for found, text, prompt in zip(judge_texts(texts, STRICT, prompts), texts, prompts):
        np.testing.assert_array_equal(found.log_probs, judge(text, STRICT, prompt).log_probs)


def test_judge_texts_within_the_context_is_judge_of_each(tiny):
    model = tiny()
    texts, prompts = ["abcdef", "a", "kkkk jj\n"], ["ab", "", "hgf"]
    for found, text, prompt in zip(judge_texts(texts, model, prompts), texts, prompts):
        torch.testing.assert_close(
            found.log_probs, judge(text, model, prompt).log_probs, **exact(model)
        )


def test_judge_texts_beyond_the_context_sees_at_least_half_of_it(tiny):
    """By hand: windows of 13 characters, each beginning half a context after the one before."""
    model = tiny()  # context 12
    text = "abcdefghijk abcdefghijk abcdef"
    ids = model.tokenizer.encode(text)
    expected = [model.log_probs(ids[None, :13])[0]]
    for begin in (6, 12, 18):
        expected.append(model.log_probs(ids[None, begin : begin + 13])[0, 7:])
    found = judge_texts([text, "ab"], model)[0].log_probs
    torch.testing.assert_close(
        found, torch.cat(expected)[: len(text)].double().detach(), **exact(model)
    )


def test_judge_texts_reads_documents_as_judge_does(tiny):
    model = tiny()
    texts = ["abc\nde\nabcd efgh\nab", "k\n" * 12]
    for found, text in zip(judge_texts(texts, model, separator="\n"), texts):
        torch.testing.assert_close(
            found.log_probs, judge(text, model, "", "\n").log_probs, **exact(model)
        )


def test_judge_texts_ends_at_a_character_the_model_does_not_know(tiny):
    found = judge_texts(["abX", "abc"], tiny())
    assert [len(one.scored) for one in found] == [2, 3]
    with pytest.raises(ValueError, match="1 prompts for 2 texts"):
        judge_texts(["a", "b"], tiny(), ["c"])


def test_judge_texts_ends_and_refuses_where_judge_does():
    short = Chain(Q)
    short.context = 4  # so all texts are read in one batch
    texts, prompts = ["bb", "ba", "bab"], ["a", "a", ""]
    for found, text, prompt in zip(judge_texts(texts, short, prompts), texts, prompts):
        np.testing.assert_array_equal(found.log_probs, judge(text, short, prompt).log_probs)
    with pytest.raises(ValueError, match="prompt is impossible for this judge: 'a' at position 1"):
        judge_texts(["b"], short, ["ba"])


@pytest.mark.parametrize(
    ("text", "prompt", "share"),
    [
        ("the cat sat.", "", 2 / 3),
        ("e cat sa", "th", 2 / 2),  # "the" goes on from the prompt, "sa" may be unfinished
        ("nd cat.", "the ", 1 / 2),
        ("cat", "", math.nan),
        (" ,. ", "cat", math.nan),  # the word is all the prompt's
    ],
)
def test_known_words_counts_those_that_end_in_the_text(text, prompt, share):
    np.testing.assert_equal(known_words(text, {"the", "cat"}, prompt), share)


def test_score_texts_is_a_row_a_text(tiny):
    model = tiny(letters="abc ")
    written = generate(model, ["ab", "c"], 40, schedule="every(2)", seed=1)
    found = score_texts(written, STRICT, words={"ab"})
    for row, one in enumerate(written):
        expected = judge(one.text.split(" ")[0] + " ", STRICT, one.prompt)
        mine = found.loc[row]
        assert mine["scored"] == len(expected.scored)
        np.testing.assert_equal(mine["bits"], float(expected.bits_per_char))
        assert mine["possible"] == mine["scored"] / 40
        assert mine["distinct_4"] == distinct_n(one.text, 4)
        np.testing.assert_equal(mine["known_words"], known_words(one.text, {"ab"}, one.prompt))
    full = score_texts(written, model)
    assert full["possible"].eq(1).all()
    assert "known_words" not in full
