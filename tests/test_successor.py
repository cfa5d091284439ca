"""Learned counting (K15): the identity against the analytic successor representation, learning
against exact counts.
"""

import random

import pytest
import torch

from softar_lab.counting.exact import TWO_STRINGS, CountingModel, SuccessorModel
from softar_lab.counting.successor import read_off
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.generation import generate

LETTERS = CharTokenizer.fit("abcd")


def random_chain(seed: int, rows: float = 1.0) -> torch.Tensor:
    """A first-order chain P (4, 4), float64, whose rows sum to `rows`."""
    generator = torch.Generator().manual_seed(seed)
    chain = torch.rand(4, 4, generator=generator, dtype=torch.float64) ** 2
    return rows * chain / chain.sum(1, keepdim=True)


def sample(chain: torch.Tensor, length: int, seed: int) -> str:
    rng, state, symbols = random.Random(seed), 0, []
    rows = chain.tolist()
    for _ in range(length):
        symbols.append("abcd"[state])
        state = rng.choices(range(4), rows[state])[0]
    return "".join(symbols)


def worst_on(model: SuccessorModel, counts: CountingModel) -> float:
    """The largest difference of a probability from the exact counts, over every prefix."""
    worst = 0.0
    for prefix in counts.prefixes():
        ids = counts.tokenizer.encode(prefix)[None]
        off = model.probs(model.read(model.start(), ids)) - counts.probs(
            counts.read(counts.start(), ids)
        )
        worst = max(worst, off.abs().max().item())
    return worst


# -- the identity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9, 0.99])
def test_read_off_of_a_chain_is_the_chain(gamma):
    for seed in range(20):
        chain = random_chain(seed)
        psi = chain @ torch.linalg.inv(
            torch.eye(4, dtype=torch.float64) - gamma * chain
        )  # (4, 4), row s is psi(s)
        following = psi.expand(4, 4, 4)  # in a chain psi(s+u) hangs on u alone
        assert (read_off(psi, following, gamma) - chain).abs().max() < 1e-10


def test_read_off_agrees_with_the_analytic_inverse_without_discount():
    """M = (I - P)^-1, so P = I - M^-1, for a chain that may end at every step; psi is M - I."""
    for seed in range(20):
        chain, one = random_chain(seed, rows=0.8), torch.eye(4, dtype=torch.float64)
        m = torch.linalg.inv(one - chain)
        assert (one - torch.linalg.inv(m) - chain).abs().max() < 1e-10
        found = read_off(m - one, (m - one).expand(4, 4, 4), 1)
        assert (found - chain).abs().max() < 1e-10
        assert (found.sum(1) - 0.8).abs().max() < 1e-10  # the rest: it ends here


def test_read_off_does_not_hang_on_what_follows_the_impossible():
    chain = random_chain(3)
    chain[:, 2] = 0
    chain /= chain.sum(1, keepdim=True)
    psi = chain @ torch.linalg.inv(torch.eye(4, dtype=torch.float64) - 0.9 * chain)
    following = psi.expand(4, 4, 4).clone()
    following[:, 2] = torch.tensor([5.0, -3.0, 7.0, 1.0])
    assert (read_off(psi, following, 0.9) - chain).abs().max() < 1e-10


def exact_psi(sequences, tokens, prefix, gamma) -> list[float]:
    """Mean discounted counts after a prefix, by plain loops; zeros where the prefix never
    occurs.
    """
    begun = [q for q in sequences if list(q[: len(prefix)]) == list(prefix)]
    psi = dict.fromkeys(tokens, 0.0)
    for sequence in begun:
        for k, token in enumerate(sequence[len(prefix) :]):
            psi[token] += gamma**k / len(begun)
    return list(psi.values())


