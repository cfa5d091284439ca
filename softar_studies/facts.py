"""Facts of `tales` in several wordings: what is new and what is known is known exactly (K27)."""

from random import Random
from typing import NamedTuple

import pandas as pd
import torch

from softar_lab import SoftAR
from softar_lab.data.languages.tales_world import CHARACTERS, DWELLINGS, OPENINGS, PLACES, THINGS
from softar_lab.data.tokenizers.word_level import WordAlphabet
from softar_lab.memory.knowledge_base import KnowledgeBase, Passages


class Fact(NamedTuple):
    """Who has what, or who is where, with a question and its one right answer."""

    wordings: tuple[str, ...]
    question: str
    answer: str


def holding(name: str, thing: str) -> Fact:
    """`name` has `thing`."""
    wordings = (
        f"The {name} had the {thing}.",
        f"The {name} held the {thing}.",
        f"In the bag of the {name} was the {thing}.",
        f"The {name} found the {thing}.",
        f"The {name} took the {thing}.",
    )
    return Fact(wordings, f"What does the {name} have?", thing)


def being(name: str, place: str) -> Fact:
    """`name` is at `place`."""
    at = PLACES[place]
    wordings = tuple(
        f"{opening}{name} {dwelling}{at} the {place}."
        for opening in OPENINGS[:3]
        for dwelling in DWELLINGS[:2]
    )
    wordings += (f"The {name} went to the {place}.",)
    return Fact(wordings, f"Where is the {name}?", place)


def facts(seed: int = 0, each: int = 2) -> list[Fact]:
    """So many things and so many places of every character, drawn at random, in random order."""
    rng, found = Random(f"facts/{seed}"), []
    for name in CHARACTERS:
        found += [holding(name, thing) for thing in rng.sample(THINGS, each)]
        found += [being(name, place) for place in rng.sample(sorted(PLACES), each)]
    rng.shuffle(found)
    return found


def encoder_of_rows(model: SoftAR, alphabet: WordAlphabet, texts: list[str]) -> Passages:
    """Passages as sums of a word model's rows, less their mean; a word without a row counts 0."""
    rows = model.embedding.detach()
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=-1)
    numbers: dict[str, int] = {}
    for number, word in enumerate(alphabet.words):
        numbers.setdefault(word.lower(), number)
    nothing = torch.zeros(rows.shape[1])
    return Passages(texts, lambda word: rows[numbers[word]] if word in numbers else nothing)


def same_facts(seed: int = 99) -> list[tuple[str, str]]:
    """Pairs of wordings of the same fact."""
    return [(a, b) for fact in facts(seed) for a in fact.wordings for b in fact.wordings if a < b]


def tell(base: KnowledgeBase, seed: int = 0, again: int = 2) -> pd.DataFrame:
    """Tell a knowledge base facts in one wording and later in others.

    Args:
        base: what reads them.
        seed: of the facts and their order.
        again: in how many other wordings each fact is told again.

    Returns:
        One row per passage: passage, new (whether its fact is), added, novelty.
    """
    rng, rows, later = Random(seed), [], []
    for fact in facts(seed):
        first, *others = rng.sample(fact.wordings, 1 + again)
        rows.append({"new": True, **vars(base.read(first))})
        later += others
    rng.shuffle(later)
    rows += [{"new": False, **vars(base.read(passage))} for passage in later]
    return pd.DataFrame(rows)[["passage", "new", "added", "novelty", "nearest"]]


def ask(base: KnowledgeBase, seed: int = 0) -> pd.DataFrame:
    """Ask for every fact: question, answer, source, right.

    An answer is right where a fact that was told has it, and the source is a wording of that fact.
    """
    told, rows = facts(seed), []
    for question in sorted({fact.question for fact in told}):
        among = PLACES if question.startswith("Where") else THINGS
        found = base.answer(question, list(among))
        rights = [fact for fact in told if (fact.question, fact.answer) == (question, found.text)]
        right = any(found.source in fact.wordings for fact in rights)
        rows.append(
            {"question": question, "answer": found.text, "source": found.source, "right": right}
        )
    return pd.DataFrame(rows)
