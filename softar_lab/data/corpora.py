"""Corpora: texts in a training, a validation and a test split, identified by their hash."""

import hashlib
import logging
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pooch

from ..core.store import cache_folder
from .languages import Language, Recall, mess3, slow_chain
from .languages.tales import TALES, TALES_LANGUAGE
from .stories import drawn, stories
from .tokenizers.word_level import WordAlphabet

SPLITS = ("train", "val", "test")
SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_FILE = "tinyshakespeare.txt"
SHAKESPEARE_BYTES = 1_115_394
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_TALES_CHARS = {"train": 1_000_000, "val": 60_000, "test": 60_000}


class CorpusError(ValueError):
    """A corpus that is not available; the message gives the reason and what would help."""


@dataclass(frozen=True, repr=False)
class Corpus:
    """A text in three splits.

    Args:
        name: the name of the corpus; it does not enter the hash.
        train, val, test: the text of each split.
        floor_bits_per_char: bits per character that the true language itself needs on val;
            None where it is unknown.
        separator: the character that ends every document; None where the text is one piece.

    Raises:
        CorpusError: where a split is empty or no text.
    """

    name: str
    train: str
    val: str
    test: str
    floor_bits_per_char: float | None = None
    separator: str | None = None

    def __post_init__(self):
        for name in (*SPLITS, "separator"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name == "separator" and value is None):
                raise CorpusError(f"{self.name}: {name} must be a text, not {value!r:.80}")
        for split in SPLITS:
            if not getattr(self, split):
                raise CorpusError(f"{self.name}: the split {split!r} is empty")

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of the three splits; the name does not count."""
        digest = hashlib.sha256()
        for split in SPLITS:
            content = getattr(self, split).encode("utf-8", "surrogatepass")
            # the length comes first, so that two different triples never give the same bytes
            digest.update(len(content).to_bytes(8, "big"))
            digest.update(content)
        return digest.hexdigest()

    def documents(self, split: str) -> list[str]:
        """The documents of a split, each with its separator; joined, they give the split again.

        Raises:
            ValueError: where there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        text = getattr(self, split)
        if self.separator is None:
            return [text]
        pieces = text.split(self.separator)
        return [piece + self.separator for piece in pieces[:-1]] + [
            piece for piece in pieces[-1:] if piece
        ]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split}={len(getattr(self, split)):,}" for split in SPLITS)
        floor = (
            ""
            if self.floor_bits_per_char is None
            else f", floor {self.floor_bits_per_char:.4f} bits/char"
        )
        return f"Corpus({self.name!r}, {sizes} chars{floor}, sha256 {self.sha256[:12]}…)"


def load_corpus(name_or_path: str | os.PathLike, seed: int = 0) -> Corpus:
    """Load a built-in corpus by its name, or any UTF-8 text file by its path.

    The names are "shakespeare", "topics", "tales", "tales-words", "mess3", "recall" and "chain".
    "tales", "mess3", "recall" and "chain" are drawn from languages (`load_language`), and every
    seed draws new texts. "tales-words" is "tales" with one letter per word (`tales_words`). "shakespeare" is
    downloaded once and saved in the folder $SOFTAR_CACHE, by default the user's cache; so are the
    stories of "tales" once they are drawn.

    Running text is split as in nanoGPT, where val is the last 10 % and train the text before it,
    with one difference: the first 5 % of the text are test. So train is next to val, and our
    figures profit from it as the published figures do. A seed other than 0 first rotates the text
    so that it starts at a random line.

    In a file, a leading byte order mark is dropped and \\r\\n becomes \\n. Nothing else is changed.

    Raises:
        CorpusError: where there is no such corpus, or it cannot be downloaded, read or split.
    """
    if isinstance(name_or_path, str) and name_or_path in _BUILT_IN:
        return _BUILT_IN[name_or_path](seed)
    path = Path(name_or_path)
    return _cut(path.name, _read(path), seed)


def corpus_of(
    language: Language,
    train: int = 200_000,
    val: int = 20_000,
    test: int = 20_000,
    seed: int = 0,
    name: str | None = None,
) -> Corpus:
    """Draw a corpus from a language with known probabilities: independent splits with their floor.

    Documents stay whole: a last document that does not fit is dropped. The floor is what the true
    language needs for this val text. It is exact, and it is scored as models are: where the text
    is one piece, its first character does not count. A model with tokenizer=language.tokenizer
    uses the same ids.

    Args:
        language: the language to sample.
        train, val, test: size of each split, in characters.
        seed: seed of the sample; each split derives its own seed from it.
        name: name of the corpus; by default the language's class in lower case.

    Raises:
        CorpusError: where a split is too small for one document or, in running text, for two
            characters.
    """
    name, texts = name or type(language).__name__.lower(), {}
    # 1) sample each split with its own seed and drop an unfinished last document
    for i, (split, chars) in enumerate(zip(SPLITS, (train, val, test), strict=True)):
        own_seed = int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0])
        text = language.tokenizer.decode(language.sample(chars, seed=own_seed)[0])
        texts[split] = (
            text if language.separator is None else text[: text.rfind(language.separator) + 1]
        )
        if len(texts[split]) < 2:
            least = "2 characters" if language.separator is None else "a whole document"
            raise CorpusError(f"{name}: {split} must be enough for {least}, not {chars}")
    # 2) score val with the true language, in bits per character
    bits = -language.log_probs(language.tokenizer.encode(texts["val"])[None])[0] / math.log(2)
    floor = bits[int(language.separator is None) :].mean()
    return Corpus(name, **texts, floor_bits_per_char=float(floor), separator=language.separator)


