"""One model, read in every way there is: whole or token by token, ids or vectors, branched, beyond
its context.
"""

import json
import math
import os
import pickle
import random
import shutil
from copy import deepcopy
from itertools import product
from pathlib import Path

import pytest
import torch
from bounds import exact

from conftest import EVERY_OBJECTIVE, LETTERS, OBJECTIVES, TABLES
from softar_lab.core.store import CheckpointError, StoreError
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.generation import generate
from softar_lab.models.config import POSITIONS, ModelConfig
from softar_lab.models.objectives import READOUTS
from softar_lab.models.scoring import calibrate, evaluate
from softar_lab.models.soft_ar import SoftAR

KNOWN = {
    "energy(4)": 0.5,
    "flow(3)": 0.5,
    "vmf": 0.5,
    "anchored": 0.5,
}  # nats left by those that learn slowly or vote
EVERY_MODEL = [
    {"objective": o, "table": t, "positions": p}
    for o, t, p in product(OBJECTIVES, TABLES, POSITIONS)
]
ids_of = pytest.mark.parametrize("shape", EVERY_MODEL, ids=lambda shape: "-".join(shape.values()))


def some_ids(length, batch=3, seed=0):
    return torch.randint(
        len(LETTERS), (batch, length), generator=torch.Generator().manual_seed(seed)
    )


def log_probs_without_cache(model, token_ids=None, vectors=None):
    """log p(. | everything given), (B, V), from one pass over the whole."""
    hidden = model.hidden_states(token_ids, vectors)[:, -1]
    return model.objective.predict(hidden, model.table.weight).log_probs


# -- with and without the cache ---------------------------------------------------------------------------------------


@ids_of
def test_predict_with_the_cache_is_predict_without(tiny, shape):
    model, token_ids = tiny(**shape), some_ids(12)
    state = model.start(3)
    for t in range(13):
        expected = log_probs_without_cache(model, token_ids[:, :t])
        torch.testing.assert_close(model.predict(state).log_probs, expected, **exact(model))
        if t < 12:
            state = model.advance(state, token_ids=token_ids[:, t])
    assert expected.std(0).max() > 0.05  # or the comparison would mean nothing


@ids_of
def test_reading_vectors_is_reading_ids(tiny, shape):
    model, token_ids = tiny(**shape), some_ids(10)
    vectors = model.embedding[token_ids]
    torch.testing.assert_close(model.hidden_states(token_ids), model.hidden_states(vectors=vectors))
    as_ids, as_vectors = model.start(3), model.start(3)
    for t in range(10):
        as_ids = model.advance(as_ids, token_ids=token_ids[:, t])
        as_vectors = model.advance(as_vectors, vectors=vectors[:, t])
    one, other = (model.predict(state) for state in (as_ids, as_vectors))
    for name in ("log_probs", "vector", "probs"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-5, rtol=0)


@ids_of
def test_probs_sum_to_one(tiny, shape):
    model = tiny(**shape)
    state = model.read(model.start(3), some_ids(7))
    torch.testing.assert_close(model.probs(state).sum(-1), torch.ones(3), atol=1e-5, rtol=0)


def test_soft_tokens_with_the_cache_are_those_without(tiny, rng):
    model = tiny(objective="mse")
    vectors = torch.randn(2, 12, 16, generator=rng())
    state = model.start(2)
    for t in range(12):
        state = model.advance(state, vectors=vectors[:, t])
        expected = log_probs_without_cache(model, vectors=vectors[:, : t + 1])
        torch.testing.assert_close(model.predict(state).log_probs, expected, **exact(model))


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 7], [1, 10, 1], [0, 4, 0, 8]])
def test_read_in_pieces_is_read_at_once(tiny, pieces):
    model, token_ids = tiny(), some_ids(12)
    state = model.start(3)
    for piece in token_ids.split(pieces, 1):
        state = model.read(state, piece)
    expected = log_probs_without_cache(model, token_ids)
    torch.testing.assert_close(model.predict(state).log_probs, expected, **exact(model))


