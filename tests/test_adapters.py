"""Adapters of peft: in a folder or in memory, they are read whole or refused by name."""

import json
import shutil

import pytest
import torch
from bounds import exact_logits
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from softar_lab.external.pretrained.load import PretrainedError, load_pretrained
from softar_lab.external.pretrained.wrapper import Pretrained

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip(
    "peft", reason="the library peft, which reads adapters, is not installed"
)

# the library still uses an old name of transformers
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers:UserWarning"),  # as it should
]

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.randint(3, 40, (1, 12), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny Llama with a tokenizer of single words."""
    place = tmp_path_factory.mktemp("base")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, "w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = transformers.LlamaConfig(
        vocab_size=40,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        **shape,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(place)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="w1", eos_token="w2"
    ).save_pretrained(place)
    return place


def adapted(base, kind):
    """The base with an adapter that changes its answers."""
    network = transformers.AutoModelForCausalLM.from_pretrained(base)
    made = peft.get_peft_model(network, kind).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.requires_grad:
                weight.add_(
                    0.2
                    * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))
                )
    return made


def log_probs(made):
    with torch.inference_mode():
        return made(input_ids=IDS, use_cache=False).logits.log_softmax(-1)


KINDS = {
    "LoRA": lambda: peft.LoraConfig(r=4, target_modules=ALL, task_type="CAUSAL_LM"),
    "DoRA": lambda: peft.LoraConfig(r=4, target_modules=ALL, use_dora=True, task_type="CAUSAL_LM"),
    "rsLoRA": lambda: peft.LoraConfig(r=4, target_modules=ALL, use_rslora=True, task_type="CAUSAL_LM"),
    "LoRA on the head": lambda: peft.LoraConfig(r=4, target_modules=[*ALL, "lm_head"], task_type="CAUSAL_LM"),
    "a table of its own": lambda: peft.LoraConfig(
        r=4, target_modules=ALL, modules_to_save=["embed_tokens"], task_type="CAUSAL_LM"
    ),
    "IA3": lambda: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "OFT": lambda: peft.OFTConfig(oft_block_size=8, target_modules=["q_proj"], task_type="CAUSAL_LM"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_answers_as_in_its_library(base, tmp_path, kind):
    made = adapted(base, KINDS[kind]())
    expected = log_probs(made)
    bare = log_probs(transformers.AutoModelForCausalLM.from_pretrained(base))
    assert (expected - bare).abs().max() > 0.05
    made.save_pretrained(tmp_path)
    found = load_pretrained(tmp_path, device="cpu")
    for one in (found, Pretrained(made, found.tokenizer.library)):
        ours = one.log_probs(IDS)[:, 1:]
        theirs = expected[:, :-1].gather(-1, IDS[:, 1:, None])[..., 0]
        torch.testing.assert_close(ours, theirs, **exact_logits(one.network))
        read = one.read(one.start(1), vectors=one.embedding[IDS])
        by_ids = one.read(one.start(1), token_ids=IDS)
        torch.testing.assert_close(read.hidden, by_ids.hidden, **exact_logits(one.network))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: {f"_orig_mod.{name}": one for name, one in w.items()},
            "missing: base_model.*and",
        ),
        (lambda w: dict(sorted(w.items())[1:]), "missing: base_model.model.model.layers.0.mlp"),
        (
            lambda w: w | {"base_model.model.extra.lora_A.weight": torch.ones(4, 32)},
            "without a place: base",
        ),
        (lambda w: {name: one[:2] for name, one in w.items()}, "does not fit"),
    ],
)
@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
def test_weights_that_do_not_fit_are_named(base, tmp_path, kind, change, message):
    adapted(base, KINDS[kind]()).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(PretrainedError, match=message):
        load_pretrained(tmp_path, device="cpu")


def test_a_dora_that_is_called_lora_is_refused(base, tmp_path):
    adapted(base, KINDS["DoRA"]()).save_pretrained(tmp_path)
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**about, "use_dora": False}))
    with pytest.raises(PretrainedError, match="without a place: .*lora_magnitude_vector"):
        load_pretrained(tmp_path, device="cpu")


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_soft_prompts_are_refused_in_words(base, tmp_path, kind):
    config = getattr(peft, kind)(num_virtual_tokens=5, task_type="CAUSAL_LM")
    made = adapted(base, config)
    made.save_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match="5 soft tokens of the kind P.*Load the base"):
        load_pretrained(tmp_path, device="cpu")
    library = transformers.AutoTokenizer.from_pretrained(base)
    with pytest.raises(PretrainedError, match="5 soft tokens"):
        Pretrained(made, library)


def test_a_base_that_is_not_there_is_named(base, tmp_path):
    place = shutil.copytree(base, tmp_path / "base")
    adapted(place, KINDS["LoRA"]()).save_pretrained(tmp_path / "adapter")
    shutil.rmtree(place)
    with pytest.raises(PretrainedError, match="base: no model could be read"):
        load_pretrained(tmp_path / "adapter", device="cpu")
