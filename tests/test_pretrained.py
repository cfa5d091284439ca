"""The weights of Hugging Face's GPT-2, Llama and Mistral in our body give the logits they give
there.
"""

import json

import pytest
import torch
from bounds import exact_logits

from softar_lab.core.store import CheckpointError
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.external.pretrained.convert import config_of, from_hugging_face
from softar_lab.generation import generate
from softar_lab.models.config import ModelConfig
from softar_lab.models.scoring import evaluate
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.config import TrainConfig
from softar_lab.training.loop import train

transformers = pytest.importorskip(
    "transformers", reason="transformers, the reference, is not installed"
)

V, BOS, WINDOW = 13, 2, 5
_SIZES = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 3}
_LLAMA = {**_SIZES, "num_attention_heads": 4, "max_position_embeddings": 24, "bos_token_id": BOS}
KINDS = {
    "gpt2": ("GPT2", {"vocab_size": V, "n_positions": 24, "n_embd": 32, "n_layer": 3, "n_head": 4}),
    "gpt2-untied": ("GPT2", {"vocab_size": V, "n_positions": 24, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 40,
                             "activation_function": "gelu", "tie_word_embeddings": False}),
    "llama": ("Llama", _LLAMA),
    "llama-grouped": ("Llama", {**_LLAMA, "num_key_value_heads": 2, "rope_theta": 500.0, "rms_norm_eps": 1e-3,
                                "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {**_LLAMA, "num_key_value_heads": 1, "sliding_window": WINDOW}),
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def reference():
    """reference(kind): the Hugging Face model, all of whose weights are random, norms and biases
    too.
    """
    made = {}

    def make(kind):
        if kind not in made:
            name, options = KINDS[kind]
            options = dict(options)
            if "rope_theta" in options:
                options["rope_parameters"] = {
                    "rope_theta": options.pop("rope_theta"),
                    "rope_type": "default",
                }
            config = getattr(transformers, f"{name}Config")(**options)
            model = getattr(
                transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
            )(config)
            generator = torch.Generator().manual_seed(0)
            for weight in model.parameters():
                weight.data.normal_(0, 0.3, generator=generator).add_(weight.ndim == 1)
            made[kind] = model.eval()
        return made[kind]

    return make


@pytest.fixture(scope="module")
def ours(reference):
    return lambda kind: from_hugging_face(reference(kind), bos=BOS)


def some_ids(batch=3, length=20, seed=1):
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits_of(model, token_ids=None, vectors=None):
    hidden = model.hidden_states(token_ids, vectors)
    return model.objective.output(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])


@torch.no_grad()
def expected(reference, token_ids=None, vectors=None):
    """The reference's logits after bos and each of T tokens (B, T+1, V)."""
    table = reference.get_input_embeddings().weight
    vectors = table[token_ids] if vectors is None else vectors
    return reference(
        inputs_embeds=torch.cat([table[BOS].expand(len(vectors), 1, -1), vectors], 1)
    ).logits


@every_kind
@torch.no_grad()
def test_logits_of_a_whole_text_are_the_references(reference, ours, kind):
    token_ids = some_ids()
    with_bos = torch.cat([torch.full((3, 1), BOS), token_ids], 1)
    wanted = reference(kind)(with_bos).logits
    assert wanted.std() > 0.5  # or equality would mean nothing
    torch.testing.assert_close(
        logits_of(ours(kind), token_ids), wanted, **exact_logits(reference(kind))
    )


@every_kind
@torch.no_grad()
def test_soft_tokens_are_read_as_the_reference_reads_them(reference, ours, kind):
    vectors, near = (
        torch.randn(2, 20, 32, generator=torch.Generator().manual_seed(3)),
        exact_logits(reference(kind)),
    )
    torch.testing.assert_close(
        logits_of(ours(kind), vectors=vectors), expected(reference(kind), vectors=vectors), **near
    )


@every_kind
@torch.no_grad()
def test_any_first_token_will_do_for_the_body(reference, ours, kind):
    """Beneath the start slot, the body and head are the reference."""
    model, token_ids = ours(kind), some_ids()
    hidden = model.body(model.input(model.table(token_ids)))
    found = model.objective.output(hidden.flatten(0, 1))
    torch.testing.assert_close(
        found, reference(kind)(token_ids).logits.flatten(0, 1), **exact_logits(reference(kind))
    )


@every_kind
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("pieces", [[1] * 20, [7, 1, 1, 11], [20]])
@torch.no_grad()
def test_logits_with_the_cache_are_the_references(reference, ours, kind, batch, pieces):
    model, token_ids = ours(kind), some_ids(batch)
    wanted = expected(reference(kind), token_ids)
    near, state, read = exact_logits(reference(kind)), model.start(batch), 0
    for piece in [0, *pieces]:
        state, read = model.read(state, token_ids[:, read : read + piece]), read + piece
        torch.testing.assert_close(model.objective.output(state.hidden), wanted[:, read], **near)


@every_kind
def test_a_model_may_be_trained_on_by_both(reference, ours, kind):
    """The same gradient, so that whatever is learned next begins alike; a tied head's is the
    table's.
    """
    model, other, token_ids = ours(kind), reference(kind), some_ids()
    logits_of(model, token_ids[:, :-1])[:, 1:].logsumexp(-1).sum().backward()
    other.zero_grad()
    with_bos = torch.cat([torch.full((3, 1), BOS), token_ids[:, :-1]], 1)
    other(with_bos).logits[:, 1:].logsumexp(-1).sum().backward()
    wanted = other.get_input_embeddings().weight.grad.clone()
    found = model.table.weight.grad.index_add(0, torch.tensor([BOS]), model.body.start.grad[None])
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


def test_a_window_hides_what_is_beyond_it(ours):
    """Layer by layer, so a change is seen as far as the windows of three layers reach, and no
    further.
    """
    model, token_ids = ours("mistral"), some_ids(1)
    changed = token_ids.clone()
    changed[0, 0] = (changed[0, 0] + 1) % V
    apart = (logits_of(model, token_ids) - logits_of(model, changed)).abs().amax(-1)[0]
    reach = 1 + 3 * (WINDOW - 1)
    assert (apart[1 : reach + 1] > 1e-4).all()
    assert (apart[reach + 1 :] == 0).all()


@every_kind
def test_greedy_decoding_is_the_references(reference, ours, kind):
    model, other = ours(kind), reference(kind)
    state, token_ids, written = model.start(), torch.tensor([[BOS]]), []
    for _ in range(15):
        written.append(model.predict(state).probs.argmax(-1))
        state = model.advance(state, token_ids=written[-1])
        token_ids = torch.cat([token_ids, other(token_ids).logits[:, -1:].argmax(-1)], 1)
    assert torch.stack(written, 1).tolist() == token_ids[:, 1:].tolist()


@every_kind
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_a_folder_is_the_model_that_was_saved_in_it(reference, tmp_path, kind, shard):
    reference(kind).save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "20KB")
    model, same = (
        from_hugging_face(str(tmp_path), bos=BOS),
        from_hugging_face(reference(kind), bos=BOS),
    )
    assert model.config == same.config
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name]), name
    token_ids = some_ids()
    with torch.no_grad():
        wanted = expected(reference(kind), token_ids)
        torch.testing.assert_close(
            logits_of(model, token_ids), wanted, **exact_logits(reference(kind))
        )
        near, state = exact_logits(reference(kind)), model.start(3)
        for t in range(20):  # token by token, with the cache
            state = model.advance(state, token_ids=token_ids[:, t])
            torch.testing.assert_close(
                model.objective.output(state.hidden), wanted[:, t + 1], **near
            )


