"""A causal language model that knows nothing, made on the spot: what runs where no pretrained one is installed."""

from functools import lru_cache

import torch

from ..sources.corpora import load_corpus
from .pretrained import Pretrained

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@lru_cache(maxsize=1)
def random_pretrained(layers: int = 8, vocab_size: int = 600, seed: int = 0) -> Pretrained:
    """A small Llama with random weights, byte-level pieces learned from `tales`, and a chat template.

    Its texts mean nothing, but it is built like the models that `load_pretrained` reads, so that all that holds for
    every such model can be shown and tested with it. Needs the library transformers.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=special, show_progress=False)  # fmt: skip
    pieces.train_from_iterator([load_corpus("tales").val], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, bos_token=special[1], eos_token=special[2])
    tokenizer.chat_template = CHAT
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=layers, max_position_embeddings=512,
                         initializer_range=0.2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
                         pad_token_id=2, **shape)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LlamaForCausalLM(config)
        network.get_input_embeddings().weight.data *= 2  # so that it prefers something; the head is the table, too
    return Pretrained(network, tokenizer, "random")
