"""The layer sees its window and nothing else, says in generation what it says in training, and is
kept on disk.
"""

import json

import pytest
import torch
from bounds import exact

from conftest import LETTERS
from softar_lab.core.store import CheckpointError
from softar_lab.generation import collapse, generate
from softar_lab.generation.run_context import RunContext
from softar_lab.generation.step_context import StepContext
from softar_lab.models.mixing import Mixed, MixingCollapse, last_hidden
from softar_lab.models.scoring import evaluate
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.config import TrainConfig
from softar_lab.training.loop import train


def some_ids(length, rows=3, seed=0):
    return torch.randint(
        len(LETTERS), (rows, length), generator=torch.Generator().manual_seed(seed)
    )


def said(model, prompt, steps, **how):
    """A trajectory by collapse "mixing", and what the layer said at each step (T, V)."""
    found = []

    @collapse.with_context
    def watched(prediction, embedding, context):
        found.append(collapse.mixing(prediction, embedding, context))
        return found[-1]

    trajectory = generate(model, prompt, steps, collapse=watched, **how)
    return trajectory, torch.stack(found, 1).clone()


# -- the layer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 5, 30])
@pytest.mark.parametrize("n_heads", [1, 2, 8])
def test_vectors_of_a_slot_are_those_of_its_window_alone(tiny, window, n_heads):
    model = tiny(objective="mse", mixing=window, n_heads=n_heads, positions="learned")
    hidden = model.hidden_states(some_ids(12)).detach()  # (3, 13, d)
    together = model.mixing.vectors(hidden)
    assert together.shape == (3, 13, model.config.embedding_dim)
    for t in range(13):
        alone = model.mixing.vectors(hidden[:, max(0, t - window + 1) : t + 1])[:, -1]
        torch.testing.assert_close(together[:, t], alone, **exact(model))


def test_vectors_depend_on_every_slot_of_the_window_and_its_place(tiny):
    layer, hidden = (
        tiny(mixing=4).mixing,
        torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0)),
    )
    before = layer.vectors(hidden)[0, -1]
    for slot in range(4):
        changed = hidden.clone()
        changed[0, slot] = hidden[0, slot].flip(0)
        assert (layer.vectors(changed)[0, -1] - before).abs().max() > 1e-3
    swapped = layer.vectors(hidden[:, [1, 0, 2, 3]])[0, -1]
    assert (swapped - before).abs().max() > 1e-4


def test_log_probs_are_a_softmax_of_distances_to_the_rows(tiny):
    model = tiny(objective="mse", mixing=3, embedding_dim=8)
    hidden = model.hidden_states(some_ids(5)).detach()
    y, table = model.mixing.vectors(hidden).double(), model.embedding.double()
    weights = (
        -(y[:, :, None] - table).square().sum(-1) / model.mixing.log_tau.double().exp()
    ).exp()
    expected = (weights / weights.sum(-1, keepdim=True)).log().float()
    torch.testing.assert_close(
        model.mixing.log_probs(hidden, model.embedding), expected, **exact(model)
    )


