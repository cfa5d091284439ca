"""Tokenizers: any text comes back, and what is wrong is named."""

import json
import random
import re
import zlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softar_lab.data.corpora import load_corpus
from softar_lab.data.tokenizers import char, subword, tokenizer_from_dict
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.data.tokenizers.growing import GrowingTokenizer
from softar_lab.data.tokenizers.subword import BPETokenizer

ANY_CHAR = st.characters(
    codec=None, exclude_categories=()
)  # astral characters and lone surrogates too
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
    with pytest.raises(
        ValueError, match=r"unknown character '🙂' at position 2; .*fit\(\.\.\., unk=True\)"
    ):
        CharTokenizer.fit("ab").encode("ab🙂c")


def test_encode_of_nothing_is_empty():
    tokenizer = CharTokenizer.fit("ab")
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode([]) == tokenizer.decode(torch.tensor([], dtype=torch.int64)) == ""


@pytest.mark.parametrize(
    ("ids", "message"), [([0, 2], "id 2 at position 1"), ([-1], "id -1 at position 0")]
)
def test_decode_names_an_id_out_of_range(ids, message):
    with pytest.raises(ValueError, match=message + r" is not in 0\.\.1"):
        CharTokenizer.fit("ab").decode(ids)


@pytest.mark.parametrize(
    "ids", [np.array([0.0, 1.0]), torch.tensor([[0, 1]]), torch.tensor(1), np.array([True])]
)
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


# -- units longer than a character ------------------------------------------------------------------------------------

VERSE = (
    "the thane thinks that the other thing is thin\nthen the queen quickly quits the quay\n"
    "  a hat, a cat; aaaa aaa aa\tthe bath\n" * 4
)
UNITS = {
    "bpe": BPETokenizer.fit(VERSE, 80),
    "growing": GrowingTokenizer.fit(VERSE, 80),
    "strict": GrowingTokenizer.fit(VERSE, 80, confidence=0.5, least=3, fall=1),
}
every_unit_tokenizer = pytest.mark.parametrize("tokenizer", UNITS.values(), ids=UNITS)
MIXED = st.lists(
    st.sampled_from(
        ["the", " ", "th", "qu", "a", "aa", "\n", "é", "🙂", "\ud800", "\udc00", "\ufdd3"]
    )
)


def slow_cut(tokenizer, text):
    """The tokens of a text by the rule alone: in each word, of all pairs the one that joined first,
    leftmost first.
    """
    rank, tokens = {}, []
    for i, pair in enumerate(tokenizer.merges):
        rank.setdefault(pair, i)
    for word in re.findall(r" ?[^\s]+|\s", tokenizer._spelled(text)):
        units = list(word)
        while pairs := [(rank[pair], i) for i, pair in enumerate(pairwise(units)) if pair in rank]:
            i = min(pairs)[1]
            units[i : i + 2] = ["".join(units[i : i + 2])]
        tokens += units
    return tokens


@every_unit_tokenizer
@given(text=st.text(ANY_CHAR) | MIXED.map("".join) | st.text("theaqu \n"))
def test_every_text_comes_back_and_is_cut_by_the_rule(tokenizer, text):
    token_ids = tokenizer.encode(text)
    assert token_ids.dtype == torch.int64
    assert tokenizer.decode(token_ids) == tokenizer.decode(token_ids.tolist()) == text
    assert [tokenizer.tokens[i] for i in token_ids] == slow_cut(tokenizer, text)
    lengths = tokenizer.lengths(token_ids)
    assert lengths.shape == token_ids.shape
    assert lengths.sum() == len(text)
    assert tokenizer.unknown_in(text) == {}


