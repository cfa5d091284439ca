"""What must change nothing: the scale of the table, a rotation of its space, the order of its rows,
who else is in the batch, the number of threads, how often one looks, where a text is cut.
"""

import pytest
import torch
from bounds import exact

from softar_lab import TrainConfig, Window, evaluate, generate, stream
from softar_lab.core.predictor import Prediction
from softar_lab.data.languages import Markov, Urn, mess3
from softar_lab.generation import collapse, feedback, joined, schedule
from softar_lab.generation.beam_search import beam
from softar_lab.generation.step_context import StepContext
from softar_lab.metrics.superposition import by_mixture, by_product, nearest_rows
from softar_lab.models.nearest import METRICS, nearest, nearest_distance
from softar_lab.models.objectives import OBJECTIVES, make_objective
from softar_lab.models.scoring import char_log_probs
from softar_lab.models.simplex import barycentric, hull_distance
from softar_lab.training.loop import train

V, M, N, D = 9, 6, 40, 8
FACTORS = [1e-12, 1e-3, 2.0, 1e3, 1e12]
INSTRUMENTS = {
    **{
        f"nearest {metric}": lambda y, e, metric=metric: nearest(y, e, metric) for metric in METRICS
    },
    "barycentric": barycentric,
    "nearest_rows": lambda y, e: nearest_rows(y, e, 3),
}
LENGTHS = {"nearest_distance": nearest_distance, "hull_distance": hull_distance}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def world():
    """A table (V, m) of unequal rows and vectors (N, m) about them."""
    table = torch.randn(V, M, generator=seeded(1)) * torch.linspace(0.5, 2, V)[:, None]
    mixtures = torch.softmax(torch.randn(N, V, generator=seeded(2)), -1) @ table
    return table, mixtures + 0.3 * torch.randn(N, M, generator=seeded(3))


def turned():
    """A rotation of R^m, in float64."""
    return torch.linalg.qr(torch.randn(M, M, generator=seeded(4), dtype=torch.float64))[0]


# -- scale ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", [*INSTRUMENTS, *LENGTHS])
def test_scaling_table_and_vectors_changes_no_answer(world, name, factor):
    table, vectors = world
    instrument = {**INSTRUMENTS, **LENGTHS}[name]
    before, after = instrument(vectors, table), instrument(factor * vectors, factor * table)
    if name in LENGTHS:
        before = factor * before
    if not after.is_floating_point():
        assert torch.equal(after, before)
        return
    size = float(before.abs().max())  # products by the factor round every number once
    torch.testing.assert_close(after, before, atol=2e-6 * size, rtol=0)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    "how", ["softmax", *(f"nearest('{one}')" for one in METRICS), "barycentric"]
)
def test_scaling_changes_no_collapse(world, how, factor):
    table, vectors = world
    log_probs = torch.log_softmax(vectors @ table.T, -1)
    one, other = (
        collapse.resolve(how)(Prediction(log_probs, f * vectors), f * table) for f in (1, factor)
    )
    torch.testing.assert_close(one, other, atol=2e-6, rtol=0)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    "what", ["mixture", "raw", "norm-restored", "shown", "mean", "nearest", "pause"]
)
def test_scaling_scales_what_is_fed_back(world, what, factor):
    table, vectors = world
    log_probs, ids = torch.log_softmax(vectors @ table.T, -1), torch.arange(N) % V
    found = []
    for f in (1, factor):
        prediction = Prediction(log_probs, f * vectors)
        context = StepContext(torch.arange(N), prediction, log_probs.exp(), ids, f * table)
        found.append(feedback.resolve(what)(context) / f)
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)


def reading(spec, readout, factor=1.0, rotation=None, order=None):
    """log p (N, V) of an objective whose readout is fitted, with a scaled, turned or sorted table;
    for "affine" its loss, since a ridge of 1e-5 leaves directions of log p that cost nothing.
    """
    table = torch.randn(V, M, generator=seeded(1), dtype=torch.float64)
    hidden = torch.randn(N, D, generator=seeded(5))
    target_ids = torch.randint(V, (N,), generator=seeded(6))
    objective = make_objective(spec, readout, D, V, M)
    head = torch.randn(M, D, generator=seeded(7), dtype=torch.float64)
    head = factor * (head if rotation is None else rotation.T @ head)
    table = factor * (table if rotation is None else table @ rotation)
    if order is not None:
        table, target_ids = table[order], order.argsort()[target_ids]
    objective.head.weight.data = head.float()
    with torch.no_grad():
        objective.calibrate(hidden, target_ids, table.float())
        found = objective.predict(hidden, table.float()).log_probs
    if readout == "affine":
        return found.gather(1, target_ids[:, None]).mean()
    return found if order is None else found[:, order.argsort()]


