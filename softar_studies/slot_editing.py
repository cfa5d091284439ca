"""Slots rewritten later (K6): what a model still knows when a fact is erased or put elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from softar_lab.data.corpora import tales_words
from softar_lab.data.languages.tales import TALES, question_parts
from softar_lab.data.languages.tales_world import CHARACTERS, THINGS
from softar_lab.data.tokenizers.word_level import PIECE, WordAlphabet
from softar_lab.models.soft_ar import SoftAR
from softar_lab.models.state import SoftState


def slot_vector(state: SoftState, slot: int) -> Float[Tensor, "B m"]:
    """The vector in a slot of the context.

    Raises:
        ValueError: where the context does not hold the slot.
    """
    if not state.begin <= slot < state.end:
        raise ValueError(
            f"slot {slot} is not in the context, which holds {state.begin} … {state.end - 1}"
        )
    return torch.cat(state.inputs, 1)[:, slot - state.begin]


def enrich(model: SoftAR, state: SoftState, slot: int, vectors: Float[Tensor, "B m"]) -> SoftState:
    """The state as if the slot had held its vector *plus* `vectors` from the start.

    The rest is as in `replace`.
    """
    return model.replace(state, slot, (slot_vector(state, slot) + vectors)[:, None])


@dataclass(frozen=True)
class Fact:
    """A story up to the answer to "What does … have?": one thing that the story names once.

    Each slot is the last place before the question where the story names the thing or character.

    Args:
        token_ids: the words (T,).
        thing: the slot of the thing.
        holder: the slot of the character asked about.
        other: the slot of the other character.
        answer: the id of the thing.
        wrong: the id of the story's other thing.
        others: the ids of the things that the story does not name, in random order.
    """

    token_ids: Int[Tensor, " T"]
    thing: int
    holder: int
    other: int
    answer: int
    wrong: int
    others: tuple[int, ...]


def held_facts(words: WordAlphabet, count: int, seed: int = 0) -> list[Fact]:
    """`count` facts from new stories of `tales`, determined by the seed."""
    rng, facts = Random(f"facts/{seed}"), []
    while len(facts) < count:
        if fact := _fact(words, TALES.sample(rng), rng):
            facts.append(fact)
    return facts


def _fact(words: WordAlphabet, story: str, rng: Random) -> Fact | None:
    """The fact of a story; None where the story has another question or names the thing twice."""
    before, question, answer = (PIECE.findall(part) for part in question_parts(story))
    if question[0] != "What" or len(answer) != 4:  # The, thing, full stop, end of line
        return None
    asked, thing = question[3], answer[1]
    (wrong,) = {word for word in before if word in THINGS} - {thing}
    (other,) = {word for word in before if word in CHARACTERS} - {asked}
    if before.count(thing) > 1:
        return None
    last = {word: len(before) - 1 - before[::-1].index(word) for word in (thing, asked, other)}
    others = tuple(
        words.ids[word] for word in rng.sample(THINGS, len(THINGS)) if word not in (thing, wrong)
    )
    read = torch.tensor([words.ids[word] for word in [*before, *question, answer[0]]])
    return Fact(
        read, last[thing], last[asked], last[other], words.ids[thing], words.ids[wrong], others
    )


Edit = Callable[[Tensor, Fact], None]
"""Changes the rows of a fact's tokens (T, m) where they stand; then these are what the slots hold."""


@torch.inference_mode()
def answer_probs(
    model: SoftAR, facts: Sequence[Fact], edit: Edit | None = None
) -> Float[Tensor, "N V"]:
    """p of every word in the answer's place (N, V), after `edit` has rewritten slots.

    To the model, a slot that is rewritten later equals one that held the vector from the start
    (`SoftAR.replace`). So each story is read once, as edited.
    """
    found = []
    for first in range(0, len(facts), 64):
        part = facts[first : first + 64]
        rows = [model.embedding[fact.token_ids] for fact in part]
        for row, fact in zip(rows, part):
            if edit is not None:
                edit(row, fact)
        ends = torch.tensor([len(row) for row in rows])
        # the padding comes after the answer's place and is not seen
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        hidden = model.hidden_states(vectors=padded)[torch.arange(len(part)), ends]
        found.append(model.objective.predict(hidden, model.table.weight).probs)
    return torch.cat(found)


