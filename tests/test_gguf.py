"""GGUF files mean what they say: read to the last bit, or refused by the name of what is not read."""

import json
import zlib

import numpy as np
import pytest
import torch
from gguf_writer import BYTE_LEVEL, SIZES, TOKENS, entries, network, tensors, write
from tokenizers import Tokenizer

from softar_lab.external.pretrained.gguf import unpacked as copies
from softar_lab.external.pretrained.gguf.architectures import ARCHITECTURES
from softar_lab.external.pretrained.gguf.unpacked import unpacked
from softar_lab.external.pretrained.load import PretrainedError, load_pretrained

transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf", reason="the package gguf, which reads GGUF files, is not installed")

ROPE = {"rope_theta": 10_000.0}
YARN = {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
FACTORS = [1.0, 1.5, 4.0, 8.0]
BY_FACTORS = {
    **ROPE, "rope_type": "longrope", "short_factor": FACTORS, "long_factor": FACTORS, "factor": 1.0,
    "attention_factor": 1.0, "original_max_position_embeddings": 64,
}  # fmt: skip
LONG = {**BY_FACTORS, "long_factor": [2.0, 3.0, 5.0, 9.0], "attention_factor": 1.25, "factor": 4.0,
        "original_max_position_embeddings": 16}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
OF_EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 16}
WINDOW = {"attention.sliding_window": 4}
WIDE = {"attention.key_length": 16, "attention.value_length": 16}
CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
FALCON = {"num_hidden_layers": 2, "alibi": False}
GEMMA3 = {"full_attention": {**ROPE, "rope_type": "linear", "factor": 8.0},
          "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}  # fmt: skip
# name: (architecture, model_type, settings, entries beside the usual ones, tensors beside the network's)
CASES = {
    "llama": ("llama", "llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
              {"rope.freq_base": 5e5, "rope.dimension_count": 8, "vocab_size": len(TOKENS)}, {}),
    "llama, tied": ("llama", "llama", {"tie_word_embeddings": True}, {}, {}),
    "llama, wide heads": ("llama", "llama", {"head_dim": 16}, WIDE, {}),
    "llama, factors": ("llama", "llama", {"rope_parameters": BY_FACTORS}, {}, {"rope_freqs.weight": FACTORS}),
    "llama, linear": ("llama", "llama", {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}},
                      {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {}),
    "llama, linear of old": ("llama", "llama", {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}},
                             {"rope.scale_linear": 4.0}, {}),
    "llama, yarn": ("llama", "llama", {"rope_parameters": {**YARN, "beta_fast": 16.0}},
                    {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
                     "rope.scaling.original_context_length": 16, "rope.scaling.yarn_beta_fast": 16.0}, {}),
    "llama, biases": ("llama", "llama", {"attention_bias": True, "mlp_bias": True}, {}, {}),
    "mixtral": ("llama", "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2},
                {"expert_count": 4, "expert_used_count": 2}, {}),
    "arcee": ("arcee", "arcee", {}, {}, {}),
    "qwen2": ("qwen2", "qwen2", {"rope_parameters": YARN},
              {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
               "rope.scaling.original_context_length": 16}, {}),
    "qwen3": ("qwen3", "qwen3", {"head_dim": 16}, WIDE, {}),
    "qwen2moe": ("qwen2moe", "qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 24},
                 {**OF_EXPERTS, "expert_shared_feed_forward_length": 24}, {}),
    "qwen3moe": ("qwen3moe", "qwen3_moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True},
                 {**OF_EXPERTS, **WIDE}, {}),
    "gemma": ("gemma", "gemma", {"head_dim": 16}, WIDE, {}),
    "gemma2": ("gemma2", "gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4},
               {**WIDE, **WINDOW}, {}),
    "gemma2, caps": ("gemma2", "gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4, **CAPS},
                     {**WIDE, **WINDOW, **CAPS}, {}),
    "gemma2, 27B": ("gemma2", "gemma2", {"head_dim": 16, "query_pre_attn_scalar": 8, "sliding_window": 4,
                    "num_hidden_layers": 46}, {**WIDE, **WINDOW}, {}),
    "gemma3": ("gemma3", "gemma3_text", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 4,
               "num_hidden_layers": 7, "rope_parameters": GEMMA3},
               {**WIDE, **WINDOW, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0,
                "rope.freq_base_swa": 500.0}, {}),
    "phi2": ("phi2", "phi", {"rope_parameters": {**ROPE, "rope_type": "default", "partial_rotary_factor": 0.5}},
             {"rope.dimension_count": 4}, {}),
    "phi3": ("phi3", "phi3", {"sliding_window": 4}, {**WINDOW, "rope.scaling.original_context_length": 64}, {}),
    "phi3, long": ("phi3", "phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 16},
                   {"rope.scaling.original_context_length": 16, "rope.scaling.attn_factor": 1.25},
                   {"rope_factors_short.weight": FACTORS, "rope_factors_long.weight": LONG["long_factor"]}),
    "starcoder2": ("starcoder2", "starcoder2", {"sliding_window": None}, {}, {}),
    "falcon": ("falcon", "falcon", {**FALCON, "num_kv_heads": 1},
               {"feed_forward_length": 128, "attention.head_count_kv": 1, "tensor_data_layout": "jploski"}, {}),
    "falcon, 40B": ("falcon", "falcon", {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True},
                    {"feed_forward_length": 128, "attention.head_count_kv": 2}, {}),
    "gpt2": ("gpt2", "gpt2", {"n_positions": 64}, {"feed_forward_length": 128}, {}),
    "gptneox": ("gptneox", "gpt_neox", {"rope_parameters": {**ROPE, "rope_type": "default",
                "partial_rotary_factor": 0.5}}, {"rope.dimension_count": 4, "attention.head_count_kv": 4}, {}),
    "bloom": ("bloom", "bloom", {"seq_length": 64}, {"feed_forward_length": 128}, {}),
    "stablelm": ("stablelm", "stablelm", {"use_qkv_bias": True}, {"rope.dimension_count": 2}, {}),
    "stablelm, 12B": ("stablelm", "stablelm", {"qk_layernorm": True, "use_parallel_residual": True},
                      {"rope.dimension_count": 2, "use_parallel_residual": True}, {}),
    "nemotron": ("nemotron", "nemotron", {}, {"rope.dimension_count": 4, "rope.scaling.type": "none"}, {}),
    "lfm2": ("lfm2", "lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
             {"attention.head_count_kv": [0, 2], "shortconv.l_cache": 3, "rope.freq_base": 1e6}, {}),
    "olmo": ("olmo", "olmo", {"clip_qkv": 0.5},
             {"attention.clamp_kqv": 0.5}, {}),
    "olmo2": ("olmo2", "olmo2", {}, {}, {}),
    "olmoe": ("olmoe", "olmoe", {"num_experts": 4, "num_experts_per_tok": 2},
              {"expert_count": 4, "expert_used_count": 2}, {}),
    "granite": ("granite", "granite", {"embedding_multiplier": 3.0, "residual_multiplier": 0.5,
                "logits_scaling": 2.0, "attention_multiplier": 0.125},
                {"embedding_scale": 3.0, "residual_scale": 0.5, "logit_scale": 2.0, "attention.scale": 0.125}, {}),
    "command-r": ("command-r", "cohere", {"logit_scale": 0.5}, {"logit_scale": 0.5, "rope.scaling.type": "none"}, {}),
    "cohere2": ("cohere2", "cohere2", {"logit_scale": 0.5, "sliding_window": 4, "num_hidden_layers": 5},
                {**WINDOW, "logit_scale": 0.5}, {}),
    "smollm3": ("smollm3", "smollm3", {"num_hidden_layers": 5,
                "rope_parameters": {"rope_type": "default", "rope_theta": 2e6}}, {"rope.freq_base": 2e6}, {}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTAR_CACHE", str(tmp_path / "cache"))


def made(name, place, change=lambda about, weights: None, **options):
    """The file of a case, after a change of its entries and tensors, and the network it holds."""
    kind, model_type, settings, more, extra = CASES[name]
    original = network(model_type, **settings)
    about, weights = entries(kind, original, **more), tensors(kind, original)
    weights |= {one: torch.tensor(values).numpy() for one, values in extra.items()}
    change(about, weights)
    return write(place / "tiny.gguf", kind, about, weights, **options), original


def read(file):
    """The network in a GGUF file's copy, in the same layout as a network just made."""
    return transformers.AutoModelForCausalLM.from_pretrained(unpacked(file), dtype=torch.float32)


def logits(one, length=40):
    ids = torch.randint(3, len(TOKENS), (1, length), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return one(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("name", CASES)
def test_a_network_is_read_to_the_last_bit(name, tmp_path):
    file, original = made(name, tmp_path)
    found = read(file).eval()
    assert torch.equal(logits(found), logits(original))
    if name == "phi3, long":  # its other factors
        assert torch.equal(logits(found, 8), logits(original, 8))
    for one in ("bos", "eos", "pad"):
        assert getattr(found.config, f"{one}_token_id") == SIZES[f"{one}_token_id"]


def test_every_architecture_has_its_case():
    assert {kind for kind, *_ in CASES.values()} | {"mamba"} == set(ARCHITECTURES)


def test_mamba_is_read_up_to_the_rounding_of_its_decay(tmp_path):
    """The file holds a = -e^x, rounded to 24 bits; x = log(-a) is then off by 2^-24 and its own
    last bit.
    """
    original = network("mamba", intermediate_size=64, num_attention_heads=0)
    sizes = {"conv_kernel": 4, "inner_size": 64, "state_size": 16, "time_step_rank": 2}
    more = {f"ssm.{name}": value for name, value in sizes.items()} | {"feed_forward_length": 0}
    about = entries("mamba", original, **more)
    file = write(tmp_path / "tiny.gguf", "mamba", about, tensors("mamba", original))
    found, expected = read(file).state_dict(), original.state_dict()
    for name, weight in expected.items():
        if name.endswith("A_log"):
            bound = 2.0**-23 + weight.abs() * 2.0**-23
            assert ((found[name] - weight).abs() <= bound).all()
        else:
            assert torch.equal(found[name], weight), name


# -- what is refused -------------------------------------------------------------------------------


def entry(name, value):
    return lambda about, weights: about.update({name: value})


def extra(name, *shape):
    return lambda about, weights: weights.update({name: torch.zeros(*shape).numpy()})


def without(name):
    return lambda about, weights: (about if name in about else weights).pop(name)


REFUSED = [
    ("llama", entry("llama.attn_logit_softcapping", 50.0), "llama.attn_logit_softcapping = 50.0 are not"),
    ("llama", entry("llama.rope.scaling.attn_factor", 1.5), "llama.rope.scaling.attn_factor = 1.5"),
    ("llama, yarn", entry("llama.rope.scaling.yarn_log_multiplier", 0.1), "rope.scaling.yarn_log_multiplier"),
    ("llama, factors", entry("llama.rope.scaling.type", "yarn"), "scaled twice, by rope_freqs.weight and by yarn"),
    ("llama", entry("llama.rope.scaling.type", "longrope"), "longrope' without its factors"),
    ("llama", entry("llama.rope.dimension_count", 4), "rotates 4 of 8 coordinates"),
    ("llama", entry("llama.attention.sliding_window", 8), "llama.attention.sliding_window = 8"),
    ("llama", entry("llama.attention.causal", False), "llama.attention.causal = False"),
    ("llama", entry("llama.attention.value_length", 4), "value_length = 4"),
    ("llama", entry("llama.vocab_size", 7), "llama.vocab_size = 7"),
    ("llama", entry("something.new", 1), "something.new = 1 are not understood"),
    ("llama", entry("general.type", "adapter"), "no language model, but general.type = 'adapter'"),
    ("llama", without("llama.block_count"), "llama.block_count is missing"),
    ("llama", without("blk.1.ffn_up.weight"), "the tensor blk.1.ffn_up.weight is missing"),
    ("llama", extra("blk.0.attn_q_norm.weight", 8), "blk.0.attn_q_norm.weight have no place"),
    ("llama", extra("blk.0.attn_q.bias", 32), "the tensor blk.0.attn_k.bias is missing"),
    ("llama", extra("blk.1.ffn_up.weight", 48, 31), "has the shape"),
    ("mixtral", entry("llama.expert_weights_scale", 2.0), "llama.expert_weights_scale = 2.0"),
    ("qwen3moe", entry("qwen3moe.expert_gating_func", 2), "expert_gating_func = 2"),
    ("gemma3", entry("gemma3.attention.sliding_window_pattern", 4), "sliding_window_pattern = 4"),
    ("bloom", entry("bloom.feed_forward_length", 64), "not four times the width"),
    ("lfm2", entry("lfm2.attention.head_count_kv", [1, 2]), "unequal numbers of key heads"),
    ("olmo", entry("olmo.attention.layer_norm_epsilon", 1e-6), "layer_norm_epsilon is not 1e-5"),
    ("llama", entry("tokenizer.ggml.pre", "novel"), "tokenizer.ggml.pre = 'novel': how texts are split"),
    ("llama", entry("tokenizer.ggml.model", "rwkv"), "tokenizer.ggml.model = 'rwkv'"),
    ("llama", entry("tokenizer.ggml.eos_token_id", 9999), "its tokens eos are not among"),
    ("llama", entry("tokenizer.ggml.tokens", [*TOKENS, "x y"]), "tokens for the"),
    ("llama", entry("tokenizer.ggml.tokens", [*TOKENS[:-1], "th"]), "its tokens th occur twice"),
    ("llama", entry("tokenizer.ggml.merges", ["t z"]), "are not two pieces of a third"),
    ("llama", entry("tokenizer.ggml.add_sep_token", True), "seperator|not understood"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_what_a_file_says_and_is_not_read_is_named(name, change, message, tmp_path):
    file, _ = made(name, tmp_path, change)
    with pytest.raises(PretrainedError, match=message):
        load_pretrained(file, device="cpu")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))  # nothing unverified is stored


def test_an_unknown_architecture_is_named(tmp_path):
    original = network("llama")
    about, weights = entries("gpt-oss", original), tensors("llama", original)
    file = write(tmp_path / "tiny.gguf", "gpt-oss", about, weights)
    with pytest.raises(PretrainedError, match="gpt-oss file .* architecture is not read; known: l"):
        load_pretrained(file, device="cpu")


# -- split files, copies ---------------------------------------------------------------------------


def test_a_split_file_is_read_with_all_its_parts(tmp_path):
    _, original = made("llama", tmp_path, split_max_tensors=9)
    parts = sorted(tmp_path.glob("tiny-*.gguf"))
    assert len(parts) > 2
    for part in (parts[0], parts[-1]):
        assert torch.equal(logits(read(part).eval()), logits(original))
    moved = parts[0].rename(tmp_path / "first.gguf")
    with pytest.raises(PretrainedError, match=r"one of 3 parts; their names must end in -00001-of"):
        load_pretrained(moved, device="cpu")
    moved.rename(parts[0])
    parts[1].unlink()
    with pytest.raises(PretrainedError, match=r"one of 3 parts; tiny-00002-of-00003.gguf must be"):
        load_pretrained(parts[0], device="cpu")


def test_a_split_file_of_a_repository_is_fetched_with_all_its_parts(tmp_path, monkeypatch):
    _, original = made("llama", tmp_path, split_max_tensors=9)
    asked = []

    def fetched(repository, name):
        asked.append((repository, name))
        return str(tmp_path / name)

    monkeypatch.setattr("transformers.utils.cached_file", fetched)
    name = "tiny-00001-of-00003.gguf"
    found = load_pretrained("someone/something", gguf_file=name, device="cpu")
    for one, weight in original.state_dict().items():
        assert torch.equal(found.network.state_dict()[one], weight)
    assert asked == [("someone/something", f"tiny-0000{i}-of-00003.gguf") for i in (1, 2, 3)]
    monkeypatch.setattr("transformers.utils.cached_file", lambda *names: {}["no network"])
    with pytest.raises(PretrainedError, match=r"someone/something: .*gguf could not be had"):
        load_pretrained("someone/something", gguf_file=name, device="cpu")


def test_numbers_in_fewer_bits_are_unpacked(tmp_path):
    from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize

    def halved(about, weights):
        weights.update({k: v.astype(np.float16) for k, v in weights.items() if v.ndim > 1})

    file, original = made("llama", tmp_path, halved)  # multiples of 1/1024: exact in float16
    assert torch.equal(logits(read(file).eval()), logits(original))
    # the head in blocks of 8 bits
    eight = GGMLQuantizationType.Q8_0
    about, weights = entries("llama", original), tensors("llama", original)
    packed = quantize(weights["output.weight"], eight)

    class Writer(GGUFWriter):
        def add_tensor(self, name, tensor):
            kind = {"raw_dtype": eight} if name == "output.weight" else {}
            super().add_tensor(name, packed if kind else tensor, **kind)

    write(tmp_path / "eight.gguf", "llama", about, weights, writer=Writer)
    expected = torch.tensor(dequantize(packed, eight))
    found = read(tmp_path / "eight.gguf").lm_head.weight
    assert torch.equal(found, expected)
    assert not torch.equal(found, original.lm_head.weight)


def test_a_damaged_copy_is_noticed(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    about = {"source": "x.gguf", "crc32": {"model.safetensors": zlib.crc32(b"weights")}}
    for old in (None, 1, 2):
        (tmp_path / copies.MANIFEST).write_text(json.dumps({**about, "format": old}))
        assert not copies._is_whole(tmp_path)  # from before all of a file was accounted for
    about["format"] = copies.FORMAT
    (tmp_path / copies.MANIFEST).write_text(json.dumps(about))
    assert copies._is_whole(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weighty")
    assert not copies._is_whole(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert not copies._is_whole(tmp_path)
    assert not copies._is_whole(tmp_path / "nowhere")


def test_an_old_copy_is_made_again(tmp_path):
    file, original = made("llama", tmp_path)
    folder = unpacked(file)
    manifest = json.loads((folder / copies.MANIFEST).read_text())
    (folder / copies.MANIFEST).write_text(json.dumps({**manifest, "format": 2}))
    (folder / "model.safetensors").write_bytes(b"random layers")
    assert torch.equal(logits(read(file).eval()), logits(original))


# -- tokenizers ------------------------------------------------------------------------------------


def tokenizer(place, **more):
    """The lab's tokenizer of a tiny Llama with some other entries about tokens."""
    named = {f"tokenizer.ggml.{name}": value for name, value in more.items()}
    file, _ = made("llama", place, lambda about, weights: about.update(named))
    return load_pretrained(file, device="cpu").tokenizer


def test_the_tokenizer_of_another_model_beside_a_file_is_not_read(tmp_path):
    alone = tokenizer(tmp_path).encode("the king rode").tolist()
    other = Tokenizer.from_str(tokenizer(tmp_path).library.backend_tokenizer.to_str())
    other.add_tokens(["the king"])
    other.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer(tmp_path).encode("the king rode").tolist() == alone
    assert alone[:2] == [TOKENS.index("the"), TOKENS.index("Ġking")]


@pytest.mark.parametrize("text", ["<|endoftext|>", "[UNK] <unk>", "<s>the</s>", "日本 ÄÖ\n\n\t  "])
def test_ids_lie_inside_the_table(tmp_path, text):
    found = tokenizer(tmp_path)
    ids = found.encode(text)
    assert ids.max() < len(TOKENS)
    assert found.decode(ids) == text
    assert found.lengths(ids).sum() == len(text)


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", " 12", ["Ġ", "12"]),
        ("smollm", " 12", ["Ġ", "1", "2"]),
        ("qwen2", "12", ["1", "2"]),
        ("llama-bpe", "12", ["12"]),
        ("gpt-2", " ²", ["Ġ²"]),
        ("smollm", " ²", ["Ġ", "²"]),
        ("qwen2", "the'S", ["the", "'", "S"]),
    ],
)
def test_texts_are_split_as_the_file_says(tmp_path, pre, text, pieces):
    """As far as merges can tell: a piece never crosses a place where the text is split."""
    square = "Â²"
    tokens = [*TOKENS, square, f"Ġ{square}"]
    types = [*BYTE_LEVEL["tokenizer.ggml.token_type"], 1, 1]
    merges = [*BYTE_LEVEL["tokenizer.ggml.merges"], "Â ²", f"Ġ {square}"]
    original = network("llama", vocab_size=len(tokens))
    named = {"tokens": tokens, "token_type": types, "merges": merges, "pre": pre}
    about = entries("llama", original) | {f"tokenizer.ggml.{k}": v for k, v in named.items()}
    file = write(tmp_path / "tiny.gguf", "llama", about, tensors("llama", original))
    found = load_pretrained(file, device="cpu").tokenizer
    expected = [piece.replace("²", square) for piece in pieces]
    assert [tokens[i] for i in found.encode(text)] == expected


@pytest.mark.parametrize(
    ("more", "begins"),
    [
        ({}, None),
        ({"add_bos_token": True}, 1),
        ({"pre": "llama-bpe"}, 1),
        ({"pre": "llama-bpe", "add_bos_token": False}, None),
    ],
)
def test_texts_begin_as_the_file_says(tmp_path, more, begins):
    assert tokenizer(tmp_path, **more).begin_id == begins


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
WORDS = ["▁", "l", "e", "a", "d", "i", "n", "g", "t", "w", "o", "le", "ad", "in", "ing", "lead",
         "leading", "▁leading", "tw", "two", "▁two", "▁▁"]  # fmt: skip


def sentencepiece(place, **more):
    tokens = [*PIECES, *WORDS]
    original = network("llama", vocab_size=len(tokens))
    named = {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": [0.0] * len(PIECES) + [float(len(one)) for one in WORDS[:-1]] + [-1.0],
        "token_type": [2, 3, 3, *[6] * 256, *[1] * len(WORDS)],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **more,
    }
    about = {k: v for k, v in entries("llama", original).items() if not k.startswith("tokenizer")}
    about |= {f"tokenizer.ggml.{name}": value for name, value in named.items()}
    file = write(place / "tiny.gguf", "llama", about, tensors("llama", original))
    return load_pretrained(file, device="cpu").tokenizer, tokens


@pytest.mark.parametrize(
    ("text", "prefix", "pieces"),
    [
        ("leading", True, ["▁leading"]),
        (" leading", True, ["▁", "▁leading"]),
        ("  two leading", True, ["▁▁", "▁two", "▁leading"]),
        ("leading", False, ["leading"]),
        (" leading", False, ["▁leading"]),
        ("two</s>two", True, ["▁two", "</s>", "▁two"]),
        ("ä", True, ["▁", "<0xC3>", "<0xA4>"]),
        ("<|", True, ["▁", "<0x3C>", "<0x7C>"]),
    ],
)
def test_blanks_of_sentencepiece_are_those_of_the_text(tmp_path, text, prefix, pieces):
    found, tokens = sentencepiece(tmp_path, add_space_prefix=prefix)
    ids = found.encode(text)
    assert [tokens[i] for i in ids] == pieces
    assert found.decode(ids).replace(" two", "two") == text.replace(" two", "two")
    assert found.begin_id == 1
    if "two</s>" not in text:
        assert found.lengths(ids).sum() == len(text)


def test_marks_that_a_file_does_not_have_are_not_added(tmp_path):
    found, tokens = sentencepiece(tmp_path)
    assert len(found.library) == len(tokens)
