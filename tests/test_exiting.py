"""Early exit (K25): a layer that is confident speaks, and what that means for what follows."""

import pytest
import torch

from softar_lab.core.trajectory import Trajectory
from softar_lab.data.corpora import Corpus
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.generation import exiting, generate
from softar_lab.models.config import ModelConfig
from softar_lab.models.exit_heads import ExitHeads
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.heads import train_exits
from tests import bounds
from tests.conftest import LETTERS, enliven


def writer(exits=True, **changes):
    shape = {"context": 12, "n_layers": 3, "n_heads": 2, "d_model": 16, **changes}
    config = ModelConfig(vocab_size=len(LETTERS), **shape)
    model = enliven(SoftAR(config, CharTokenizer.fit(LETTERS)), 1, 0.2)
    if exits:
        model.exits = ExitHeads(config.n_layers, config.d_model, config.vocab_size)
        generator = torch.Generator().manual_seed(5)
        for parameter in model.exits.parameters():
            parameter.data.normal_(0, 0.3, generator=generator)
        model.exits.log_temperature.copy_(torch.tensor([0.2, -0.3]))
        model.exits.requires_grad_(False)
    return model


@pytest.fixture(scope="module")
def model():
    return writer()


def walk(model, ids, rule):
    """log p (T, V) and the layer of each, by the definition: one row, blocks one by one, no cache
    of the package.
    """
    body, heads = model.body, model.exits
    keys = [[] for _ in body.blocks]
    found, layers = [], []
    slots = [body.start, *model.input(model.embedding[ids])]
    for position, slot in enumerate(slots):
        x, spoken = slot[None, None], None
        rotation = body.rotation[:, position : position + 1]
        for i, block in enumerate(body.blocks):
            query, key, value = block.project(x, rotation)
            keys[i].append((key, value))
            if spoken is not None:
                continue
            k, v = (torch.cat(parts, 2) for parts in zip(*keys[i], strict=True))
            weights = torch.softmax(query @ k.mT / query.shape[-1] ** 0.5, -1)
            x = x + block.attention_out((weights @ v).transpose(1, 2).reshape(x.shape))
            x = x + block.mlp_out(block.activation(block.mlp_in(block.mlp_norm(x))))
            if i + 1 == len(body.blocks):
                hidden = body.norm(x)[0]
                spoken = model.objective.predict(hidden, model.table.weight).log_probs, i + 1
            elif position and rule(heads.log_probs(i + 1, x[0]), i + 1)[0]:
                spoken = heads.log_probs(i + 1, x[0]), i + 1
        found.append(spoken[0])
        layers.append(spoken[1])
    return torch.cat(found), layers


RULES = [
    exiting.EntropyExit(1.9),
    exiting.MarginExit(0.3),
    exiting.NormExit(0.45),
    exiting.LayerExit(2),
]


@pytest.mark.parametrize("rule", RULES)
@torch.inference_mode()
def test_slots_leave_where_the_definition_says_so(model, rule):
    ids = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])
    wanted, layers = walk(model, ids, rule)
    leaving, found, taken = exiting.ExitingModel(model, rule), [], []
    state = leaving.start(1)
    for one in ids:
        prediction = leaving.predict(state)
        found.append(prediction.log_probs)
        taken.append(int(prediction.layers))
        state = leaving.advance(state, token_ids=one[None])
    # rounding may carry a reading over the threshold; these rows lie 1e-4 away from theirs
    assert taken == layers[:-1]
    assert len(set(layers)) > 1 or isinstance(rule, exiting.LayerExit)
    torch.testing.assert_close(torch.cat(found), wanted[:-1], **bounds.exact(model))


def test_a_rule_that_lets_nobody_leave_writes_the_plain_text(model):
    for seed in range(10):
        plain = generate(model, "abc", 20, seed=seed)
        full = generate(model, "abc", 20, seed=seed, exit="entropy(0)")
        assert full.text == plain.text
        assert set(full.layers.tolist()) == {3}
        assert plain.layers is None


def test_rows_are_independent_and_a_prompt_is_read_at_full_depth(model):
    prompts, seeds = ["abc", "kkk", "a b"], (1, 2, 3)
    together = generate(model, prompts, 30, seed=seeds, exit="entropy(1.9)")
    for prompt, seed, one in zip(prompts, seeds, together, strict=True):
        alone = generate(model, prompt, 30, seed=seed, exit="entropy(1.9)")
        assert torch.equal(one.token_ids, alone.token_ids)
        assert torch.equal(one.layers, alone.layers)
        assert int(one.layers[0]) == 3


