"""Adapters on a frozen model: exact gradients, exact resuming, files of peft, merging or the reason
why not.
"""

import math
import os
import signal
from copy import deepcopy

import pytest
import torch
from bounds import exact, exact_logits, float64
from safetensors.torch import load_file, save_file

from softar_lab.core.fingerprint import fingerprint
from softar_lab.core.store import CheckpointError, save_vectors
from softar_lab.data.corpora import load_language
from softar_lab.external.pretrained.adapt_config import AdaptConfig
from softar_lab.external.pretrained.adapting import PROGRESS, AdaptingRun, adapt
from softar_lab.external.pretrained.errors import PretrainedError
from softar_lab.external.pretrained.low_rank import attach, left_after_nf4, load_adapter, merged
from softar_lab.external.pretrained.quantised import matrix_of, sharing_copy, to_nf4
from softar_lab.external.pretrained.soft_reading import (
    nats_per_token,
    posterior_weights,
    soft_tokens,
)
from softar_lab.external.pretrained.wrapper import Pretrained
from softar_lab.generation import generate
from softar_lab.models.simplex import posterior_gumbel
from softar_lab.training.loop import TrainingDiverged
from softar_lab.training.soft_inputs import SOFT_INPUTS, SoftInputs
from softar_studies.random_model import random_pretrained

pytest.importorskip("transformers")
peft = pytest.importorskip("peft", reason="the library peft, which puts adapters on, is missing")
pytest.importorskip("bitsandbytes", reason="bitsandbytes, which stores NF4, is not installed")

# the library still uses an old name of transformers
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing:FutureWarning", "ignore:.*save_embedding_layers:UserWarning"
)

TEXT = "Once the king had a hat. The queen took the hat to the garden. " * 6
IDS = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(1))
SHORT = {"rank": 2, "window": 12, "learning_rate": 5e-3}
SOFT = {"soft_inputs": "posterior-gumbel(0.5)"}


@pytest.fixture(scope="module")
def model():
    return random_pretrained(layers=2)


@pytest.fixture(scope="module")
def nf4_model(model):
    network = to_nf4(sharing_copy(model.network))
    return Pretrained(network, model.tokenizer.library, "nf4")


@pytest.fixture
def both(model, tiny):
    return {"pretrained": (model, TEXT), "own": (tiny(), "abcdefghijk \n" * 20)}


# -- what is trained -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pretrained", "own"])
def test_new_adapters_change_nothing_and_the_model_never_changes(both, kind):
    model, text = both[kind]
    before, ids = fingerprint(model), IDS % model.vocab_size
    new = attach(model, AdaptConfig(**SHORT)).finished()
    assert torch.equal(new.log_probs(ids)[:, 1:], model.log_probs(ids)[:, 1:])
    found = adapt(model, text, AdaptConfig(steps=2, **SHORT), progress=False).model
    assert not torch.equal(found.log_probs(ids)[:, 1:], model.log_probs(ids)[:, 1:])
    assert fingerprint(model) == before


@pytest.mark.parametrize("how", [None, "scheduled(0.9)", "posterior-gumbel(0.5)"])
@pytest.mark.parametrize("kind", ["pretrained", "own"])
def test_the_gradient_is_that_of_finite_differences(model, tiny, kind, how):
    with float64():
        _compare_gradients(tiny().double() if kind == "own" else _double(model), kind, how)