@pytest.mark.slow
def test_ten_thousand_random_strings_come_back():
    """Of any code points, lone surrogates and what half bytes are made of, known characters and odd
    ones.

    The odd ones (NUL, ends of lines, white space of all kinds, marks that combine, emoji and what
    joins them) are in part known, and grown into units, in part spelled out.
    """
    rng = np.random.default_rng(0)
    odd = "\0\r\n\t\v\f\x1c\x85\xa0\u2028\u2029\u3000 e\u0301\u0323\u200d\ufe0f👩🚀🇫🇷🏽\ufeff\uffff"
    tokenizer = GrowingTokenizer.fit(VERSE + "e\u0301\u0323 👩\u200d🚀 \0a\0\ufeff\r\n" * 40, 120)
    assert any("\u0301" in unit for unit in tokenizer.units)
    assert any("\u200d" in unit for unit in tokenizer.units)
    assert any("\0" in unit for unit in tokenizer.units)
    pools = [
        range(0x110000),
        range(0xD7F0, 0xE010),
        range(0xFDC0, 0xFE00),
        map(ord, sorted({*VERSE})),
        map(ord, odd),
    ]
    pools = [np.array(pool) for pool in map(list, pools)]
    texts = [
        "".join(map(chr, rng.choice(pools[i % 5], rng.integers(0, 12)))) for i in range(10_000)
    ]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts
    for whole in ("".join(texts), "\r\n".join(texts)):
        assert tokenizer.decode(tokenizer.encode(whole)) == whole


@every_unit_tokenizer
def test_lengths_count_a_spelled_character_where_it_begins(tokenizer):
    text = "aé🙂\ud800b"
    lengths = tokenizer.lengths(tokenizer.encode(text)).tolist()
    assert lengths == [1, *[1, 0, 0, 0], *[1, 0, 0, 0, 0, 0, 0, 0], *[1, 0, 0, 0, 0, 0], 1]


@every_unit_tokenizer
@given(ids=st.lists(st.integers(0, 79)))
def test_any_ids_decode(tokenizer, ids):
    """What a model writes need not be the spelling of anything."""
    text = tokenizer.decode(ids)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.lengths(torch.tensor(ids, dtype=torch.int64))) == len(ids)


@every_unit_tokenizer
def test_tokens_are_distinct_and_white_space_stands_alone(tokenizer):
    assert tokenizer.vocab_size == len(set(tokenizer.tokens)) == 80
    assert all(len(unit) > 1 and not re.search(r".\s|[\n\t]", unit) for unit in tokenizer.units)
    assert len(tokenizer.encode("\n\n")) == 2


@every_unit_tokenizer
def test_unit_tokenizers_come_back_through_json(tokenizer):
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert type(again) is type(tokenizer)
    assert (again, again.tokens, hash(again)) == (tokenizer, tokenizer.tokens, hash(tokenizer))
    assert again != replace(tokenizer, merges=tokenizer.merges[:-1])
    assert len(repr(tokenizer)) < 120


def test_without_confidence_growing_is_byte_pair_encoding():
    """The same pairs join but for ties, so both cut about as short."""
    text = load_corpus("topics").val
    bpe = BPETokenizer.fit(text, 300)
    grown = GrowingTokenizer.fit(text, 300, confidence=0)
    assert len(set(grown.units) & set(bpe.units)) >= 0.9 * len(bpe.units)
    assert len(grown.encode(text)) == pytest.approx(len(bpe.encode(text)), rel=0.01)


def test_a_unit_joins_once_its_second_part_was_predictable_often_enough():
    """After q always u, three times in all, so two others foresee each; after a one of three."""
    text = "qu qu qu ax ay az"
    how = {"confidence": 0.9, "fall": 1, "context": 1}
    assert GrowingTokenizer.fit(text, 40, least=3, **how).units == ("qu",)
    assert GrowingTokenizer.fit(text, 40, least=4, **how).units == ()
    assert "ax" not in GrowingTokenizer.fit(text, 40, least=1, **how).units