def test_hidden_states_never_look_ahead(tiny):
    model, token_ids = tiny(), some_ids(12)
    changed = token_ids.clone()
    changed[:, 6] = (changed[:, 6] + 1) % len(LETTERS)
    before, after = model.hidden_states(token_ids), model.hidden_states(changed)
    assert torch.equal(
        before[:, :7], after[:, :7]
    )  # entry t predicts token t: entry 7 is the first to know token 6
    assert ((before - after)[:, 7:].abs().amax(-1) > 1e-3).all()


def test_log_probs_are_those_of_the_predictor(tiny):
    model, token_ids = (
        tiny(objective="metric"),
        some_ids(13),
    )  # context + 1: the start slot predicts the first
    found, state = model.log_probs(token_ids), model.start(3)
    for t in range(13):
        expected = model.predict(state).log_probs.gather(1, token_ids[:, t : t + 1]).squeeze(1)
        torch.testing.assert_close(found[:, t], expected, **exact(model))
        state = model.next_state(state, token_ids[:, t]) if t < 12 else state


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_log_probs_of_all_texts_of_three_characters_sum_to_one(tiny, objective):
    model = tiny(objective=objective, letters="abcd")
    texts = torch.cartesian_prod(*[torch.arange(4)] * 3)
    assert model.log_probs(texts).sum(-1).double().exp().sum().item() == pytest.approx(1, abs=1e-5)


# -- states -----------------------------------------------------------------------------------------------------------


def test_a_state_may_be_advanced_twice(tiny):
    model, token_ids = tiny(), some_ids(6)
    stem = model.read(model.start(3), token_ids)
    before = model.predict(stem).log_probs.clone()
    branches = [model.advance(stem, token_ids=torch.full((3,), k)) for k in range(4)]
    for _ in range(3):  # every branch goes on, in turns
        branches = [
            model.advance(branch, token_ids=torch.full((3,), k))
            for k, branch in enumerate(branches)
        ]
    for k, branch in enumerate(branches):
        whole = torch.cat([token_ids, torch.full((3, 4), k)], 1)
        expected = log_probs_without_cache(model, whole)
        torch.testing.assert_close(model.predict(branch).log_probs, expected, **exact(model))
    assert torch.equal(model.predict(stem).log_probs, before)


def test_a_random_tree_of_branches_and_selections_agrees_with_fresh_readings(tiny):
    """Sixty random moves among states that share caches, also beyond the context: each as if it
    were alone.
    """
    model, chance = tiny(context=6), random.Random(0)
    nodes = [(model.start(2), torch.zeros(2, 0, dtype=torch.long))]
    for move in range(60):
        state, read = chance.choice(nodes[-12:])
        if chance.random() < 0.3:
            rows = torch.tensor(
                [chance.randrange(len(read)) for _ in range(chance.choice([1, 2, 3]))]
            )
            nodes.append((state.select(rows), read[rows]))
        else:
            new = some_ids(chance.choice([1, 1, 2, 5]), len(read), seed=move)
            nodes.append((model.read(state, new), torch.cat([read, new], 1)))
    for state, read in nodes:
        fresh = (
            model.read(model.start(len(read)), read) if read.shape[1] else model.start(len(read))
        )
        torch.testing.assert_close(
            model.predict(state).log_probs, model.predict(fresh).log_probs, **exact(model)
        )


@pytest.mark.parametrize("rows", [[0], [2, 0, 1], [1, 1, 1, 0, 2], [2, 1]])
@pytest.mark.parametrize("length", [0, 5, 12])
def test_select_forks_drops_and_reorders(tiny, rows, length):
    model, token_ids = tiny(), some_ids(length)
    state = model.start(3) if not length else model.read(model.start(3), token_ids)
    chosen, rows = state.select(torch.tensor(rows)), torch.tensor(rows)
    torch.testing.assert_close(
        model.predict(chosen).log_probs, model.predict(state).log_probs[rows], **exact(model)
    )
    new = some_ids(3, len(rows), seed=7)
    expected = model.read(model.start(len(rows)), torch.cat([token_ids[rows], new], 1))
    found = model.predict(model.read(chosen, new)).log_probs
    torch.testing.assert_close(found, model.predict(expected).log_probs, **exact(model))


