"""The stories of `tales`, as many as a split holds: drawn once, then read from the cache folder."""

import hashlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from random import Random

from ..core.store import StoreError, cache_folder, write_atomic
from . import languages
from .languages.tales import TALES


def drawn(name: str, chars: int) -> str:
    """Whole stories, joined, with at least `chars` characters in total; `name` seeds them."""
    rng, stories, length = Random(name), [], 0
    while length < chars:
        stories.append(TALES.sample(rng))
        length += len(stories[-1])
    return "".join(stories)


def stories(name: str, chars: int) -> str:
    """As `drawn`, from a file of the cache folder where an earlier call has left it.

    The file is that of this name, this length and this grammar, and it begins with the SHA-256 of
    its text. A damaged one is written anew. Where none can be written, the text is drawn each time.
    """
    key = hashlib.sha256(f"{name} {chars} {_grammar()}".encode()).hexdigest()
    path = cache_folder() / "tales" / f"{key[:32]}.txt"
    with suppress(OSError):
        digest, _, text = path.read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() == digest:
            return text.decode("ascii")
    text = drawn(name, chars)
    content = text.encode("ascii")
    with suppress(StoreError):
        write_atomic(path, hashlib.sha256(content).hexdigest().encode(), b"\n", content)
    return text


@lru_cache(maxsize=1)
def _grammar() -> str:
    """SHA-256 of all the code that a story depends on."""
    digest = hashlib.sha256()
    for path in (*sorted(Path(languages.__file__).parent.glob("*.py")), Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()
