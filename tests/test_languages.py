"""Languages against brute force: every sequence of a small case has its probability, computed
another way.
"""

import math
import re
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import pairwise, permutations, product

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import entr, gammaln
from scipy.stats import chi2

from softar_lab.core.predictor import Predictor
from softar_lab.data.corpora import CorpusError, corpus_of
from softar_lab.data.languages import HiddenMarkov, Markov, Recall, Urn, mess3, slow_chain
from softar_lab.data.languages import hidden_markov as processes
from softar_lab.generation import generate

ODDS = (
    1e-6  # with which a right sampler or an honest error fails a test here: one seed in a million
)

# Sequences are tuples of ids; each oracle gives the probability of one, by another way than the
# language's own.


def stationary_by_eigenvector(step):
    values, vectors = scipy.linalg.eig(step, left=True, right=False)
    law = vectors[:, abs(values - 1).argmin()].real
    return law / law.sum()


def markov_mass(conditionals):
    V, k = len(conditionals), conditionals.ndim - 1
    contexts = list(product(range(V), repeat=k))
    step = np.zeros((len(contexts),) * 2)
    for i, context in enumerate(contexts):
        for y in range(V):
            step[i, contexts.index((*context, y)[1:])] += conditionals[(*context, y)]
    law = dict(zip(contexts, stationary_by_eigenvector(step), strict=True))

    def mass(sequence):
        first = math.fsum(
            law[context] for context in contexts if context[: len(sequence)] == sequence[:k]
        )
        return first * math.prod(
            conditionals[sequence[t - k : t + 1]] for t in range(k, len(sequence))
        )

    return mass


def hidden_mass(transitions):
    law = stationary_by_eigenvector(transitions.sum(0))

    def mass(sequence):
        paths = product(range(len(law)), repeat=len(sequence) + 1)
        return math.fsum(
            law[path[0]]
            * math.prod(transitions[x, i, j] for x, (i, j) in zip(sequence, pairwise(path)))
            for path in paths
        )

    return mass


def urn_mass(initial, reinforcement, length):
    alpha = np.array(initial) / reinforcement

    def draws(counts):  # Dirichlet-multinomial, for one order of the draws
        total = alpha.sum()
        return math.exp(
            gammaln(total)
            - gammaln(total + counts.sum())
            + (gammaln(alpha + counts) - gammaln(alpha)).sum()
        )

    def mass(sequence):
        p = 1.0
        for begin in range(0, len(sequence), length + 1):
            document = sequence[begin : begin + length + 1]
            colours, end = document[:length], document[length:]
            if 0 in colours or (end and end != (0,)):
                return 0.0
            p *= draws(np.array([colours.count(i + 1) for i in range(len(alpha))]))
        return p

    return mass


def recall_documents(n_keys, n_values, n_pairs):
    """Every document, all equally likely."""
    return [
        "".join(key + value for key, value in zip(keys, values))
        + f"?{keys[asked]}{values[asked]}\n"
        for keys in permutations("abcdefghij"[:n_keys], n_pairs)
        for values in product("0123456789"[:n_values], repeat=n_pairs)
        for asked in range(n_pairs)
    ]


def recall_mass(*sizes):
    documents, symbols = recall_documents(*sizes), Recall(*sizes).tokenizer.tokens
    D = len(documents[0])

    @cache
    def begin(text):
        return sum(document.startswith(text) for document in documents) / len(documents)

    def mass(sequence):
        text = "".join(symbols[i] for i in sequence)
        return math.prod(begin(text[i : i + D]) for i in range(0, len(text), D))

    return mass


def random_hidden(V, S, seed):
    return (
        np.random.default_rng(seed)
        .dirichlet(np.ones(V * S) / 2, size=S)
        .reshape(S, V, S)
        .transpose(1, 0, 2)
    )


