"""Slots of the past rewritten: as if they had always been so; facts are what the story says."""

import pytest
import torch

from conftest import enliven
from softar_lab.data.corpora import tales_words
from softar_lab.data.languages.tales import answer
from softar_lab.data.languages.tales_world import CHARACTERS, THINGS
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.data.tokenizers.word_level import FIRST
from softar_lab.models.config import ModelConfig
from softar_lab.models.soft_ar import SoftAR
from softar_studies.slot_editing import (
    COMPANY,
    STRENGTHS,
    answer_probs,
    enrich,
    held_facts,
    planted,
    slot_vector,
    tales_enrichment,
)

WORDS = tales_words()


@pytest.fixture(scope="module")
def model():
    tokenizer = CharTokenizer(tuple(chr(FIRST + i) for i in range(len(WORDS.words))))
    shape = {"context": 80, "n_layers": 1, "n_heads": 2, "d_model": 16, "embedding_dim": 8}
    return enliven(
        SoftAR(ModelConfig(vocab_size=tokenizer.vocab_size, **shape), tokenizer), 0, 0.15
    )


@pytest.fixture(scope="module")
def facts():
    return held_facts(WORDS, 20, seed=3)


def test_facts_are_what_their_stories_say(facts):
    for fact in facts:
        said = [WORDS.words[i] for i in fact.token_ids.tolist()]
        story = WORDS.decode("".join(chr(FIRST + i) for i in fact.token_ids.tolist()))
        assert answer(story.removesuffix(" The") + " ") == f"The {WORDS.words[fact.answer]}."
        assert said[fact.thing] == WORDS.words[fact.answer]
        assert said.count(said[fact.thing]) == 1
        assert said[fact.holder] == said[-4]  # What does the HOLDER have ? The
        assert said[fact.other] in CHARACTERS
        assert said[fact.other] != said[fact.holder]
        assert WORDS.words[fact.wrong] in said
        assert {WORDS.words[i] for i in fact.others} == set(THINGS) - set(said)


@pytest.mark.slow
def test_facts_are_determined_by_the_seed(facts):
    again, other = held_facts(WORDS, 20, seed=3), held_facts(WORDS, 20, seed=4)
    assert all(
        a.token_ids.equal(b.token_ids) and a.others == b.others for a, b in zip(facts, again)
    )
    assert any(
        len(a.token_ids) != len(b.token_ids) or not a.token_ids.equal(b.token_ids)
        for a, b in zip(facts, other)
    )


def test_edited_stories_read_at_once_are_slots_replaced_late(model, facts):
    """What `answer_probs` reads in one pass is what `replace` and `enrich` make of a story that was
    read already.
    """
    blank, vector = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    found = answer_probs(model, facts[:4], planted(lambda _: vector, "holder", 2, blank))
    for fact, probs in zip(facts, found):
        state = model.read(model.start(), token_ids=fact.token_ids[None])
        state = model.replace(state, fact.thing, blank[None, None])
        more = 2 * vector / vector.norm() * slot_vector(state, fact.holder).norm()
        state = enrich(model, state, fact.holder, more[None])
        torch.testing.assert_close(model.probs(state)[0], probs, atol=1e-5, rtol=1e-4)


def test_unedited_is_what_the_model_says(model, facts):
    for fact, probs in zip(facts, answer_probs(model, facts)):
        state = model.read(model.start(), token_ids=fact.token_ids[None])
        torch.testing.assert_close(model.probs(state)[0], probs, atol=1e-5, rtol=1e-4)


def test_a_missing_slot_is_refused(model, facts):
    state = model.read(model.start(), token_ids=facts[0].token_ids[None])
    with pytest.raises(ValueError, match=r"slot 99 is not in the context, which holds 0 … "):
        slot_vector(state, 99)


def test_table_has_every_edit_and_probabilities(model, facts):
    frame = tales_enrichment(model, facts)
    assert len(frame) == 2 * (2 + 6 * len(STRENGTHS) + len(COMPANY))
    assert not frame.duplicated(["way", "at", "what"]).any()
    assert frame["value"].between(0, 1).all()
    value = frame.set_index(["way", "at", "what"])["value"]
    assert value["summed", 1, "answer"] == pytest.approx(
        value["full", 0, "answer"]
    )  # a sum of one is what was told