FITTED = [("mse", one) for one in ("tau", "affine", "barycentric")] + [("cosine", "tau")]
# tau is found to 1e-5 of itself, times log p of some units; L-BFGS stops where the loss is flat.
TOLERANCE = {"tau": 2e-4, "affine": 1e-4, "barycentric": 2e-4}


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(("spec", "readout"), FITTED)
def test_scaling_changes_no_reading(spec, readout, factor):
    found = reading(spec, readout, factor)
    torch.testing.assert_close(found, reading(spec, readout), atol=TOLERANCE[readout], rtol=0)


# -- rotation and order -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*INSTRUMENTS, *LENGTHS])
def test_a_rotation_changes_no_answer(world, name):
    table, vectors = (one.double() for one in world)
    instrument = {**INSTRUMENTS, **LENGTHS}[name]
    before, after = instrument(vectors, table), instrument(vectors @ turned(), table @ turned())
    if before.is_floating_point():
        torch.testing.assert_close(after, before, atol=1e-9, rtol=0)
    else:
        assert torch.equal(after, before)


@pytest.mark.parametrize(("spec", "readout"), FITTED)
def test_a_rotation_changes_no_reading(spec, readout):
    found = reading(spec, readout, rotation=turned())
    torch.testing.assert_close(found, reading(spec, readout), atol=TOLERANCE[readout], rtol=0)


@pytest.mark.parametrize("name", [*INSTRUMENTS, *LENGTHS, "by_product", "by_mixture"])
def test_the_order_of_the_rows_changes_no_answer(world, name):
    table, vectors = (one.double() for one in world)
    order = torch.randperm(V, generator=seeded(8))
    sums = {"by_product": by_product, "by_mixture": by_mixture}
    scores = {one: lambda y, e, f=f: f(y, 2, e) for one, f in sums.items()}
    instrument = {**INSTRUMENTS, **LENGTHS, **scores}[name]
    before, after = instrument(vectors, table), instrument(vectors, table[order])
    if not before.is_floating_point():
        after = order[after]
    elif name not in LENGTHS:
        after = after[:, order.argsort()]
    torch.testing.assert_close(after, before, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("spec", "readout"), FITTED)
def test_the_order_of_the_rows_changes_no_reading(spec, readout):
    found = reading(spec, readout, order=torch.randperm(V, generator=seeded(8)))
    torch.testing.assert_close(found, reading(spec, readout), atol=TOLERANCE[readout], rtol=0)


def test_the_order_of_an_alphabet_changes_no_language():
    order = torch.tensor([2, 0, 1])
    chain = Markov.random(3, 2, seed=3)
    table = torch.from_numpy(chain._table[chain._full :]).view(3, 3, 3)
    renamed = Markov(table[order][:, order][..., order].numpy())
    assert float(renamed.entropy_rate()) == pytest.approx(float(chain.entropy_rate()), rel=1e-12)
    ids = chain.sample(50, 2, seed=1)
    named = order.argsort()[ids]
    torch.testing.assert_close(renamed.log_probs(named), chain.log_probs(ids), rtol=1e-12, atol=0)
    one, other = Urn([1, 2, 3], 0.5, 6), Urn([3, 1, 2], 0.5, 6)
    assert one.document_entropy() == pytest.approx(other.document_entropy(), rel=1e-13)


# -- batch, threads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*INSTRUMENTS, *LENGTHS])
def test_the_place_in_a_batch_changes_no_bit(world, name):
    table, vectors = world
    instrument = {**INSTRUMENTS, **LENGTHS}[name]
    together = instrument(vectors, table)
    alone = torch.cat([instrument(one[None], table) for one in vectors])
    assert torch.equal(together, alone)
    assert torch.equal(instrument(vectors.flip(0), table).flip(0), together)


@pytest.mark.parametrize("name", [*INSTRUMENTS, *LENGTHS])
def test_the_number_of_threads_changes_no_bit(world, name):
    table, vectors = world
    instrument, before = {**INSTRUMENTS, **LENGTHS}[name], torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(instrument(vectors.repeat(50, 1), table))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("language", [Markov.random(3, 1, seed=0), mess3(), Urn([1, 2], 1, 5)])
def test_the_place_in_a_batch_changes_no_probability(language):
    ids = language.sample(12, 4, seed=0)
    together = language.log_probs(ids)
    alone = torch.cat([language.log_probs(one[None]) for one in ids])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)


def test_the_place_in_a_batch_changes_no_beam():
    judge = Markov.random(3, 1, seed=0)
    scores = torch.randn(5, 6, 3, generator=seeded(9), dtype=torch.float64)
    together = beam(scores, judge, judge.start(6), 2)
    alone = [beam(scores[:, i : i + 1], judge, judge.start(1), 2) for i in range(6)]
    assert torch.equal(together, torch.cat(alone, 1))