EVEN = np.array(
    [[[0.5, 0], [0, 0]], [[0, 0.5], [1, 0]]]
)  # runs of b between two a are even: an endless memory
FORBIDDEN = np.array([[[0.5, 0.5], [1, 0]], [[0.2, 0.8], [0.7, 0.3]]])  # no abb
TRANSIENT = np.array([[0.5, 0.5, 0], [0.3, 0.7, 0], [0.2, 0.2, 0.6]])  # c is never seen
PERIODIC = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
CASES = {  # language, the probability of a sequence, the length up to which all sequences are tried
    "memoryless": (Markov([0.2, 0.5, 0.3]), markov_mass(np.array([0.2, 0.5, 0.3])), 4),
    "markov-1": (Markov(TRANSIENT), markov_mass(TRANSIENT), 5),
    "markov-2": (Markov(FORBIDDEN), markov_mass(FORBIDDEN), 6),
    "markov-3": (
        Markov.random(2, 3, seed=4),
        markov_mass(np.random.Generator(np.random.PCG64(4)).dirichlet(np.ones(2), size=(2, 2, 2))),
        6,
    ),
    "periodic": (
        Markov(PERIODIC),
        lambda x: all((b - a) % 3 == 1 for a, b in pairwise(x)) / 3 if x else 1.0,
        5,
    ),
    "mess3": (mess3(), hidden_mass(mess3().transitions), 4),
    "even": (HiddenMarkov(EVEN), hidden_mass(EVEN), 7),
    "hidden": (HiddenMarkov(random_hidden(2, 3, 0)), hidden_mass(random_hidden(2, 3, 0)), 5),
    "urn": (Urn([1, 0.5], reinforcement=2, length=3), urn_mass([1, 0.5], 2, 3), 7),
    "urn-3": (Urn([2, 1, 1], length=2), urn_mass([2, 1, 1], 1, 2), 5),
    "recall": (Recall(2, 2, 1), recall_mass(2, 2, 1), 8),
    "recall-2": (Recall(3, 2, 2), recall_mass(3, 2, 2), 9),
}
each_case = pytest.mark.parametrize("name", CASES)


@cache
def masses(name):
    """For T = 0, 1, …: {every possible sequence of length T: its probability}."""
    language, mass, longest = CASES[name]
    levels = [{(): 1.0}]
    for _ in range(longest):
        grown = [(*sequence, x) for sequence in levels[-1] for x in range(language.vocab_size)]
        levels.append({sequence: p for sequence in grown if (p := mass(sequence)) > 1e-15})
    return levels


def sequences(name):
    """All possible sequences of the case's full length, (N, T)."""
    return torch.tensor(list(masses(name)[-1]))


# exactness


@each_case
def test_oracle_sums_to_one(name):
    for level in masses(name):
        assert math.isclose(math.fsum(level.values()), 1, rel_tol=1e-12)


@each_case
def test_log_probs_multiply_up_to_the_probability_of_every_sequence(name):
    scores = CASES[name][0].log_probs(sequences(name))
    assert scores.dtype == torch.float64
    for t in range(scores.shape[1] + 1):
        brute = [masses(name)[t][tuple(row)] for row in sequences(name)[:, :t].tolist()]
        np.testing.assert_allclose(scores[:, :t].sum(1).exp(), brute, rtol=1e-10)


@each_case
def test_next_log_probs_equals_brute_force_on_every_prefix(name):
    language, token_ids = CASES[name][0], sequences(name)
    probs = language.next_log_probs(token_ids).exp()
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-12)
    for t in range(token_ids.shape[1]):
        for prefix, row in {
            tuple(row[:t].tolist()): p for row, p in zip(token_ids, probs[:, t])
        }.items():
            brute = [
                masses(name)[t + 1].get((*prefix, x), 0) / masses(name)[t][prefix]
                for x in range(len(row))
            ]
            np.testing.assert_allclose(row, brute, atol=1e-10)


@each_case
def test_impossible_sequences_are_refused_and_all_others_are_not(name):
    language, possible = CASES[name][0], set(masses(name)[3])
    for sequence in product(range(language.vocab_size), repeat=3):
        token_ids = torch.tensor([sequence])
        if sequence in possible:
            assert language.log_probs(token_ids).isfinite().all()
        else:
            t = next(t for t in range(3) if sequence[: t + 1] not in masses(name)[t + 1])
            symbols = language.tokenizer.tokens
            could = [
                repr(s) for x, s in enumerate(symbols) if (*sequence[:t], x) in masses(name)[t + 1]
            ]
            found = re.escape(repr(symbols[sequence[t]]))
            message = f"row 0, position {t}: expected {'one of ' if len(could) > 1 else ''}{', '.join(could)}"
            with pytest.raises(
                ValueError, match=f"^{re.escape(message)} after '.*', found {found}$"
            ):
                language.log_probs(token_ids)
            with pytest.raises(ValueError, match=f"^{re.escape(message)}, found"):
                language.read(language.start(), token_ids)
            with pytest.raises(ValueError, match=f"^{re.escape(message)} after"):
                language.next_log_probs(torch.tensor([[*sequence, 0]]))


@each_case
def test_scores_gathered_rows_and_steps_agree(name):
    language = CASES[name][0]
    token_ids = language.sample(40, 7, seed=1)
    rows, scores = language.next_log_probs(token_ids), language.log_probs(token_ids)
    torch.testing.assert_close(
        rows, Predictor.next_log_probs(language, token_ids), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        rows.gather(-1, token_ids[..., None])[..., 0], scores, rtol=0, atol=1e-12
    )
    prediction = language.predict(language.read(language.start(7), token_ids))
    assert prediction.log_probs.dtype == prediction.probs.dtype == torch.float64
    torch.testing.assert_close(prediction.probs.sum(-1), torch.ones(7, dtype=torch.float64))


