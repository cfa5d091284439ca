"""Words as letters: texts come back exactly, and the corpus of words costs what its letters
cost.
"""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softar_lab.data.corpora import load_corpus, tales_words
from softar_lab.data.tokenizers import tokenizer_from_dict
from softar_lab.data.tokenizers.word_level import FIRST, WordAlphabet, WordTokenizer

WORDS = WordAlphabet(("a", "king", "queen", ",", ".", "?", "\n"))


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "king", "queen"]), min_size=1).map(" ".join), min_size=1
    )
)
def test_sentences_come_back(sentences):
    text = "".join(f"{sentence}.\n" for sentence in sentences)
    letters = WORDS.encode(text)
    assert len(letters) == sum(len(sentence.split()) + 2 for sentence in sentences)
    assert WORDS.decode(letters) == text


def test_ids_are_places_in_the_alphabet():
    assert [ord(letter) - FIRST for letter in WORDS.encode("queen, a king?")] == [2, 3, 0, 1, 5]
    assert WordAlphabet.fit("b a. b\n").words == ("\n", ".", "a", "b")


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="the word 'duke' of 'a duke' is not among the 7"):
        WORDS.encode("a duke")
    with pytest.raises(ValueError, match="'x' is no letter"):
        WORDS.decode("x")
    for words in ((), ("a", "a"), ("a b",), (" ",)):
        with pytest.raises(ValueError, match="distinct words or single marks"):
            WordAlphabet(words)
    with pytest.raises(ValueError, match=r"6,401 words are more than the 6,400 letters"):
        WordAlphabet(tuple(f"w{i}" for i in range(6401)))


@given(st.lists(st.integers(0, 6), max_size=12), st.integers(0, 12))
def test_tokenizer_of_words_gives_every_text_back_in_two_parts(ids, cut):
    """Whatever the words are, a text is that of its beginning and that of the rest behind it."""
    tokenizer = WORDS.tokenizer()
    text = tokenizer.decode(ids)
    assert text == WORDS.decode("".join(chr(FIRST + i) for i in ids))
    first = tokenizer.decode(ids[:cut])
    assert first + tokenizer.after(first).decode(ids[cut:]) == text
    found, lengths = tokenizer.encode_with_lengths(text)
    assert found.tolist() == ids
    assert lengths.tolist() == tokenizer.lengths(torch.tensor(ids, dtype=torch.long)).tolist()
    assert int(lengths.sum()) == len(text)


def test_tokenizer_of_words_counts_all_characters_and_names_what_it_does_not_know():
    tokenizer = WORDS.tokenizer()
    assert tokenizer.encode_with_lengths("  a  king ")[1].tolist() == [3, 7]
    assert tokenizer.after("a ").decode([1]) == "king"
    assert tokenizer.after("a").decode([1]) == " king"
    assert tokenizer.after("a").decode([3]) == ","
    assert tokenizer.unknown_in("a duke, a duke and a king") == {"and": 1, "duke": 2}
    with pytest.raises(ValueError, match="unknown word 'duke' at position 2; the model knows 7"):
        tokenizer.encode("a duke")


def test_tokenizer_of_words_is_saved_and_loaded():
    tokenizer = WORDS.tokenizer()
    assert tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict()))) == tokenizer
    with pytest.raises(ValueError, match="a word tokenizer is saved as"):
        WordTokenizer.from_dict({"type": "words"})


@pytest.mark.slow
def test_corpus_of_words_is_that_of_letters_at_the_same_bits():
    letters, words = load_corpus("tales"), load_corpus("tales-words")
    alphabet = tales_words()
    assert alphabet == WordAlphabet.fit(letters.train + letters.val + letters.test)
    assert alphabet.decode(words.val) == letters.val
    assert alphabet.decode(words.train).startswith(letters.train)
    assert words.documents("val")[0] == alphabet.encode(letters.documents("val")[0])
    total = words.floor_bits_per_char * len(words.val)
    assert math.isclose(total, letters.floor_bits_per_char * len(letters.val))
