"""Where the body looks, and the explorer that shows it: what is drawn is what the blocks computed
with.
"""

import re

import pytest
import torch
from bounds import exact
from test_widgets import carries_a_picture
from torch.nn import functional as F

from softar_lab.generation import generate
from softar_lab.models.config import PRESETS, ModelConfig
from softar_lab.models.soft_ar import SoftAR
from softar_lab.models.transformer import shared
from softar_lab.widgets import AttentionExplorer
from softar_lab.widgets.attention import mosaic

pytestmark = pytest.mark.usefixtures("nothing_raised_or_logged")

SIZES = ("vocab_size", "context", "n_layers", "n_heads", "d_model")
KINDS = {
    "own": {},
    "learned": {"positions": "learned"},
    "grouped": {"queries_per_key": 2},
    "window": {"attention_window": 4},
    "memory": {"window": "window(1, 2, 5, 4)", "context": 12},
    **{name: {k: v for k, v in PRESETS[name].items() if k not in SIZES} for name in ("gpt2", "llama2", "mistral")},
}  # fmt: skip


def small(tiny, kind, **changes):
    return tiny(**{"n_heads": 4, **KINDS[kind], **changes})


# -- SoftAR.attention -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_attention_is_what_the_blocks_mix_with(tiny, kind):
    """Values weighted by it are what enters each block's output map, watched from outside."""
    model, mixed, values = small(tiny, kind), [], []
    for block in model.body.blocks:
        block.attention_out.register_forward_pre_hook(lambda _, given: mixed.append(given[0]))
        block.query_key_value.register_forward_hook(lambda _, __, out, block=block: values.append(
            out.unflatten(-1, (sum(block.heads), -1)).transpose(1, 2)[:, -block.heads[2] :]))  # fmt: skip
    token_ids = torch.randint(
        13, (2, 9 if kind != "memory" else 7), generator=torch.Generator().manual_seed(0)
    )
    model.hidden_states(token_ids)
    slots = mixed[0].shape[1]
    found = model.attention(token_ids)  # (layers, B, heads, slots, slots); the hooks go on
    assert found.shape == (2, 2, 4, slots, slots)
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    for layer, (weights, value) in enumerate(zip(found, values, strict=False)):
        again = weights @ shared(value, weights)
        torch.testing.assert_close(again.transpose(1, 2).flatten(2), mixed[layer], **exact(model))
    assert not found.triu(1).any()  # nobody looks ahead
    if kind == "window":
        assert not found.tril(-4).any()


def test_attention_to_vectors_is_attention_to_their_ids(tiny):
    model, token_ids = tiny(), torch.tensor([[3, 1, 4, 1, 5]])
    assert torch.equal(
        model.attention(token_ids), model.attention(vectors=model.embedding[token_ids])
    )
    with pytest.raises(ValueError, match="13 tokens are more than the context of 12"):
        model.attention(torch.zeros(1, 13, dtype=torch.long))


# -- the explorer -----------------------------------------------------------------------------------------------------


@pytest.fixture
def explorer(tiny):
    return AttentionExplorer(tiny(n_heads=4), "abc bad", layer=2, head=3)


def drawn(explorer):
    return torch.tensor(explorer.figure.data[0].customdata)


@pytest.mark.parametrize("kind", KINDS)
def test_explorer_shows_what_the_model_computes(tiny, kind):
    model = small(tiny, kind)
    explorer = AttentionExplorer(model, "abc bad", layer=2, head=3)
    assert explorer.problem == ""
    weights = model.attention(model.tokenizer.encode("abc bad")[None])[:, 0]
    assert torch.equal(drawn(explorer), weights[1, 2])
    torch.testing.assert_close(torch.tensor(explorer.figure.data[0].z), weights[1, 2].sqrt())
    front = weights.shape[-1] - 7
    assert explorer.attended.shown["queries"] == ["⊢", *["▣"] * (front - 1), *"abc bad"]
    torch.testing.assert_close(
        torch.tensor(explorer.attended.shown["weights"]), weights[1, 2], atol=1e-4, rtol=0
    )


def test_controls_choose_layer_head_and_token(explorer):
    weights = explorer.weights
    explorer.layer.value, explorer.head.value = 1, 2
    assert torch.equal(drawn(explorer), weights[0, 1])
    explorer.head.value = 0
    torch.testing.assert_close(drawn(explorer), weights[0].mean(0))
    frame = explorer.heads.layout.shapes[0]
    assert (frame.x0, frame.y0, frame.y1) == (-0.5, -0.5, 7.5)
    assert frame.x1 == 4 * 9 - 1.5
    explorer.token.value = 5
    assert explorer.attended.chosen == 5
    assert (explorer.figure.layout.shapes[0].y0, explorer.figure.layout.shapes[0].x1) == (4.5, 7.5)
    explorer.attended.chosen = 2  # a click in the text
    assert explorer.token.value == 2
    row = weights[0].mean(0)[2]
    name, slot, share = explorer.looks_at()[0]
    assert (name, share) == (explorer.queries[slot], pytest.approx(row.max().item()))
    assert slot == row.argmax()


def test_clicks_on_the_pictures_choose(explorer):
    heads, one = explorer._pictures

    def click(picture, x, y):  # what the browser sends
        picture._handle_custom_msg({"clicked": {"trace": 0, "x": x, "y": y}}, [])

    click(heads, 2 * 9 + 3, 9 + 1)
    assert (explorer.layer.value, explorer.head.value) == (2, 3)
    click(one, "a (0)", explorer.figure.data[0].y[3])
    assert explorer.token.value == 3
    click(one, "a (0)", "( (6)")
    assert explorer.token.value == 6
    assert explorer.problem == ""


