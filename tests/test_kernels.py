"""The compiled arithmetic: as exact as float32 allows, and each slot the same to the bit in
whatever company.
"""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erfc, log_softmax

from softar_lab.models import by_row, compiled
from softar_lab.models.compiled_decoder import CompiledDecoder

EPSILON = 2.0**-23  # between 1 and the next float32
KINDS = (
    {},
    {"positions": "learned", "bias": True, "norm": "layer"},
    {"positions": "sinusoidal", "norm": "rms", "mlp": "swiglu", "mlp_ratio": 1.5},
    {"queries_per_key": 2, "mlp": "gelu-tanh", "bias": True},
    {"attention_window": 5, "positions": "none"},
    {"input_map": False, "n_heads": 1, "d_model": 30, "objective": "mse"},
)
CONTEXT = 40
kernels = compiled.kernels()
pytestmark = pytest.mark.skipif(
    kernels is None, reason="no compiled kernels on this machine: see models/compiled.py"
)


@pytest.fixture(scope="module", params=KINDS, ids=str)
def model(request, tiny):
    return tiny(scale=0.15, **{"context": CONTEXT, "n_heads": 4, "d_model": 32, **request.param})


def ids(rows, slots=CONTEXT, seed=0):
    return torch.randint(13, (rows, slots), generator=torch.Generator().manual_seed(seed))


# -- one slot ----------------------------------------------------------------------------------------------------------


def test_hidden_states_are_as_close_to_float64_as_those_of_pytorch(model):
    """Both round some hundred times on the way; neither may be more than 4 times as far off as the
    other.
    """
    exact = copy.deepcopy(model).double().hidden_states(ids(3, 20))[:, -1]
    theirs = (model.hidden_states(ids(3, 20))[:, -1] - exact).abs().max()
    ours = (model.read(model.start(3), ids(3, 20)).hidden - exact).abs().max()
    assert ours <= 4 * theirs


def test_the_wide_layers_activations_match_scipy():
    x = np.linspace(-12, 12, 200_001, dtype=np.float32)
    wide, exact = np.repeat(x[None], 2, 0).reshape(1, -1), x.astype(np.float64)
    sigmoid = 1 / (1 + np.exp(-exact))
    tanh = exact / (1 + np.exp(-2 * (2 / np.pi) ** 0.5 * (exact + 0.044715 * exact**3)))
    cases = (
        (kernels.GELU, x[None], exact * erfc(-exact / 2**0.5) / 2),
        (kernels.GELU_TANH, x[None], tanh),
    )
    for kind, given_, expected in (*cases, (kernels.SWIGLU, wide, exact * sigmoid * exact)):
        out = np.empty((1, x.size), np.float32)
        kernels._activate(given_, kind, out)
        # erfc is fitted to 5e-8 < EPSILON / 2, and there are some five roundings; e^-60 stands for
        # less than that
        assert (
            np.abs(out[0] - expected) <= 4 * EPSILON * np.abs(exact) * np.maximum(1, np.abs(exact))
        ).all()


@given(st.integers(1, 9), st.integers(1, 70), st.floats(0.01, 80), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_softmax_is_that_of_scipy(rows, symbols, spread, seed):
    logits = torch.randn(rows, symbols, generator=torch.Generator().manual_seed(seed)) * spread
    log_probs, probs = by_row.log_softmax(logits)
    expected = log_softmax(logits.double().numpy(), -1)
    size = 1 + np.abs(
        expected
    )  # a logarithm is rounded by its size, a probability by that of its logarithm
    assert (np.abs(log_probs.numpy() - expected) <= 4 * EPSILON * size).all()
    assert (
        np.abs(probs.numpy() - np.exp(expected)) <= 8 * EPSILON * size * np.exp(expected) + 2e-38
    ).all()
    if rows > 1:
        assert torch.equal(by_row.log_softmax(logits[1:2])[0], log_probs[1:2])


@given(
    st.integers(0, 9),
    st.integers(1, 70),
    st.integers(1, 40),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(deadline=None, max_examples=60)
def test_a_row_of_a_product_is_the_row_alone(rows, inner, columns, kind):
    generator = torch.Generator().manual_seed(inner)
    x, matrix = (
        torch.randn(rows, inner, generator=generator).to(kind),
        torch.randn(inner, columns).to(kind),
    )
    found = by_row.product(x, matrix)
    exact = x.double() @ matrix.double()
    rounding = (
        inner * torch.finfo(kind).eps * (x.double().abs() @ matrix.double().abs())
    )  # of a chain of sums
    assert ((found.double() - exact).abs() <= rounding).all()
    for row in range(rows):
        assert torch.equal(by_row.product(x[row : row + 1], matrix), found[row : row + 1])
        assert torch.equal(by_row.product(x[row], matrix), found[row])


def test_a_product_that_is_learned_from_is_pytorchs(rng):
    x, weight = (
        torch.randn(3, 4, generator=rng()),
        torch.randn(4, 2, generator=rng(), requires_grad=True),
    )
    by_row.product(x, weight).sum().backward()
    assert torch.equal(weight.grad, x.sum(0)[:, None].expand(-1, 2))


# -- company -----------------------------------------------------------------------------------------------------------


@given(st.data())
@settings(deadline=None, max_examples=30)
def test_a_slot_is_the_same_read_at_once_or_in_portions_alone_or_in_a_batch(model, data):
    rows, slots = data.draw(st.integers(1, 9)), data.draw(st.integers(1, CONTEXT))
    given_ = ids(rows, slots, seed=data.draw(st.integers(0, 9)))
    alike = data.draw(st.integers(0, slots))  # so many at the beginning are the same in all rows
    given_[:, :alike] = given_[:1, :alike]
    whole, state, begin = model.read(model.start(rows), given_).hidden, model.start(rows), 0
    while begin < slots:
        n = data.draw(st.integers(1, slots - begin))
        state, begin = model.read(state, given_[:, begin : begin + n]), begin + n
    assert torch.equal(state.hidden, whole)
    row = data.draw(st.integers(0, rows - 1))
    assert torch.equal(
        model.read(model.start(1), given_[row : row + 1]).hidden, whole[row : row + 1]
    )


@given(st.data())
@settings(deadline=None, max_examples=30)
def test_forks_replaced_slots_and_looks_ahead_leave_each_other_alone(model, data):
    """Whatever was done to the states that share its cache, a state goes on as if it were alone."""
    rows, slots = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 20))
    given_, more = ids(rows, slots, seed=1), ids(rows, 8, seed=2)
    if data.draw(st.booleans()):
        given_[:] = given_[:1].clone()
    state = model.read(model.start(rows), given_)
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=5)))
    fork = model.read(state.select(chosen), more[chosen])
    ahead = model.lookahead(state, model.embedding[more])
    slot = data.draw(st.integers(0, slots - 1))
    replaced = model.replace(state, slot, model.embedding[more[:, :1]])
    onward = model.read(state, more)
    alone = model.read(model.start(rows), torch.cat([given_, more], 1)).hidden
    assert torch.equal(onward.hidden, alone)
    assert torch.equal(ahead[:, -1], alone)
    assert torch.equal(fork.hidden, alone[chosen])
    changed = given_.clone()
    changed[:, slot] = more[:, 0]
    assert torch.equal(replaced.hidden, model.read(model.start(rows), changed).hidden)


