"""What can be known k steps ahead (K24): every language against enumeration, tales against texts."""

import math
from collections import Counter
from random import Random

import pytest
import torch

from softar_lab.data.corpora import load_language
from softar_lab.data.languages import Markov, Recall, mess3
from tests.test_grammar import DOCUMENTS, SPEAKER, TINY
from tests.test_languages import CASES, masses

EXACT = 1e-10  # the bound; the sums here have at most some hundred terms of at most 1


def enumerated(levels, prefix, k, vocab_size):
    """q(symbol k steps on | prefix) (V,), by summing over all sequences of that length."""
    t, law = len(prefix), torch.zeros(vocab_size, dtype=torch.float64)
    for sequence, p in levels[t + k].items():
        if sequence[:t] == prefix:
            law[sequence[-1]] += p
    return law / levels[t][prefix]


@pytest.mark.parametrize("name", CASES)
def test_ahead_equals_enumeration(name):
    language, _, longest = CASES[name]
    levels = masses(name)
    for t in range(longest):
        prefixes = sorted(levels[t])[:40]
        ids = torch.tensor(prefixes, dtype=torch.long).reshape(len(prefixes), t)
        state = language.read(language.start(len(prefixes)), ids)
        for k in range(1, longest - t + 1):
            found = language.ahead(state, k)
            wanted = [enumerated(levels, one, k, language.vocab_size) for one in prefixes]
            torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=EXACT)


def test_ahead_of_recall_knows_each_place_of_a_document():
    language = Recall(3, 2, 2)  # ten symbols: no enumeration passes its separator
    for text in ("", "a", "a0", "a0c", "a0c1", "a0c1?", "a0c1?c"):
        state = language.read(language.start(1), language.tokenizer.encode(text)[None])
        for k in range(2, 21):  # by definition: the mean of what is known one symbol later
            now, wanted = language.ahead(state, 1)[0], 0
            for x in now.nonzero()[:, 0]:
                later = language.advance(state, token_ids=x[None])
                wanted = wanted + now[x] * language.ahead(later, k - 1)[0]
            torch.testing.assert_close(language.ahead(state, k)[0], wanted, rtol=0, atol=EXACT)


@pytest.mark.parametrize("prefix", ["", "a", "ax", "b", "bb", "axy", "axyb"])
def test_ahead_of_a_grammar_equals_every_derivation(prefix):
    for k in range(1, 5):
        law = Counter()
        streams = [("", 1.0)]
        for _ in range(len(prefix) + k):  # a document has at least two characters
            streams = [(s + d, p * q) for s, p in streams for d, q in DOCUMENTS.items()][:20000]
            if min(len(s) for s, _ in streams) >= len(prefix) + k:
                break
        for stream, p in streams:
            if stream.startswith(prefix):
                law[stream[len(prefix) + k - 1]] += p
        total = math.fsum(law.values())
        found = TINY.ahead(TINY.advance(TINY.start, prefix), k)
        assert found.keys() == law.keys()
        assert all(abs(found[x] - law[x] / total) < EXACT for x in law)
        assert math.isclose(math.fsum(found.values()), 1)


@pytest.mark.parametrize("name", ["markov-2", "mess3", "urn", "recall"])
def test_ahead_probs_are_those_of_each_state(name):
    language = CASES[name][0]
    ids, horizons = language.sample(11, batch_size=3, seed=5), (1, 2, 5)
    found, state = language.ahead_probs(ids, horizons), language.start(3)
    for t in range(11):
        for row, k in zip(found, horizons, strict=True):
            assert torch.equal(row[:, t], language.ahead(state, k))
        state = language.advance(state, token_ids=ids[:, t])


def test_the_same_of_a_grammar():
    ids = SPEAKER.tokenizer.encode("axybbcaa!")[None]
    found = SPEAKER.ahead_probs(ids, (1, 3))
    state = SPEAKER.read(SPEAKER.start(1), ids[:, :4])
    torch.testing.assert_close(found[1, :, 4], SPEAKER.ahead(state, 3), rtol=0, atol=EXACT)
    with pytest.raises(ValueError, match="row 0"):
        SPEAKER.ahead_probs(SPEAKER.tokenizer.encode("xx")[None], (2,))


def test_far_ahead_nothing_of_the_past_is_known():
    chain = Markov.random(4, 2, seed=3)
    symbols = chain.stationary.reshape(4, 4).sum(0)
    state = chain.read(chain.start(2), torch.tensor([[0, 1, 2], [3, 3, 1]]))
    torch.testing.assert_close(
        chain.ahead(state, 400), torch.from_numpy(symbols).expand(2, -1), rtol=0, atol=1e-9
    )
    far = mess3().ahead(mess3().start(1), 500)
    torch.testing.assert_close(far, torch.full((1, 3), 1 / 3, dtype=torch.float64))


def test_ahead_of_tales_is_how_often_texts_go_on_so():
    language, n, begin = load_language("tales"), 300, 40
    rng, seen, wanted = Random("ahead"), Counter(), {}
    for _ in range(n):
        text = language.grammar.sample(rng)
        reading = language.grammar.advance(language.grammar.start, text[:begin])
        for k in (2, 8, 24):
            seen[k, text[begin + k - 1]] += 1
            for char, p in language.grammar.ahead(reading, k).items():
                wanted.setdefault((k, char), []).append(p)
    # Each count is a sum of independent draws. 6 standard deviations and 5 more are passed with
    # odds below 1e-6 by one of some hundred counts (Bernstein's inequality).
    assert seen.keys() <= wanted.keys()
    for key, shares in wanted.items():
        variance = math.fsum(p * (1 - p) for p in shares)
        assert abs(seen[key] - math.fsum(shares)) < 6 * math.sqrt(variance) + 5, key


@pytest.mark.parametrize("k", [0, -1])
def test_a_horizon_is_a_whole_number_of_at_least_one(k):
    language = mess3()
    with pytest.raises(ValueError, match="k must be a whole number"):
        language.ahead(language.start(1), k)
    with pytest.raises(ValueError, match="a horizon must be a whole number"):
        language.ahead_probs(torch.zeros(1, 2, dtype=torch.long), (1, k))