@pytest.mark.parametrize("gamma", [0.9, 1])
def test_read_off_of_exact_counts_is_the_exact_share(gamma):
    for seed in range(30):
        rng = random.Random(seed)
        corpus = (
            TWO_STRINGS
            if seed == 0
            else ["".join(rng.choices("abc", k=rng.randint(1, 7))) for _ in range(5)]
        )
        counts = CountingModel.fit(corpus)
        for s in counts.prefixes():
            tokens, begun = counts.vocabulary, sum(list(q[: len(s)]) == list(s) for q in corpus)
            psi = torch.tensor([exact_psi(corpus, tokens, s, gamma)], dtype=torch.float64)
            following = torch.tensor(
                [[exact_psi(corpus, tokens, [*s, u], gamma) for u in tokens]], dtype=torch.float64
            )
            if torch.linalg.cond(torch.eye(len(tokens)) + gamma * following) > 1e6:
                assert gamma == 1  # the counts alone do not tell: see below
                continue
            share = torch.tensor(
                [[counts.next_freq(t, s) / begun for t in tokens]], dtype=torch.float64
            )
            assert (read_off(psi, following, gamma) - share).abs().max() < 1e-10


def test_without_discount_ab_and_ba_look_the_same():
    psi = torch.ones(1, 2, dtype=torch.float64)  # one a and one b are to come, whatever the order
    following = torch.tensor(
        [[[0.0, 1.0], [1.0, 0.0]]], dtype=torch.float64
    )  # after a a b, after b an a
    with pytest.raises(ValueError, match="gamma below 1 "):
        read_off(psi, following, 1)
    psi = torch.tensor([[0.3 + 0.7 * 0.9, 0.7 + 0.3 * 0.9]], dtype=torch.float64)
    assert read_off(psi, following, 0.9)[0].tolist() == pytest.approx([0.3, 0.7], abs=1e-12)


# -- learning ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two() -> dict[int | None, SuccessorModel]:
    """Both kinds, trained on the two strings."""
    return {
        w: SuccessorModel.fit(TWO_STRINGS, window=w, steps=steps)
        for w, steps in ((3, 1000), (None, 1500))
    }


@pytest.mark.slow
@pytest.mark.parametrize("window", [3, None])
def test_two_strings_are_learned(two, window):
    """Worst of 12 seeds: probabilities and frequencies off by 0.0008 (window 3) and 0.0001 (learned
    update).
    """
    model, counts = two[window], CountingModel.fit(TWO_STRINGS)
    assert worst_on(model, counts) < 0.01
    for prefix in counts.prefixes():
        state = model.read(model.start(), counts.tokenizer.encode(prefix)[None])
        expected = exact_psi(TWO_STRINGS, counts.vocabulary, prefix, 0.9)
        assert model.frequencies(state)[0].tolist() == pytest.approx(expected, abs=0.01)
        assert 0 <= model.clipped(state).item() < 0.02


def test_two_strings_are_learned_without_discount():
    """Worst of 10 seeds: 0.02 off."""
    model = SuccessorModel.fit(TWO_STRINGS, gamma=1, window=2, steps=1000)
    assert worst_on(model, CountingModel.fit(TWO_STRINGS)) < 0.08


@pytest.mark.parametrize("window", [3, None])
def test_generate_writes_the_two_strings(two, window):
    for first, rest in (("C", "AAR<end>"), ("H", "AT<end>")):
        written = generate(
            two[window], f"<start>{first}", steps=4 if first == "C" else 3, temperature=0
        )
        assert written.text == rest
    texts = {generate(two[window], "", steps=2, seed=seed).text for seed in range(30)}
    assert texts >= {"<start>C", "<start>H"}  # one missing by chance: 2^-29


