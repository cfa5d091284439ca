"""Growth: what is foreseen, how pairs join, by hand and by brute force."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softar_lab.data.tokenizers.growing import Segmented, candidates, grow

WORDS = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=7).map(tuple), min_size=1, max_size=8
)


def segmented(words):
    """Words that may repeat, as rows of ids, each distinct one once."""
    counts = Counter(words)
    lengths = [len(word) for word in counts]
    ids = np.array([i for word in counts for i in word])
    return Segmented(
        ids, np.repeat(np.arange(len(counts)), lengths), np.array([*counts.values()], float)
    )


@given(WORDS, st.integers(1, 4))
def test_follower_confidence_is_the_share_of_the_other_occurrences(words, context):
    """Of a unit's last few neighbours in its word, beginning and end of the word counted."""
    padded = [[None] * context + list(word) + ["end"] for word in words]
    seen = [
        (tuple(w[i - context + 1 : i + 1]), w[i + 1], n)
        for n, w in enumerate(padded)
        for i in range(context, len(w) - 1)
    ]
    text = segmented(words)
    at, found = text.follower_confidence(context)
    expected = []
    for word in dict.fromkeys(words):
        n = words.index(word)
        for place, (key, follower, _) in enumerate(one for one in seen if one[2] == n):
            others = [one for one in seen if one[0] == key]
            alike = sum(one[1] == follower for one in others) - 1
            if place < len(word) - 1:
                expected.append(alike / max(1, len(others) - 1))
    assert found == pytest.approx(expected)
    assert len(at) == len(expected)


@given(WORDS, st.integers(0, 3), st.integers(0, 3))
def test_join_is_a_replacement_from_the_left(words, left, right):
    text = segmented(words)
    joined = text.join(left, right, 9)
    for number, word in enumerate(dict.fromkeys(words)):
        expected = "".join(map(str, word)).replace(f"{left}{right}", "9")
        assert "".join(map(str, joined.ids[joined.word == number])) == expected
    assert joined.tokens <= text.tokens == sum(map(len, words))


def test_candidates_count_confident_places_alone():
    """0 goes on with 1 in two words of three, the same one of which occurs twice."""
    text = segmented([(0, 1), (0, 1), (0, 2), (3, 1)])
    assert candidates(text, 0, 1) == [((0, 1), 2), ((0, 2), 1), ((3, 1), 1)]
    assert candidates(text, 0.5, 1) == [
        ((0, 1), 2)
    ]  # of the two other places with 0 one goes on with 1
    assert candidates(text, 0.51, 1) == []


def rounds(words, names, **how):
    settings = {"free": 9, "confidence": 0.5, "least": 2, "fall": 1, "context": 1, **how}
    return list(grow(segmented(words), names, lambda unit: len(names), **settings))


def test_grow_goes_on_with_what_it_made():
    names = {0: "a", 1: "b", 2: "c"}
    found = rounds([(0, 1, 2)] * 5 + [(2,)] * 3, names)
    assert [pairs for pairs, _ in found] == [[("a", "b")], [("ab", "c")]]
    assert names == {0: "a", 1: "b", 2: "c", 3: "ab", 4: "abc"}
    assert [row["tokens"] for _, row in found] == [13, 8]


def test_thresholds_fall_only_where_nothing_is_left_and_no_free_place_ends_it():
    words = [(0, 1)] * 8 + [(2, 3)] * 3 + [(2, 1)] * 3
    names = {i: "abcd"[i] for i in range(4)}
    strict = rounds(words, dict(names), confidence=0.9)
    assert [pairs for pairs, _ in strict] == [[("a", "b")]]
    falling = rounds(words, dict(names), confidence=0.9, least=8, fall=0.5)
    assert next(pairs for pairs, _ in falling) == [("a", "b")]
    assert {row["confidence"] for _, row in falling} == {0.9, 0.225}
    assert {row["least"] for _, row in falling} == {8, 2}
    assert len(rounds(words, dict(names), confidence=0, free=1)) == 1
    assert rounds(words, dict(names), free=0) == []
