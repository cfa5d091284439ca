"""Words as letters: each word becomes one character, so that character models read words."""

import re
from dataclasses import dataclass
from functools import cached_property

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

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word: its index in `words`."""
        return {word: i for i, word in enumerate(self.words)}