@lru_cache(maxsize=2)  # callers can share a corpus, because it never changes
def _tales(seed: int) -> Corpus:
    splits = {
        split: stories(f"tales/{seed}/{split}", chars) for split, chars in _TALES_CHARS.items()
    }
    floor = -TALES.char_log_probs(splits["val"]).sum() / math.log(2) / len(splits["val"])
    return Corpus("tales", **splits, floor_bits_per_char=float(floor), separator="\n")


@lru_cache(maxsize=1)
def tales_words() -> WordAlphabet:
    """The alphabet of "tales-words": each word and mark of the story language is one letter."""
    return WordAlphabet.fit(drawn("tales/0/train", 100_000))


@lru_cache(maxsize=1)
def _tales_words(seed: int) -> Corpus:
    """The stories of `tales` word by word, with four times as many stories to train on.

    A story has about a fourth as many words as characters. Four seeds of `tales` make one here, so
    that two seeds share no stories.
    """
    first = 4 * seed
    alphabet, corpus = tales_words(), _tales(first)
    more = (stories(f"tales/{first + i}/train", _TALES_CHARS["train"]) for i in (1, 2, 3))
    splits = {split: alphabet.encode(getattr(corpus, split)) for split in SPLITS}
    splits["train"] += "".join(map(alphabet.encode, more))
    # the same number of bits, spread over fewer letters
    floor = corpus.floor_bits_per_char * len(corpus.val) / len(splits["val"])
    return Corpus(
        "tales-words", **splits, floor_bits_per_char=floor, separator=alphabet.encode("\n")
    )


def _shakespeare(seed: int) -> Corpus:
    folder = cache_folder()
    path = folder / SHAKESPEARE_FILE
    if not path.is_file():
        _fetch_shakespeare(path)
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHAKESPEARE_SHA256:
        raise CorpusError(
            f"{path} is not Tiny Shakespeare: expected sha256 {SHAKESPEARE_SHA256}, found {found}. "
            "Remove the file and it will be fetched again"
        )
    return _cut("shakespeare", content.decode("ascii"), seed)


def _fetch_shakespeare(path: Path) -> None:
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)  # a note on stderr would change a notebook's stored output
    try:  # pooch downloads to a temporary name and moves the file only once its hash is right
        pooch.retrieve(
            SHAKESPEARE_URL, f"sha256:{SHAKESPEARE_SHA256}", fname=path.name, path=path.parent
        )
    except (OSError, ValueError) as error:
        # OSError: no network or no permission to write; ValueError: the hash is wrong
        raise CorpusError(
            f"Tiny Shakespeare could not be fetched from {SHAKESPEARE_URL} ({error}). "
            f"Put it by hand at {path}: {SHAKESPEARE_BYTES:,} bytes, sha256 {SHAKESPEARE_SHA256}"
        ) from error
    finally:
        logger.setLevel(level)


def _topics(seed: int) -> Corpus:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise CorpusError("this Python came without pydoc_data, the text of its help()") from error
    return _cut("topics", "\n".join(topics[key] for key in sorted(topics)), seed)


_LANGUAGES: dict[str, Callable[[], Language]] = {
    "chain": slow_chain,
    "mess3": mess3,
    "recall": Recall,
    "tales": lambda: TALES_LANGUAGE,
}


def load_language(name: str) -> Language:
    """The true language behind a corpus of that name: "chain", "mess3", "recall" or "tales".

    Raises:
        ValueError: where there is no such language.
    """
    if name not in _LANGUAGES:
        raise ValueError(f"no language {name!r}; known: {', '.join(sorted(_LANGUAGES))}")
    return _LANGUAGES[name]()


_BUILT_IN: dict[str, Callable[[int], Corpus]] = {
    "chain": lambda seed: corpus_of(slow_chain(), 400_000, seed=seed, name="chain"),
    "mess3": lambda seed: corpus_of(mess3(), 400_000, seed=seed, name="mess3"),
    "recall": lambda seed: corpus_of(Recall(), 800_000, seed=seed, name="recall"),
    "shakespeare": _shakespeare,
    "tales": _tales,
    "tales-words": _tales_words,
    "topics": _topics,
}


def _read(path: Path) -> str:
    """The text of a file; error messages name the file and the problem."""
    if path.is_dir():
        raise CorpusError(f"{path} is a folder; a corpus is one UTF-8 text file")
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except FileNotFoundError:
        known = ", ".join(sorted(_BUILT_IN))
        raise CorpusError(f"{path} is neither a file nor a built-in corpus ({known})") from None
    except UnicodeDecodeError as error:
        guess = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
        raise CorpusError(
            f"{path} is not UTF-8: {error.reason} at byte {error.start}. If it is {guess}, save it as UTF-8: "
            f"path.write_text(path.read_text({guess!r}), 'utf-8')"
        ) from None
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path} cannot be read: {error}") from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if not text:
        raise CorpusError(f"{path} is empty")
    return text


def _cut(name: str, text: str, seed: int) -> Corpus:
    """Split running text, which first rotates to a random line unless the seed is 0."""
    if seed:
        starts = [match.end() for match in re.finditer("\n", text[:-1])]
        if not starts:
            raise CorpusError(f"{name} is a single line, so only seed 0 can split it")
        start = starts[int(Random(seed).random() * len(starts))]
        text = text[start:] + text[:start]
    ends = 0, int(0.05 * len(text)), int(0.9 * len(text)), len(text)
    if any(start == end for start, end in pairwise(ends)):
        raise CorpusError(
            f"{name} is too short to be split: {len(text)} characters, 20 always suffice"
        )
    test, train, val = (text[start:end] for start, end in pairwise(ends))
    return Corpus(name, train, val, test)
