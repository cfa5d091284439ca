"""Tokenizers with units longer than a character that can still encode every text."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers as library
import torch
from jaxtyping import Int64
from torch import Tensor

# Unicode promises never to assign a character to these code points. Sixteen of them stand for the
# values of half a byte. One more begins the name of a bucket that is still empty. Where a text
# contains them nevertheless, they are spelled out like any unknown character.
HALF_BYTES = tuple(chr(0xFDD0 + value) for value in range(16))
EMPTY = chr(0xFDE0)
_SPELL = str.maketrans("0123456789abcdef", "".join(HALF_BYTES))
_SPEAK = {ord(half): digit for digit, half in zip("0123456789abcdef", HALF_BYTES)}
_SPELLED = re.compile(f"[{HALF_BYTES[0]}-{HALF_BYTES[-1]}]+")
WORD = re.compile(r" ?[^\s]+|\s")
LONGEST = 512  # characters of a word that are learned from together


def code_points(text: str) -> np.ndarray:
    """Code points of a text, lone surrogates included: (T,) uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def checked_ids(ids: Tensor | np.ndarray | Sequence[int], vocab_size: int) -> np.ndarray:
    """Token ids (T,) as an array, after a check.

    Raises:
        ValueError: where ids are not one row of whole numbers in 0 … vocab_size - 1.
    """
    ids = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if ids.shape == (0,):
        return ids.astype(np.int64)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"ids must be one row of whole numbers, not {ids.dtype} of shape {ids.shape}"
        )
    wrong = (ids < 0) | (ids >= vocab_size)
    if wrong.any():
        position = int(wrong.argmax())
        raise ValueError(f"id {ids[position]} at position {position} is not in 0..{vocab_size - 1}")
    return ids


