"""A Hugging Face tokenizer with the lab's interface: tokens are pieces of text, or special."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from ...core.checks import unicode_text
from .continuation import Continuation, cutter_without_prefix

REPLACEMENT = "\ufffd"
BLOCK, AROUND = 64, 16  # tokens whose characters are counted together, and those read around them
Span = tuple[int, int]  # begin and end of a token in a text


class PieceTokenizer:
    """Text to ids and back by `library`, a tokenizer of transformers.

    `vocab_size` is the model's, which may be larger. Special tokens written in a text, such as
    "<|im_end|>", are read as special tokens, so that a chat is a text like any other (`chat`).
    `unk_id`: the library's own unknown token, which a text that no piece covers becomes. None: such
    a text is cut into bytes, or `unknown_in` counts its characters.
    """

    def __init__(self, library: Any, vocab_size: int):
        self.library, self.vocab_size = library, vocab_size
        self.unk_id: int | None = library.unk_token_id

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
        """Ids (T,) of a text; nothing is added before or after it.

        Raises:
            ValueError: where the text is not valid Unicode.
        """
        return torch.tensor(self._cut(text)["input_ids"], dtype=torch.int64)

    def encode_with_lengths(self, text: str) -> tuple[Int64[Tensor, " T"], Int64[Tensor, " T"]]:
        """Ids (T,) of a text, and the number of its characters that each stands for (T,).

        The lengths add up to the text that was given, also where the library changes it before it
        cuts it: composes accents, lowers capitals, drops spaces. If several tokens spell one
        character, the first gets it. Spaces that no token covers belong to the token after them,
        all else to the token before. A warning counts what the model reads as unknown.

        Raises:
            ValueError: where the text is not valid Unicode, or the library changes it and does not
                tell where its tokens are.
        """
        if not self.library.is_fast:
            ids = self.encode(text)
            if self.decode(ids) != text:
                raise ValueError(
                    f"{type(self.library).__name__} reads another text than the one given, and does "
                    "not tell which characters its tokens stand for; there is no figure per character"
                )
            return ids, self.lengths(ids)
        return self.with_lengths(text, *self._spans(text))

    def with_lengths(
        self, text: str, ids: list[int], spans: list[Span]
    ) -> tuple[Int64[Tensor, " T"], Int64[Tensor, " T"]]:
        """Ids (T,), and lengths (T,) from where each token lies in the text."""
        if unknown := self._unknown(text, ids, spans):
            some = ", ".join(repr(part) for part in [*dict.fromkeys(unknown)][:5])
            warnings.warn(
                f"{len(unknown)} parts of the text are no tokens of the model ({some}): it reads each "
                "as its unknown token, whatever stands there, so figures per character are too low",
                stacklevel=3,
            )
        return torch.tensor(ids, dtype=torch.int64), _characters(spans, text)

    def decode(self, ids: Tensor | np.ndarray | Sequence[int]) -> str:
        """The text of ids (T,), special tokens included.

        Tokens that stand for bytes spell characters together; bytes that spell none become U+FFFD.

        Raises:
            ValueError: where an id is outside the vocabulary.
        """
        ids = torch.as_tensor(ids, dtype=torch.int64).tolist()
        if wrong := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"id {wrong[0]} is not in 0..{self.vocab_size - 1}")
        return self.library.decode(self._spelled(ids), clean_up_tokenization_spaces=False)

    def lengths(self, ids: Int64[Tensor, " T"]) -> Int64[Tensor, " T"]:
        """Number of characters that each token adds to the decoded text (T,).

        If several tokens spell one character, the first gets it. A text that was given may be
        another one than its ids decode to: see `encode_with_lengths`.
        """
        ids, found = ids.tolist(), [0] * len(ids)
        first = 0  # the first token of a character that is not complete yet
        for begin in range(0, len(ids), BLOCK):
            # read some tokens before, because a space may depend on them, and some behind, because
            # a character may end there
            start, end = max(0, begin - AROUND), min(begin + BLOCK, len(ids))
            text = self.decode(ids[start : end + AROUND])
            done = _common(self.decode(ids[start:begin]), text)
            for i in range(begin, end):
                read = self.decode(ids[start : i + 1])
                new = max(0, _common(read, text) - done)
                found[first], done = found[first] + new, done + new
                if len(read) <= done:
                    first = i + 1
                elif new:
                    first = i  # it completes a character and begins another
        return torch.tensor(found, dtype=torch.int64)

    def after(self, prompt: str) -> "PieceTokenizer | Continuation":
        """The tokenizer of a text behind a prompt."""
        return Continuation(self, prompt) if prompt and self.library.is_fast else self

    def unknown_in(self, text: str) -> dict[str, int]:
        """Counts of a text's characters that the model cannot tell from others; {} if there are none.

        They become the library's unknown token or, where it has none, nothing at all.
        """
        if not self.library.is_fast:
            unknown = [c for c in text if self.unk_id in self.encode(c).tolist()]
            return dict(Counter(unknown)) if self.unk_id is not None else {}
        ids, spans = self._spans(text)
        return dict(Counter("".join(self._unknown(text, ids, spans)) + self._lost(text, spans)))

    @cached_property
    def puts_space_before(self) -> bool:
        """Whether the library puts a space before a text."""
        return self.decode(torch.cat([self.encode("a"), self.encode("a")])) != "aa"

    @cached_property
    def inner(self) -> Any:
        """What cuts a text for the library, without a space before it."""
        return cutter_without_prefix(self.library.backend_tokenizer)

    def _cut(self, text: str, **more: bool) -> Mapping[str, Any]:
        """What the library makes of a text."""
        unicode_text(text)
        return self.library(text, add_special_tokens=False, verbose=False, **more)

    def _spans(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids of a text, and where each token lies in it."""
        found = self._cut(text, return_offsets_mapping=True)
        return found["input_ids"], found["offset_mapping"]

    def _unknown(self, text: str, ids: list[int], spans: list[Span]) -> list[str]:
        """The parts of a text that the model reads as its unknown token."""
        parts = [text[slice(*span)] for i, span in zip(ids, spans, strict=True) if i == self.unk_id]
        return [part for part in parts if part and part != self.library.unk_token]

    def _lost(self, text: str, spans: list[Span]) -> str:
        """The characters of a text that no token covers, though the library did not drop them."""
        covered = np.zeros(len(text), bool)
        for begin, end in spans:
            covered[begin:end] = True
        found = "".join(char for char, ok in zip(text, covered) if not ok and not char.isspace())
        normalizer = self.library.backend_tokenizer.normalizer
        dropped = {c for c in set(found) if normalizer and not normalizer.normalize_str(c)}
        # an accent that was composed with its letter is a token where it stands alone
        lost = {c for c in set(found) - dropped if not len(self.encode(c))}
        return "".join(char for char in found if char in lost)

    @cached_property
    def _bytes(self) -> dict[int, int]:
        """The byte that each token stands for by itself, where the library spells with such tokens."""
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        known = self.library.get_vocab()
        if not all(name in known for name in names):
            return {}
        ids = [known[name] for name in names]
        spells = self.library.decode([ids[0xC3], ids[0xA9]]) == "\u00e9"
        return {i: byte for byte, i in enumerate(ids)} if spells else {}

    def _spelled(self, ids: list[int]) -> list[int]:
        """Ids in which every run of bytes is valid.

        The library makes a whole run U+FFFD if one byte of it spells nothing.
        """
        if not any(i in self._bytes for i in ids):
            return ids
        found: list[int] = []
        of_byte = {byte: i for i, byte in self._bytes.items()}
        for is_byte, run in groupby(ids, self._bytes.__contains__):
            if is_byte:
                text = bytes(self._bytes[i] for i in run).decode("utf-8", "replace")
                found += [of_byte[byte] for byte in text.encode()]
            else:
                found += run
        return found

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


def _common(one: str, other: str) -> int:
    """Number of characters with which both texts begin."""
    if other.startswith(one):
        return len(one)
    return next(
        (i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other))
    )


def _characters(spans: Sequence[Span], text: str) -> Int64[Tensor, " T"]:
    """How many characters of a text belong to each token (T,); all of them, once."""
    found, done, last = [0] * len(spans), 0, 0
    for i, (begin, end) in enumerate(spans):
        if i and begin > done:  # between tokens: spaces belong to this one, all else to the last
            before = len(text[done:begin].rstrip())
            found[last], done = found[last] + before, done + before
        if end > done:
            found[i], done, last = end - done, end, i
    if found:
        found[last] += len(text) - done
    return torch.tensor(found, dtype=torch.int64)