def test_a_fresh_layer_knows_nothing_and_depends_on_its_seed_alone(tiny):
    config = tiny(table="orthonormal").config
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, same, other = (MixingCollapse(config, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.block.mlp_in.weight, same.block.mlp_in.weight)
    assert not torch.equal(one.block.mlp_in.weight, other.block.mlp_in.weight)
    log_probs = one.log_probs(torch.randn(2, 5, 16), tiny(table="orthonormal").embedding)
    torch.testing.assert_close(log_probs.exp(), torch.full((2, 5, 13), 1 / 13))


@pytest.mark.parametrize("window", [0, -1, True])
def test_a_wrong_window_is_named(tiny, window):
    config = tiny().config
    with pytest.raises(ValueError, match="window must be .* at least 1, not"):
        MixingCollapse(config, window)


# -- in generation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", "a", "abcde"])
@pytest.mark.parametrize("window", [1, 3, 20])
def test_hard_tokens_are_read_slot_by_slot_as_in_training(tiny, prompt, window):
    model = tiny(objective="mse", mixing=window)
    trajectory, probs = said(model, prompt, 12 - len(prompt), temperature=0.8, seed=3)
    text = model.tokenizer.encode(prompt + trajectory.text)[None]
    expected = Mixed(model).next_log_probs(text)[:, len(prompt) :].exp()
    torch.testing.assert_close(probs, expected, **exact(model))
    assert (
        generate(model, prompt, 12 - len(prompt), collapse="mixing", temperature=0.8, seed=3).text
        == trajectory.text
    )


@pytest.mark.parametrize("when", ["always", "never", "every(3)"])
@pytest.mark.parametrize("context", [1, 2, 7, 60])
def test_any_tokens_are_read_as_one_pass_over_the_window_does(tiny, when, context):
    """The window slides as test_soft_ar.py's oracle says: beyond the context its latest half
    stays.
    """
    model = tiny(objective="mse", mixing=4, context=context, scale=0.15)
    trajectory, probs = said(model, "b", 40, schedule=when, feedback="raw", seed=1)
    slots = torch.cat([model.embedding[model.tokenizer.encode("b")], trajectory.inputs[:-1]])
    window = slots[:0]
    for t, slot in enumerate(slots):
        window = torch.cat([window, slot[None]])
        if len(window) > context:
            window = window[-max(1, context // 2) :]
        hidden = model.hidden_states(vectors=window[None]).detach()
        expected = model.mixing.log_probs(hidden, model.embedding)[:, -1].exp()
        torch.testing.assert_close(probs[:, t], expected, **exact(model))


def test_a_window_that_was_rewritten_is_read_again(tiny):
    """Another path of the same length, as a schedule that thinks twice would have it."""
    model = tiny(objective="mse", mixing=4)
    run, states = RunContext(model, 2), []
    for seed in (0, 1):
        state = model.start(2)
        for token_ids in some_ids(6, 2, seed).T:
            state = model.advance(state, token_ids=token_ids)
        states += [state, model.advance(state, token_ids=token_ids)]
    for state in (
        states[0],
        states[3],
        states[1],
        states[1],
        states[2].select(torch.tensor([1, 0])),
    ):
        prediction = model.predict(state)
        context = StepContext(
            torch.zeros(2).long(), prediction, None, None, model.embedding, state=state, run=run
        )
        found = collapse.mixing(prediction, model.embedding, context)
        torch.testing.assert_close(found, Mixed(model).predict(state).probs, **exact(model))


@pytest.mark.parametrize("how", ["always", "never"])
def test_a_model_without_a_layer_says_how_to_fit_one(tiny, how):
    message = 'collapse "mixing" needs a model with a fitted mixing layer: softar_lab.train_mixing'
    with pytest.raises(ValueError, match=message):
        generate(tiny(objective="mse"), "ab", 3, collapse="mixing", schedule=how)
    with pytest.raises(
        ValueError, match=r"Mixed\(model\) needs a model with a fitted mixing layer"
    ):
        Mixed(tiny())


# -- as a predictor ---------------------------------------------------------------------------------------------------


def test_mixed_predicts_what_it_says_of_whole_texts(tiny):
    model = Mixed(tiny(objective="mse", mixing=3))
    token_ids = some_ids(13)
    whole, state = model.next_log_probs(token_ids), model.start(3)
    for t in range(13):
        prediction = model.predict(state)
        torch.testing.assert_close(prediction.log_probs, whole[:, t], **exact(model.model))
        assert torch.equal(
            collapse.nearest(prediction.vector, model.model.embedding), prediction.probs.argmax(-1)
        )
        state = model.advance(state, token_ids=token_ids[:, t]) if t < 12 else state
    assert evaluate(model, LETTERS * 3) > 0


def test_last_hidden_is_what_the_states_held(tiny):
    model, token_ids = tiny(), some_ids(9)
    states = [model.start(3)]
    for t in range(9):
        states.append(model.advance(states[-1], token_ids=token_ids[:, t]))
    for t, state in enumerate(states):
        expected = torch.stack([one.hidden for one in states[max(0, t - 3) : t + 1]], 1)
        torch.testing.assert_close(last_hidden(model, state, 4), expected, **exact(model))


# -- with the checkpoint ----------------------------------------------------------------------------------------------


def test_save_and_load_keep_the_layer(tiny, tmp_path):
    model = tiny(objective="mse", mixing=5)
    model.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mixing"] == {"window": 5}
    loaded, token_ids = SoftAR.load(tmp_path), some_ids(10)
    assert loaded.mixing.window == 5
    assert not any(p.requires_grad for p in loaded.mixing.parameters())
    assert torch.equal(
        Mixed(model).next_log_probs(token_ids), Mixed(loaded).next_log_probs(token_ids)
    )
    tiny(objective="mse").save(tmp_path)
    assert SoftAR.load(tmp_path).mixing is None
    assert "mixing" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixing": {"window": 0}}, "config.json: window must be"),
        ({"mixing": {"colour": 1}}, "config.json: .*colour"),
        ({"mixing": 3}, "config.json: "),
        ({"mixing": None}, "config.json: "),
        ({"mixing": {"window": 4}}, "model.safetensors: does not fit"),
    ],
)
def test_load_of_a_foreign_layer_says_what_is_wrong(tiny, tmp_path, monkeypatch, change, message):
    model = tiny(mixing=5)
    monkeypatch.setattr(model, "_manifest", lambda: {**SoftAR._manifest(model), **change})
    model.save(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        SoftAR.load(tmp_path)


@pytest.mark.parametrize("told", [True, False])
def test_load_of_a_manifest_that_tells_of_a_layer_the_weights_lack(
    tiny, tmp_path, monkeypatch, told
):
    model, other = tiny(mixing=5 if not told else None), tiny(mixing=5 if told else None)
    monkeypatch.setattr(model, "_manifest", lambda: SoftAR._manifest(other))
    model.save(tmp_path)
    with pytest.raises(CheckpointError, match="model.safetensors: does not fit"):
        SoftAR.load(tmp_path)


def test_load_of_a_damaged_layer_says_so(tiny, tmp_path):
    tiny(mixing=5).save(tmp_path)
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-7] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="model.safetensors: damaged"):
        SoftAR.load(tmp_path)


def test_another_readout_keeps_the_layer_and_training_drops_it(tiny, corpus):
    model = tiny(objective="mse", mixing=3, letters=corpus.train)
    other = model.with_readout("barycentric")
    token_ids = some_ids(9)
    assert torch.equal(
        Mixed(model).next_log_probs(token_ids), Mixed(other).next_log_probs(token_ids)
    )
    assert other.mixing is not model.mixing
    assert model.n_parameters() == tiny(objective="mse", letters=corpus.train).n_parameters()
    train(model, corpus, TrainConfig(steps=1, batch_size=2), progress=False)
    assert model.mixing is None