@dataclass(frozen=True, repr=False)
class UnitTokenizer:
    """Base of tokenizers with longer units: characters, and merges that join two units into one.

    A text is first cut into words. A word includes the one space before it. All other white space
    stands alone, so that no unit crosses the end of a line or of a document. In each word, the
    oldest merge is applied first, from left to right, until no merge applies. The library
    `tokenizers` does this, once per distinct word.

    Decoding restores every text exactly. No character is unknown: a character outside `chars`,
    lone surrogates included, is spelled out as its UTF-8 bytes (a surrogate is encoded as if it
    were a character). Each byte becomes two of the 16 `HALF_BYTES`.

    Args:
        chars: the known characters, ascending.
        merges: pairs of units that were joined, oldest first.

    Raises:
        ValueError: where `chars` are not distinct, ascending single characters that UTF-8 can
            encode, or a merge joins something that is not a unit yet.
    """

    chars: tuple[str, ...]
    merges: tuple[tuple[str, ...], ...]
    kind = "bpe"
    unk_id = None

    def __post_init__(self):
        if not all(isinstance(char, str) and len(char) == 1 for char in self.chars):
            raise ValueError(f"chars must be single characters, not {self.chars!r:.80}")
        if self.chars != _characters("".join(self.chars)):
            raise ValueError(
                f"chars must be distinct, in ascending order and possible in UTF-8, not {self.chars!r:.80}"
            )
        units = {*self.chars, *HALF_BYTES}
        for pair in self.merges:
            if len(pair) != 2 or not units.issuperset(pair):
                raise ValueError(
                    f"merges must join two units that are there already, not {pair!r:.80}"
                )
            units.add("".join(pair))

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The tokens by id: characters, half bytes, then units in the order they were joined."""
        return (*self.chars, *HALF_BYTES, *self.units)

    @property
    def units(self) -> tuple[str, ...]:
        """The tokens that are longer than a character, oldest first."""
        return tuple(dict.fromkeys(left + right for left, right in self.merges))

    @property
    def _first(self) -> int:
        """The id of the first unit; characters and half bytes come before it."""
        return len(self.chars) + len(HALF_BYTES)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def encode(self, text: str) -> Int64[Tensor, " T"]:
        """Token ids (T,) of any text; the class says how the text is cut."""
        # 1) encode each distinct word once; its ids are ids[begins : begins + counts]
        words = WORD.findall(self._spelled(text))
        distinct = {word: i for i, word in enumerate(dict.fromkeys(words))}
        ids, counts = self._cut(list(distinct))
        begins = counts.cumsum() - counts
        # 2) copy these ids to every place where the word stands
        which = np.fromiter(map(distinct.__getitem__, words), np.int64, len(words))
        counts = counts[which]
        offsets = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        return torch.from_numpy(ids[np.repeat(begins[which], counts) + offsets])

    def decode(self, ids: Tensor | np.ndarray | Sequence[int]) -> str:
        """Text of token ids (T,).

        Half bytes that spell no character become U+FFFD. An empty bucket becomes the empty string.

        Raises:
            ValueError: where ids are not one row of whole numbers, or one id is outside the
                vocabulary; the message then names the id and its position.
        """
        written = "".join(
            map(self._written.__getitem__, checked_ids(ids, self.vocab_size).tolist())
        )
        return _SPELLED.sub(lambda spelled: _spoken(spelled.group()), written)

    def lengths(self, ids: Int64[Tensor, " T"]) -> Int64[Tensor, " T"]:
        """Number of characters that each token stands for in the decoded text, (T,).

        A character that is spelled out counts for the token in which its spelling begins.
        """
        pieces = [self._written[i] for i in ids.tolist()]
        codes = code_points(written := "".join(pieces))
        half = (codes >= ord(HALF_BYTES[0])) & (codes <= ord(HALF_BYTES[-1]))
        place = np.arange(len(codes))
        # 1, 2, … within a run of half bytes, 0 outside
        run = place - np.maximum.accumulate(np.where(half, -1, place))
        inside = (codes & 15) >> 2 == 2  # bytes 10xxxxxx continue a character
        begins = ~half | ((run % 2 == 1) & ~inside)
        for spelled in _SPELLED.finditer(written):
            if _valid(spelled.group()) is None:
                begins[spelled.start() : spelled.end()] = False
                begins[[spelled.start() + place for _, place in _read(spelled.group())]] = True
        owner = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
        return torch.from_numpy(np.bincount(owner[begins], minlength=len(pieces)).astype(np.int64))

    def encode_with_lengths(self, text: str) -> tuple[Int64[Tensor, " T"], Int64[Tensor, " T"]]:
        """Ids (T,) of a text, and the number of its characters that each stands for (T,)."""
        ids = self.encode(text)
        return ids, self.lengths(ids)

    def after(self, prompt: str) -> "UnitTokenizer":
        """The tokenizer of a text behind a prompt: this one."""
        return self

    def unknown_in(self, text: str) -> dict[str, int]:
        """The unknown characters of a text: none, so always {}."""
        return {}

    @classmethod
    def _plain(cls, text: str, vocab_size: int, **room: int) -> "UnitTokenizer":
        """A tokenizer that knows the characters of a text and has no units yet.

        Raises:
            ValueError: where the text is empty, or has too many characters for `vocab_size`.
        """
        if not text:
            raise ValueError("text must not be empty: its characters become the first tokens")
        plain = cls(_characters(text), (), **room)
        if vocab_size < plain._first:
            raise ValueError(
                f"vocab_size must be at least {plain._first}, for {len(plain.chars)} characters and "
                f"{len(HALF_BYTES)} half bytes, not {vocab_size}"
            )
        return plain

    def to_dict(self) -> dict:
        """The data that a checkpoint saves, ready for JSON."""
        return {
            "type": self.kind,
            "chars": list(self.chars),
            "merges": [list(pair) for pair in self.merges],
        }

    @classmethod
    def from_dict(cls, saved: dict) -> "UnitTokenizer":
        """The tokenizer whose `to_dict` gave this dictionary.

        Raises:
            ValueError: where the dictionary does not come from a tokenizer of this class.
        """
        if not isinstance(saved, dict) or saved.get("type") != cls.kind:
            raise ValueError(
                f'{cls.__name__} is saved as {{"type": "{cls.kind}", ...}}, not as {saved!r:.80}'
            )
        given = {name: _tuples(value) for name, value in saved.items() if name != "type"}
        try:
            return cls(**given)
        except TypeError:
            raise ValueError(
                f"{cls.__name__} is not made of {', '.join(given) or 'nothing'}"
            ) from None

    @cached_property
    def _written(self) -> tuple[str, ...]:
        return tuple("" if token.startswith(EMPTY) else token for token in self.tokens)

    @cached_property
    def _library(self) -> library.Tokenizer:
        ids = {token: i for i, token in enumerate(self.tokens) if not token.startswith(EMPTY)}
        return library.Tokenizer(library.models.BPE(ids, list(self.merges)))

    def _spelled(self, text: str) -> str:
        """The text with each unknown character written as half bytes."""
        return text.translate(
            {ord(char): _half_bytes(char) for char in set(text).difference(self.chars)}
        )

    def _cut(self, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all words, one word after the other, and the number of ids of each word."""
        found = self._library.encode(words, is_pretokenized=True)
        return np.array(found.ids, np.int64), np.bincount(
            np.array(found.word_ids, np.int64), minlength=len(words)
        )

    def __repr__(self) -> str:
        units = f"{', '.join(self.units)!r:.50}"
        return f"{type(self).__name__}({self.vocab_size} tokens, {len(self.units)} units: {units})"


