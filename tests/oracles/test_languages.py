"""Languages and counting: every probability once more in fractions, by enumeration."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from oracles.cases import cases, weights
from softar_lab.counting.exact import CountingModel
from softar_lab.data.languages import (
    Choice,
    Grammar,
    GrammarLanguage,
    HiddenMarkov,
    Markov,
    Recall,
    Urn,
)

seeds = st.integers(0, 2**32 - 1)
# A chain's law, entry by entry, is off by 2n roundings of its n states' transitions at most
# (O'Cinneide 1993, Numerische Mathematik 65), a text's by one more per symbol.
CLOSE = {"rtol": 1e-13, "atol": 0}


def normalised(numbers):
    total = sum(map(Fraction, numbers))
    return [Fraction(one) / total for one in numbers]


def solved(system, wanted):
    """x with system x = wanted, by elimination in fractions; None where there are several."""
    n = len(system[0])
    rows = [[*row, value] for row, value in zip(system, wanted, strict=True)]
    for column in range(n):
        pivot = next((i for i in range(column, len(rows)) if rows[i][column]), None)
        if pivot is None:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for i, row in enumerate(rows):
            if i != column and row[column]:
                factor = row[column] / rows[column][column]
                rows[i] = [a - factor * b for a, b in zip(row, rows[column], strict=True)]
    return [rows[i][n] / rows[i][i] for i in range(n)]


def law(chain):
    """The stationary distribution of a transition matrix; None where there are several."""
    n = len(chain)
    system = [[chain[i][j] - (i == j) for i in range(n)] for j in range(n)] + [[Fraction(1)] * n]
    return solved(system, [Fraction(0)] * n + [Fraction(1)])


def checked(language, probability, length):
    """Compare every text of a length, its prefixes and next symbols with `probability(text)`."""
    v = language.vocab_size
    for text in product(range(v), repeat=length):
        p = probability(text)
        ids = torch.tensor([text])
        if p == 0:
            with pytest.raises(ValueError, match="expected"):
                language.log_probs(ids)
            continue
        parts = [probability(text[: t + 1]) / probability(text[:t]) for t in range(length)]
        found = language.log_probs(ids).exp()[0]
        np.testing.assert_allclose(found, [float(one) for one in parts], **CLOSE)
        state = language.start(1)
        for t in range(length):
            following = [
                float(probability((*text[:t], w)) / probability(text[:t])) for w in range(v)
            ]
            np.testing.assert_allclose(language.probs(state)[0], following, **CLOSE)
            rows = language.next_log_probs(ids)[0, t].exp()
            np.testing.assert_allclose(rows, following, **CLOSE)
            state = language.advance(state, token_ids=ids[:, t])


@given(seeds, st.integers(0, 2), st.integers(1, 3))
@cases("markov")
def test_markov(seed, order, v):
    rng = np.random.default_rng(seed)
    table = weights(rng, *[v] * (order + 1)).reshape(-1, v)
    table[table.sum(1) == 0, rng.integers(v)] = 1
    rows = [normalised(row) for row in table.tolist()]
    contexts = list(product(range(v), repeat=order))
    chain = [[Fraction(0)] * len(contexts) for _ in contexts]
    for i, before in enumerate(contexts):
        for w in range(v):
            chain[i][contexts.index((*before, w)[1:] if order else ())] += rows[i][w]
    begin = law(chain)
    given_rows = (table / table.sum(1, keepdims=True)).reshape([v] * (order + 1))
    if begin is None:
        with pytest.raises(ValueError, match="no unique stationary law"):
            Markov(given_rows)
        return

    def probability(text):
        if len(text) < order:
            return sum(probability((*text, w)) for w in range(v))
        p = begin[contexts.index(text[:order])]
        for t in range(order, len(text)):
            p *= rows[contexts.index(text[t - order : t])][text[t]]
        return p

    language = Markov(given_rows)
    np.testing.assert_allclose(language.stationary, [float(one) for one in begin], **CLOSE)
    checked(language, probability, 3)
    nats = sum(b * -p * Fraction(math.log(p)) for b, row in zip(begin, rows) for p in row if p)
    assert language.entropy_rate() == pytest.approx(float(nats), rel=1e-12, abs=1e-15)


@given(seeds, st.integers(1, 3), st.integers(1, 2))
@cases("hidden markov")
def test_hidden_markov(seed, s, v):
    rng = np.random.default_rng(seed)
    table = weights(rng, v, s, s)
    table[0, table.sum((0, 2)) == 0, rng.integers(s)] = 1
    whole = table.astype(int).tolist()
    sums = [sum(whole[x][i][j] for x in range(v) for j in range(s)) for i in range(s)]
    step = [
        [[Fraction(whole[x][i][j], sums[i]) for j in range(s)] for i in range(s)] for x in range(v)
    ]
    begin = law([[sum(step[x][i][j] for x in range(v)) for j in range(s)] for i in range(s)])
    given_table = table / table.sum((0, 2))[:, None]
    if begin is None:
        with pytest.raises(ValueError, match="no unique stationary law"):
            HiddenMarkov(given_table)
        return

    def ending(text):
        """The probability of a text together with each last state: over all paths of states."""
        found = [Fraction(0)] * s
        for path in product(range(s), repeat=len(text) + 1):
            p = begin[path[0]]
            for x, i, j in zip(text, path, path[1:]):
                p *= step[x][i][j]
            found[path[-1]] += p
        return found

    language, length = HiddenMarkov(given_table), 3
    np.testing.assert_allclose(language.stationary, [float(one) for one in begin], **CLOSE)
    checked(language, lambda text: sum(ending(text)), length)
    for text in product(range(v), repeat=length):
        if sum(ending(text)):
            beliefs = language.beliefs(torch.tensor([text]))[0]
            for t in range(length + 1):
                exact = ending(text[:t])
                exact = [float(one / sum(exact)) for one in exact]
                np.testing.assert_allclose(beliefs[t], exact, **CLOSE)


@given(seeds, st.integers(2, 3), st.integers(1, 3), st.sampled_from([1e-12, 1e-3, 1, 1e3, 1e12]))
@cases("urn")
def test_urn(seed, v, length, added):
    rng = np.random.default_rng(seed)
    initial = (rng.integers(1, 9, size=v) * 10.0 ** rng.choice([-9, 0, 0, 3], size=v)).tolist()
    start = [Fraction(one) for one in initial]

    def probability(text):
        urn, p = [Fraction(0), *start], Fraction(1)
        for t, colour in enumerate(text):
            if t % (length + 1) == length:
                p *= colour == 0
                urn = [Fraction(0), *start]
            else:
                p *= urn[colour] / sum(urn)
                urn[colour] += Fraction(added)
        return p

    language = Urn(initial, added, length)
    if length < 3:
        checked(language, probability, length + 2)
    draws = []
    for t in range(length):
        nats = 0.0
        for text in product(range(1, v + 1), repeat=t + 1):
            p, before = probability(text), probability(text[:-1])
            share = p / before
            log = math.log1p(-float(1 - share)) if share > 0.5 else math.log(share)
            nats -= float(p) * log
        draws.append(nats)
    # entropy near certainty: 1 - p carries the roundings of sums of about 1
    np.testing.assert_allclose(language.draw_entropies(), draws, rtol=1e-12, atol=1e-14)
    assert language.document_entropy() == pytest.approx(sum(draws), rel=1e-12, abs=1e-13)


@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2))
@cases("recall")
def test_recall(n_keys, n_values, n_pairs, n_queries):
    assume(n_pairs <= n_keys)
    language = Recall(n_keys, n_values, n_pairs, n_queries)
    documents = {}
    keys, values = "abc"[:n_keys], "01"[:n_values]
    for some in product(keys, repeat=n_pairs):
        for their in product(values, repeat=n_pairs):
            if len(set(some)) == n_pairs:
                for asked in product(some, repeat=n_queries):
                    pairs = "".join(k + x for k, x in zip(some, their))
                    answers = "".join(k + their[some.index(k)] for k in asked)
                    documents[f"{pairs}?{answers}\n"] = 0
    assert language.document_entropy() == pytest.approx(math.log(len(documents)), rel=1e-12)
    ids = torch.stack([language.tokenizer.encode(text) for text in documents])
    nats = language.log_probs(ids).sum(1)
    np.testing.assert_allclose(nats, -math.log(len(documents)), rtol=1e-12, atol=1e-14)


@given(seeds, st.integers(1, 3))
@cases("grammar")
def test_grammar(seed, states):
    """Texts "a", "ba", "bb": none begins another, and a prefix may end inside one."""
    rng = np.random.default_rng(seed)
    rules = {}
    for state in range(states):
        words = ["a", "ba", "bb"][: rng.integers(1, 4)]
        p = weights(rng, len(words)) + 1
        after = [None if rng.random() < 0.4 else int(rng.integers(states)) for _ in words]
        rules[state] = list(zip(words, normalised(p.tolist()), after))
    rules[0][0] = (*rules[0][0][:2], None)  # a document can end
    grammar = Grammar(
        0, lambda state: tuple(Choice(text, float(p), then) for text, p, then in rules[state])
    )

    def begins(text, state=0):
        """The probability that a stream from a state begins with a text."""
        total = Fraction(0)
        for word, p, then in rules[state]:
            if word.startswith(text):
                total += p
            elif text.startswith(word):
                total += p * begins(text[len(word) :], 0 if then is None else then)
        return total

    def whole(text, state=0):
        """The probability of a text as one document from a state."""
        return sum(
            p * ((text == word) if then is None else whole(text[len(word) :], then))
            for word, p, then in rules[state]
            if text.startswith(word) and (then is None or text != word)
        )

    language = GrammarLanguage(grammar, "ab")
    checked(language, lambda ids: begins("".join("ab"[i] for i in ids)), 3)
    for length in range(1, 5):
        for text in map("".join, product("ab", repeat=length)):
            if whole(text):
                assert grammar.log_prob(text) == pytest.approx(
                    math.log(whole(text)), rel=1e-12, abs=1e-14
                )


def count_after(sequences, context):
    """How often each token directly follows a context, anywhere in a sequence."""
    found, k = {}, len(context)
    for one in sequences:
        for i in range(k, len(one)):
            if one[i - k : i] == context:
                found[one[i]] = found.get(one[i], 0) + 1
    return found


def shares(counts, tokens):
    total = sum(counts.values())
    return [Fraction(counts.get(one, 0), total) for one in tokens]


def counted(sequences, tokens, prefix, order, smoothing):
    if order is None:
        after = {}
        for one in sequences:
            if one.startswith(prefix) and len(one) > len(prefix):
                after[one[len(prefix)]] = after.get(one[len(prefix)], 0) + 1
        for i in range(len(prefix)):
            after = after or count_after(sequences, prefix[i:])
        return shares(after or count_after_start(sequences), tokens)
    found = [Fraction(1, len(tokens))] * len(tokens)
    for k in range(min(order, len(prefix)) + 1):
        after = count_after(sequences, prefix[len(prefix) - k :])
        if not after:
            break
        kinds = len(after) if smoothing else 0
        total = sum(after.values()) + kinds
        found = [
            (after.get(one, 0) + kinds * p) / total for one, p in zip(tokens, found, strict=True)
        ]
    return found


def count_after_start(sequences):
    found = {}
    for one in sequences:
        found[one[0]] = found.get(one[0], 0) + 1
    return found


@given(
    st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=4),
    st.text("abc", max_size=5), st.sampled_from([None, 0, 1, 2, 5]), st.booleans(),
)  # fmt: skip
@cases("counting")
def test_counting(sequences, prefix, order, smoothed):
    tokens = list(dict.fromkeys("".join(sequences)))
    prefix = "".join(one for one in prefix if one in tokens)
    smoothing = "witten-bell" if smoothed and order is not None else None
    model = CountingModel.fit(sequences, order, smoothing)
    state = model.start(1)
    for t in range(len(prefix) + 1):
        expected = [float(p) for p in counted(sequences, tokens, prefix[:t], order, smoothing)]
        np.testing.assert_allclose(model.probs(state)[0], expected, **CLOSE)
        if t < len(prefix):
            state = model.advance(state, token_ids=torch.tensor([tokens.index(prefix[t])]))
    for t in tokens:
        beginning = [one for one in sequences if one.startswith(prefix)]
        assert model.freq(t, prefix) == sum(one[len(prefix) :].count(t) for one in beginning)
        direct = sum(one.startswith(prefix + t) for one in sequences)
        assert model.next_freq(t, prefix) == model.corrected_next_freq(t, prefix) == direct
