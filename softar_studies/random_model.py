"""A causal language model with random weights, for use where no pretrained one is installed."""

from functools import lru_cache

import torch

from softar_lab.data.corpora import load_corpus
from softar_lab.external.pretrained.load import load_pretrained, smollm2_installed
from softar_lab.external.pretrained.wrapper import Pretrained

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@lru_cache(maxsize=1)
def random_pretrained(layers: int = 8, vocab_size: int = 600, seed: int = 0) -> Pretrained:
    """A small Llama with random weights, pieces of bytes learned from `tales` and a chat template.

    Its texts mean nothing. It is built like the models that `load_pretrained` reads, so everything
    that holds for each of them can be demonstrated and tested with it. It needs the library
    transformers.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    # 1) the tokenizer
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer, pieces.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=special, show_progress=False)  # fmt: skip
    pieces.train_from_iterator([load_corpus("tales").val], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token=special[1], eos_token=special[2]
    )
    tokenizer.chat_template = CHAT
    # 2) the network
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=layers, max_position_embeddings=512,
                         initializer_range=0.2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
                         pad_token_id=2, **shape)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LlamaForCausalLM(config)
        # so that it prefers some symbols: the table is also the head
        network.get_input_embeddings().weight.data *= 2
    return Pretrained(network, tokenizer, "random")


def smollm2_or_random() -> Pretrained:
    """SmolLM2-135M-Instruct where its package is installed, else `random_pretrained`."""
    return load_pretrained() if smollm2_installed() else random_pretrained()