def _compare_gradients(small, kind, how):
    """Central differences in float64 err by h² of the third derivative, and by rounding over h.

    Soft inputs are made without gradient from the model as it is, so they are frozen here.
    """
    text = "abcdefghijk \n" * 5 if kind == "own" else TEXT
    run = AdaptingRun(small, text, AdaptConfig(**SHORT, soft_inputs=how), None, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in run.weights.values():
            one.copy_(0.1 * torch.randn(one.shape, generator=generator, dtype=torch.float64))
    ids, _ = run.texts.batch(2, run.generator(0))
    vectors = small.embedding[ids[:, :-1]]
    if how:
        chosen = torch.rand(vectors.shape[:2], generator=generator) < 0.5
        chosen[:, 0] = False
        vectors, _ = soft_tokens(run.adapted.model, ids[:, :-1], chosen, how, 1.0, generator)
    from softar_lab.external.pretrained.soft_reading import log_probs, states

    def loss():
        found = log_probs(run.adapted.model, states(run.adapted.model, vectors)[:, 1:])
        return -found.gather(-1, ids[:, 1:, None]).mean()

    names = [*run.weights][:: max(1, len(run.weights) // 4)]
    gradients = torch.autograd.grad(loss(), [run.weights[name] for name in names])
    h = 1e-5
    for name, gradient in zip(names, gradients, strict=True):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        with torch.no_grad():
            values = []
            for sign in (1, -2, 1):
                run.weights[name] += sign * h * direction
                values.append(float(loss()))
        expected = (values[0] - values[1]) / (2 * h)
        assert float((gradient * direction).sum()) == pytest.approx(expected, abs=1e-7, rel=1e-5)


def _double(model):
    """In float64 throughout; the library's norms would round to float32."""
    network = deepcopy(model.network).double()
    for name, one in list(network.named_modules()):
        if type(one).__name__ == "LlamaRMSNorm":
            new = torch.nn.RMSNorm(len(one.weight), one.variance_epsilon, dtype=torch.float64)
            new.weight.data.copy_(one.weight)
            network.set_submodule(name, new)
    return Pretrained(network, model.tokenizer.library, "double")


def test_nf4_trains_also_after_an_evaluation(nf4_model):
    """Where a processor has AVX512-BF16, the library's layers would stop to give gradients then."""
    config = AdaptConfig(steps=12, batch_size=4, eval_every=3, **SHORT)
    run = AdaptingRun(nf4_model, TEXT, config, TEXT, 0)
    run.make_step()
    run.evaluate()
    nf4_model.log_probs(IDS)
    before = {name: one.clone() for name, one in run.weights.items()}
    for _ in range(3):
        run.make_step()
        run.evaluate()
    moved = [name for name, one in run.weights.items() if not torch.equal(one, before[name])]
    assert moved == [*run.weights]
    found = adapt(nf4_model, TEXT, config, held_out=TEXT, progress=False).history["held_out_nats"]
    assert found.is_monotonic_decreasing
    assert found.iloc[-1] < found.iloc[0] - 0.3


def test_distilling_hard_text_begins_at_zero(both):
    """The frozen model is its own teacher; with hard inputs there is nothing to learn."""
    for model, text in both.values():
        run = AdaptingRun(model, text, AdaptConfig(**SHORT, goal="distil"), None, 0)
        loss = run.loss_of(*run.texts.batch(2, run.generator(0)))
        assert abs(loss.item()) < 1e-5
        soft = AdaptConfig(**SHORT, **SOFT, soft_share=1.0, goal="distil", steps=1)
        assert adapt(model, text, soft, progress=False).losses[0] > 0.01


def test_no_member_meets_predictions_that_are_no_numbers(tiny, rng, monkeypatch):
    """A diverged model: the soft tokens are NaN, and so is the loss, which the run refuses."""

    class Drawn(SoftInputs):
        def __call__(self, *arguments):
            raise AssertionError("it was asked")

    monkeypatch.setitem(SOFT_INPUTS._members, "drawn", Drawn)
    model = tiny()
    for name, weight in model.named_parameters():
        if not name.startswith("table"):  # NaN vectors are refused before
            weight.data.fill_(math.nan)
    chosen = torch.tensor([[False, True, False, True]])
    vectors, _ = soft_tokens(model, torch.tensor([[1, 2, 3, 4]]), chosen, "drawn", 0.5, rng())
    assert vectors[chosen].isnan().all()


def test_only_chosen_tokens_become_soft(model, rng):
    chosen = torch.rand(IDS.shape, generator=rng(2)) < 0.5
    chosen[:, 0] = False
    vectors, _ = soft_tokens(model, IDS, chosen, "posterior-gumbel(0.5)", 0.5, rng(3))
    rows = model.embedding[IDS]
    assert torch.equal(vectors[~chosen], rows[~chosen])
    assert (vectors[chosen] != rows[chosen]).any(-1).all()


@pytest.mark.parametrize("temperature", [0.3, 0.5, 1.0, 2.0])
def test_posterior_weights_are_those_of_posterior_gumbel(rng, temperature):
    """The same noise by logarithms, in float64."""
    log_p = (4 * torch.randn(50, 40, generator=rng(0), dtype=torch.float64)).log_softmax(-1)
    ids = torch.randint(40, (50,), generator=rng(1))
    waits = torch.empty(50, 40, dtype=torch.float64).exponential_(generator=rng(2))
    noisy = posterior_gumbel(log_p, ids, (-waits).exp())
    expected = torch.softmax(noisy / temperature, -1)
    found = posterior_weights(log_p, ids, temperature, waits)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    single = posterior_weights(log_p.float(), ids, temperature, waits.float())
    torch.testing.assert_close(single.double(), expected, atol=2e-5, rtol=0)
    assert torch.equal(single.argmax(-1), ids)


def test_posterior_weights_survive_impossible_symbols():
    log_p = torch.tensor([[0.0, -torch.inf, -200.0]])
    found = posterior_weights(log_p, torch.tensor([0]), 0.1, torch.tensor([[1e-38, 0.0, 1.0]]))
    assert found.tolist() == [[1, 0, 0]]


# -- saving and going on ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pretrained", "own"])
def test_a_stopped_run_goes_on_bit_by_bit(both, tmp_path, kind):
    model, text = both[kind]
    config = AdaptConfig(steps=5, eval_every=2, save_every=2, **SHORT, **SOFT)
    options = {"held_out": text[:60], "progress": False}
    whole = adapt(model, text, config, **options)
    some = adapt(model, text, config, out=tmp_path, on_step=lambda e: e["step"] == 3, **options)
    assert some.interrupted
    assert not whole.interrupted
    rest = adapt(model, text, config, out=tmp_path, **options)
    assert whole.losses == some.losses + rest.losses
    for name, one in whole.adapters.weights.items():
        assert torch.equal(one, rest.adapters.weights[name])
    columns = ["step", "train_loss", "held_out_nats"]
    assert whole.history[columns].equals(rest.history[columns])
    again = adapt(model, text, config, out=tmp_path, **options)  # finished: nothing is done
    assert again.losses == []
    assert again.history[columns].equals(whole.history[columns])


def test_a_run_killed_before_peft_s_files_goes_on(model, tmp_path):
    config = AdaptConfig(steps=4, save_every=1, **SHORT)
    adapt(model, TEXT, config, out=tmp_path, progress=False, on_step=lambda e: e["step"] == 2)
    (tmp_path / "adapter_model.safetensors").unlink()
    rest = adapt(model, TEXT, config, out=tmp_path, progress=False)
    whole = adapt(model, TEXT, config, progress=False)
    for name, one in whole.adapters.weights.items():
        assert torch.equal(one, rest.adapters.weights[name])
    assert (tmp_path / "adapter_model.safetensors").exists()


def test_ctrl_c_saves_and_returns(model, tmp_path):
    def press(event):
        if event["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    config = AdaptConfig(steps=50, save_every=0, **SHORT)
    found = adapt(model, TEXT, config, out=tmp_path, progress=False, on_step=press)
    assert found.interrupted
    assert (tmp_path / PROGRESS).exists()


def test_another_run_s_folder_is_refused(model, tmp_path):
    adapt(model, TEXT, AdaptConfig(steps=1, **SHORT), out=tmp_path, progress=False)
    for changes in ({"seed": 1}, {"config": AdaptConfig(steps=2, **SHORT)}, {"text": TEXT[:-30]}):
        options = {"text": TEXT, "config": AdaptConfig(steps=1, **SHORT), **changes}
        with pytest.raises(CheckpointError, match="another run"):
            adapt(model, out=tmp_path, progress=False, **options)
    other = adapt(model, TEXT, AdaptConfig(steps=1, **SHORT), progress=False).model
    with pytest.raises(ValueError, match="has adapters already"):
        adapt(other, TEXT, AdaptConfig(steps=1, **SHORT), progress=False)


def test_a_model_that_predicts_nothing_is_no_result(tiny, tmp_path):
    """The loss of the last step is that before it."""
    config = AdaptConfig(steps=1, **SHORT | {"learning_rate": 1e30})
    with pytest.raises(TrainingDiverged, match="the model gives a text nan nats at step 1"):
        adapt(tiny(), "abcdef" * 9, config, out=tmp_path, progress=False)
    assert not (tmp_path / PROGRESS).exists()


def test_a_file_of_something_else_is_no_run(tiny, tmp_path):
    save_vectors(tmp_path / PROGRESS, {"a": torch.ones(3)})
    with pytest.raises(CheckpointError, match="something else than an adaptation"):
        adapt(tiny(), "abcdef" * 9, AdaptConfig(steps=1, **SHORT), out=tmp_path, progress=False)


def test_a_loss_that_is_not_finite_is_named(model):
    config = AdaptConfig(steps=4, rank=2, window=16, learning_rate=1e30)
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        adapt(model, TEXT, config, progress=False)


@pytest.mark.parametrize("which", ["float32", "nf4"])
def test_adapters_load_in_plain_peft_and_in_the_lab(model, nf4_model, tmp_path, which):
    base = model if which == "float32" else nf4_model
    found = adapt(base, TEXT, AdaptConfig(steps=3, **SHORT), out=tmp_path, progress=False).model
    expected = found.log_probs(IDS)[:, 1:]
    assert torch.equal(load_adapter(base, tmp_path).log_probs(IDS)[:, 1:], expected)
    theirs = peft.PeftModel.from_pretrained(sharing_copy(base.network), tmp_path).eval()
    with torch.inference_mode():
        logits = theirs(input_ids=IDS, use_cache=False).logits.log_softmax(-1)
    theirs = logits[:, :-1].gather(-1, IDS[:, 1:, None])[..., 0]
    torch.testing.assert_close(expected, theirs, **exact_logits(model.network))


def test_adapters_of_a_model_of_ours_load_in_plain_peft(tiny, tmp_path):
    model, text = tiny(), "abcdefghijk \n" * 20
    config = AdaptConfig(steps=3, **SHORT)
    found = adapt(model, text, config, out=tmp_path, progress=False)
    ids = IDS % model.vocab_size
    again = load_adapter(model, tmp_path)
    assert torch.equal(again.log_probs(ids), found.model.log_probs(ids))
    theirs = peft.PeftModel.from_pretrained(tiny(), tmp_path).base_model.model.eval()
    with torch.inference_mode():
        beside = theirs.log_probs(ids)
    torch.testing.assert_close(found.model.log_probs(ids), beside, **exact(model))
    # in compiled steps, too
    text = generate(found.model, "abc", 8, temperature=0).token_ids
    written = found.model.tokenizer.encode("abc")[None]
    for step in range(8):
        probs = found.model.next_log_probs(torch.cat([written, text[None, : step + 1]], 1))
        assert int(probs[0, 3 + step].argmax()) == int(text[step])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {f"_orig_mod.{name}": one for name, one in w.items()}, "missing: base_model"),
        (lambda w: dict(sorted(w.items())[1:]), "missing: base_model.model.model.layers.0"),
        (lambda w: w | {"base_model.model.extra.lora_A.weight": torch.ones(2)}, "without a place"),
        (lambda w: {name: one[:1] for name, one in w.items()}, "of another shape"),
    ],
)
def test_weights_that_do_not_fit_are_named(model, tmp_path, change, message):
    adapt(model, TEXT, AdaptConfig(steps=1, **SHORT), out=tmp_path, progress=False)
    file = tmp_path / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(PretrainedError, match=message):
        load_adapter(model, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "is no plain sum"),
        ({"modules_to_save": ["head"]}, "something else: off by"),
        ({"use_rslora": True, "rank_pattern": {"mlp_in": 2}}, ""),
        ({"bias": "all"}, ""),
    ],
)
def test_what_is_more_than_a_sum_is_not_lost_in_a_model_of_ours(
    tiny, rng, tmp_path, options, message
):
    """A DoRA was read as its low-rank part alone, 2.5 nats from what it is."""
    model, network = tiny(), tiny().requires_grad_(False)
    config = peft.LoraConfig(r=3, target_modules=["mlp_in"], init_lora_weights=False, **options)
    made = peft.get_peft_model(network, config)
    with torch.no_grad():
        for weight in (one for one in made.parameters() if one.requires_grad):
            weight.add_(0.3 * torch.randn(weight.shape, generator=rng(0)))
    made.eval().save_pretrained(tmp_path)
    if message:
        with pytest.raises(PretrainedError, match=message):
            load_adapter(model, tmp_path)
        return
    ids = IDS % model.vocab_size
    with torch.inference_mode():
        due = network.log_probs(ids)
    torch.testing.assert_close(load_adapter(model, tmp_path).log_probs(ids), due, **exact(model))