def test_growth_reports_each_round_and_ends_where_nothing_is_predictable():
    frame = UNITS["growing"].growth
    assert list(frame) == ["units", "confidence", "least", "chars_per_token"]
    assert frame["units"].is_monotonic_increasing
    assert frame["units"].iloc[-1] == len(UNITS["growing"].chars) + 16 + len(UNITS["growing"].units)
    assert frame["chars_per_token"].is_monotonic_increasing
    assert frame["chars_per_token"].iloc[-1] == pytest.approx(
        len(VERSE) / len(UNITS["growing"].encode(VERSE))
    )
    assert (frame["confidence"].diff().dropna() <= 0).all()
    short = GrowingTokenizer.fit(VERSE, 400, confidence=0.9, least=20, fall=1)
    assert 0 < len(short.units) < 60
    assert short.vocab_size == len(set(short.tokens)) == 400
    empty = [i for i, token in enumerate(short.tokens) if token.startswith("\ufde0")]
    assert len(empty) == short.buckets - len(short.units)
    assert short.decode(empty) == ""


def test_a_unit_keeps_its_place_while_the_vocabulary_grows():
    first = GrowingTokenizer.fit(VERSE, 200, confidence=0.9, least=10, fall=1)
    more = first.grow("naïve naïve naïve " * 40, confidence=0.5, least=2)
    assert more.vocab_size == first.vocab_size
    assert more.units[: len(first.units)] == first.units
    assert len(more.units) > len(first.units)
    assert [more.tokens.index(unit) for unit in first.units] == [
        first.tokens.index(unit) for unit in first.units
    ]
    assert len(more.encode("naïve")) < len(
        first.encode("naïve")
    )  # what was spelled out has become a unit
    assert more.decode(more.encode("naïve")) == "naïve"


def test_units_lie_where_their_hash_says_or_are_counted():
    tokenizer = UNITS["growing"]
    first = len(tokenizer.chars) + 16
    away = sum(
        tokenizer.tokens[first + zlib.crc32(u.encode()) % tokenizer.buckets] != u
        for u in tokenizer.units
    )
    assert tokenizer.displaced == away
    assert GrowingTokenizer.fit(VERSE, 100_000, confidence=0.9, least=20, fall=1).displaced == 0


@pytest.mark.parametrize("fit", [BPETokenizer.fit, GrowingTokenizer.fit])
def test_fit_of_units_says_what_is_wrong(fit):
    with pytest.raises(ValueError, match="must not be empty"):
        fit("", 100)
    with pytest.raises(
        ValueError,
        match="vocab_size must be at least 18, for 2 characters and 16 half bytes, not 17",
    ):
        fit("ab", 17)
    assert fit("ab", 18).units == ()


@pytest.mark.parametrize("wrong", [{"confidence": 1.5}, {"least": 0}, {"fall": 0}, {"context": 0}])
def test_grow_names_a_number_out_of_range(wrong):
    with pytest.raises(
        ValueError, match=f"{next(iter(wrong))}.*{next(iter(wrong))}={next(iter(wrong.values()))}"
    ):
        GrowingTokenizer.fit(VERSE, 80, **wrong)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({}, "unknown type of tokenizer None; known: char, bpe, growing"),
        ({"type": "syllables"}, "unknown type of tokenizer 'syllables'"),
        ({"type": "bpe", "chars": ["a"]}, "BPETokenizer is not made of chars"),
        (
            {"type": "bpe", "chars": ["a"], "merges": [], "buckets": 1},
            "BPETokenizer is not made of",
        ),
        ({"type": "bpe", "chars": ["b", "a"], "merges": []}, "ascending"),
        ({"type": "bpe", "chars": ["ab"], "merges": []}, "single characters"),
        ({"type": "bpe", "chars": ["\ud800"], "merges": []}, "possible in UTF-8"),
        (
            {"type": "bpe", "chars": ["a"], "merges": [["a", "b"]]},
            r"two units that are there already, not \('a', 'b'\)",
        ),
        ({"type": "bpe", "chars": ["a"], "merges": [["a"]]}, "two units"),
        (
            {"type": "growing", "chars": ["a"], "merges": [["a", "a"]], "buckets": 0},
            "buckets must be at least 1",
        ),
    ],
)
def test_tokenizer_from_dict_says_what_is_wrong(saved, message):
    with pytest.raises(ValueError, match=message):
        tokenizer_from_dict(saved)