def test_half_precision_is_read_as_float32(reference, tmp_path):
    transformers.LlamaForCausalLM(reference("llama").config).bfloat16().save_pretrained(tmp_path)
    assert {weight.dtype for weight in from_hugging_face(tmp_path).state_dict().values()} == {
        torch.float32
    }


def test_older_names_and_masks_are_understood(reference, tmp_path):
    """The first GPT-2 files: no prefix, masks among the weights, no head; rotary settings of older
    configurations.
    """
    weights = {
        name.removeprefix("transformer."): w for name, w in reference("gpt2").state_dict().items()
    }
    del weights["lm_head.weight"]
    weights["h.0.attn.bias"] = torch.ones(1, 1, 24, 24)
    from safetensors.torch import save_file

    save_file({name: w.contiguous() for name, w in weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(reference("gpt2").config.to_dict()))
    token_ids = some_ids()
    found = logits_of(from_hugging_face(tmp_path, bos=BOS), token_ids)
    torch.testing.assert_close(
        found, expected(reference("gpt2"), token_ids), **exact_logits(reference("gpt2"))
    )
    about = reference("llama-grouped").config.to_dict()
    newer = config_of(about)
    del about["rope_parameters"]
    assert config_of({**about, "rope_theta": 500.0, "rope_scaling": None}) == newer
    assert newer.rotary_base == 500


def test_presets_are_the_published_configurations():
    llama = transformers.LlamaConfig(max_position_embeddings=4096, rms_norm_eps=1e-5)
    mistral = transformers.MistralConfig(max_position_embeddings=32768, rms_norm_eps=1e-5)
    for name, config in (
        ("gpt2", transformers.GPT2Config()),
        ("llama2", llama),
        ("mistral", mistral),
    ):
        assert ModelConfig.preset(name) == config_of(config.to_dict())


# -- what there is no place for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "llama",
            {"model_type": "mamba"},
            "model_type 'mamba' is not supported; known: gpt2, llama, mistral",
        ),
        ("llama", {"model_type": None}, "model_type None"),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            "gpt2 with scale_attn_by_inverse_layer_idx=True",
        ),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False"),
        ("gpt2", {"activation_function": "relu"}, "activation_function='relu'"),
        ("llama", {"hidden_act": "gelu"}, "llama with hidden_act='gelu' is not supported"),
        ("llama", {"attention_bias": True}, "attention_bias=True, mlp_bias=False"),
        ("mistral", {"head_dim": 64}, "mistral with head_dim=64"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling=.*yarn"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling=.*linear"),
    ],
)
def test_config_of_names_what_is_not_supported(reference, kind, change, message):
    with pytest.raises(ValueError, match=message):
        config_of({**reference(kind).config.to_dict(), **change})


