"""Words as letters: each word becomes one character, so that character models read words."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from .subword import checked_ids

PIECE = re.compile(r"\w+|[^\w ]")  # a word or a mark; `decode` restores single spaces
FIRST = 0xE000  # first code point that Unicode reserves for private use
MOST = 0xF8FF - FIRST + 1  # number of these code points


@dataclass(frozen=True)
class WordAlphabet:
    """An alphabet with one letter per word: word i of `words` is the code point FIRST + i.

    A `CharTokenizer` that has all these letters gives word i the token id i.

    Raises:
        ValueError: where `words` are not distinct words or single marks, or are more than MOST.
    """

    words: tuple[str, ...]

    def __post_init__(self):
        if (
            not self.words
            or len(set(self.words)) < len(self.words)
            or not all(map(PIECE.fullmatch, self.words))
        ):
            raise ValueError(
                f"words must be distinct words or single marks, at least one, not {self.words!r:.80}"
            )
        if len(self.words) > MOST:
            raise ValueError(
                f"{len(self.words):,} words are more than the {MOST:,} letters there are"
            )

    @classmethod
    def fit(cls, text: str) -> "WordAlphabet":
        """The alphabet of a text's words and marks, sorted.

        Raises:
            ValueError: where the text has no word and no mark, or too many different ones.
        """
        return cls(tuple(sorted(set(PIECE.findall(text)))))

    def encode(self, text: str) -> str:
        """The text with one letter per word.

        Raises:
            ValueError: at the first word that is not in the alphabet.
        """
        try:
            return "".join(chr(FIRST + self.ids[word]) for word in PIECE.findall(text))
        except KeyError as error:
            raise ValueError(
                f"the word {error.args[0]!r} of {text!r:.60} is not among the {len(self.words)}"
            ) from None

    def decode(self, letters: str) -> str:
        """The text of these letters, with single spaces between words.

        There is no space before a mark or after the end of a line.

        Raises:
            ValueError: at a character that stands for no word.
        """
        ids = [ord(letter) - FIRST for letter in letters]
        if wrong := [letter for letter, i in zip(letters, ids) if not 0 <= i < len(self.words)]:
            raise ValueError(
                f"{wrong[0]!r} is no letter of this alphabet of {len(self.words)} words"
            )
        return re.sub(r" (?=[^\w ])|(?<=\n) ", "", " ".join(self.words[i] for i in ids))

    def tokenizer(self) -> "WordTokenizer":
        """The same alphabet as a tokenizer of plain text.

        A model of these letters reads and writes words with it: the ids are the same.
        """
        return WordTokenizer(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word: its index in `words`."""
        return {word: i for i, word in enumerate(self.words)}


@dataclass(frozen=True, repr=False)
class WordTokenizer:
    """One token per word or mark of a plain text.

    Args:
        words: the distinct words and marks, in the order of their ids.
        before: the last character of the text in front, "" at the beginning. It decides whether a
            space comes before the first word.

    Raises:
        ValueError: as `WordAlphabet` does.
    """

    words: tuple[str, ...]
    before: str = ""
    unk_id = None  # no word stands for an unknown one

    def __post_init__(self):
        object.__setattr__(self, "words", WordAlphabet(tuple(self.words)).words)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The words and marks."""
        return self.words

    @property
    def vocab_size(self) -> int:
        """Number of words and marks."""
        return len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word."""
        return {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> Int64[Tensor, " T"]:
        """Token ids (T,) of the words and marks of a text; spaces between them do not count.

        Raises:
            ValueError: at the first unknown word; the message names it and its position.
        """
        return self.encode_with_lengths(text)[0]

    def encode_with_lengths(self, text: str) -> tuple[Int64[Tensor, " T"], Int64[Tensor, " T"]]:
        """Ids (T,), and the number of characters that each stands for: its word and what is between
        it and the word before; the last one also has the spaces behind it.
        """
        found, ends = [], [0]
        for match in PIECE.finditer(text):
            if match.group() not in self.ids:
                raise ValueError(
                    f"unknown word {match.group()!r} at position {match.start()}; the model knows "
                    f"{len(self.words)} words"
                )
            found.append(self.ids[match.group()])
            ends.append(match.end())
        if found:
            ends[-1] = len(text)
        ids = torch.tensor(found, dtype=torch.long)
        return ids, torch.from_numpy(np.diff(ends))

    def decode(self, ids: Tensor | np.ndarray | Sequence[int]) -> str:
        """The text of token ids (T,), with single spaces between words.

        Raises:
            ValueError: where ids are not one row of whole numbers, or one is outside the vocabulary.
        """
        return "".join(self._spelled(ids))

    def lengths(self, ids: Int64[Tensor, " T"]) -> Int64[Tensor, " T"]:
        """Number of characters that each token stands for, its space included."""
        return torch.tensor([len(word) for word in self._spelled(ids)], dtype=torch.long)

    def after(self, prompt: str) -> "WordTokenizer":
        """The tokenizer of a text behind a prompt."""
        return replace(self, before=prompt[-1:] or self.before)

    def unknown_in(self, text: str) -> dict[str, int]:
        """Count, for each word of a text that is not a token, how often it occurs."""
        counts = Counter(PIECE.findall(text))
        return {word: counts[word] for word in sorted(counts) if word not in self.ids}

    def to_dict(self) -> dict:
        """The data that a checkpoint saves, ready for JSON."""
        return {"type": "words", "words": list(self.words)}

    @classmethod
    def from_dict(cls, saved: dict) -> "WordTokenizer":
        """The tokenizer whose `to_dict` gave this dictionary.

        Raises:
            ValueError: where the dictionary does not come from a word tokenizer.
        """
        words = saved.get("words") if isinstance(saved, dict) else None
        if not isinstance(words, list) or saved.get("type") != "words":
            raise ValueError(
                f'a word tokenizer is saved as {{"type": "words", "words": [...]}}, not {saved!r:.80}'
            )
        return cls(tuple(words))

    def _spelled(self, ids: Tensor | np.ndarray | Sequence[int]) -> list[str]:
        """Each word with the space before it, where there is one."""
        found, last = [], self.before
        for i in checked_ids(ids, self.vocab_size).tolist():
            word = self.words[i]
            spaced = last not in ("", " ", "\n") and (word[0].isalnum() or word[0] == "_")
            found.append(" " + word if spaced else word)
            last = word[-1]
        return found

    def __repr__(self) -> str:
        return f"WordTokenizer({self.vocab_size} words: {' '.join(self.words)!r:.60})"