def test_from_dict_of_one_type_refuses_another():
    with pytest.raises(ValueError, match='BPETokenizer is saved as {"type": "bpe"'):
        BPETokenizer.from_dict(UNITS["growing"].to_dict())


SPELLED = st.lists(
    st.integers(0, 39) | st.integers(len("hello wrd"), len("hello wrd") + 15), max_size=24
)


@given(ids=SPELLED)
def test_lengths_add_up_to_the_decoded_text_also_of_invalid_bytes(ids):
    """And a token whose characters begin in it stands for as many as there are up to the next."""
    tokenizer = BPETokenizer.fit("hello world hello world", 40)
    ids = torch.tensor([i % tokenizer.vocab_size for i in ids], dtype=torch.int64)
    lengths, text = tokenizer.lengths(ids), tokenizer.decode(ids)
    assert int(lengths.sum()) == len(text)
    assert (lengths >= 0).all()


@given(data=st.binary(max_size=12))
def test_bytes_that_spell_nothing_are_replaced_as_python_does_it(data):
    tokenizer = BPETokenizer.fit("ab", 20)
    ids = [len("ab") + half for byte in data for half in divmod(byte, 16)]
    try:
        expected = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        expected = data.decode("utf-8", "replace")
        if any(0xED <= byte <= 0xED for byte in data):  # surrogates stay, where Python drops them
            return
    assert tokenizer.decode(ids) == expected
    odd = [*ids, len("ab") + 4]
    assert tokenizer.decode(odd) == tokenizer.decode(ids) + "\ufffd"


@pytest.mark.parametrize("name", ["tales", "topics", "recall"])
def test_no_word_of_an_ordinary_text_is_learned_from_in_parts(name):
    """So the vocabulary is the one that whole words give."""
    assert max(map(len, subword.WORD.findall(load_corpus(name).train))) < subword.LONGEST / 4


def test_a_long_word_is_learned_from_in_time_that_grows_with_its_length(monkeypatch):
    """The library gets no word above LONGEST, and the parts are the word; an ordinary text's
    vocabulary does not depend on it.
    """
    letters = "".join(random.Random(0).choices("ACGT", k=20_000))
    assert max(map(len, subword._parts(letters))) == subword.LONGEST
    assert "".join(subword._parts(letters)) == letters
    tokenizer = BPETokenizer.fit(letters, 100)
    assert tokenizer.vocab_size == 100
    assert tokenizer.decode(tokenizer.encode(letters)) == letters
    text = load_corpus("topics").train[:20_000]
    learned = BPETokenizer.fit(text, 400)
    monkeypatch.setattr(subword, "LONGEST", 10**9)
    assert BPETokenizer.fit(text, 400) == learned


@pytest.mark.parametrize("unk", [False, True])
@given(text=st.text(st.characters(codec=None)))
def test_char_ids_are_those_of_a_dictionary(unk, text):
    tokenizer = CharTokenizer.fit("aé🙂\ud800z", unk=unk)
    known = {char: i for i, char in enumerate(sorted("aé🙂\ud800z"))}
    assert tokenizer.unknown_in(text) == {c: text.count(c) for c in sorted({*text} - {*known})}
    if unk:
        assert tokenizer.encode(text).tolist() == [known.get(char, 5) for char in text]
    else:
        text = "".join(char for char in text if char in known)
        assert tokenizer.encode(text).tolist() == [known[char] for char in text]


def test_char_ids_of_a_long_text_are_those_of_its_parts(monkeypatch):
    tokenizer, text = CharTokenizer.fit("abc"), "abcab" * 7
    whole = tokenizer.encode(text)
    monkeypatch.setattr(char, "PART", 3)
    assert torch.equal(tokenizer.encode(text), whole)
    with pytest.raises(ValueError, match="unknown character 'x' at position 35"):
        tokenizer.encode(text + "x")