@each_case
def test_a_last_token_is_in_no_prefix(name):
    language, token_ids = CASES[name][0], sequences(name)[:1]
    assert all(
        torch.equal(
            language.next_log_probs(torch.cat([token_ids, torch.tensor([[x]])], 1))[:, -1], row
        )
        for x in range(language.vocab_size)
        for row in [language.next_log_probs(torch.cat([token_ids, token_ids[:, :1]], 1))[:, -1]]
    )


@each_case
def test_nothing_is_scored_as_nothing(name):
    language = CASES[name][0]
    for B, T in ((3, 0), (0, 3), (0, 0)):
        token_ids = language.sample(T, B)
        assert token_ids.shape == language.log_probs(token_ids).shape == (B, T)
        assert language.next_log_probs(token_ids).shape == (B, T, language.vocab_size)


# states


@each_case
def test_select_forks_drops_and_reorders_rows(name):
    language = CASES[name][0]
    token_ids, rows = language.sample(6, 5, seed=2), torch.tensor([4, 0, 0, 2])
    state = language.read(language.start(5), token_ids[:, :5])
    before = language.probs(state).clone()
    chosen = state.select(rows)
    assert torch.equal(language.probs(chosen), before[rows])
    advanced = language.advance(chosen, token_ids=token_ids[rows, 5])
    whole = language.advance(state, token_ids=token_ids[:, 5])
    assert torch.equal(language.probs(advanced), language.probs(whole)[rows])
    assert torch.equal(
        language.probs(language.advance(state, token_ids=token_ids[:, 5])), language.probs(whole)
    )
    assert torch.equal(language.probs(state), before)  # a state is never changed
    assert torch.equal(language.probs(state.select([1])), before[1:2])


@each_case
def test_bad_input_is_refused_by_name(name):
    language = CASES[name][0]
    V, state = language.vocab_size, language.start(2)
    with pytest.raises(TypeError, match=f"{type(language).__name__} reads no vectors"):
        language.advance(state, vectors=torch.zeros(2, 3))
    with pytest.raises(TypeError, match="reads no vectors, only token_ids"):
        language.advance(state)
    with pytest.raises(ValueError, match="3 token_ids for a state of 2 rows"):
        language.advance(state, token_ids=torch.zeros(3, dtype=torch.long))
    for wrong in (-1, V):
        with pytest.raises(
            ValueError, match=rf"row 1, position 2: id {wrong} is not in 0..{V - 1}"
        ):
            language.log_probs(torch.tensor([[0, 0, 0], [0, 0, wrong]]))
        with pytest.raises(ValueError, match=f"row 0, position 0: id {wrong} is not in"):
            language.advance(state, token_ids=torch.tensor([wrong, 0]))


# sampling


@each_case
def test_sample_has_the_frequencies_of_the_language(name):
    n, language = 20_000, CASES[name][0]
    levels = masses(name)
    T = max(t for t, level in enumerate(levels) if min(level.values()) * n > 5)
    assert T >= 2
    counts = Counter(map(tuple, language.sample(T, n, seed=11).tolist()))
    assert counts.keys() <= levels[T].keys()
    statistic = sum((counts[sequence] - n * p) ** 2 / (n * p) for sequence, p in levels[T].items())
    assert statistic < chi2.isf(ODDS, max(1, len(levels[T]) - 1))


@each_case
def test_sample_goes_on_as_it_began(name):
    """One long row: the surprise of its second half is what the truth expects, by the exact
    conditionals alone.
    """
    language = CASES[name][0]
    rows = language.next_log_probs(language.sample(20_000, seed=5))[0, 10_000:]
    scores = language.log_probs(language.sample(20_000, seed=5))[0, 10_000:]
    probs = rows.exp()
    surprise = (
        torch.special.entr(probs).sum(-1) + scores
    )  # a martingale's steps: mean 0, uncorrelated
    variance = (probs * rows.clamp(min=-700) ** 2).sum(-1) - torch.special.entr(probs).sum(-1) ** 2
    assert (
        abs(surprise.sum()) <= 5 * variance.sum().clamp(min=0).sqrt() + 1e-9
    )  # 5 standard errors: about ODDS


@each_case
def test_sample_depends_on_the_seed_alone(name):
    language = CASES[name][0]
    first = language.sample(30, 4, seed=1)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    assert torch.equal(first, language.sample(30, 4, seed=1))
    assert not torch.equal(first, language.sample(30, 4, seed=2))
    assert first.dtype == torch.int64


# entropy