def test_config_of_names_what_is_missing():
    with pytest.raises(ValueError, match="configuration of a llama model lacks 'hidden_size'"):
        config_of({"model_type": "llama"})


@pytest.mark.parametrize("bos", [None, V, -1])
def test_bos_must_be_a_token(reference, bos):
    with pytest.raises(ValueError, match=r"bos must be the id .* 0 … 12, not"):
        from_hugging_face(reference("gpt2"), bos=bos)


def test_foreign_modules_and_weights_are_refused(reference, tmp_path):
    with pytest.raises(
        ValueError, match="model of the transformers library or a folder, not a Linear"
    ):
        from_hugging_face(torch.nn.Linear(2, 2))
    weights = reference("llama").state_dict()
    (tmp_path / "config.json").write_text(json.dumps(reference("llama").config.to_dict()))
    from safetensors.torch import save_file

    save_file(
        {**weights, "model.layers.0.adapter.weight": torch.ones(2)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(
        ValueError, match=r"no place here for the weights layers\.0\.adapter\.weight"
    ):
        from_hugging_face(tmp_path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"the weights layers\.1\.mlp\.up_proj\.weight are missing"
    ):
        from_hugging_face(tmp_path)


def test_folder_without_its_files_says_which(reference, tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        from_hugging_face(tmp_path / "nowhere")
    reference("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    next(tmp_path.glob("*-of-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"model-0.*\.safetensors is missing"):
        from_hugging_face(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is missing; save_pretrained\(\)"
    ):
        from_hugging_face(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        from_hugging_face(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: no JSON"):
        from_hugging_face(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not the JSON of a configuration"):
        from_hugging_face(tmp_path)


# -- a model like any other -------------------------------------------------------------------------------------------


@every_kind
def test_taken_over_models_are_saved_read_scored_and_write(reference, tmp_path, kind):
    tokenizer = CharTokenizer.fit("abcdefghijk \n")
    model = from_hugging_face(reference(kind), bos=BOS, tokenizer=tokenizer)
    model.save(tmp_path / "kept")
    again = SoftAR.load(tmp_path / "kept")
    assert again.card["bos"] == BOS
    assert evaluate(again, "abc abc\n" * 9) == evaluate(model, "abc abc\n" * 9)
    for schedule in ("always", "never"):
        one, other = (
            generate(m, "ab", 30, schedule=schedule, seed=1) for m in (model, again)
        )  # beyond the context
        assert one.text == other.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama2", "mistral"])
@pytest.mark.parametrize("objective", [{}, {"objective": "mse", "tied": False}])
def test_presets_are_trained_and_come_back(corpus, tmp_path, name, objective):
    tokenizer = CharTokenizer.fit(corpus.train)
    small = {
        "vocab_size": tokenizer.vocab_size,
        "context": 16,
        "n_layers": 2,
        "n_heads": 4,
        "d_model": 32,
    }
    model = SoftAR(ModelConfig.preset(name, **small, **objective), tokenizer)
    run = train(
        model, corpus, TrainConfig(steps=60, eval_every=0), out=tmp_path / "run", progress=False
    )
    assert run.val_bits_per_char < 1.0  # of log2 13 = 3.7
    again = SoftAR.load(tmp_path / "run")
    assert evaluate(again, corpus.val) == evaluate(model, corpus.val)
    assert (again.objective.head.weight is again.table.weight) == again.config.tied
    assert again.input.weight.equal(torch.eye(32))
