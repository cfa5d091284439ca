"""Draft and verify: exactly the text of plain generation, in fewer passes (K25)."""

import pytest
import torch

from softar_lab.core.trajectory import Trajectory
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.generation import generate
from softar_lab.generation.generate import stream
from softar_lab.models import compiled
from softar_lab.models.config import ModelConfig
from softar_lab.models.soft_ar import SoftAR
from tests.conftest import LETTERS, enliven

KINDS = ["multi-token(6)", "bound(2)", "recurrent(8)"]


def writer(levels="multi-token(6)", **changes):
    """A small live model whose heads agree with it often enough to be right now and then."""
    shape = {"context": 40, "n_layers": 3, "n_heads": 2, "d_model": 16, **changes}
    config = ModelConfig(vocab_size=len(LETTERS), levels=levels, **shape)
    model = enliven(SoftAR(config, CharTokenizer.fit(LETTERS)), 1, 0.3)
    for name, buffer in model.levels.named_buffers() if levels else ():
        if name.endswith(("weight", "bias")):
            buffer.normal_(0, 1, generator=torch.Generator().manual_seed(2))
    return model


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return writer(request.param)


def same(one, other):
    for name in ("token_ids", "log_probs", "vectors", "inputs", "entropy", "collapsed", "top_ids"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    return one.text == other.text


@pytest.mark.parametrize(
    "choices", [{}, {"temperature": 0}, {"temperature": 0.6}, {"feedback": "raw"}]
)
def test_a_draft_changes_nothing(model, choices):
    for seed in range(18):  # 216 texts in all, past the context of 40: windows are renewed, too
        plain = generate(model, "abc", 55, seed=seed, **choices)
        drafted = generate(model, "abc", 55, seed=seed, draft="levels(8, 0.0)", **choices)
        assert same(plain, drafted)
        assert plain.passes is None
        assert 0 < int(drafted.passes.sum()) <= 55
        assert set(drafted.passes.tolist()) <= {0, 1}


@pytest.mark.parametrize("above", [0.0, 0.3, 1.0])
def test_rows_go_at_their_own_pace_and_prompts_at_their_own_length(model, above):
    prompts, seeds = ["", "abcdefg", "k", "kk"], (3, 1, 4, 1)
    together = generate(model, prompts, 30, seed=seeds, draft=f"levels(5, {above})")
    for prompt, seed, one in zip(prompts, seeds, together, strict=True):
        assert same(one, generate(model, prompt, 30, seed=seed))
        assert len(one.passes) == 30


def test_forced_symbols_are_followed(model):
    forced = {3: "a", 4: "b", 5: "c", 20: "k"}
    plain = generate(model, "ab", 30, forced=forced)
    assert same(plain, generate(model, "ab", 30, forced=forced, draft="levels"))


def test_where_heads_are_right_passes_are_saved():
    model = writer()
    for head in (model.objective.head, *(one.objective.head for one in model.levels.levels)):
        head.weight.data.zero_()  # all say the first symbol, and are right
    plain = generate(model, "ab", 25, temperature=0)
    drafted = generate(model, "ab", 25, temperature=0, draft="levels(8, 0.0)")
    assert same(plain, drafted)
    assert set(plain.token_ids.tolist()) == {0}
    # a pass reads the newest symbol and five proposals: six symbols of the 24 behind the first
    assert int(drafted.passes.sum()) == 1 + 24 // 6


def test_a_stream_and_a_file_hold_the_passes(model, tmp_path):
    whole = generate(model, "ab", 200, draft="levels(8, 0.0)")
    pieces = list(stream(model, "ab", 200, draft="levels(8, 0.0)"))
    assert torch.equal(torch.cat([one.passes for one in pieces]), whole.passes)
    whole.save(tmp_path / "one.safetensors")
    again = Trajectory.load(tmp_path / "one.safetensors")
    assert torch.equal(again.passes, whole.passes)
    assert again.layers is None
    assert again.settings["draft"] == "levels(most=8, above=0.0)"


def test_without_compiled_code_the_text_is_that_of_plain_generation(model):
    with compiled.switched_off():
        plain = generate(model, "abc", 30)
        drafted = generate(model, "abc", 30, draft="levels")
    assert plain.text == drafted.text
    assert drafted.passes is None


@pytest.mark.parametrize(
    ("levels", "choices", "message"),
    [
        (None, {"draft": "levels"}, "draft needs a SoftAR with levels"),
        ("ahead", {"draft": "levels"}, "does not read the symbol two steps on"),
        ("sum", {"draft": "levels"}, "does not read the symbol two steps on"),
        ("bound", {"draft": "levels", "schedule": "never"}, 'needs schedule "always"'),
        ("bound", {"draft": "levels", "collapse": "nearest"}, 'needs collapse "softmax"'),
        ("bound", {"draft": "levels(1)"}, r"levels\(most\) must be"),
        ("bound", {"draft": "levels(4, 2)"}, "a probability"),
        ("bound", {"draft": "guess"}, "unknown draft 'guess'; known: levels"),
        ("bound", {"draft": "levels", "exit": "entropy"}, "give one of them"),
    ],
)
def test_what_a_draft_cannot_serve_is_refused_by_name(levels, choices, message):
    with pytest.raises(ValueError, match=message):
        generate(writer(levels), "a", 4, **choices)