def block_entropies(name):
    return [math.fsum(entr(list(level.values()))) for level in masses(name)]


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if isinstance(case[0], Markov)]
)
def test_markov_entropy_rate_is_the_growth_of_block_entropies(name):
    language, entropies = CASES[name][0], block_entropies(name)
    rate = language.entropy_rate()
    assert rate.standard_error == 0
    for n in range(language.order, len(entropies) - 1):
        assert math.isclose(rate, entropies[n + 1] - entropies[n], rel_tol=1e-10, abs_tol=1e-12)


def test_markov_entropy_rate_of_a_known_chain():
    a, b = 0.1, 0.3  # leaving one state and the other: the law is (b, a) / (a + b)
    h = [entr(p) + entr(1 - p) for p in (a, b)]
    rate = Markov([[1 - a, a], [b, 1 - b]]).entropy_rate()
    assert math.isclose(rate, (b * h[0] + a * h[1]) / (a + b), rel_tol=1e-12)
    assert Markov(PERIODIC).entropy_rate() == 0


@pytest.mark.parametrize(
    ("name", "rate"), [("mess3", None), ("even", 2 / 3 * math.log(2)), ("hidden", None)]
)
def test_hidden_markov_entropy_rate_lies_between_its_bounds(name, rate):
    """H(X | n symbols, the state before them) <= rate <= H(X | n symbols), by enumeration (Cover
    and Thomas, 4.5).
    """
    language, n = CASES[name][0], 8
    joint = (
        language.stationary[:, None, None] * np.eye(len(language.stationary))[:, None]
    )  # (start, sequence, state)
    entropies = []
    for _ in range(n + 1):
        joint = np.einsum("asi,xij->asxj", joint, language.transitions).reshape(
            len(joint), -1, joint.shape[-1]
        )
        masses = joint.sum(-1)
        entropies.append((entr(masses).sum(), entr(masses.sum(0)).sum()))
    lower, upper = (after - before for before, after in zip(*entropies[-2:]))
    estimate = language.entropy_rate()
    assert 0 < estimate.standard_error < 0.001
    assert lower - 5 * estimate.standard_error < estimate < upper + 5 * estimate.standard_error
    if rate is not None:  # the even process: two thirds of the time in the state that chooses
        assert lower - 1e-12 < rate < upper
        assert abs(estimate - rate) < 5 * estimate.standard_error


def test_hidden_markov_entropy_rate_has_an_honest_error():
    language = HiddenMarkov(EVEN)
    rates = [language.entropy_rate(rows=100, length=200, seed=seed) for seed in range(40)]
    z = sum(((rate - 2 / 3 * math.log(2)) / rate.standard_error) ** 2 for rate in rates)
    assert chi2.ppf(ODDS, 40) < z < chi2.isf(ODDS, 40)


def test_mess3_entropy_rate_in_bits():
    bits = mess3().entropy_rate() / math.log(2)
    assert abs(bits - 1.1447) < 0.002  # 5 standard errors of 3e-4, and of the figure itself


@pytest.mark.parametrize("name", ["urn", "urn-3"])
def test_urn_entropies_equal_enumeration(name):
    urn, entropies = CASES[name][0], block_entropies(name)
    growth = np.diff(entropies)[: urn.length + 1]
    np.testing.assert_allclose(urn.draw_entropies(), growth[:-1], rtol=1e-10)
    assert abs(growth[-1]) < 1e-12  # the separator is certain
    rate = urn.entropy_rate()
    assert rate.standard_error == 0
    assert math.isclose(rate, entropies[urn.length] / (urn.length + 1), rel_tol=1e-10)


def test_urn_limit_entropy_by_quadrature_and_by_monte_carlo():
    law = scipy.stats.beta(0.5, 1.5)
    exact, _ = scipy.integrate.quad(lambda p: law.pdf(p) * (entr(p) + entr(1 - p)), 0, 1)
    assert math.isclose(Urn([1, 3], reinforcement=2).limit_entropy(), exact, rel_tol=1e-6)
    drawn = entr(np.random.default_rng(0).dirichlet([2, 1, 0.5], size=100_000)).sum(1)
    assert abs(Urn([2, 1, 0.5]).limit_entropy() - drawn.mean()) < 5 * drawn.std() / math.sqrt(
        len(drawn)
    )


def test_urn_draws_cost_ever_less_down_to_the_limit():
    urn = Urn([2, 1, 0.5], length=400)
    entropies = urn.draw_entropies()
    assert (np.diff(entropies) < 0).all()
    assert 0 < entropies[-1] - urn.limit_entropy() < 0.005


