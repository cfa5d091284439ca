"""CharTokenizer: any text comes back, and what is wrong is named."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softar_lab.sources.tokenizers import CharTokenizer

ANY_CHAR = st.characters(codec=None, exclude_categories=())  # astral characters and lone surrogates too
ANY_TEXT = st.text(ANY_CHAR, min_size=1)


@given(ANY_TEXT, st.booleans())
def test_decode_undoes_encode(text, unk):
    tokenizer = CharTokenizer.fit(text, unk)
    token_ids = tokenizer.encode(text)
    assert token_ids.shape == (len(text),)
    assert token_ids.dtype == torch.int64
    assert [tokenizer.tokens[i] for i in token_ids] == list(text)
    assert (
        tokenizer.decode(token_ids)
        == tokenizer.decode(token_ids.numpy())
        == tokenizer.decode(token_ids.tolist())
        == text
    )


@given(ANY_TEXT, st.text(ANY_CHAR))
def test_encode_sends_only_unknown_characters_to_unk(known, text):
    tokenizer = CharTokenizer.fit(known, unk=True)
    expected = "".join(char if char in known else "\ufffd" for char in text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected
    unknown = tokenizer.unknown_in(text)
    assert unknown == {char: text.count(char) for char in set(text) - set(known)}
    assert sum(unknown.values()) == int((tokenizer.encode(text) == tokenizer.unk_id).sum())


@given(ANY_TEXT, st.booleans())
def test_from_dict_undoes_to_dict_through_json(text, unk):
    tokenizer = CharTokenizer.fit(text, unk)
    again = CharTokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again == tokenizer
    assert hash(again) == hash(tokenizer)
    assert again.decode(tokenizer.encode(text)) == text


def test_fit_sorts_the_distinct_characters():
    tokenizer = CharTokenizer.fit("hello, 🙂 world\n")
    assert all(a < b for a, b in pairwise(tokenizer.tokens))
    assert tokenizer.tokens == tuple(sorted(set("hello, 🙂 world\n")))
    assert tokenizer.vocab_size == len(tokenizer.tokens)
    assert tokenizer.unk_id is None


def test_fit_with_unk_adds_one_last_token():
    tokenizer = CharTokenizer.fit("ab", unk=True)
    assert tokenizer.tokens == ("a", "b", "<unk>")
    assert tokenizer.vocab_size == 3
    assert tokenizer.encode("b?a").tolist() == [1, 2, 0]
    assert tokenizer.decode([1, 2, 0]) == "b\ufffda"
    assert tokenizer != CharTokenizer.fit("ab")


def test_fit_refuses_an_empty_text():
    with pytest.raises(ValueError, match="must not be empty"):
        CharTokenizer.fit("")


def test_encode_names_the_first_unknown_character():
    with pytest.raises(ValueError, match=r"unknown character '🙂' at position 2; .*fit\(\.\.\., unk=True\)"):
        CharTokenizer.fit("ab").encode("ab🙂c")


def test_encode_of_nothing_is_empty():
    tokenizer = CharTokenizer.fit("ab")
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode([]) == tokenizer.decode(torch.tensor([], dtype=torch.int64)) == ""


@pytest.mark.parametrize(("ids", "message"), [([0, 2], "id 2 at position 1"), ([-1], "id -1 at position 0")])
def test_decode_names_an_id_out_of_range(ids, message):
    with pytest.raises(ValueError, match=message + r" is not in 0\.\.1"):
        CharTokenizer.fit("ab").decode(ids)


@pytest.mark.parametrize("ids", [np.array([0.0, 1.0]), torch.tensor([[0, 1]]), torch.tensor(1), np.array([True])])
def test_decode_refuses_what_is_no_row_of_whole_numbers(ids):
    with pytest.raises(ValueError, match="one row of whole numbers"):
        CharTokenizer.fit("ab").decode(ids)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({}, "a character tokenizer is saved as"),
        ({"type": "growing", "tokens": ["a"]}, "a character tokenizer is saved as"),
        ({"type": "char"}, "must be a list"),
        ({"type": "char", "tokens": "ab"}, "must be a list"),
        ({"type": "char", "tokens": []}, "at least one"),
        ({"type": "char", "tokens": ["<unk>"]}, "at least one"),
        ({"type": "char", "tokens": ["a", "bc"]}, "single characters.*'bc'"),
        ({"type": "char", "tokens": ["<unk>", "a"]}, "single characters.*'<unk>'"),
        ({"type": "char", "tokens": ["b", "a"]}, "ascending"),
        ({"type": "char", "tokens": ["a", "a"]}, "distinct"),
    ],
)
def test_from_dict_says_what_is_wrong(saved, message):
    with pytest.raises(ValueError, match=message):
        CharTokenizer.from_dict(saved)


def test_repr_stays_short():
    assert len(repr(CharTokenizer.fit("".join(map(chr, range(32, 5_000)))))) < 120
