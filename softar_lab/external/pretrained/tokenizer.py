"""A Hugging Face tokenizer with the lab's interface: tokens are pieces of text, or special."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

REPLACEMENT = "\ufffd"


class PieceTokenizer:
    """Text to ids and back by `library`, a tokenizer of transformers.

    `vocab_size` is the model's, which may be larger. Special tokens written in a text, such as
    "<|im_end|>", are read as special tokens, so that a chat is a text like any other (`chat`).
    `unk_id` is None: text that no piece covers is cut into bytes, or becomes the library's own
    unknown token.
    """

    unk_id = None

    def __init__(self, library: Any, vocab_size: int):
        self.library, self.vocab_size = library, vocab_size

    @cached_property
    def begin_id(self) -> int | None:
        """The token that `library` itself puts before every text; None where it puts none."""
        ids = self.library("a")["input_ids"]
        return ids[0] if ids and ids[0] == self.library.bos_token_id else None

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The V pieces as text, all distinct.

        A piece that is no text by itself, such as a part of a letter, is in angle brackets.
        """
        # 1) each piece as the library stores it, and as it decodes by itself
        pieces = self.library.convert_ids_to_tokens(list(range(len(self.library))))
        pieces += [f"unused {i}" for i in range(len(pieces), self.vocab_size)]
        spoken = self.library.batch_decode([[i] for i in range(len(self.library))])
        spoken += [REPLACEMENT] * (self.vocab_size - len(spoken))
        # 2) take the decoded text where it is readable and unique, else the stored form
        twice = {piece for piece, count in Counter(spoken).items() if count > 1}
        special = set(self.library.all_special_tokens)
        names = [
            said if (said and REPLACEMENT not in said and said not in twice) or piece in special
            else piece.replace("\u2581", " ") if said in twice and piece.startswith("\u2581") else f"<{piece}>"
            for piece, said in zip(pieces, spoken, strict=True)
        ]  # fmt: skip
        # 3) number the names that still occur twice
        if len(set(names)) < len(names):
            names = [
                f"{name}#{i}" if names.count(name) > 1 else name for i, name in enumerate(names)
            ]
        return tuple(names)

    def encode(self, text: str) -> Int64[Tensor, " T"]:
        """Ids (T,) of a text; nothing is added before or after it."""
        return torch.tensor(
            self.library(text, add_special_tokens=False)["input_ids"], dtype=torch.int64
        )

    def decode(self, ids: Tensor | np.ndarray | Sequence[int]) -> str:
        """The text of ids (T,), special tokens included.

        Raises:
            ValueError: where an id is outside the vocabulary.
        """
        ids = torch.as_tensor(ids, dtype=torch.int64).tolist()
        if wrong := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"id {wrong[0]} is not in 0..{self.vocab_size - 1}")
        return self.library.decode(ids, clean_up_tokenization_spaces=False)

    def lengths(self, ids: Int64[Tensor, " T"]) -> Int64[Tensor, " T"]:
        """Number of characters that each token adds to the text (T,).

        If several tokens spell one character, the first gets it.
        """
        ids, found = ids.tolist(), [0] * len(ids)
        # text is decoded from token `context` on; its first `before` characters, those of the
        # tokens before `first`, are already counted
        context, first, before = 0, 0, 0
        for i in range(len(ids)):
            # decode with the token before, because a space may depend on it
            text = self.decode(ids[context : i + 1])
            if text.endswith(REPLACEMENT) and i + 1 < len(ids) and i - first < 4:
                continue  # a character of up to four UTF-8 bytes is not complete yet
            found[first] = len(text) - before
            context, first, before = i, i + 1, len(self.decode(ids[i : i + 1]))
        return torch.tensor(found, dtype=torch.int64)

    def unknown_in(self, text: str) -> dict[str, int]:
        """Counts of a text's characters that become the library's unknown token; {} if none do."""
        unknown = self.library.unk_token_id
        if unknown is None or unknown not in self.encode(text).tolist():
            return {}
        return {
            char: n for char, n in Counter(text).items() if unknown in self.encode(char).tolist()
        }

    def chat(self, messages: str | Sequence[Mapping[str, str]]) -> str:
        """A conversation in the model's training format, up to its answer: a prompt for generate().

        `messages`: the user's message, or all messages as [{"role": "user", "content": …}, …].

        Raises:
            ValueError: where the model has no chat template.
        """
        if not getattr(self.library, "chat_template", None):
            raise ValueError(
                "this model has no chat template: give it a text to go on with instead"
            )
        messages = (
            [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        )
        return self.library.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )

    @property
    def end_id(self) -> int | None:
        """The token with which the model ends an answer or a text; None where it has none."""
        return self.library.eos_token_id

    def spoken(self, text: str) -> str:
        """An answer up to the token that ends it."""
        return text.split(self.library.eos_token)[0] if self.library.eos_token else text

    def __repr__(self) -> str:
        return f"PieceTokenizer({self.vocab_size} pieces of {type(self.library).__name__})"