@given(st.data())
@settings(max_examples=30)
def test_a_pool_of_states_that_fork_branch_and_go_on_in_any_order(model, data):
    """Each state of a pool is that of its tokens read alone, whoever shares a cache, or its
    beginning, with it.
    """
    tokens = [ids(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12)), seed=1)]
    states = [model.read(model.start(len(tokens[0])), tokens[0])]
    for seed in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(states) - 1))
        state, read = states[at], tokens[at]
        what = data.draw(st.sampled_from(["read", "select", "replace", "look ahead"]))
        most = CONTEXT - read.shape[1]
        new = ids(len(read), data.draw(st.integers(0, min(most, 18))), seed=2 + seed)
        if what == "read":
            state, read = model.read(state, new), torch.cat([read, new], 1)
        elif what == "select":
            chosen = torch.tensor(
                data.draw(st.lists(st.integers(0, len(read) - 1), min_size=1, max_size=4))
            )
            state, read = state.select(chosen), read[chosen]
        elif what == "replace":
            new = new[:, : read.shape[1]]
            slot = data.draw(st.integers(0, read.shape[1] - new.shape[1]))
            state = model.replace(state, slot, model.embedding[new])
            read = torch.cat([read[:, :slot], new, read[:, slot + new.shape[1] :]], 1)
        else:
            model.lookahead(state, model.embedding[new])
        states.append(state)
        tokens.append(read)
    for state, read in zip(states, tokens, strict=True):
        end = ids(len(read), min(1, CONTEXT - read.shape[1]), seed=99)
        alone = model.read(model.start(len(read)), torch.cat([read, end], 1)).hidden
        assert torch.equal(model.read(state, end).hidden, alone)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_slot_does_not_depend_on_the_number_of_threads(model, threads):
    before = torch.get_num_threads()
    alone = model.read(model.start(1), ids(32)[7:8]).hidden
    try:
        torch.set_num_threads(threads)
        assert torch.equal(model.read(model.start(32), ids(32)).hidden[7:8], alone)
    finally:
        torch.set_num_threads(before)


# -- where there is nothing compiled -----------------------------------------------------------------------------------


def test_without_compiled_code_pytorch_and_numpy_give_the_same_but_for_rounding(model, monkeypatch):
    exact = copy.deepcopy(model).double().hidden_states(ids(2, 20))[:, -1]
    theirs = (model.hidden_states(ids(2, 20))[:, -1] - exact).abs().max()
    monkeypatch.setenv("SOFTAR_COMPILED", "0")
    assert compiled.kernels() is None
    for rows in (1, 2):
        state = model.start(rows)
        for slot in range(20):
            state = model.advance(state, token_ids=ids(2, 20)[:rows, slot])
        assert not isinstance(state.cache.decoder, CompiledDecoder)
        assert (state.hidden - exact[:rows]).abs().max() <= 4 * theirs


def test_nobody_waits_for_the_compiler(monkeypatch, tmp_path):
    """Where nothing is compiled yet the first call starts it, once, in a process of its own, and
    goes on without.
    """
    started = []
    monkeypatch.setattr(compiled, "_ready", False)
    monkeypatch.setattr(compiled, "_background", None)
    monkeypatch.setattr(compiled, "_marker", lambda: tmp_path / "missing")
    monkeypatch.setattr(
        compiled.subprocess,
        "Popen",
        lambda *command, **options: started.append(command) or "running",
    )
    assert compiled.kernels() is None
    assert compiled.kernels() is None
    assert len(started) == 1
    (tmp_path / "missing").touch()
    assert compiled.kernels() is kernels


def test_without_numba_or_fused_multiply_add_there_are_no_kernels(monkeypatch):
    compiled._supported.cache_clear()
    monkeypatch.setattr(
        compiled, "_processor", lambda: ("x86_64-unknown-linux-gnu old", "+sse2,+avx")
    )
    assert compiled.kernels() is None
    assert not compiled.prepare()
    compiled._supported.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "numba.core", None)
    assert compiled.kernels() is None
    compiled._supported.cache_clear()