def planted(
    what: Callable[[Fact], Tensor], slot: str, strength: float | int, blank: Tensor
) -> Edit:
    """An edit that erases the thing, then adds a vector to a slot.

    Args:
        what: gives the vector (m,) of a fact.
        slot: "holder", "other" or "thing" (the erased slot itself).
        strength: length of the added vector in units of the vector in the slot: at 1 both are
            equally long.
        blank: the vector (m,) that the thing's slot holds afterwards.
    """

    def edit(rows: Tensor, fact: Fact) -> None:
        rows[fact.thing] = blank
        at, vector = getattr(fact, slot), what(fact)
        rows[at] += strength * vector * (rows[at].norm() / vector.norm().clamp_min(1e-12))

    return edit


STRENGTHS = (0.5, 1, 2, 4, 8)
COMPANY = (1, 2, 3, 5, 9)


def tales_enrichment(model: SoftAR, facts: Sequence[Fact]) -> pd.DataFrame:
    """What a "tales-words" model answers after slots are rewritten.

    Returns:
        Columns `way`, `at`, `what` and `value` (mean p over facts).
        `way` is the edit. "full": none. "erased": the thing's slot holds the mean of all things.
        "thing", "another" or "random" in a slot: that vector is planted with strength `at` (see
        `planted`); "random" is a random direction. "summed": the thing's slot holds the sum of `at`
        things.
        `what` is p of the true "answer", or of "another" thing that the story never names.
    """
    edits = _edits(model.embedding, facts)
    asked = {
        "answer": [fact.answer for fact in facts],
        "another": [fact.others[0] for fact in facts],
    }
    # for every edit, p of both things in the answer's place
    rows = []
    for (name, at), edit in edits.items():
        probs = answer_probs(model, facts, edit)
        for what, ids in asked.items():
            value = probs.gather(1, torch.tensor(ids)[:, None]).mean().item()
            rows.append({"way": name, "at": float(at), "what": what, "value": value})
    return pd.DataFrame(rows)


def _edits(
    table: Float[Tensor, "V m"], facts: Sequence[Fact]
) -> dict[tuple[str, float | int], Edit | None]:
    """The edits of `tales_enrichment`, by `way` and `at`."""
    # 1) the vectors to plant
    generator = torch.Generator().manual_seed(0)
    things = table[torch.tensor([tales_words().ids[thing] for thing in THINGS])]
    noise = torch.randn(len(facts), table.shape[1], generator=generator)
    random = {id(fact): row for fact, row in zip(facts, noise)}
    blank = things.mean(0)
    vectors: dict[str, Callable[[Fact], Tensor]] = {
        "thing": lambda fact: table[fact.answer],
        "another": lambda fact: table[fact.others[0]],
        "random": lambda fact: random[id(fact)],
    }

    # 2) the edits
    def summed(n: int) -> Edit:
        def edit(rows: Tensor, fact: Fact) -> None:
            rows[fact.thing] = table[[fact.answer, *fact.others[: n - 1]]].sum(0)

        return edit

    def erase(rows: Tensor, fact: Fact) -> None:
        rows[fact.thing] = blank

    edits: dict[tuple[str, float | int], Edit | None] = {("full", 0): None, ("erased", 0): erase}
    for slot, name, strength in product(("holder", "other"), vectors, STRENGTHS):
        edits[f"{name} in the {slot}'s slot", strength] = planted(
            vectors[name], slot, strength, blank
        )
    return edits | {("summed", n): summed(n) for n in COMPANY}
