"""Several slots decided at once, held against every way to decide them."""

from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from bounds import exact
from test_generate import batch_against_one_by_one

from softar_lab.data.languages import Markov
from softar_lab.generation import Deferred, EveryK, Retro, collapse, generate
from softar_lab.generation.beam_search import beam
from softar_lab.generation.deferred import Runs
from softar_lab.generation.engine_state import EngineState

JUDGE = Markov([[0.1, 0.5, 0.4], [0.2, 0.2, 0.6], [0.7, 0.1, 0.2]], "abc")


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("deferred(0)", "look"),
        ("deferred(2.5)", "look"),
        ("deferred(width=0)", "width"),
        ("deferred(weight=-1)", "weight"),
        ("deferred(judge='tale')", "no language 'tale'"),
        ("deferred(judge=3)", "judge"),
    ],
)
def test_deferred_names_what_is_wrong(spec, named):
    with pytest.raises(ValueError, match=f"(?s){named}"):
        collapse.resolve(spec)


def test_deferred_is_what_its_spec_says():
    assert collapse.resolve("deferred(4, 'mess3', weight=0.5)") == Deferred(4, "mess3", 8, 0.5)
    assert (
        collapse.COLLAPSES.spec(Deferred()) == "deferred(look=8, judge=None, width=8, weight=1.0)"
    )


@pytest.mark.parametrize("weight", [0, 0.5, 2])
def test_beam_wide_enough_finds_the_best_of_all(weight):
    log_probs = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    state = JUDGE.read(JUDGE.start(2), torch.tensor([[0], [2]]))
    found = beam(log_probs, JUDGE, state, 27, weight)
    for row, first in enumerate((0, 2)):

        def score(word, row=row, first=first):
            judged = JUDGE.log_probs(torch.tensor([[first, *word]]))[0, 1:].sum().item()
            return sum(log_probs[t, row, w].item() for t, w in enumerate(word)) + weight * judged

        assert found[:, row].tolist() == list(max(product(range(3), repeat=4), key=score))


# -- when runs end ----------------------------------------------------------------------------------------------------


def ends(look, steps, hard):
    """(step, length) of every run of one row; hard[t] is what the schedule says of the latest slots
    at t.
    """
    engine = EngineState.__new__(EngineState)  # runs ask it for these only
    engine.config, engine.first = SimpleNamespace(steps=steps), [0]
    engine.collapse = SimpleNamespace(look=look)
    runs, found = Runs(engine), []
    for t, flags in enumerate(hard):
        ending = runs._ending(t, torch.tensor([flags], dtype=torch.bool))
        found += [(t, length) for length in ending]
    return found


@pytest.mark.parametrize(
    ("look", "hard", "expected"),
    [
        (8, [[1]] * 3, [(0, 1), (1, 1), (2, 1)]),
        (8, [[0], [0], [1], [0], [1], [0]], [(2, 3), (4, 2), (5, 1)]),
        (2, [[0]] * 5, [(1, 2), (3, 2), (4, 1)]),
        (3, [[0], [0], [0], [1], [0]], [(2, 3), (3, 1), (4, 1)]),
        (
            8,
            [[0], [0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]],
            [(2, 3), (3, 3), (4, 3)],
        ),  # retro(2): a lag
        (
            2,
            [[0], [0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]],
            [(1, 2), (3, 2), (4, 1)],
        ),  # decided before it is grounded
    ],
)
def test_a_run_ends_where_a_slot_of_it_must_be_emitted(look, hard, expected):
    assert ends(look, len(hard), hard) == expected


# -- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["always", "every(3)", "never"])
def test_look_one_is_the_symbol_by_p_times_the_judge(tiny, when):
    """The judge: the model reading hard tokens. At weight 1 both have their say, at weight 0 only
    p.
    """
    model = tiny(objective="mse", context=60)
    for weight in (0, 1):
        found = generate(
            model, "abc", 12, collapse=Deferred(1, weight=weight), schedule=when, seed=1
        )
        text = model.tokenizer.encode("abc" + found.text)
        judged = model.next_log_probs(text[None])[0, 3:]
        vectors = torch.cat([model.embedding[text[:3]], found.inputs])[None, :-1]
        p = model.objective.predict(
            model.hidden_states(vectors=vectors)[0, 3:], model.table.weight
        ).log_probs
        assert found.token_ids.tolist() == (p + weight * judged).argmax(-1).tolist()