def test_another_text_is_read(explorer):
    explorer.text.value = "kk\n"
    assert explorer.queries == ["⊢", "k", "k", "\n"]
    assert explorer.token.value == 3
    assert "2 layers of 4 heads, 4 slots" in explorer.status.value
    before = repr(explorer)
    for text, problem in (
        ("", "no text"),
        ("xyz", "unknown character 'x'"),
        ("a" * 13, "more than the context of 12"),
    ):
        explorer.text.value = text
        assert problem in explorer.problem
        assert repr(explorer) == before  # what was shown stays
    explorer.text.value = "abc"
    assert explorer.problem == ""


def test_soft_tokens_of_a_trajectory_are_looked_at(tiny):
    model = tiny(objective="mse", scale=0.15)
    path = generate(model, "ab", 6, schedule="every(2)", feedback="raw")
    explorer = AttentionExplorer(model, path)
    vectors = torch.cat([model.embedding[model.tokenizer.encode("ab")], path.inputs])
    assert torch.equal(explorer.weights, model.attention(vectors=vectors[None])[:, 0])
    assert explorer.queries == ["⊢", *"ab", *path.text]
    assert explorer.attended.shown["soft"] == [False, False, False, *(~path.collapsed).tolist()]
    assert any(explorer.attended.shown["soft"])


def test_any_weights_may_be_drawn():
    explorer = AttentionExplorer()
    assert repr(explorer) == "AttentionExplorer()"
    assert explorer.still() is None
    assert explorer.looks_at() == []
    weights = torch.rand(3, 2, 2, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    explorer.show(weights, ["eins", "zwei"], ["one", "two", "three", "<end>", " "])
    assert explorer.attended.shown["keys"] == ["one", "two", "three", "<end>", " "]
    assert torch.equal(drawn(explorer), weights[0, 0])
    assert explorer.figure.layout.xaxis.ticktext[3:] == ("&lt;end&gt;", "␣")
    assert repr(explorer).startswith("AttentionExplorer(layer 1, head 1: 'zwei' (1) looks at ⟨'")
    explorer.layer.value, explorer.head.value = 3, 2
    explorer.show(weights[:1, :1, :, :2], ["eins", "zwei"])
    assert (explorer.layer.value, explorer.head.value, explorer.attended.shown["keys"]) == (
        1,
        1,
        [],
    )


@pytest.mark.parametrize(
    ("weights", "words", "message"),
    [
        (
            torch.zeros(1, 1, 2, 3),
            "ab",
            r"weights must be \(layers, heads, 2, 2\) .* not \(1, 1, 2, 3\)",
        ),
        (torch.zeros(1, 1, 0, 0), "", "nothing to look at"),
        (torch.zeros(0, 1, 1, 1), "a", "nothing to look at"),
        (torch.full((1, 1, 1, 1), 2.0), "a", "shares between 0 and 1: those after the softmax"),
        (torch.full((1, 1, 1, 1), torch.nan), "a", "shares between 0 and 1"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, words, message):
    with pytest.raises(ValueError, match=message):
        AttentionExplorer().show(weights, list(words))


def test_long_texts_are_cut_and_many_heads_made_small():
    weights = torch.eye(200).expand(9, 8, -1, -1)
    explorer = AttentionExplorer()
    explorer.show(weights, ["a"] * 200)
    assert drawn(explorer).shape == (160, 160)
    assert "of 200 tokens the first 160 are shown" in explorer.status.value
    rows = explorer.heads.data[0].z
    assert len(rows) * len(rows[0]) < 80_000


def test_mosaic_holds_every_head_in_its_place():
    weights = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    rows, side = mosaic(weights)
    assert side == (5, 6)
    assert (len(rows), len(rows[0])) == (2 * 5 - 1, 3 * 6 - 1)
    for layer in range(2):
        for head in range(3):
            part = [row[head * 6 : head * 6 + 5] for row in rows[layer * 5 : layer * 5 + 4]]
            torch.testing.assert_close(
                torch.tensor(part), weights[layer, head].sqrt(), atol=1e-3, rtol=0
            )
    assert all(value is None for value in rows[4])
    small, side = mosaic(F.pad(torch.ones(9, 100, 1, 1), (0, 99, 0, 99)))  # one strong weight each
    assert side == (9, 9)
    assert small[0][0] == 1


def test_explorer_has_a_still_picture_and_tells_its_state(explorer):
    assert carries_a_picture(explorer)
    told = re.fullmatch(
        r"AttentionExplorer\(layer 2, head 3: 'd' \(7\) looks at ⟨'.' \(\d\) \d+%, .*⟩\)",
        repr(explorer),
    )
    assert told, repr(explorer)
    explorer.head.value = 0
    assert "mean of all heads" in repr(explorer)
    assert explorer.still() is not None


def test_a_model_without_a_tokenizer_says_so():
    model = SoftAR(ModelConfig(vocab_size=5, context=8, n_layers=1, n_heads=1, d_model=4))
    explorer = AttentionExplorer(model, "abc")
    assert "no tokenizer" in explorer.problem
    assert "nothing: the model has no tokenizer" in repr(explorer)
