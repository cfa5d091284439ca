"""NF4 matrices are bitsandbytes' own, also after an evaluation; what stays exact does so to the bit."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from softar_lab.external.pretrained import quantised
from softar_lab.external.pretrained.load import load_pretrained
from softar_lab.external.pretrained.wrapper import Pretrained
from softar_studies.random_model import random_pretrained

pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes", reason="bitsandbytes, which stores NF4, is not installed")

IDS = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    return random_pretrained(layers=2)


@pytest.fixture(scope="module")
def nf4_model(model):
    network = quantised.to_nf4(quantised.sharing_copy(model.network))
    return Pretrained(network, model.tokenizer.library, "nf4")


def by_library(matrix):
    """The library quantises and reads it back."""
    functional = quantised.bitsandbytes().functional
    codes, state = functional.quantize_4bit(matrix, compress_statistics=True, quant_type="nf4")
    return functional.dequantize_4bit(codes, state)


def test_nf4_layers_hold_what_the_library_makes_of_the_matrix(model, nf4_model):
    exact = quantised.matrices(model.network)
    assert len(exact) == 14
    nf4_model.log_probs(IDS)  # an evaluation may rearrange a matrix, but not here
    for name, layer in exact.items():
        expected = by_library(layer.weight.contiguous())
        stored = nf4_model.network.get_submodule(name)
        assert quantised.is_nf4(stored)
        assert torch.equal(quantised.matrix_of(stored), expected)
        assert torch.equal(quantised.nf4(layer.weight), expected)
        found = stored.state_dict()
        weight = quantised.bitsandbytes().nn.Params4bit.from_prequantized(
            found.pop("weight"),
            {f"weight.{key.removeprefix('weight.')}": one for key, one in found.items()},
            device="cpu",
        )
        again = deepcopy(stored)
        again.weight = weight
        assert torch.equal(quantised.matrix_of(again), expected)


def test_an_nf4_model_computes_with_its_matrices(model, nf4_model):
    with quantised.rounded(model.network, "nf4") as network, torch.inference_mode():
        expected = network(input_ids=IDS, use_cache=False).logits.log_softmax(-1)
    found = nf4_model.next_log_probs(IDS)
    torch.testing.assert_close(found[:, 1:], expected[:, :-1], atol=1e-3, rtol=1e-4)
    weights = sum(one.weight.numel() for one in quantised.matrices(model.network).values())
    assert f"nf4: {weights:,}" in nf4_model.config.weights


def test_the_original_is_unchanged(model):
    before = {name: one.clone() for name, one in model.network.state_dict().items()}
    quantised.to_nf4(quantised.sharing_copy(model.network))
    changed = "model.layers.0.mlp.up_proj"
    with quantised.rounded(model.network, "int8") as network:
        assert not torch.equal(network.get_submodule(changed).weight, before[f"{changed}.weight"])
    assert all(torch.equal(one, before[name]) for name, one in model.network.state_dict().items())


@pytest.mark.parametrize("kind", quantised.ROUNDINGS)
def test_marked_weights_stay_exact_to_the_bit(rng, kind):
    matrix = torch.randn(64, 128, generator=rng(0)) ** 3
    exact = quantised.largest(matrix.square(), 0.01)
    assert exact.sum() == round(0.01 * matrix.numel())
    rounding = quantised.ROUNDINGS[kind]
    found = quantised.with_exact(matrix, exact, rounding)
    assert torch.equal(found[exact].view(torch.int32), matrix[exact].view(torch.int32))
    assert torch.equal(found[~exact], rounding(matrix * ~exact)[~exact])
    # apart from the others they no longer stretch the grid
    assert (found - matrix).square().sum() < 0.7 * (rounding(matrix) - matrix).square().sum()


def test_largest_takes_the_first_of_equal_ones():
    assert quantised.largest(torch.tensor([[1.0, 2], [2, 2]]), 0.5).tolist() == [
        [False, True],
        [True, False],
    ]
    with pytest.raises(ValueError, match="share must lie"):
        quantised.largest(torch.ones(2, 2), 1.5)


def test_importance_is_the_weight_squared_times_the_mean_square_of_its_input(model):
    found = quantised.importance(model.network, IDS)
    assert found.keys() == quantised.matrices(model.network).keys()
    layer = model.network.model.layers[0]
    with torch.inference_mode():
        x = layer.input_layernorm(model.network.model.embed_tokens(IDS))
    expected = layer.self_attn.q_proj.weight**2 * (x**2).mean((0, 1))
    torch.testing.assert_close(found["model.layers.0.self_attn.q_proj"], expected)


def test_only_some_layers_are_rounded(model):
    name = "model.layers.1.mlp.up_proj"
    before = model.network.model.layers[0].mlp.up_proj.weight.clone()
    with quantised.rounded(model.network, "nf4", only=lambda one: one == name) as network:
        assert torch.equal(network.model.layers[0].mlp.up_proj.weight, before)
        assert not torch.equal(
            network.get_submodule(name).weight, quantised.matrix_of(nn.Linear(1, 1))
        )
    with (
        pytest.raises(ValueError, match="one of nf4, int8"),
        quantised.rounded(model.network, "int3"),
    ):
        pass


def test_load_pretrained_quantises(model, tmp_path):
    model.network.save_pretrained(tmp_path)
    model.tokenizer.library.save_pretrained(tmp_path)
    found = load_pretrained(tmp_path, device="cpu", quantise="nf4")
    for name, layer in quantised.matrices(model.network).items():
        stored = found.network.get_submodule(name)
        assert torch.equal(quantised.matrix_of(stored), by_library(layer.weight.contiguous()))
    for options, message in (
        ({"quantise": "nf3"}, "quantise must be None or nf4"),
        ({"quantise": "nf4", "weights": "bfloat16"}, "give one"),
        ({"quantise": "nf4", "dtype": torch.bfloat16}, "give one"),
    ):
        with pytest.raises(ValueError, match=message):
            load_pretrained(tmp_path, device="cpu", **options)


def test_a_missing_library_is_named(monkeypatch):
    quantised.bitsandbytes.cache_clear()
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    with pytest.raises(quantised.PretrainedError, match="pip install .*adapting"):
        quantised.bitsandbytes()