def letters(tiny, **shape):
    """A model that writes a, b and c, like the judge."""
    return tiny(letters="abc", objective="mse", embedding_dim=8, **shape)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_run_shows_the_best_of_all_its_symbols_together(tiny, k):
    model = letters(tiny, context=60)
    found = generate(model, "ab", 10, collapse=Deferred(8, JUDGE, 81), schedule=EveryK(k), seed=2)
    prompt = model.tokenizer.encode("ab")
    vectors = torch.cat([model.embedding[prompt], found.inputs])[None, :-1]
    p = model.objective.predict(
        model.hidden_states(vectors=vectors)[0, 2:], model.table.weight
    ).log_probs
    shown = prompt.tolist()
    for begin in range(0, 10, k):
        n = min(k, 10 - begin)

        def score(word, begin=begin, n=n, before=tuple(shown)):
            judged = JUDGE.log_probs(torch.tensor([[*before, *word]]))[0, -n:].sum().item()
            return sum(p[begin + i, w].item() for i, w in enumerate(word)) + judged

        shown += max(product(range(3), repeat=n), key=score)
    assert found.token_ids.tolist() == shown[2:]
    rows = p.gather(1, found.token_ids[:, None]).squeeze(1).detach()
    torch.testing.assert_close(
        found.log_probs, rows, **exact(model)
    )  # of what was shown in the end
    assert found.text == model.tokenizer.decode(found.token_ids)
    hard = model.embedding[found.token_ids[found.collapsed]]
    assert torch.equal(found.inputs[found.collapsed], hard)
    assert found.collapsed.tolist() == [(t + 1) % k == 0 for t in range(10)]


@pytest.mark.slow
@pytest.mark.parametrize("look", [2, 3, 8])
def test_what_is_grounded_late_is_what_was_decided(tiny, look):
    model = letters(tiny, context=60)
    found = generate(model, "ab", 20, collapse=Deferred(look, JUDGE), schedule=Retro(2), seed=2)
    assert found.collapsed.tolist() == [True] * 18 + [False] * 2
    assert torch.equal(found.inputs[:18], model.embedding[found.token_ids[:18]])
    assert found.text != generate(model, "ab", 20, schedule=Retro(2), seed=2).text


@dataclass(frozen=True)
class Nosy:
    """A schedule that keeps what the reader, and a fresh one, say of all that was shown."""

    seen: list

    def __call__(self, context):
        along, fresh = context.run.aligned_state(JUDGE), JUDGE.start(len(context.step))
        for token_ids in context.run.tokens:
            fresh = JUDGE.advance(fresh, token_ids=token_ids)
        self.seen.append(torch.equal(along.log_probs, JUDGE.predict(fresh).log_probs))
        return (context.step + 1) % 3 == 0


def test_who_reads_along_goes_back_to_what_was_revised(tiny):
    seen = []
    generate(
        letters(tiny),
        ["ab", "", "c"],
        20,
        collapse=Deferred(2, JUDGE),
        schedule=Nosy(seen),
        seed=[1, 2, 3],
    )
    assert all(seen)
    assert len(seen) == 22


@pytest.mark.slow
@pytest.mark.parametrize("when", ["always", "every(3)", "never", "retro(2)", "random", "liquid(3)"])
def test_a_deferred_batch_is_its_prompts_one_by_one(tiny, when):
    model = tiny(objective="mse", context=24, scale=0.15)
    batch_against_one_by_one(model, 9, 1e-4, collapse=Deferred(4), schedule=when)


@pytest.mark.slow
def test_a_deferred_text_far_beyond_the_context_and_what_is_flushed(tiny):
    model = letters(tiny)
    for when in ("every(5)", "retro(3)", "never"):
        found = generate(model, "ab", 300, collapse=Deferred(4, JUDGE), schedule=when, seed=3)
        assert len(found.text) == 300
        assert found.text == model.tokenizer.decode(found.token_ids)
        inside = found.collapsed
        assert torch.equal(found.inputs[inside], model.embedding[found.token_ids[inside]])


def test_a_stopped_text_decides_what_is_left(tiny):
    """Seven steps of a run of eight: decided with the text, as a text of seven steps is."""
    model, asked = letters(tiny, context=60), []
    options = {"collapse": Deferred(8, JUDGE), "schedule": "never", "seed": 4, "temperature": 1.5}
    found = generate(model, "ab", 30, stop=lambda: asked.append(1) or len(asked) > 7, **options)
    assert found.text == generate(model, "ab", 7, **options).text
    assert found.text != generate(model, "ab", 7, **{**options, "collapse": "softmax"}).text


def test_a_predictor_without_vectors_may_defer():
    found = generate(JUDGE, "a", 20, collapse="deferred(3)", seed=1)
    text = JUDGE.tokenizer.encode("a" + found.text)[None]
    assert torch.equal(
        JUDGE.next_log_probs(text)[0, 1:].argmax(-1), found.token_ids
    )  # the best by p times p


def test_unequal_prompts_take_runs_of_unequal_lengths(tiny):
    model = letters(tiny, context=24, scale=0.15)
    written = generate(
        model,
        ["abc", "", "ccccc"],
        11,
        collapse=Deferred(8, JUDGE),
        schedule="every(4)",
        seed=[1, 2, 3],
    )
    for one, seed in zip(written, (1, 2, 3), strict=True):
        alone = generate(
            model, one.prompt, 11, collapse=Deferred(8, JUDGE), schedule="every(4)", seed=seed
        )
        assert one.text == alone.text
