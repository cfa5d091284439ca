"""The choices of a story of `tales`: evenly, by weight, or a word that a character favours."""

from collections.abc import Iterable
from functools import lru_cache
from itertools import repeat
from math import fsum  # correctly rounded in every Python, unlike the built-in sum
from typing import NamedTuple

from .grammar import Choice
from .tales_world import PLACES, Story


class Turn(NamedTuple):
    """The grammar's state: the stage that continues the story, and the word just chosen.

    The stage adds this word to the story.
    """

    stage: str
    story: Story
    word: str = ""


def even(texts: Iterable[str], turn: Turn) -> tuple[Choice, ...]:
    """Choices from texts that are equally probable."""
    texts = tuple(texts)
    return tuple(Choice(text, 1 / len(texts), turn) for text in texts)


def weighted(*options: tuple[str, float, Turn]) -> tuple[Choice, ...]:
    """Choices from (text, weight, turn); an option with weight 0 is left out."""
    total = fsum(weight for _, weight, _ in options)
    return tuple(Choice(text, weight / total, turn) for text, weight, turn in options if weight)


class Drawn(NamedTuple):
    """Words to draw from: the text that each one writes, its probability, and the word itself."""

    texts: tuple[str, ...]
    probabilities: tuple[float, ...]
    words: tuple[str, ...]


@lru_cache(maxsize=4096)
def drawn(
    form: str,
    words: tuple[str, ...],
    favourites: tuple[str, ...] = (),
    urgent: tuple[str, ...] = (),
    without: str = "",
) -> Drawn:
    """All words except `without`, with their probabilities.

    Favourites share 60 %, and all words share the rest evenly. Urgent words, if there are any,
    share half of everything. The shares are those before `without` is removed.
    """
    weights = dict.fromkeys(words, 0.4 / len(words))
    for word in favourites:
        weights[word] += 0.6 / len(favourites)
    for word in urgent:
        weights[word] += 1 / len(urgent)
    weights.pop(without, None)
    total = fsum(weights.values())
    texts = tuple(form.format(word, at=PLACES.get(word)) for word in weights)
    return Drawn(texts, tuple(weight / total for weight in weights.values()), tuple(weights))


def pick(stage: str, story: Story, words: Drawn) -> tuple[Choice, ...]:
    """One choice per word; each leads to the stage, which adds its word to the story."""
    turns = map(Turn, repeat(stage), repeat(story), words.words)
    return tuple(map(Choice, words.texts, words.probabilities, turns))


def pick_place(stage: str, story: Story, owner: int, form: str, **rules) -> tuple[Choice, ...]:
    """One choice per place, with the owner's places as favourites; `rules` are those of `drawn`."""
    return pick(
        stage, story, drawn(form, tuple(PLACES), story.character(owner).role.places, **rules)
    )