class BPETokenizer(UnitTokenizer):
    """Byte-pair encoding, learned by the library `tokenizers`.

    Each step joins the pair that stands side by side most often. Words of more than `LONGEST`
    characters, such as a page of Chinese or of DNA, are learned from in parts of that length: the
    library needs a time that grows with the square of a word's length.
    """

    @classmethod
    def fit(cls, text: str, vocab_size: int) -> "BPETokenizer":
        """Learn at most `vocab_size` tokens, including the text's characters and 16 half bytes.

        Raises:
            ValueError: where the text is empty or has too many characters.
        """
        plain = cls._plain(text, vocab_size)
        learner = library.Tokenizer(library.models.BPE())
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=list(plain.tokens), show_progress=False
        )
        words = WORD.findall(plain._spelled(text))
        learner.train_from_iterator((part for word in words for part in _parts(word)), trainer)
        return cls(plain.chars, _tuples(json.loads(learner.to_str())["model"]["merges"]))


def _parts(word: str) -> Iterator[str]:
    """A word in parts of at most `LONGEST` characters."""
    return (word[begin : begin + LONGEST] for begin in range(0, len(word), LONGEST))


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, nested ones too."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _characters(text: str) -> tuple[str, ...]:
    """The distinct characters of a text, ascending.

    Surrogates, `HALF_BYTES` and `EMPTY` are left out: a tokenizer spells them out.
    """
    return tuple(sorted(set(text).difference(map(chr, range(0xD800, 0xE000)), HALF_BYTES, EMPTY)))


def _half_bytes(char: str) -> str:
    return char.encode("utf-8", "surrogatepass").hex().translate(_SPELL)


def _spoken(spelled: str) -> str:
    """The characters that a run of half bytes spells."""
    valid = _valid(spelled)
    return "".join(char for char, _ in _read(spelled)) if valid is None else valid


def _valid(spelled: str) -> str | None:
    """The characters that a run of half bytes spells; None where it spells no text."""
    if len(spelled) % 2:
        return None
    try:
        return bytes.fromhex(spelled.translate(_SPEAK)).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None


def _read(spelled: str) -> list[tuple[str, int]]:
    """Each character that a run of half bytes spells, and the place where its spelling begins.

    Bytes that spell none become U+FFFD, as Python's "replace" does it; so does half a byte.
    """
    odd = len(spelled) % 2
    data, at = bytes.fromhex(spelled[: len(spelled) - odd].translate(_SPEAK)), 0
    found: list[tuple[str, int]] = []
    while at < len(data):
        try:
            end, text = len(data), data[at:].decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            end = at + error.start
            text = data[at:end].decode("utf-8", "surrogatepass")
            wrong = [("\ufffd", 2 * end)]
            step = error.end - error.start
        else:
            wrong, step = [], 0
        for char in text:
            found.append((char, 2 * at))
            at += len(char.encode("utf-8", "surrogatepass"))
        found += wrong
        at = end + step
    return found + [("\ufffd", len(spelled) - 1)] * odd
