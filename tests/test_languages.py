"""Grammar against brute force: every derivation of a tiny grammar is written out."""

import math
import re
from collections import Counter
from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from softar_lab.sources.languages import Choice, Grammar, Reading

RULES = {
    "S": (Choice("a", 0.5, "T"), Choice("ba", 0.3, "T"), Choice("bbc", 0.2, None)),
    "T": (Choice("xy", 0.6, None), Choice("xz", 0.1, "U"), Choice("a", 0.3, "U")),
    "U": (Choice("!", 1.0, None),),
}
TINY = Grammar("S", RULES.__getitem__)


def derivations(state="S"):
    """Every (document, probability) from a state."""
    if state is None:
        return [("", 1.0)]
    return [
        (choice.text + rest, choice.probability * p) for choice in RULES[state] for rest, p in derivations(choice.state)
    ]


DOCUMENTS = dict(derivations())
STREAMS = [  # of three documents: at least 9 characters
    ("".join(documents), math.prod(DOCUMENTS[document] for document in documents))
    for documents in product(DOCUMENTS, repeat=3)
]
PREFIXES = sorted({stream[:end] for stream, _ in STREAMS for end in range(8)})


def mass(prefix):
    return math.fsum(p for stream, p in STREAMS if stream.startswith(prefix))


def test_log_prob_equals_every_derivation():
    assert len(DOCUMENTS) == 7
    assert math.isclose(sum(DOCUMENTS.values()), 1)
    for document, p in DOCUMENTS.items():
        assert math.isclose(TINY.log_prob(document), math.log(p), rel_tol=1e-12)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "position 0: the document stops, expected one of 'a', 'b'"),
        ("ax", "position 2: the document stops, expected one of 'y', 'z'"),
        ("aq", "position 1: expected one of 'a', 'x' after 'a', found 'q'"),
        ("axzb", "position 3: expected '!' after 'axz', found 'b'"),
        ("bbca", "position 3: expected the document's end, found 'a'"),
    ],
)
def test_log_prob_names_where_a_text_leaves_the_language(document, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TINY.log_prob(document)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_next_char_probs_equals_brute_force(prefix):
    brute = {char: mass(prefix + char) / mass(prefix) for char in "abcxyz!" if mass(prefix + char)}
    probs = TINY.next_char_probs(prefix)
    assert probs.keys() == brute.keys()
    assert all(math.isclose(probs[char], brute[char], rel_tol=1e-12) for char in brute)


@pytest.mark.parametrize(("prefix", "position"), [("c", 0), ("bbcc", 3), ("axyaxyabc", 7), ("bx", 1)])
def test_next_char_probs_names_where_a_prefix_is_impossible(prefix, position):
    with pytest.raises(ValueError, match=f"^position {position}: expected"):
        TINY.next_char_probs(prefix)


@pytest.mark.parametrize("stream", PREFIXES)
def test_char_log_probs_adds_up_to_the_brute_force_mass(stream):
    log_probs = TINY.char_log_probs(stream)
    assert log_probs.shape == (len(stream),)
    for end in range(len(stream) + 1):
        assert math.isclose(log_probs[:end].sum(), math.log(mass(stream[:end])), rel_tol=1e-9, abs_tol=1e-12)


def test_char_log_probs_of_a_certain_character_is_zero():
    assert TINY.char_log_probs("bbcaa!")[[2, 5]].tolist() == [0.0, 0.0]


def test_char_log_probs_names_the_position_in_the_whole_stream():
    with pytest.raises(ValueError, match=r"^position 5: expected one of 'a', 'x' after 'axyba', found '\?'"):
        TINY.char_log_probs("axyba?")


@given(st.sampled_from(PREFIXES), st.integers(0, 8))
def test_advance_in_two_steps_is_advance_in_one(prefix, cut):
    half = TINY.advance(TINY.start, prefix[:cut])
    assert TINY.advance(half, prefix[cut:]) == TINY.advance(TINY.start, prefix)
    assert TINY.probs(half) == TINY.next_char_probs(prefix[:cut])


def test_advance_is_the_whole_filtering_state():
    assert TINY.advance(TINY.start, "ax") == TINY.advance(TINY.start, "bax") == Reading("T", "x")
    assert TINY.advance(TINY.start, "axy") == TINY.start == Reading("S", "")


def test_advance_counts_positions_within_the_new_text():
    with pytest.raises(ValueError, match=r"^position 0: expected one of 'y', 'z' after 'x', found 'a'"):
        TINY.advance(Reading("T", "x"), "a")


def test_sample_has_the_frequencies_of_the_grammar():
    n, rng = 20_000, Random(0)
    counts = Counter(TINY.sample(rng) for _ in range(n))
    assert counts.keys() == DOCUMENTS.keys()
    statistic = sum((counts[d] - n * p) ** 2 / (n * p) for d, p in DOCUMENTS.items())
    assert statistic < chi2.isf(1e-6, len(DOCUMENTS) - 1)  # a right sampler fails with one seed in a million


def test_sample_depends_on_the_seed_alone():
    def stream(seed):
        rng = Random(seed)
        return [TINY.sample(rng) for _ in range(50)]

    assert stream(1) == stream(1) != stream(2)


def test_sample_stays_in_range_where_rounding_leaves_the_sum_below_one():
    class Highest(Random):
        def random(self):
            return math.nextafter(1, 0)

    tenths = Grammar("S", lambda _: tuple(Choice(char, 0.1, None) for char in "abcdefghij"))
    assert tenths.sample(Highest()) == "j"


def test_expand_is_called_once_a_state():
    calls = Counter()

    def expand(state):
        calls[state] += 1
        return RULES[state]

    grammar, rng = Grammar("S", expand), Random(0)
    for _ in range(100):
        grammar.char_log_probs(grammar.sample(rng))
    assert calls == {"S": 1, "T": 1, "U": 1}


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ((), "offers no choice"),
        ((Choice("", 1.0, None),), "non-empty"),
        ((Choice("prince", 0.5, None), Choice("princess", 0.5, None)), "none a prefix of another"),
        (
            (Choice("b", 0.5, None), Choice("a", 0.2, None), Choice("b", 0.3, None)),
            "none a prefix of another",
        ),
        ((Choice("a", 0.5, None), Choice("b", 0.4, None)), "sum to 1"),
        ((Choice("a", 1.5, None), Choice("b", -0.5, None)), "positive"),
        ((Choice("a", 1.0, None), Choice("b", 0.0, None)), "positive"),
        ((Choice("a", math.nan, None),), "positive"),
    ],
)
def test_grammar_refuses_broken_choices(choices, message):
    with pytest.raises(ValueError, match=rf"^expand\('S'\).*{message}"):
        Grammar("S", lambda _: choices).sample(Random(0))


def test_grammar_refuses_none_as_start():
    with pytest.raises(ValueError, match="start must be a state"):
        Grammar(None, RULES.__getitem__)


def test_char_log_probs_of_nothing_is_empty():
    assert np.array_equal(TINY.char_log_probs(""), np.zeros(0))
