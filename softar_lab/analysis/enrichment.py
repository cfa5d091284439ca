"""Slots rewritten later (K6): what a model still knows when a fact is erased, or put into another slot than its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.soft_ar import SoftAR
from ..models.state import SoftState
from ..sources.corpora import tales_words
from ..sources.tales import TALES, question_parts
from ..sources.tales_world import CHARACTERS, THINGS
from ..sources.words import PIECE, WordAlphabet


def slot_vector(state: SoftState, slot: int) -> Float[Tensor, "B m"]:
    """What stands in a slot of the context. Raises ValueError for a slot that is not in it."""
    if not state.begin <= slot < state.end:
        raise ValueError(f"slot {slot} is not in the context, which holds {state.begin} … {state.end - 1}")
    return torch.cat(state.inputs, 1)[:, slot - state.begin]


def enrich(model: SoftAR, state: SoftState, slot: int, vectors: Float[Tensor, "B m"]) -> SoftState:
    """The state there would be had the slot held its vector *plus* these from the start; the rest as `replace` does."""
    return model.replace(state, slot, (slot_vector(state, slot) + vectors)[:, None])


@dataclass(frozen=True)
class Fact:
    """A story up to the answer to "What does … have?", which is one thing, told of once.

    token_ids (T,) of words; the slots of the `thing`, of the `holder` who is asked about and of the `other` character,
    each where the story names them last before the question; `answer`, the thing's id, and `wrong`, that of the other
    thing of the story; `others` are the things it does not name, in random order.
    """

    token_ids: Int[Tensor, " T"]
    thing: int
    holder: int
    other: int
    answer: int
    wrong: int
    others: tuple[int, ...]


def held_facts(words: WordAlphabet, count: int, seed: int = 0) -> list[Fact]:
    """`count` facts of fresh stories of `tales`, told by the seed."""
    rng, facts = Random(f"facts/{seed}"), []
    while len(facts) < count:
        if fact := _fact(words, TALES.sample(rng), rng):
            facts.append(fact)
    return facts


def _fact(words: WordAlphabet, story: str, rng: Random) -> Fact | None:
    told, question, answer = (PIECE.findall(part) for part in question_parts(story))
    if question[0] != "What" or len(answer) != 4:  # The, thing, full stop, end of line
        return None
    asked, thing = question[3], answer[1]
    (wrong,) = {word for word in told if word in THINGS} - {thing}
    (other,) = {word for word in told if word in CHARACTERS} - {asked}
    if told.count(thing) > 1:
        return None
    last = {word: len(told) - 1 - told[::-1].index(word) for word in (thing, asked, other)}
    others = tuple(words.ids[word] for word in rng.sample(THINGS, len(THINGS)) if word not in (thing, wrong))
    read = torch.tensor([words.ids[word] for word in [*told, *question, answer[0]]])
    return Fact(read, last[thing], last[asked], last[other], words.ids[thing], words.ids[wrong], others)


Edit = Callable[[Tensor, Fact], Tensor]
"""(the rows of a fact's tokens (T, m), the fact) -> the vectors (T, m) that stand in the slots instead."""


Edit = Callable[[Tensor, Fact], None]
"""Changes the rows of a fact's tokens (T, m) where they stand; then these are what the slots hold."""


@torch.inference_mode()
def answer_probs(model: SoftAR, facts: Sequence[Fact], edit: Edit | None = None) -> Float[Tensor, "N V"]:
    """p of every word in the answer's place (N, V), after stories and questions whose slots `edit` has rewritten.

    A slot that is rewritten late and one that held this from the start are the same to the model (`SoftAR.replace`), so
    each story is read once, as edited.
    """
    found = []
    for first in range(0, len(facts), 64):
        part = facts[first : first + 64]
        rows = [model.embedding[fact.token_ids] for fact in part]
        for row, fact in zip(rows, part):
            if edit is not None:
                edit(row, fact)
        ends = torch.tensor([len(row) for row in rows])
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # what follows the answer's place is not seen
        hidden = model.hidden_states(vectors=padded)[torch.arange(len(part)), ends]
        found.append(model.objective.predict(hidden, model.table.weight).probs)
    return torch.cat(found)


def planted(what: Callable[[Fact], Tensor], slot: str, strength: float | int, blank: Tensor) -> Edit:
    """Erase the thing (its slot holds `blank` (m,)), then add `strength` times a vector of length 1 to another slot.

    `what`: the vector (m,) of a fact; `slot`: "holder", "other" or "thing", the slot itself. Measured in units of what
    stands in the slot: at strength 1 both are equally long.
    """

    def edit(rows: Tensor, fact: Fact) -> None:
        rows[fact.thing] = blank
        at, vector = getattr(fact, slot), what(fact)
        rows[at] += strength * vector * (rows[at].norm() / vector.norm().clamp_min(1e-12))

    return edit


STRENGTHS = (0.5, 1, 2, 4, 8)
COMPANY = (1, 2, 3, 5, 9)


def tales_enrichment(model: SoftAR, facts: Sequence[Fact]) -> pd.DataFrame:
    """What a model of "tales-words" answers once slots are rewritten: columns way, at, what, value (mean p over facts).

    `way`: "full", nothing done; "erased", the thing's slot holds the mean of all things; "thing", "another" or "random"
    planted in a slot `at` some strength (see `planted`), "random" being a random direction; "summed": the thing's slot
    holds the sum of `at` things. `what`: p of the true "answer", or of the "another" thing that the story never names.
    """
    table, generator = model.embedding, torch.Generator().manual_seed(0)
    things = table[torch.tensor([tales_words().ids[thing] for thing in THINGS])]
    noise = torch.randn(len(facts), table.shape[1], generator=generator)
    random = {id(fact): row for fact, row in zip(facts, noise)}
    blank = things.mean(0)
    vectors: dict[str, Callable[[Fact], Tensor]] = {
        "thing": lambda fact: table[fact.answer],
        "another": lambda fact: table[fact.others[0]],
        "random": lambda fact: random[id(fact)],
    }

    def summed(n: int) -> Edit:
        def edit(rows: Tensor, fact: Fact) -> None:
            rows[fact.thing] = table[[fact.answer, *fact.others[: n - 1]]].sum(0)

        return edit

    def erase(rows: Tensor, fact: Fact) -> None:
        rows[fact.thing] = blank

    ways: dict[tuple[str, float], Edit | None] = {("full", 0): None, ("erased", 0): erase}
    for slot, name, strength in product(("holder", "other"), vectors, STRENGTHS):
        ways[f"{name} in the {slot}'s slot", strength] = planted(vectors[name], slot, strength, blank)
    ways |= {("summed", n): summed(n) for n in COMPANY}
    asked = {"answer": [fact.answer for fact in facts], "another": [fact.others[0] for fact in facts]}
    rows = []
    for (way, at), edit in ways.items():
        probs = answer_probs(model, facts, edit)
        for what, ids in asked.items():
            value = probs.gather(1, torch.tensor(ids)[:, None]).mean().item()
            rows.append({"way": way, "at": float(at), "what": what, "value": value})
    return pd.DataFrame(rows)