@pytest.mark.slow
@pytest.mark.parametrize(
    ("window", "rows", "steps", "off", "mean_off", "psi_off"),
    [(1, 32, 300, 0.1, 0.03, 0.4), (None, 8, 200, 0.4, 0.05, 1)],
)
def test_a_chain_is_learned_from_its_text(window, rows, steps, off, mean_off, psi_off):
    """Worst of 10 chains and seeds, 6,000 symbols each: probabilities off by 0.031 (on average
    0.010) with window 1, 0.20 (0.016) with the learned update; frequencies, of 10 in all, by 0.13
    and 0.41."""
    chain = random_chain(0)
    text = sample(chain, 6000, seed=0)
    model = SuccessorModel.fit(
        [text], window=window, tokenizer=LETTERS, steps=steps, width=32, batch_size=rows
    )
    ids = LETTERS.encode(text[:800]).view(100, 8)
    state, last = model.read(model.start(100), ids), ids[:, -1]
    difference = (model.probs(state) - chain[last]).abs()
    assert difference.max() < off
    assert difference.mean() < mean_off
    psi = chain @ torch.linalg.inv(torch.eye(4, dtype=torch.float64) - 0.9 * chain)
    assert (model.frequencies(state) - psi[last]).abs().max() < psi_off


def test_training_is_decided_by_its_seed_alone():
    states = []
    for i, seed in enumerate((0, 0, 1)):
        torch.manual_seed(i)  # has no say
        before = torch.get_rng_state()
        model = SuccessorModel.fit(["ab" * 200, "ba"], steps=5, batch_size=2, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(model.frequencies(model.start()))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_progress_hears_of_every_step_and_the_loss_falls():
    heard = []
    SuccessorModel.fit(
        TWO_STRINGS, steps=50, progress=lambda step, loss: heard.append((step, loss))
    )
    assert [step for step, _ in heard] == list(range(50))
    assert heard[-1][1] < heard[0][1]


@pytest.mark.parametrize("length", [1, 31, 32, 33, 200])
def test_every_prefix_of_a_long_sequence_is_learned_once(length):
    model = SuccessorModel(LETTERS)
    ids = torch.arange(length) % 4
    token_ids, learned = model._rows([ids, ids[:1]])
    assert learned.sum() == (length + 1) + 2  # the end counts too
    assert (
        torch.cat([row[weight > 0] for row, weight in zip(token_ids, learned)])[:length].tolist()
        == ids.tolist()
    )
    memories = model._memories(token_ids)[:, :-1][
        learned > 0
    ]  # and it is learned with its true past
    for t in range(length):
        past = [4] * max(0, 3 - t) + ids[max(0, t - 3) : t].tolist()
        assert memories[t].tolist() == past


# -- the predictor -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [3, None])
def test_predictions_sum_to_one_are_never_zero_and_states_can_be_selected(two, window):
    model = two[window]
    state = model.read(model.start(2), torch.tensor([[0, 1, 2], [0, 5, 2]]))
    probs = model.probs(state)
    assert probs.dtype == torch.float64
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, dtype=torch.float64))
    assert (probs > 0).all()
    model.advance(state, token_ids=torch.tensor([2, 6]))
    assert torch.equal(model.probs(state), probs)  # the state was not changed
    torch.testing.assert_close(model.probs(state.select(torch.tensor([1, 0, 0]))), probs[[1, 0, 0]])


def test_an_untrained_model_predicts_too():
    model = SuccessorModel(LETTERS)
    assert model.next_log_probs(torch.tensor([[0, 1, 2, 3]])).isfinite().all()


@pytest.mark.parametrize(
    "settings", [{"gamma": 1.1}, {"gamma": -0.1}, {"window": 0}, {"window": 9}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"gamma must lie in 0 … 1, window in 1 … 8 or be None"):
        SuccessorModel(LETTERS, **settings)


def test_bad_input_is_refused(two):
    model = two[3]
    with pytest.raises(ValueError, match="at least one sequence"):
        SuccessorModel.fit([])
    with pytest.raises(ValueError, match="not 7"):
        model.advance(model.start(), token_ids=torch.tensor([7]))
    with pytest.raises(ValueError, match="token_ids only"):
        model.advance(model.start(), vectors=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="unknown token 'Q'"):
        generate(model, "<start>Q", steps=1)