@pytest.mark.parametrize("reinforcement", [1.0, 1e-6, 1e-9, 1e-12, 1e-15])
@pytest.mark.parametrize("initial", [(1, 1), (0.1, 0.2, 0.3), (1e-9, 1.0), (5, 1e6, 3)])
def test_urn_entropies_are_possible_however_little_a_draw_adds(initial, reinforcement):
    """They lie between the limit's entropy and the first draw's, and never rise."""
    urn = Urn(np.array(initial), reinforcement, 200)
    first, entropies = entr(np.array(initial) / sum(initial)).sum(), urn.draw_entropies()
    assert entropies[0] == pytest.approx(first, rel=1e-12)
    # a share near 1 has rounding of its own, which its entropy inherits
    assert (np.diff(entropies) <= 1e-12 * first + 8 * np.finfo(float).eps).all()
    if reinforcement <= 1e-9 * min(initial):  # it is as good as independent draws
        assert entropies == pytest.approx(first, rel=1e-6)


def test_urn_is_exchangeable():
    urn, rng = Urn([1, 2, 0.3], length=12), np.random.default_rng(1)
    document = urn.sample(12, seed=1)[0]
    orders = torch.stack([document[torch.from_numpy(rng.permutation(12))] for _ in range(20)])
    totals = urn.log_probs(orders).sum(1)
    torch.testing.assert_close(totals, totals[:1].expand(20), rtol=1e-12, atol=0)


@pytest.mark.parametrize("sizes", [(2, 2, 1), (3, 2, 2), (4, 3, 3)])
def test_recall_entropy_rate_equals_enumeration(sizes):
    documents = Counter(recall_documents(*sizes))
    nats = math.fsum(entr([n / documents.total() for n in documents.values()]))
    rate = Recall(*sizes).entropy_rate()
    assert math.isclose(rate, nats / len(next(iter(documents))), rel_tol=1e-12)
    assert rate.standard_error == 0


def test_recall_answers_cost_nothing():
    language = Recall()
    token_ids = language.sample(language.document_length, 200, seed=3)
    assert not language.log_probs(token_ids)[:, -2:].any()
    for text in map(language.tokenizer.decode, token_ids):
        facts, _, asked = text.partition("?")
        assert dict(zip(facts[::2], facts[1::2], strict=True))[asked[0]] + "\n" == asked[1:]


@pytest.mark.parametrize(
    ("text", "at"), [("5", 0), ("a55", 2), ("a5?b", 3), ("a5?5", 3), ("a5?a6", 4), ("a5\n", 2)]
)
def test_recall_refuses_symbols_out_of_place(text, at):
    language = Recall(2, 9, 1)
    for before in ("", "b3?b3\n"):
        token_ids = language.tokenizer.encode(before + text + "a1?a1\n")[None]
        with pytest.raises(ValueError, match=f"^row 0, position {len(before) + at}: expected"):
            language.log_probs(token_ids)
        with pytest.raises(ValueError, match=f"^row 0, position {len(before) + at}: expected"):
            language.next_log_probs(token_ids)


# hidden Markov: blocks side by side


@pytest.fixture
def stepping(monkeypatch):
    """next_log_probs of a hidden Markov model without blocks."""

    def plain(language, token_ids):
        with monkeypatch.context() as patch:
            patch.setattr(processes, "_FEW", 0)
            return language.next_log_probs(token_ids)

    return plain


