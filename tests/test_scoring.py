"""What is scored: every character once, whole texts as token by token, with any predictor that has
a tokenizer.
"""

import math

import pytest
import torch
from bounds import exact
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import OBJECTIVES
from softar_lab.core.predictor import Prediction, Predictor
from softar_lab.data.corpora import Corpus
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.data.tokenizers.growing import GrowingTokenizer
from softar_lab.generation import generate
from softar_lab.metrics.free_texts import judge_texts
from softar_lab.metrics.texts import judge
from softar_lab.models import scoring
from softar_lab.models.config import ModelConfig
from softar_lab.models.scoring import (
    char_log_probs,
    distributions,
    evaluate,
    per_char,
    scored_windows,
    scores,
    separator_id,
    windows,
)
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.config import TrainConfig
from softar_lab.training.loop import train


class Tally(SoftAR):
    """Gives each character the log-probability -(its id + 1), so that the scores tell which
    characters they are of.
    """

    def log_probs(self, token_ids):
        return -(token_ids + 1).float()


def tally(text, context):
    tokenizer = CharTokenizer.fit(text)
    return Tally(
        ModelConfig(vocab_size=tokenizer.vocab_size, context=context, n_layers=1, d_model=8),
        tokenizer,
    )


@pytest.mark.parametrize("length", [2, 3, 7, 8, 9, 10, 16, 17, 18, 700])
def test_char_log_probs_score_each_character_of_running_text_once_but_the_first(length):
    text = "".join(chr(1000 + i) for i in range(length))  # all different
    scores = char_log_probs(tally(text, 8), text)
    assert (-scores).tolist() == list(range(2, length + 1))


@pytest.mark.parametrize("context", [1, 4, 8, 1000])
def test_char_log_probs_score_each_character_of_documents_once(context):
    letters = [chr(1000 + i) for i in range(300)]
    text = ""
    for length in (1, 3, 9, 20, 4, 4, 0, 7):
        text += "".join(letters.pop(0) for _ in range(length)) + "\n"
    model = tally(text, context)
    scores = char_log_probs(model, text, "\n")
    assert (-scores - 1).tolist() == model.tokenizer.encode(text).tolist()