@pytest.mark.parametrize("when", ["always", "never", "every(2)", "retro(2)", "entropy(1.0)"])
def test_a_batch_writes_what_its_prompts_write_one_by_one(tiny, when):
    model, prompts, how = tiny(scale=0.15), ["", "ab", "abcdef"], {"schedule": when, "steps": 20}
    together = generate(model, prompts, seed=[3, 4, 5], **how)
    for prompt, seed, one in zip(prompts, (3, 4, 5), together, strict=True):
        alone = generate(model, prompt, seed=seed, **how)
        assert torch.equal(alone.token_ids, one.token_ids)
        assert torch.equal(alone.inputs, one.inputs)


# -- looking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", [*OBJECTIVES.get("mse").readouts])
@pytest.mark.parametrize("soft_inputs", [None, "posterior-gumbel", "scheduled(1)"])
def test_how_often_one_evaluates_changes_no_weight(tiny, corpus, readout, soft_inputs):
    found = []
    for every in (0, 1, 3):
        model = tiny(
            alive=False, objective="mse", readout=readout, n_layers=1, d_model=8, context=8
        )
        recipe = TrainConfig(steps=5, batch_size=2, eval_every=every, soft_inputs=soft_inputs)
        run = train(model, corpus, recipe, progress=False)
        found.append((dict(run.model.state_dict()), run.val_bits_per_char))
    for weights, bits in found[1:]:
        assert bits == found[0][1]
        assert all(torch.equal(one, found[0][0][name]) for name, one in weights.items())


def test_how_a_text_is_taken_changes_no_bit(tiny):
    model, how = tiny(scale=0.15), {"schedule": "every(3)", "seed": 1}
    whole = generate(model, "ab", 300, **how)
    parts = list(stream(model, "ab", 300, **how))
    assert len(parts) > 1
    assert torch.equal(torch.cat([one.inputs for one in parts]), whole.inputs)
    assert "".join(one.text for one in parts) == whole.text


@pytest.mark.parametrize("piece", [1, 7, 128])
@pytest.mark.parametrize(
    "how", [{}, {"schedule": "never"}, {"collapse": "nearest"}, {"collapse": "deferred(3)"}]
)
def test_pieces_of_any_size_joined_are_the_whole(tiny, piece, how):
    model = tiny(objective="mse", scale=0.15)
    whole = generate(model, "ab", 30, **how)
    found = joined(model, list(stream(model, "ab", 30, piece=piece, **how)))
    assert (found.text, found.settings) == (whole.text, whole.settings)
    for name in whole.ARRAYS:
        assert torch.equal(getattr(found, name), getattr(whole, name)), name


# -- where a text is cut ----------------------------------------------------------------------------------------------


def test_where_a_text_is_cut_changes_no_score_of_a_counting_language():
    chain = Markov.random(3, 1, seed=0)
    ids = chain.sample(40, 1, seed=2)
    whole, state = chain.log_probs(ids)[0], chain.start(1)
    for first, last in ((0, 13), (13, 14), (14, 40)):
        found = [chain.predict(state).log_probs[0, ids[0, first]]]
        for t in range(first, last):
            found[t - first :] = [chain.predict(state).log_probs[0, ids[0, t]]]
            state = chain.advance(state, token_ids=ids[:, t])
        torch.testing.assert_close(torch.stack(found), whole[first:last], rtol=1e-13, atol=0)


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_where_a_prompt_is_cut_changes_no_bit(tiny, cut):
    model = tiny(scale=0.15)
    ids = model.tokenizer.encode("abcdefghijkabc")[None, :12]
    with torch.no_grad():
        whole = model.read(model.start(1), ids)
        parts = model.read(model.read(model.start(1), ids[:, :cut]), ids[:, cut:])
    assert torch.equal(whole.hidden, parts.hidden)


def test_documents_in_one_text_score_as_they_do_alone(tiny):
    """Each window holds whole documents; with one per window, a document stands as if alone."""
    model = tiny(scale=0.15)
    documents = ["abcdefghij\n", "bcdefghijk\n", "kjihgfedcb\n"]
    whole = char_log_probs(model, "".join(documents), "\n")
    alone = torch.cat([char_log_probs(model, one, "\n") for one in documents])
    torch.testing.assert_close(whole, alone, **exact(model))
    nats = [evaluate(model, one, "\n") for one in documents]
    assert evaluate(model, "".join(documents), "\n") == pytest.approx(sum(nats) / 3, abs=1e-5)


# -- a window without soft slots --------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["always", "every(1)", "random(1)"])
def test_a_window_without_soft_tokens_takes_every_schedule_that_is_always_hard(tiny, when):
    model = tiny(context=14, window=Window(1, 1, hard=4, soft=0, stretch=2), scale=0.15)
    found = generate(model, "ab", 20, schedule=when, seed=2)
    assert found.collapsed.all()
    assert found.text == generate(model, "ab", 20, schedule="always", seed=2).text
    assert schedule.resolve(when).always_hard
    with pytest.raises(ValueError, match="no place for soft tokens"):
        generate(model, "ab", 20, schedule="every(2)")