@pytest.mark.parametrize("name", ["mess3", "even", "hidden"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_blocks_equal_stepping_at_every_length(name, batch_size, stepping):
    language = CASES[name][0]
    token_ids = language.sample(5_000, batch_size, seed=4)
    for T in [*range(1, 60), 97, 98, 99, 100, 4_999, 5_000]:  # 98 = 14 blocks of 7 each
        rows = language.next_log_probs(token_ids[:, :T])
        np.testing.assert_allclose(
            rows.exp(), stepping(language, token_ids[:, :T]).exp(), atol=1e-12
        )


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(0, 2**32),
)
def test_any_hidden_markov_model_is_filtered_alike_by_every_method(V, S, batch_size, length, seed):
    language = HiddenMarkov(random_hidden(V, S, seed))
    token_ids = language.sample(length, batch_size, seed=seed)
    rows = language.next_log_probs(token_ids)
    np.testing.assert_allclose(
        rows.exp(), Predictor.next_log_probs(language, token_ids).exp(), atol=1e-12
    )
    beliefs = language.beliefs(token_ids)[:, :-1].numpy()
    np.testing.assert_allclose(beliefs @ language.emissions, rows.exp(), atol=1e-12)


def test_a_very_long_row_neither_underflows_nor_drifts(stepping):
    language = mess3()
    token_ids = language.sample(300_000, seed=8)
    rows = language.next_log_probs(token_ids[:, :30_000])
    np.testing.assert_allclose(
        rows.exp(), stepping(language, token_ids[:, :30_000]).exp(), atol=1e-12
    )
    assert abs(-language.log_probs(token_ids).mean() / math.log(2) - 1.1447) < 0.02


def test_blocks_keep_what_all_but_one_state_rule_out(stepping):
    """A block 10**-1000 times less likely from a state than from the other says nothing where the
    other is out.
    """
    rare = 1e-40
    transitions = np.zeros((3, 2, 2))
    transitions[0] = np.diag([0.99, rare])  # a: state 0 says it, state 1 hardly ever
    transitions[1, 1, 1] = 0.99  # b: state 1 alone
    transitions[2] = [[0, 0.01], [0.01, 0]]  # c: the states change
    language = HiddenMarkov(transitions)
    token_ids = torch.tensor(
        [[1] * 3 + [0] * 600 + [1] * 3 + [2] + [0] * 500 + [2] + [1] * 400]
    )  # b: state 1 for sure
    rows = language.next_log_probs(token_ids)
    np.testing.assert_allclose(rows, stepping(language, token_ids), rtol=1e-9, atol=1e-12)
    assert math.isclose(
        language.log_probs(token_ids)[0, 3:603].sum(), 600 * math.log(rare), rel_tol=1e-9
    )


@pytest.mark.parametrize("least", [0, 49, 50, 99, 100, 2_345, 4_900])  # a block has 50 symbols here
def test_an_impossible_symbol_deep_in_a_long_row_is_named(least):
    language = HiddenMarkov(EVEN)
    token_ids = language.sample(5_000, 2, seed=6)
    forced = (
        (language.next_log_probs(token_ids)[1, :, 0] == -math.inf).nonzero().flatten()
    )  # no a can stand there
    at = int(forced[torch.searchsorted(forced, least)])
    token_ids[1, at] = 0
    with pytest.raises(
        ValueError, match=f"^row 1, position {at}: expected 'b' after '.*', found 'a'$"
    ):
        language.log_probs(token_ids)


def test_beliefs_are_bayes_rule():
    language = mess3()
    token_ids = torch.tensor(list(product(range(3), repeat=4)))
    beliefs = language.beliefs(token_ids)
    assert beliefs.shape == (81, 5, 3)
    T, start = language.transitions, language.stationary
    for row, sequence in zip(beliefs, token_ids.tolist()):
        weights = start @ np.linalg.multi_dot([np.eye(3), *(T[x] for x in sequence)])
        np.testing.assert_allclose(row[-1], weights / weights.sum(), rtol=1e-12)
    np.testing.assert_allclose(beliefs[:, 0], np.full((81, 3), 1 / 3), rtol=1e-12)
    with pytest.raises(ValueError, match=r"row 0, position 2: expected 'b' after 'ab', found 'a'"):
        HiddenMarkov(EVEN).beliefs(torch.tensor([[0, 1, 0]]))


def test_mess3_has_the_papers_matrices():
    published = [
        [0.765, 0.00375, 0.00375],
        [0.0425, 0.0675, 0.00375],
        [0.0425, 0.00375, 0.0675],
    ]  # T^(A), appendix A
    language = mess3()
    for shift in range(3):
        order = (np.arange(3) + shift) % 3  # the states are alike
        np.testing.assert_allclose(
            language.transitions[shift][np.ix_(order, order)], published, rtol=1e-12
        )
    assert language.tokenizer.tokens == ("A", "B", "C")
    np.testing.assert_allclose(language.stationary, 1 / 3, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 30),
    st.integers(0, 2**32),
    st.sampled_from([0.2, 1.0]),
)
def test_any_markov_chain_is_scored_alike_by_every_method(V, order, length, seed, concentration):
    language = Markov.random(V, order, seed, concentration)
    token_ids = language.sample(length, 3, seed=seed)
    rows = language.next_log_probs(token_ids)
    if length:
        torch.testing.assert_close(rows, Predictor.next_log_probs(language, token_ids))
    torch.testing.assert_close(
        rows.gather(-1, token_ids[..., None])[..., 0], language.log_probs(token_ids)
    )
    np.testing.assert_allclose(rows.exp().sum(-1), 1, rtol=1e-12)


def by_fractions(probs: np.ndarray) -> list[Fraction]:
    """The stationary law of an irreducible chain (n, n), solved without rounding."""
    n = len(probs)
    rows = [[Fraction(float(p)) for p in row] for row in probs.T]  # balance: law P = law
    for i in range(n):
        rows[i][i] = -sum(Fraction(float(p)) for j, p in enumerate(probs[i]) if j != i)
    rows[-1] = [Fraction(1)] * n
    right = [Fraction(0)] * (n - 1) + [Fraction(1)]
    for i in range(n):  # Gauss and Jordan
        pivot = next(r for r in range(i, n) if rows[r][i])
        rows[i], rows[pivot], right[i], right[pivot] = rows[pivot], rows[i], right[pivot], right[i]
        for r in range(n):
            if r != i and rows[r][i]:
                factor = rows[r][i] / rows[i][i]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i])]
                right[r] -= factor * right[i]
    return [right[i] / rows[i][i] for i in range(n)]