@given(st.text("ab\n", min_size=1, max_size=60), st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_windows_of_documents_cover_the_text_and_cut_no_document_without_need(text, context):
    tokenizer = CharTokenizer.fit("ab\n")
    found = list(windows(tokenizer.encode(text), context, tokenizer.encode("\n")[0]))
    assert "".join(text[begin:end] for begin, end, _ in found) == text
    for begin, end, skip in found:
        assert skip == 0
        assert 0 < end - begin <= context + 1
        whole = end == len(text) or text[end - 1] == "\n"
        assert whole or "\n" not in text[begin:end]  # cut only where no document ends in reach
        following = text.find("\n", end) + 1 or len(text)
        assert not whole or following - begin > context + 1 or end == len(text)  # as many as fit


@given(st.integers(2, 90), st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_windows_of_running_text_give_each_character_at_most_context_before_it(length, context):
    scored = []
    for begin, end, skip in windows(torch.arange(length), context, None):
        assert end - begin <= context + 1
        scored += range(begin + skip, end)
    assert scored == list(range(1, length))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("separator", [None, "\n"])
def test_evaluate_is_the_mean_of_what_the_predictor_says_token_by_token(tiny, objective, separator):
    model = tiny(objective=objective, context=6)
    text = "abc\ndefgh\nkkkkkkkkkkkkkkkk\n\nab\ncd"
    if (
        separator
    ):  # by hand: whole documents as long as 7 characters hold them, a longer one goes on
        pieces = ["abc\n", "defgh\n", "kkkkkkk", "kkkkkkk", "kk\n\nab\n", "cd"]
        assert "".join(pieces) == text
        reading = [(piece, 0) for piece in pieces]
    else:
        reading = [(text[i : i + 7], 1) for i in range(0, len(text) - 1, 6)]
    expected = []
    for piece, first in reading:
        state = model.start()
        for t, token_id in enumerate(model.tokenizer.encode(piece)):
            if t >= first:
                expected.append(model.predict(state).log_probs[0, token_id])
            if t < len(piece) - 1:
                state = model.next_state(state, token_id[None])
    found = char_log_probs(model, text, separator)
    torch.testing.assert_close(found, torch.stack(expected), **exact(model))
    assert evaluate(model, text, separator) == pytest.approx(
        -found.double().mean().item(), abs=1e-9
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("separator", [None, "\n"])
def test_distributions_hold_the_scores_and_are_those_of_each_window_read_alone(
    tiny, objective, separator
):
    """More windows than one batch holds, of unequal length, so that rows are padded: padding is in
    no prefix.
    """
    model = tiny(objective=objective, context=6)
    text = "abc\ndefgh\nkkkkkkkkkkkkkkkk\n\nab\ncd" * 20
    ids, pieces = scored_windows(model, text, separator, "given")
    assert len(pieces) > 64
    assert len({end - begin for begin, end, _ in pieces}) > 1
    log_probs, targets = distributions(model, ids, pieces)
    assert torch.equal(targets, ids if separator else ids[1:])
    assert torch.equal(log_probs.gather(1, targets[:, None])[:, 0], scores(model, ids, pieces))
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(len(targets)))
    alone = torch.cat(
        [model.next_log_probs(ids[None, begin:end])[0, skip:] for begin, end, skip in pieces]
    )
    torch.testing.assert_close(log_probs, alone.detach(), **exact(model))


@pytest.mark.parametrize("separator", [None, "\n"])
def test_evaluate_of_nothing_says_so(tiny, separator):
    with pytest.raises(ValueError, match="text is empty"):
        evaluate(tiny(), "", separator)


def test_evaluate_of_a_single_character(tiny):
    """Running text has nothing before its first character to predict it from; a document has its
    start.
    """
    model = tiny()
    with pytest.raises(ValueError, match="at least 2|too short|1 character"):
        evaluate(model, "a")
    expected = -model.predict(model.start()).log_probs[0, model.tokenizer.encode("a")].item()
    assert evaluate(model, "a", "\n") == pytest.approx(expected, abs=1e-5)


def test_evaluate_leaves_unknown_characters_out_with_a_warning_that_counts_them(tiny):
    model = tiny()
    with pytest.warns(UserWarning, match=r"3 characters .* not in the vocabulary \('X', 'é'\)"):
        found = evaluate(model, "abcXdefXé")
    assert found == evaluate(model, "abcdef")


# -- predictors without a limit ---------------------------------------------------------------------------------------


class Alternating(Predictor):
    """A true language of "a", "b" and "~": a letter never follows itself, and all else is equally
    likely.

    It refuses what is impossible, and so padding with 0, which is "a". A state is the rows read so
    far.
    """

    tokenizer = CharTokenizer.fit("ab~")
    vocab_size = 3

    def start(self, batch_size=1):
        return [[2]] * batch_size

    def predict(self, state):
        allowed = torch.ones(len(state), 3, dtype=torch.float64)
        for row, read in enumerate(state):
            if read[-1] != 2:
                allowed[row, read[-1]] = 0
        return Prediction((allowed / allowed.sum(-1, keepdim=True)).log())

    def advance(self, state, token_ids=None, vectors=None):
        if any(
            read[-1] == token_id != 2
            for read, token_id in zip(state, token_ids.tolist(), strict=True)
        ):
            raise ValueError("impossible")
        return [[*read, token_id] for read, token_id in zip(state, token_ids.tolist(), strict=True)]


TEXT = "aba~b~~babab~a"
NATS = [math.log(3 if before == "~" else 2) for before in "~" + TEXT[:-1]]


def test_a_true_language_reads_running_text_whole_and_scores_all_but_the_first():
    found = char_log_probs(Alternating(), TEXT)
    torch.testing.assert_close(-found, torch.tensor(NATS[1:], dtype=torch.float64))
    assert found.dtype == torch.float64, "exact probabilities stay exact"


def test_a_true_language_scores_documents_of_any_lengths_without_padding():
    found = char_log_probs(Alternating(), TEXT, "~")
    torch.testing.assert_close(-found, torch.tensor(NATS, dtype=torch.float64))
    assert evaluate(Alternating(), TEXT, "~") == pytest.approx(
        math.fsum(NATS) / len(NATS), rel=1e-12
    )
    log_probs, targets = distributions(
        Alternating(), *scored_windows(Alternating(), TEXT, "~", "given")
    )
    torch.testing.assert_close(
        -log_probs.gather(1, targets[:, None])[:, 0], torch.tensor(NATS, dtype=torch.float64)
    )


@pytest.mark.parametrize("separator", [None, "~"])
def test_truth_and_model_score_the_same_characters(tiny, separator):
    text = (TEXT + "~") * 5
    model = tiny(letters="ab~", context=6)
    assert model.context == 6
    assert Alternating().context is None
    assert (
        char_log_probs(model, text, separator).shape
        == char_log_probs(Alternating(), text, separator).shape
    )


@given(st.text("ab\n", max_size=60))
@settings(max_examples=60, deadline=None)
def test_windows_without_a_limit_are_the_documents(text):
    ids = CharTokenizer.fit("ab\n").encode(text)
    documents = text.splitlines(keepends=True)
    assert [text[begin:end] for begin, end, _ in windows(ids, None, torch.tensor(0))] == documents
    assert list(windows(ids, None, None)) == ([(0, len(text), 1)] if len(text) > 1 else [])


def test_windows_without_a_limit_hold_any_length():
    assert list(windows(torch.arange(5000), None, None)) == [(0, 5000, 1)]


def test_a_predictor_without_a_tokenizer_reads_no_text():
    class Mute(Alternating):
        tokenizer = None

    with pytest.raises(ValueError, match="no tokenizer, so it cannot read the given text"):
        evaluate(Mute(), "ab")


# -- tokens longer than a character -----------------------------------------------------------------------------------

LINES = "the thane thinks\nof the thin queen\n\nthe quay, the é cat\n" * 3


def on_units(**shape):
    tokenizer = GrowingTokenizer.fit(LINES.replace("é", "e"), 60)
    shape = {"context": 16, "n_layers": 1, "n_heads": 2, "d_model": 16, **shape}
    return SoftAR(ModelConfig(vocab_size=tokenizer.vocab_size, **shape), tokenizer).eval()


@pytest.mark.parametrize("separator", [None, "\n"])
def test_evaluate_divides_by_characters_however_long_tokens_are(separator):
    model = on_units()
    ids, pieces = scored_windows(model, LINES, separator, "given")
    nats = -scores(model, ids, pieces).double()
    first = 0 if separator else len(model.tokenizer.decode(ids[:1]))
    assert len(ids) < len(LINES)
    assert evaluate(model, LINES, separator) == pytest.approx(
        nats.sum().item() / (len(LINES) - first), rel=1e-6
    )
    each = char_log_probs(model, LINES, separator)
    assert len(each) == len(LINES) - first
    assert each.sum().item() == pytest.approx(-nats.sum().item(), rel=1e-5)


def test_per_char_gives_a_token_to_its_first_character_and_half_bytes_to_theirs():
    model = on_units()
    ids = model.tokenizer.encode("the é")  # "é" is spelled out, the space before it goes with it
    lengths = model.tokenizer.lengths(ids).tolist()
    log_probs = torch.arange(1.0, len(ids) + 1)
    found = per_char(model, ids, log_probs)
    assert found.sum() == log_probs.sum()
    assert found[-1] == log_probs[-4:].sum()
    assert found[0] == 1
    assert torch.count_nonzero(found) == sum(length > 0 for length in lengths)


def test_what_is_scored_does_not_depend_on_where_tokens_are_cut():
    """Uniform over as many symbols, a token of n characters costs log V, so n times less a
    character.
    """

    class Uniform(SoftAR):
        def log_probs(self, token_ids):
            return torch.full(token_ids.shape, -1.0)

    tokenizer = GrowingTokenizer.fit(LINES, 60)
    model = Uniform(
        ModelConfig(vocab_size=60, context=16, n_layers=1, n_heads=2, d_model=16), tokenizer
    )
    assert evaluate(model, LINES, "\n") == pytest.approx(len(tokenizer.encode(LINES)) / len(LINES))


def test_windows_of_about_the_same_length_are_read_together():
    """In rows of padding at most, the text's scores are those of each document alone."""
    read = []

    class Watched(Tally):
        def log_probs(self, token_ids):
            read.append(tuple(token_ids.shape))
            return super().log_probs(token_ids)

    lengths = [300, 20, 310, 25, 290, 22] * 4
    text = "".join("abcde"[i % 5] * (n - 1) + "\n" for i, n in enumerate(lengths))
    tokenizer = CharTokenizer.fit(text)
    model = Watched(ModelConfig(vocab_size=6, context=310, n_layers=1, d_model=8), tokenizer)
    scores = char_log_probs(model, text, "\n")
    assert (-scores - 1).tolist() == tokenizer.encode(text).tolist()  # in the order of the text
    cells = sum(rows * longest for rows, longest in read)
    assert all(rows * longest <= scoring.PASS for rows, longest in read)
    assert len(text) <= cells <= 1.5 * len(text)


def test_a_separator_that_is_part_of_a_unit_is_refused():
    model = on_units()
    assert separator_id(model, None) is None
    assert separator_id(model, "\n") == model.tokenizer.tokens.index("\n")
    for separator in ("t", "é", "\n\n"):
        with pytest.raises(ValueError, match="must be a token of its own"):
            evaluate(model, LINES, separator)


def test_a_model_on_units_is_trained_saved_and_writes(tmp_path):
    model = on_units()
    corpus = Corpus("lines", LINES * 4, LINES, LINES, separator="\n")
    recipe = TrainConfig(steps=2, batch_size=2, eval_every=0)
    run = train(model, corpus, recipe, out=tmp_path / "run", progress=False)
    assert run.val_bits_per_char == pytest.approx(
        evaluate(model, LINES, "\n") / math.log(2), rel=1e-4
    )
    again = SoftAR.load(tmp_path / "run")
    assert again.tokenizer == model.tokenizer
    path = generate(again, "the é", 5, seed=1)
    assert path.text == again.tokenizer.decode(path.token_ids)
    with pytest.raises(ValueError, match="the prompt has 24 tokens, the model's context holds 16"):
        generate(again, "é" * 6, 5)
    judged = judge(LINES, again, prompt="of ", separator="\n")
    assert len(judged.log_probs) == len(LINES)
    [many] = judge_texts([LINES], again, ["of "], separator="\n")
    torch.testing.assert_close(many.log_probs, judged.log_probs, **exact(model))
