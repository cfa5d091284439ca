"""Words as letters: texts come back exactly, and the corpus of words costs what its letters
cost.
"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softar_lab.data.corpora import load_corpus, tales_words
from softar_lab.data.tokenizers.word_level import FIRST, WordAlphabet

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