@pytest.mark.parametrize("concentration", [0.01, 0.05, 1.0])
def test_markov_finds_the_smallest_shares_of_its_law(concentration):
    """Parts that are hardly ever left, and symbols that hardly ever occur (at 0.01, 5e-26)."""
    found = 0
    for seed in range(20):
        try:
            chain = Markov.random(4, 1, seed, concentration)
        except ValueError:  # parts that are never left
            continue
        inside = np.flatnonzero(chain.stationary)
        exact = by_fractions(chain._table[chain._full :][np.ix_(inside, inside)])
        assert chain.stationary[inside] == pytest.approx([float(p) for p in exact], rel=1e-13)
        found += 1
    assert found >= 10


@pytest.mark.parametrize("n", [63, 64, 65, 130, 200])
def test_markov_law_of_many_states_is_that_of_the_balance_equations(n):
    """The states are taken out in blocks of 64."""
    probs = np.random.default_rng(n).dirichlet(np.ones(n), size=n)
    law = Markov(probs, "".join(map(chr, range(0x4E00, 0x4E00 + n)))).stationary
    assert law @ probs == pytest.approx(law, rel=1e-12)


def test_markov_is_stationary():
    """Any stretch of the text has the same law: the k-gram law is what a step makes of it."""
    conditionals = np.random.default_rng(3).dirichlet(np.ones(3), size=(3, 3))
    law = Markov(conditionals).stationary.reshape(3, 3)
    np.testing.assert_allclose((law[..., None] * conditionals).sum(0), law, rtol=1e-12)


def test_markov_knows_the_law_of_a_chain_that_hardly_ever_moves():
    chain = Markov([[1 - 1e-18, 1e-18], [3e-18, 1 - 3e-18]])
    np.testing.assert_allclose(chain.stationary, [0.75, 0.25], rtol=1e-12)


# constructors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Markov([[0.5, 0.5], [0.1, 0.2]]), r"conditionals\[1, :\] sums to 0.3"),
        (lambda: Markov([[0.5, 0.5], [1.2, -0.2]]), r"conditionals\[1, 1\] is -0.2"),
        (lambda: Markov([[0.5, 0.5], [math.nan, 1]]), r"conditionals\[1, 0\] is nan"),
        (lambda: Markov([[0.5, 0.5]]), r"conditionals must have shape \(V, V, …\).*not \(1, 2\)"),
        (lambda: Markov(np.array(1.0)), r"conditionals must have shape .*not \(\)"),
        (lambda: Markov([]), r"conditionals must have shape .*not \(0,\)"),
        (
            lambda: Markov(np.eye(2)),
            "2 classes of states are never left, such as those of state 0 and state 1",
        ),
        (
            lambda: Markov([[0.5, 0.5], [0.5, 0.5]], symbols="abc"),
            "symbols must be 2 characters, .*not 'abc'",
        ),
        (lambda: Markov([[0.5, 0.5], [0.5, 0.5]], symbols="ba"), "distinct and in ascending order"),
        (lambda: Markov(np.full((30, 30), 1 / 30)), "letters for 1 to 26 symbols, not 30"),
        (lambda: Markov(np.full((2,) * 14, 1 / 2)), "8192 states are too many .*at most 4096"),
        (
            lambda: HiddenMarkov(np.ones((2, 3))),
            r"transitions must have shape \(V, S, S\), not \(2, 3\)",
        ),
        (
            lambda: HiddenMarkov(np.ones((2, 3, 2))),
            r"transitions must have shape \(V, S, S\), not \(2, 3, 2\)",
        ),
        (lambda: HiddenMarkov(EVEN * [[1], [0.9]]), r"transitions\[:, 1, :\] sums to 0.9"),
        (lambda: HiddenMarkov(EVEN + [math.inf, 0]), r"transitions\[0, 0, 0\] is inf"),
        (lambda: HiddenMarkov([np.eye(2) / 2] * 2), "2 classes of states are never left"),
        (lambda: HiddenMarkov(EVEN, symbols="a"), "symbols must be 2 characters"),
        (lambda: mess3(x=0), "x must be above 0 and at most 1/2, not 0"),
        (lambda: mess3(alpha=1.5), r"alpha must be in \[0, 1\], not 1.5"),
        (lambda: Urn([1]), r"initial must be a row of at least two numbers, not of shape \(1,\)"),
        (lambda: Urn([1, 0]), r"initial must be positive, not \[1.0, 0.0\]"),
        (lambda: Urn([1, math.nan]), "initial must be positive"),
        (lambda: Urn([1, 1], reinforcement=0), "reinforcement must be positive, not 0"),
        (lambda: Urn([1, 1], length=0), "length must be a whole number of at least 1, not 0"),
        (
            lambda: Urn([1, 1], symbols="abc"),
            "symbols must be 2 characters, one a colour, not 'abc'",
        ),
        (lambda: Urn([1, 1], symbols="\na"), "symbols must come after the separator"),
        (
            lambda: Recall(n_keys=27),
            "n_keys must be a whole number of at least 1 and at most 26, not 27",
        ),
        (
            lambda: Recall(n_values=0),
            "n_values must be a whole number of at least 1 and at most 10, not 0",
        ),
        (
            lambda: Recall(3, 2, 4),
            "n_pairs must be a whole number of at least 1 and at most 3, not 4",
        ),
    ],
)
def test_constructors_name_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_own_symbols_are_spoken():
    assert Markov([[0.5, 0.5], [0.5, 0.5]], symbols="01").tokenizer.tokens == ("0", "1")
    assert Urn([1, 1], symbols="01").tokenizer.tokens == ("\n", "0", "1")
    assert "".join(Recall(3, 2, 1).tokenizer.tokens) == "\n01?abc"


