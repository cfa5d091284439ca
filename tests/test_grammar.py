"""Grammars against brute force: every derivation of a tiny grammar is written out."""

import math
import re
from collections import Counter
from itertools import product
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from softar_lab.data import languages
from softar_lab.data.corpora import load_corpus
from softar_lab.data.languages.grammar import Choice, Grammar, GrammarLanguage, Reading
from softar_lab.data.languages.tales import TALES, TALES_LANGUAGE

RULES = {
    "S": (Choice("a", 0.5, "T"), Choice("ba", 0.3, "T"), Choice("bbc", 0.2, None)),
    "T": (Choice("xy", 0.6, None), Choice("xz", 0.1, "U"), Choice("a", 0.3, "U")),
    "U": (Choice("!", 1.0, None),),
}
TINY = Grammar("S", RULES.__getitem__)
SPEAKER = GrammarLanguage(TINY, "!abcxyz")


def derivations(state="S"):
    """Every (document, probability) from a state."""
    if state is None:
        return [("", 1.0)]
    return [
        (choice.text + rest, choice.probability * p)
        for choice in RULES[state]
        for rest, p in derivations(choice.state)
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


@pytest.mark.parametrize(
    ("prefix", "position"), [("c", 0), ("bbcc", 3), ("axyaxyabc", 7), ("bx", 1)]
)
def test_next_char_probs_names_where_a_prefix_is_impossible(prefix, position):
    with pytest.raises(ValueError, match=f"^position {position}: expected"):
        TINY.next_char_probs(prefix)


@pytest.mark.parametrize("stream", PREFIXES)
def test_char_log_probs_adds_up_to_the_brute_force_mass(stream):
    log_probs = TINY.char_log_probs(stream)
    assert log_probs.shape == (len(stream),)
    for end in range(len(stream) + 1):
        assert math.isclose(
            log_probs[:end].sum(), math.log(mass(stream[:end])), rel_tol=1e-9, abs_tol=1e-12
        )


def test_char_log_probs_of_a_certain_character_is_zero():
    assert TINY.char_log_probs("bbcaa!")[[2, 5]].tolist() == [0.0, 0.0]


def test_char_log_probs_names_the_position_in_the_whole_stream():
    with pytest.raises(
        ValueError, match=r"^position 5: expected one of 'a', 'x' after 'axyba', found '\?'"
    ):
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
    with pytest.raises(
        ValueError, match=r"^position 0: expected one of 'y', 'z' after 'x', found 'a'"
    ):
        TINY.advance(Reading("T", "x"), "a")


def test_sample_has_the_frequencies_of_the_grammar():
    n, rng = 20_000, Random(0)
    counts = Counter(TINY.sample(rng) for _ in range(n))
    assert counts.keys() == DOCUMENTS.keys()
    statistic = sum((counts[d] - n * p) ** 2 / (n * p) for d, p in DOCUMENTS.items())
    assert statistic < chi2.isf(
        1e-6, len(DOCUMENTS) - 1
    )  # a right sampler fails with one seed in a million


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


# The predictor of a grammar's characters


def encoded(*texts):
    return torch.stack([SPEAKER.tokenizer.encode(text) for text in texts])


def test_grammar_is_known_by_its_old_address():
    assert languages.Grammar is Grammar
    assert languages.GrammarLanguage is GrammarLanguage


@pytest.mark.parametrize("length", range(1, 8))
def test_next_log_probs_equals_brute_force_on_every_prefix(length):
    prefixes = [prefix for prefix in PREFIXES if len(prefix) == length]
    log_probs = SPEAKER.next_log_probs(
        encoded(*(prefix + "!" for prefix in prefixes))
    )  # a last token is in no prefix
    for prefix, rows in zip(prefixes, log_probs.exp(), strict=True):
        for t, row in enumerate(rows):
            brute = [
                mass(prefix[:t] + char) / mass(prefix[:t]) for char in SPEAKER.tokenizer.tokens
            ]
            np.testing.assert_allclose(row, brute, atol=1e-12)


@pytest.mark.parametrize("length", [1, 4, 7])
def test_scores_gathered_rows_and_steps_agree(length):
    token_ids = encoded(*(prefix for prefix in PREFIXES if len(prefix) == length))
    gathered = SPEAKER.next_log_probs(token_ids).gather(-1, token_ids[..., None])[..., 0]
    torch.testing.assert_close(SPEAKER.log_probs(token_ids), gathered, rtol=0, atol=1e-14)
    state = SPEAKER.start(len(token_ids))
    for t in range(length):
        step = SPEAKER.predict(state).log_probs.gather(-1, token_ids[:, t : t + 1])[:, 0]
        assert torch.equal(step, gathered[:, t])
        state = SPEAKER.advance(state, token_ids=token_ids[:, t])


def test_log_probs_names_row_and_position_of_what_cannot_be():
    with pytest.raises(
        ValueError, match=r"^row 1, position 5: expected one of 'a', 'x' after 'axyba', found 'c'$"
    ):
        SPEAKER.log_probs(encoded("axyaxy", "axybac"))
    with pytest.raises(
        ValueError, match=r"^row 1, position 1: expected one of 'a', 'b' after 'b', found 'c'$"
    ):
        SPEAKER.next_log_probs(encoded("bba", "bca"))
    state = SPEAKER.read(SPEAKER.start(2), encoded("ba", "ax"))
    with pytest.raises(
        ValueError, match=r"^row 1, position 2: expected one of 'y', 'z', found '!'$"
    ):
        SPEAKER.advance(state, token_ids=encoded("x!")[0])


def test_grammar_language_refuses_symbols_that_do_not_suffice():
    with pytest.raises(ValueError, match="the grammar writes 'b', which is not among the symbols"):
        GrammarLanguage(TINY, "!acxyz").predict(SPEAKER.start())
    with pytest.raises(ValueError, match="separator must be one of the symbols or None, not '.'"):
        GrammarLanguage(TINY, "!abcxyz", separator=".")


def test_grammar_language_samples_streams_with_the_grammars_frequencies():
    n, length = 5_000, 4
    rows = SPEAKER.sample(length, n, seed=3)
    counts = Counter(map(SPEAKER.tokenizer.decode, rows))
    expected = {prefix: n * mass(prefix) for prefix in PREFIXES if len(prefix) == length}
    assert counts.keys() <= expected.keys()
    statistic = sum((counts[prefix] - e) ** 2 / e for prefix, e in expected.items())
    assert statistic < chi2.isf(
        1e-6, len(expected) - 1
    )  # a right sampler fails with one seed in a million


def test_grammar_language_sample_depends_on_the_seed_alone():
    assert torch.equal(SPEAKER.sample(50, 3, seed=1), SPEAKER.sample(50, 3, seed=1))
    assert not torch.equal(SPEAKER.sample(50, 3, seed=1), SPEAKER.sample(50, 3, seed=2))
    assert SPEAKER.sample(0, 3).shape == SPEAKER.log_probs(SPEAKER.sample(0, 3)).shape == (3, 0)


def test_entropy_rate_is_the_documents_entropy_over_their_length_within_its_error():
    nats = -math.fsum(p * math.log(p) for p in DOCUMENTS.values())
    truth = nats / math.fsum(p * len(document) for document, p in DOCUMENTS.items())
    estimates = [SPEAKER.entropy_rate(documents=400, seed=seed) for seed in range(40)]
    z = sum(((estimate - truth) / estimate.standard_error) ** 2 for estimate in estimates)
    assert chi2.ppf(1e-6, 40) < z < chi2.isf(1e-6, 40)  # an honest error fails twice in a million


def test_entropy_rate_is_certain_where_every_character_costs_the_same():
    coin = GrammarLanguage(
        Grammar("S", lambda _: (Choice("a", 0.5, "S"), Choice("b", 0.5, None))), "ab"
    )
    rate = coin.entropy_rate(documents=100)  # lengths differ, and the costs with them
    assert math.isclose(rate, math.log(2), rel_tol=1e-12)
    assert rate.standard_error < 1e-12


# Tales as a predictor


@pytest.mark.slow
def test_tales_language_speaks_the_symbols_of_the_corpus():
    assert "".join(TALES_LANGUAGE.tokenizer.tokens) == "".join(
        sorted(set(load_corpus("tales").train))
    )


def test_tales_language_is_the_grammar():
    text = load_corpus("tales").val[:1_500]
    token_ids = TALES_LANGUAGE.tokenizer.encode(text)[None]
    np.testing.assert_allclose(
        TALES_LANGUAGE.log_probs(token_ids)[0], TALES.char_log_probs(text), atol=1e-14
    )
    rows = TALES_LANGUAGE.next_log_probs(token_ids)[0]
    torch.testing.assert_close(rows.exp().sum(-1), torch.ones(1_500, dtype=torch.float64))
    for t in range(0, 1_500, 7):
        truth = TALES.next_char_probs(text[:t])
        for char, p in zip(TALES_LANGUAGE.tokenizer.tokens, rows[t].exp().tolist(), strict=True):
            assert math.isclose(truth.get(char, 0), p, rel_tol=1e-12)


def test_tales_language_rate_agrees_with_the_corpus():
    corpus, estimate = load_corpus("tales"), TALES_LANGUAGE.entropy_rate(documents=500)
    nats, chars = np.array(
        [[-TALES.log_prob(story), len(story)] for story in corpus.documents("val")]
    ).T
    floor = corpus.floor_bits_per_char * math.log(2)
    spread = (nats - floor * chars).std() / chars.mean() / math.sqrt(len(chars))
    assert abs(estimate - floor) < 5 * math.hypot(
        estimate.standard_error, spread
    )  # fails one seed in a million