def test_predictions_of_a_batch_are_those_of_its_rows(tiny):
    model, token_ids = tiny(), some_ids(9)
    together = model.predict(model.read(model.start(3), token_ids)).log_probs
    for row in range(3):
        alone = model.predict(model.read(model.start(1), token_ids[row : row + 1])).log_probs
        torch.testing.assert_close(together[row : row + 1], alone, **exact(model))


# -- beyond the context -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [1, 2, 3, 8])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_beyond_the_context_a_window_of_the_latest_tokens_is_read_again(tiny, context, soft):
    """An explicit sliding oracle: when the window would pass the context, only its latest half
    stays.
    """
    model, token_ids = tiny(context=context, objective="mse"), some_ids(30, 2)
    vectors = model.embedding[token_ids] + 0.1 * soft
    state, window = model.start(2), vectors[:, :0]
    for t in range(30):
        new = {"vectors": vectors[:, t]} if soft else {"token_ids": token_ids[:, t]}
        state = model.advance(state, **new)
        window = torch.cat([window, vectors[:, t : t + 1]], 1)
        if window.shape[1] > context:
            window = window[:, -max(1, context // 2) :]
        expected = log_probs_without_cache(model, vectors=window)
        torch.testing.assert_close(model.predict(state).log_probs, expected, **exact(model))
        assert state.length <= context
        assert sum(part.shape[1] for part in state.inputs) <= context  # memory stays what it is
        assert state.cache.capacity <= max(64, 2 * (context + 1))


@pytest.mark.parametrize("context", [1, 2, 3, 8])
@pytest.mark.parametrize("first", [0, 1, 5, 8, 9, 29])
def test_beyond_the_context_blocks_are_token_by_token(tiny, context, first):
    model, token_ids = tiny(context=context), some_ids(29, 2)
    one_by_one = model.start(2)
    for t in range(29):
        one_by_one = model.advance(one_by_one, token_ids=token_ids[:, t])
    state = model.start(2)
    for block in token_ids.split([first, 29 - first], 1):
        state = model.read(state, block) if block.shape[1] else state
    assert state.length == one_by_one.length
    expected = model.predict(one_by_one).log_probs
    torch.testing.assert_close(model.predict(state).log_probs, expected, **exact(model))


@pytest.mark.parametrize("context", [1, 3, 8])
def test_a_state_knows_which_slots_it_holds(tiny, context):
    model = tiny(context=context)
    state = model.start(2)
    for t in range(25):
        assert (state.end, state.begin + state.length) == (t, t)
        latest = model.embedding[some_ids(25, 2)][:, state.begin : t]
        assert torch.equal(torch.cat([latest[:, :0], *state.inputs], 1), latest)
        assert state.select(torch.tensor([1])).begin == state.begin
        state = model.advance(state, token_ids=some_ids(25, 2)[:, t])
    assert model.read(model.start(2), some_ids(25, 2)).begin == state.begin > 0


# -- what was read may be read otherwise ------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("first", "n"), [(0, 1), (0, 9), (4, 2), (8, 1), (3, 0), (9, 0)])
def test_replace_is_reading_everything_anew(tiny, rng, positions, first, n):
    model = tiny(objective="mse", positions=positions)
    old, new = torch.randn(2, 3, 9, 16, generator=rng())
    state = model.read(model.start(3), vectors=old)
    replaced = model.replace(state, first, new[:, :n])
    changed = old.clone()
    changed[:, first : first + n] = new[:, :n]
    assert torch.equal(torch.cat(replaced.inputs, 1), changed)
    for t in range(3):  # and so are the slots after it
        expected = log_probs_without_cache(model, vectors=torch.cat([changed, new[:, :t]], 1))
        torch.testing.assert_close(model.predict(replaced).log_probs, expected, **exact(model))
        replaced = model.advance(replaced, vectors=new[:, t])
    assert (
        n == 0
        or (expected - log_probs_without_cache(model, vectors=torch.cat([old, new[:, :2]], 1)))
        .abs()
        .max()
        > 0.01
    )


def test_replace_is_exact_in_float64(tiny, rng):
    model = tiny(objective="mse").double()
    old, new = torch.randn(2, 3, 9, 16, generator=rng()).double()
    state = model.replace(model.read(model.start(3), vectors=old), 5, new[:, 5:7])
    changed = torch.cat([old[:, :5], new[:, 5:7], old[:, 7:]], 1)
    hidden = model.hidden_states(vectors=changed)[:, -1]
    torch.testing.assert_close(state.hidden, hidden, atol=1e-12, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("context", [1, 2, 6])
@pytest.mark.parametrize("batch", [1, 2])
def test_replace_goes_on_beyond_the_context_as_if_it_had_been_so_from_the_start(
    tiny, rng, context, batch
):
    """At every step the slots still there are replaced in all ways of one or two; renewals of the
    window included.
    """
    model = tiny(context=context, objective="mse", scale=0.15)
    vectors = torch.randn(batch, 20, 16, generator=rng())
    state = model.start(batch)
    for t in range(20):
        state = model.advance(state, vectors=vectors[:, t])
        before = model.predict(state).log_probs.clone()
        for first in range(state.begin, state.end):
            new = torch.randn(batch, min(2, state.end - first), 16, generator=rng(t))
            changed = vectors[:, : t + 1].clone()
            changed[:, first : first + new.shape[1]] = new
            found, expected = (
                model.replace(state, first, new),
                model.read(model.start(batch), vectors=changed),
            )
            for ahead in range(3):
                pair = [model.predict(one).log_probs for one in (found, expected)]
                torch.testing.assert_close(*pair, **exact(model))
                found, expected = (
                    model.advance(one, vectors=vectors[:, ahead]) for one in (found, expected)
                )
        assert torch.equal(model.predict(state).log_probs, before)


def test_replace_harms_no_state_that_shares_the_cache(tiny, rng):
    model, token_ids = tiny(), some_ids(8)
    stem = model.read(model.start(3), token_ids[:, :4])
    states = [stem, model.read(stem, token_ids[:, 4:6]), model.read(stem, token_ids[:, 4:])]
    before = [model.predict(state).log_probs.clone() for state in states]
    for state in states:
        model.replace(state, 1, torch.randn(3, 2, 16, generator=rng()))
    for state, expected in zip(states, before, strict=True):
        assert torch.equal(model.predict(state).log_probs, expected)
        whole = torch.cat([token_ids[:, : state.length], some_ids(2)], 1)
        found = model.predict(model.read(state, some_ids(2))).log_probs
        torch.testing.assert_close(found, log_probs_without_cache(model, whole), **exact(model))


@pytest.mark.parametrize(
    ("slot", "n", "message"),
    [
        (6, 1, r"slots 6 … 6 cannot be replaced: the context holds 7 … 12"),
        (12, 2, r"slots 12 … 13 cannot be replaced: the context holds 7 … 12"),
        (-1, 1, "slots -1 … -1"),
        (13, 1, "slots 13 … 13"),
    ],
)
def test_replace_names_the_slots_of_the_context(tiny, slot, n, message):
    model = tiny()
    state = model.read(model.start(2), some_ids(13, 2))
    with pytest.raises(ValueError, match=message):
        model.replace(state, slot, torch.zeros(2, n, 16))
    with pytest.raises(ValueError, match=r"slots 0 … 0 cannot be replaced: the context is empty"):
        model.replace(model.start(2), 0, torch.zeros(2, 1, 16))


@pytest.mark.parametrize("way", ["replace", "lookahead"])
def test_replace_and_lookahead_name_what_is_wrong(tiny, way):
    model = tiny()
    state = model.read(model.start(2), some_ids(5, 2))
    ask = (
        (lambda x: model.replace(state, 1, x))
        if way == "replace"
        else (lambda x: model.lookahead(state, x))
    )
    for wrong, message in [
        (torch.zeros(2, 1, 15), "16 wide here, not 15"),
        (torch.full((2, 1, 16), math.nan), "finite"),
        (torch.zeros(3, 1, 16), "3 rows given, the state has 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            ask(wrong)
    with pytest.raises(ValueError, match="13 slots ahead are more than the context of 12"):
        model.lookahead(state, torch.zeros(2, 13, 16))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("n", [0, 1, 5])
def test_lookahead_is_what_advance_finds(tiny, rng, positions, n):
    model, vectors = (
        tiny(objective="mse", positions=positions),
        torch.randn(2, 12, 16, generator=rng()),
    )
    state = model.read(model.start(2), vectors=vectors[:, :7])
    other = model.advance(state, vectors=vectors[:, 0])
    pair = [model.predict(one).log_probs.clone() for one in (state, other)]
    for one in (state, other):
        found, ahead = model.lookahead(one, vectors[:, 7 : 7 + n - (n == 5) * (one is other)]), one
        for i in range(found.shape[1]):
            ahead = model.advance(ahead, vectors=vectors[:, 7 + i])
            torch.testing.assert_close(found[:, i], ahead.hidden, **exact(model))
        assert found.shape[1] == n - (n == 5) * (one is other)
    for one, expected in zip((state, other), pair, strict=True):
        assert torch.equal(model.predict(one).log_probs, expected)
        torch.testing.assert_close(
            model.predict(model.advance(one, vectors=vectors[:, 11])).log_probs,
            log_probs_without_cache(model, vectors=torch.cat([*one.inputs, vectors[:, 11:]], 1)),
            **exact(model),
        )


@pytest.mark.parametrize(
    ("read", "n", "kept"), [(12, 1, 6), (10, 3, 6), (8, 5, 6), (12, 8, 4), (12, 12, 0), (5, 12, 0)]
)
def test_lookahead_beyond_the_context_reads_the_latest_slots_again(tiny, rng, read, n, kept):
    model, vectors = tiny(objective="mse"), torch.randn(2, 24, 16, generator=rng())
    state = model.read(model.start(2), vectors=vectors[:, :read])
    found = model.lookahead(state, vectors[:, read : read + n])
    for i in range(n):
        window = vectors[:, read - kept : read + i + 1]
        torch.testing.assert_close(
            found[:, i], model.hidden_states(vectors=window)[:, -1], **exact(model)
        )


# -- how it begins and what training may move -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "table"), [("ce", "joint"), ("metric", "random"), ("mse", "orthonormal")]
)
def test_a_fresh_model_knows_nothing(tiny, objective, table):
    model, token_ids = tiny(alive=False, objective=objective, table=table), some_ids(12)
    nats = -model.log_probs(token_ids)
    torch.testing.assert_close(
        nats, torch.full_like(nats, math.log(len(LETTERS))), atol=1e-6, rtol=0
    )


def test_weights_depend_on_the_seed_alone(tiny):
    torch.manual_seed(1)
    first = tiny(alive=False, seed=3).state_dict()
    torch.manual_seed(2)
    second, third = tiny(alive=False, seed=3).state_dict(), tiny(alive=False, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["table.weight"], third["table.weight"])
    assert not torch.equal(first["input.weight"], third["input.weight"])


def test_making_and_running_a_model_leaves_the_global_generator_alone(tiny):
    before = torch.random.get_rng_state()
    model = tiny(alive=False, table="orthonormal")
    model.read(model.start(3), some_ids(20))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
@pytest.mark.parametrize("table", TABLES)
def test_one_batch_is_learned_by_heart(tiny, objective, table):
    """A text without repetition is certain, so all is known in the end, whether the table moves or
    not.
    """
    model = tiny(alive=False, objective=objective, table=table, context=8, n_layers=1).train()
    token_ids = torch.arange(9)[None]
    frozen = model.table.weight.detach().clone()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        hidden = model.hidden_states(token_ids[:, :-1])
        loss = model.objective.loss(hidden, token_ids, model.table.weight, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        model.objective.calibrate(hidden.flatten(0, 1), token_ids.flatten(), model.table.weight)
        nats = -model.eval().log_probs(token_ids).mean().item()
    if objective in ("ce", "metric", "mse", "cosine"):
        assert loss.item() < 0.05
    if table != "joint" or objective not in (
        "mixture(2)",
        "flow(3)",
    ):  # whose rows may collapse (K23)
        assert nats < KNOWN.get(objective, 0.05)
    assert torch.equal(frozen, model.table.weight) is (table != "joint")


@pytest.mark.parametrize("readout", ["affine", "barycentric", "barycentric(0.1)"])
def test_with_readout_changes_the_reading_and_nothing_else(tiny, readout, tmp_path):
    model = tiny(objective="mse")
    other = model.with_readout(readout)
    expected = READOUTS.complete(readout, None, None)
    assert (model.config.readout, other.config.readout) == ("tau", expected)
    state = model.start(2)
    before, after = model.predict(state), other.predict(other.start(2))
    assert torch.equal(before.vector, after.vector)
    assert not torch.equal(before.probs, after.probs)
    kept = [name for name in model.state_dict() if "readout" not in name]
    assert all(torch.equal(model.state_dict()[name], other.state_dict()[name]) for name in kept)
    calibrate(other, some_ids(12, 8))
    other.save(tmp_path)
    loaded = SoftAR.load(tmp_path)
    assert loaded.config == other.config
    assert torch.equal(loaded.predict(loaded.start()).probs, other.predict(other.start()).probs)


def test_with_readout_refuses_what_makes_no_sense(tiny):
    with pytest.raises(
        ValueError, match="objective 'ce' cannot be read by 'tau'; its readouts: softmax"
    ):
        tiny().with_readout("tau")


def test_n_parameters_counts_what_is_trained(tiny):
    joint, frozen = tiny(table="joint"), tiny(table="random")
    assert (
        joint.n_parameters()
        == joint.n_parameters(trained=False)
        == frozen.n_parameters(trained=False)
    )
    assert joint.n_parameters() - frozen.n_parameters() == len(LETTERS) * 16


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "either"),
        ({"token_ids": torch.zeros(2).long(), "vectors": torch.zeros(2, 16)}, "either"),
        ({"token_ids": torch.tensor([0, len(LETTERS)])}, rf"0 … {len(LETTERS) - 1}"),
        ({"token_ids": torch.tensor([0, -1])}, rf"0 … {len(LETTERS) - 1}"),
        ({"token_ids": torch.zeros(3).long()}, "3 rows given, the state has 2"),
        ({"vectors": torch.zeros(2, 15)}, "16 wide here, not 15"),
        ({"vectors": torch.full((2, 16), math.nan)}, "finite"),
        ({"vectors": torch.tensor([[0.0] * 16, [math.inf] + [0.0] * 15])}, "finite"),
        ({"vectors": torch.zeros(1, 16)}, "1 rows given, the state has 2"),
    ],
)
def test_advance_says_what_is_wrong(tiny, wrong, message):
    model = tiny()
    with pytest.raises(ValueError, match=message):
        model.advance(model.start(2), **wrong)


def test_hidden_states_refuse_more_than_the_context(tiny):
    with pytest.raises(ValueError, match="13 tokens are more than the context of 12"):
        tiny().hidden_states(some_ids(13))


def test_tokenizer_and_config_must_agree():
    with pytest.raises(ValueError, match=r"3 symbols.*vocab_size is 4"):
        SoftAR(ModelConfig(vocab_size=4), CharTokenizer.fit("abc"))


# -- on disk ----------------------------------------------------------------------------------------------------------


@ids_of
def test_load_gives_back_the_same_bits(tiny, tmp_path, shape):
    model = tiny(**shape)
    model.card["note"] = "été 🎈"
    model.save(tmp_path / "saved")
    loaded = SoftAR.load(tmp_path / "saved")
    assert (loaded.config, loaded.tokenizer, loaded.card) == (
        model.config,
        model.tokenizer,
        model.card,
    )
    saved, found = model.state_dict(), loaded.state_dict()
    assert list(saved) == list(found)
    assert all(torch.equal(saved[name], found[name]) for name in saved)
    token_ids = some_ids(13)
    assert torch.equal(model.log_probs(token_ids), loaded.log_probs(token_ids))
    assert not loaded.training


def test_load_without_a_tokenizer_and_save_over_an_older_one(tiny, tmp_path):
    tiny(seed=1).save(tmp_path)
    model = SoftAR(ModelConfig(vocab_size=7, d_model=16, n_layers=1))
    model.save(tmp_path)
    loaded = SoftAR.load(tmp_path)
    assert loaded.tokenizer is None
    assert loaded.config == model.config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_load_of_what_is_no_checkpoint_says_so(tmp_path, what):
    folder = tmp_path / "here"
    if what == "empty":
        folder.mkdir()
    elif what == "file":
        folder.write_text("a file")
    with pytest.raises(CheckpointError, match="here holds no checkpoint"):
        SoftAR.load(folder)


def test_load_names_a_missing_file(tiny, tmp_path):
    tiny().save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing"):
        SoftAR.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2; this code reads version 1"),
        ({"format": "other"}, "not a softar-lab/checkpoint"),
        ({"config": {"vocab_size": 0}}, "vocab_size"),
        ({"config": {"vocab_size": 13, "colour": 1}}, "colour"),
        ({"config": {"vocab_size": 13, "d_model": 32}}, "does not fit"),
        ({"config": {}}, "vocab_size"),
        ({"config": None}, r"config\.json"),
        ({"config": [1]}, r"config\.json"),
        ({"card": 3}, r"config\.json"),
        ({"card": None}, r"config\.json"),
        ({"tokenizer": {"type": "char", "tokens": ["a"]}}, "1 symbols"),
        ({"tokenizer": {"type": "bytes"}}, "char"),
        ({"tokenizer": "abc"}, r"config\.json"),
    ],
)
def test_load_of_a_foreign_manifest_with_a_true_checksum_says_what_is_wrong(
    tiny, tmp_path, monkeypatch, change, message
):
    model = tiny()
    monkeypatch.setattr(model, "_manifest", lambda: {**SoftAR._manifest(model), **change})
    model.save(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        SoftAR.load(tmp_path)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def damaged(
    data: bytes, chance: random.Random, others: list[bytes], bomb: bytes
) -> tuple[str, bytes]:
    """(what was done, the content after it)."""
    kind = chance.choice(["cut", "cut", "bit", "bit", "bit", "bits", "zeros", "noise", "noise", "swap", "empty", "bomb"]
                         + ["grown", "gap", "header", "text"])  # fmt: skip
    at = chance.randrange(len(data))
    if kind == "cut":
        return kind, data[:at]
    if kind in ("bit", "bits"):
        content = bytearray(data)
        for _ in range(1 if kind == "bit" else 20):
            content[
                chance.choice([chance.randrange(len(data)), chance.randrange(min(400, len(data)))])
            ] ^= 1 << chance.randrange(8)
        return kind, bytes(content)
    content = {
        "zeros": data[:at] + bytes(len(data) - at),
        "noise": chance.randbytes(chance.randrange(1, 3000)),
        "swap": chance.choice(others),
        "empty": b"",
        "bomb": bomb,
        "grown": data + chance.randbytes(chance.randrange(1, 20)),
        "gap": data[:at] + data[at + 1 + chance.randrange(40) :],
        "header": chance.randrange(2**64).to_bytes(8, "little") + data[8:],
        "text": chance.choice(
            [
                b"null",
                b"[]",
                b"{}",
                b'{"files": {}}',
                b"[" * 100_000,
                b'"\\ud800"',
                b"1e999",
                b"\xff\xfe",
                b"NaN",
            ]
        ),
    }
    return kind, content[kind]


def test_seven_hundred_damaged_checkpoints_are_refused(tiny, tmp_path):
    """None loads, unless its content is what it was; none crashes; none runs the code it
    carries.
    """
    model, other = tiny(d_model=4, n_layers=1), tiny(d_model=4, n_layers=1, seed=1)
    chance, bomb = random.Random(0), pickle.dumps(Bomb(tmp_path / "exploded"))
    for name, saved in (("good", model), ("other", other)):
        saved.save(
            tmp_path / name,
            **{"training.json": f'{{"by": "{name}"}}'.encode(), "more": name.encode() * 99},
        )
    names = sorted(path.name for path in (tmp_path / "good").iterdir())
    assert names == ["config.json", "model.safetensors", "more", "training.json"]
    contents = {name: (tmp_path / "good" / name).read_bytes() for name in names}
    others = [(tmp_path / "other" / name).read_bytes() for name in names] + list(contents.values())
    refused = 0
    for _ in range(700):
        name = chance.choice([*names, "config.json", "model.safetensors"])
        kind, content = damaged(contents[name], chance, others, bomb)
        (tmp_path / "good" / name).write_bytes(content)
        try:
            SoftAR.load_with_files(tmp_path / "good", "cpu")
        except CheckpointError as error:
            assert str(tmp_path / "good") in str(error), (name, kind, error)
            refused += 1
        else:
            assert content == contents[name], f"{kind} of {name} was not noticed"
        (tmp_path / "good" / name).write_bytes(contents[name])
    assert refused > 650
    assert not (tmp_path / "exploded").exists()
    assert pickle.loads(bomb) is None  # the bomb is live
    assert (tmp_path / "exploded").exists()
    SoftAR.load(tmp_path / "good", "cpu")


def test_load_of_files_of_two_checkpoints_mixed_is_refused(tiny, tmp_path):
    for seed in (0, 1):
        tiny(seed=seed).save(tmp_path / str(seed))
    shutil.copy(tmp_path / "1" / "model.safetensors", tmp_path / "0")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        SoftAR.load(tmp_path / "0")


@pytest.mark.parametrize(
    "files", [{"../outside": "0" * 64}, {"/etc/passwd": "0" * 64}, {}, [], {"a/b": "0" * 64}]
)
def test_load_follows_no_name_out_of_its_folder(tiny, tmp_path, files):
    from softar_lab.core.store import _sealed

    tiny().save(tmp_path)
    path = Path(tmp_path / "config.json")
    manifest = {**json.loads(path.read_text()), "files": files, "checksum": "0" * 64}
    path.write_bytes(_sealed(json.dumps(manifest).encode()))
    with pytest.raises(StoreError, match=r"config\.json"):
        SoftAR.load(tmp_path)


# -- other precisions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
def test_a_model_in_float64_says_the_same_more_exactly(tiny, objective):
    model = tiny(objective=objective)
    double = deepcopy(model).double()
    ids = torch.randint(13, (2, 9), generator=torch.Generator().manual_seed(0))
    found, exact = model.next_log_probs(ids), double.next_log_probs(ids)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(found.double(), exact, atol=1e-2, rtol=1e-3)
    step = double.predict(double.read(double.start(2), ids[:, :-1])).log_probs
    torch.testing.assert_close(step, exact[:, -1], atol=1e-10, rtol=1e-10)
    assert len(generate(double, "ab", 6, schedule="every(2)").text) == 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_at_once(tiny, dtype):
    model = deepcopy(tiny()).to(dtype)
    calls = (
        lambda: generate(model, "ab", 4),
        lambda: model.next_log_probs(torch.zeros(1, 3, dtype=torch.long)),
        lambda: evaluate(model, "abcabc"),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"computes in float32 or float64.*model\.float\(\)"):
            call()