# what others do with a language


@each_case
def test_generate_lets_a_language_write_itself(name):
    language = CASES[name][0]
    trajectory = generate(language, ["", ""], steps=30, seed=[1, 2])
    token_ids = torch.stack([torch.as_tensor(one.token_ids) for one in trajectory])
    scores = language.log_probs(token_ids)
    np.testing.assert_allclose([np.asarray(one.log_probs) for one in trajectory], scores, atol=1e-5)


def test_corpus_of_running_text_has_the_floor_that_models_are_held_to():
    language = mess3()
    corpus = corpus_of(language, train=3_000, val=500, test=400, seed=7)
    assert (corpus.name, len(corpus.train), len(corpus.val), len(corpus.test)) == (
        "hiddenmarkov",
        3_000,
        500,
        400,
    )
    assert corpus.separator is None
    belief, nats = np.full(3, 1 / 3), []
    for char in corpus.val:
        belief = belief @ language.transitions["ABC".index(char)]
        nats.append(-math.log(belief.sum()))
        belief /= belief.sum()
    assert math.isclose(corpus.floor_bits_per_char, np.mean(nats[1:]) / math.log(2), rel_tol=1e-10)


@pytest.mark.parametrize("language", [Urn([1, 2], length=9), Recall()], ids=["urn", "recall"])
def test_corpus_of_documents_keeps_them_whole(language):
    corpus = corpus_of(language, train=3_000, val=505, test=400, name="mine")
    D = language.document_length
    assert corpus.name == "mine"
    assert corpus.separator == "\n"
    for split, size in {"train": 3_000, "val": 505, "test": 400}.items():
        documents = corpus.documents(split)
        assert {len(document) for document in documents} == {D}
        assert len(documents) == size // D
    rows = torch.stack(
        [language.tokenizer.encode(document) for document in corpus.documents("val")]
    )
    bits = -language.log_probs(rows).mean() / math.log(2)  # documents are independent
    assert math.isclose(corpus.floor_bits_per_char, bits, rel_tol=1e-12)


def test_corpus_of_draws_its_splits_apart_and_by_seed_alone():
    first = corpus_of(mess3(), 500, 500, 500, seed=1)
    assert len({first.train, first.val, first.test}) == 3
    assert first == corpus_of(mess3(), 500, 500, 500, seed=1)
    assert first.sha256 != corpus_of(mess3(), 500, 500, 500, seed=2).sha256


def test_corpus_of_names_a_split_that_is_too_small():
    with pytest.raises(
        CorpusError, match="recall: val must be enough for a whole document, not 11"
    ):
        corpus_of(Recall(), val=11)
    with pytest.raises(
        CorpusError, match="hiddenmarkov: test must be enough for 2 characters, not 1"
    ):
        corpus_of(mess3(), test=1)


def test_slow_chain_stays_and_forgets_slowly():
    """Its rows are those of the fast chain, mixed with staying; its second eigenvalue is 0.90."""
    slow, fast = (
        np.exp(one.next_log_probs(torch.arange(6)[:, None].expand(-1, 2))[:, 1].numpy())
        for one in (slow_chain(), Markov.random(6, seed=3, concentration=0.5))
    )
    np.testing.assert_allclose(slow, 0.85 * np.eye(6) + 0.15 * fast, atol=1e-12)
    second = np.sort(abs(np.linalg.eigvals(slow)))[-2]
    assert second == pytest.approx(0.85 + 0.15 * np.sort(np.linalg.eigvals(fast).real)[-2])
    assert 0.89 < second < 0.91
