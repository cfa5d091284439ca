"""Words as letters: a text whose every word is one character, so that all that reads characters reads words."""

import re
from dataclasses import dataclass
from functools import cached_property

PIECE = re.compile(r"\w+|[^\w ]")  # a word or a mark; single spaces are put back by `decode`
FIRST = 0xE000  # code points that Unicode leaves to private use
MOST = 0xF8FF - FIRST + 1


@dataclass(frozen=True)
class WordAlphabet:
    """One letter a word: word i of `words` is written as the code point FIRST + i, and so has token id i.

    Raises ValueError where words are no distinct words or marks, or more than there is room for.
    """

    words: tuple[str, ...]

    def __post_init__(self):
        if not self.words or len(set(self.words)) < len(self.words) or not all(map(PIECE.fullmatch, self.words)):
            raise ValueError(f"words must be distinct words or single marks, at least one, not {self.words!r:.80}")
        if len(self.words) > MOST:
            raise ValueError(f"{len(self.words):,} words are more than the {MOST:,} letters there are")

    @classmethod
    def fit(cls, text: str) -> "WordAlphabet":
        """The words and marks of a text, sorted. Raises ValueError where there is none."""
        return cls(tuple(sorted(set(PIECE.findall(text)))))

    def encode(self, text: str) -> str:
        """A text, one letter a word. Raises ValueError at the first word that is not in the alphabet."""
        try:
            return "".join(chr(FIRST + self.ids[word]) for word in PIECE.findall(text))
        except KeyError as error:
            raise ValueError(f"the word {error.args[0]!r} of {text!r:.60} is not among the {len(self.words)}") from None

    def decode(self, letters: str) -> str:
        """The text: words with single spaces between them, none before a mark or after a line's end.

        Raises ValueError at a character that stands for no word.
        """
        ids = [ord(letter) - FIRST for letter in letters]
        if wrong := [letter for letter, i in zip(letters, ids) if not 0 <= i < len(self.words)]:
            raise ValueError(f"{wrong[0]!r} is no letter of this alphabet of {len(self.words)} words")
        return re.sub(r" (?=[^\w ])|(?<=\n) ", "", " ".join(self.words[i] for i in ids))

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word: its place in the alphabet."""
        return {word: i for i, word in enumerate(self.words)}