@pytest.mark.parametrize("schedule", ["never", "every(3)", "entropy(2.45)"])
def test_soft_tokens_leave_early_too(model, schedule):
    path = generate(model, "abc", 10, exit="layer(1)", schedule=schedule)
    assert path.layers[1:-1].eq(1).all()
    assert 0 < exiting.share_saved(path, 3) < 1
    # what a layer says as a soft token is the mixture of its distribution
    assert not path.collapsed.all()


def test_a_file_holds_the_layers(model, tmp_path):
    path = generate(model, "abc", 10, exit="layer(2)")
    path.save(tmp_path / "one.safetensors")
    again = Trajectory.load(tmp_path / "one.safetensors")
    assert torch.equal(again.layers, path.layers)
    assert again.settings["exit"] == "layer(2)"


def test_exit_heads_are_saved_and_copied(model, tmp_path):
    model.save(tmp_path / "model")
    again = SoftAR.load(tmp_path / "model", "cpu")
    for name, one in model.exits.state_dict().items():
        assert torch.equal(one, again.exits.state_dict()[name])
    one, other = (generate(each, "abc", 12, exit="entropy(1.9)") for each in (model, again))
    assert torch.equal(one.layers, other.layers)
    assert one.text == other.text


def test_train_exits_learns_what_the_model_says_and_changes_nothing_else():
    text = "abc abd abe\n" * 400
    corpus = Corpus("abc", text, text[:2400], text[:2400])
    model = enliven(
        SoftAR(
            ModelConfig(vocab_size=len(LETTERS), context=12, n_layers=3, n_heads=2, d_model=16),
            CharTokenizer.fit(LETTERS),
        ),
        1,
        0.1,
    )
    before = {name: one.clone() for name, one in model.state_dict().items()}
    heads = train_exits(model, corpus, steps=120, batch_size=256, tokens=2000)
    assert all(
        torch.equal(one, before[name]) for name, one in model.state_dict().items() if name in before
    )
    ids = model.tokenizer.encode(text[:12])[None]
    with torch.inference_mode():
        states = [one.flatten(0, 1) for one in model.layer_states(ids)]
        top = model.objective.predict(states[-1], model.embedding).probs
        heads.log_temperature.zero_()
        # by Pinsker's inequality a head that says what the model says is at most √(KL/2) away;
        # a uniform one is further than 0.3 here, and the text's few contexts are easily learned
        for layer in (1, 2):
            apart = (heads.log_probs(layer, states[layer - 1]).exp() - top).abs().sum(-1).mean() / 2
            assert float(apart) < 0.5 * float((top - 1 / 13).abs().sum(-1).mean() / 2)
    assert model.card["exits"]["steps"] == 120
    again = train_exits(model, corpus, steps=120, batch_size=256, tokens=2000)
    for name, one in again.state_dict().items():
        if name != "log_temperature":
            assert torch.equal(one, heads.state_dict()[name])  # the seed decides everything


@pytest.mark.parametrize(
    ("exits", "prompt", "choices", "message"),
    [
        (False, "ab", {}, "has no exit heads: train_exits"),
        (True, ["ab", "abc"], {}, "equally long, not 2 to 3 tokens"),
        (True, "ab", {"schedule": "retro(2)"}, "grounds slots that were read"),
        (True, "ab", {"exit": "entropy(-1)"}, "at least 0"),
        (True, "ab", {"exit": "margin(2)"}, r"in \[0, 1\]"),
        (True, "ab", {"exit": "layer(0)"}, "layer"),
        (True, "ab", {"exit": "hope"}, "unknown exit 'hope'; known: entropy, margin, norm, layer"),
    ],
)
def test_what_an_exit_cannot_serve_is_refused_by_name(exits, prompt, choices, message):
    with pytest.raises(ValueError, match=message):
        generate(writer(exits), prompt, 6, **{"exit": "entropy", **choices})


def test_exit_is_for_plain_windows():
    model = writer(False, window="window(1, 2, 4)", context=24)
    with pytest.raises(ValueError, match="plain window"):
        train_exits(model, Corpus("a", "ab " * 400, "ab " * 40, "ab " * 40))