def test_a_folder_without_adapters_is_named(model, tmp_path):
    with pytest.raises(PretrainedError, match="no adapter of peft"):
        load_adapter(model, tmp_path / "nothing")


# -- merging ---------------------------------------------------------------------------------------


def test_merged_is_unmerged(model):
    found = adapt(model, TEXT, AdaptConfig(steps=5, **SHORT), progress=False).model
    whole = merged(found)
    assert not any("lora" in name for name, _ in whole.network.named_parameters())
    torch.testing.assert_close(
        whole.log_probs(IDS)[:, 1:], found.log_probs(IDS)[:, 1:], **exact_logits(whole.network)
    )
    with pytest.raises(ValueError, match="no low-rank adapters"):
        merged(whole)


def test_merging_into_nf4_is_refused_since_nothing_would_be_left(nf4_model):
    config = AdaptConfig(steps=5, rank=2, window=16, learning_rate=5e-4)
    found = adapt(nf4_model, TEXT, config, progress=False).model
    with pytest.raises(ValueError, match="coarser than the update"):
        merged(found)
    layer = found.network.model.layers[0].mlp.up_proj
    update, whole = layer.get_delta_weight("default"), matrix_of(layer.get_base_layer())
    assert update.norm() < 0.03 * whole.norm()
    assert left_after_nf4(layer) < 0.3


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rank", 0, "AdaptConfig.rank must be a whole number"),
        ("soft_share", 1.5, "AdaptConfig.soft_share must be in"),
        ("targets", "head", "AdaptConfig.targets must be one of all, attention, mlp"),
        ("goal", "win", "AdaptConfig.goal must be one of text, distil"),
        ("soft_inputs", "hardest", "hardest"),
        ("learning_rate", 0, "above 0"),
    ],
)
def test_a_recipe_out_of_range_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        AdaptConfig(**{field: value})


def test_models_without_a_gradient_of_their_likelihood_are_refused(tiny):
    for model, message in (
        (tiny(objective="mse"), "no gradient"),
        (tiny(window="window(aggregate=1, segments=2, hard=4, kind='sum(None)')"), "window memory"),
        (load_language("mess3"), "a SoftAR or a pretrained model"),
    ):
        with pytest.raises(ValueError, match=message):
            adapt(model, "abc", progress=False)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        adapt(tiny(), "a", AdaptConfig(**SHORT), progress=False)
    with pytest.raises(ValueError, match="window 80 is more than the model's context 12"):
        adapt(tiny(), "abc", progress=False)


def test_the_rows_of_texts_are_padded_where_nothing_sees_it(tiny):
    model = tiny()
    run = AdaptingRun(model, ["abc", "defghijk"], AdaptConfig(**SHORT), None, 0)
    ids, exists = run.texts._padded(run.texts.ids)
    together = run.loss_of(ids, exists)
    alone = [
        run.loss_of(one[None], torch.ones(1, len(one), dtype=torch.bool)) for one in run.texts.ids
    ]
    expected = (2 * alone[0] + 7 * alone[1]) / 9
    torch.testing.assert_close(together, expected, atol=exact(model)["atol"], rtol=0)


def test_nats_per_token_of_symbols_are_those_of_the_text(tiny):
    model, texts = tiny(), ["abcdef", "ghijk"]
    found = [model.log_probs(model.tokenizer.encode(one)[None])[0, 1:] for one in texts]
    expected = -float(torch.cat(found).detach().mean())
    bound = exact(model)["atol"]
    assert nats_per_token(model, texts) == pytest.approx(expected, abs=bound)
    soft = nats_per_token(model, texts, "posterior-gumbel(0.001)")
    assert soft == pytest.approx(expected, abs=1e-3)  # so sharp a soft token is its symbol
    assert nats_per_token(model, texts, "scheduled(1.0)") != expected
