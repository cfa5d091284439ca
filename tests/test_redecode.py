"""A path read again says what generation would have said: exact for every collapse where no symbol
is fed back.
"""

import math
from dataclasses import fields, replace

import pytest
import torch
from bounds import exact

from softar_lab.generation import Trajectory, collapse, feedback, generate
from softar_lab.generation.redecode import path_is_free, read_again, redecode

SPECS = [
    *(name for name in collapse.names() if name != "deferred"),
    "nearest('cosine')",
    "nearest('dot')",
    "vote(20, 2)",
]


def same(found, expected, model):
    for field in fields(Trajectory):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(other, torch.Tensor) and other.is_floating_point():
            torch.testing.assert_close(one, other, **exact(model))
        elif field.name != "top_ids":  # equally good candidates may change places
            assert (
                one == other if not isinstance(other, torch.Tensor) else torch.equal(one, other)
            ), field.name


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_recollapse_of_a_soft_path_is_generation_with_the_other_collapse(tiny, spec, temperature):
    """Far beyond the context; draws agree unless rounding moves a boundary past one, which 80 of
    them do not see.
    """
    model = tiny(objective="energy(4)", context=14, scale=0.15, mixing=3)
    how = {"schedule": "never", "feedback": "raw", "temperature": temperature, "seed": 5}
    first = generate(model, "abc", 40, collapse="nearest", **how)
    expected = generate(model, "abc", 40, collapse=spec, **how)
    same(redecode(model, first, spec, seed=5), expected, model)


@pytest.mark.parametrize("objective", ["ce", "mse", "metric"])
@pytest.mark.parametrize("what", ["mixture", "raw", "norm-restored", "hidden"])
def test_recollapse_is_exact_for_every_feedback_that_does_not_look_at_the_symbol(
    tiny, objective, what
):
    model = tiny(objective=objective, scale=0.15)
    how = {"schedule": "never", "feedback": what, "seed": 2}
    first = generate(model, "", 30, collapse="nearest", **how)
    same(redecode(model, first, "softmax", seed=2), generate(model, "", 30, **how), model)
    assert redecode(model, first, "softmax", seed=2).text != first.text


@pytest.mark.parametrize(
    "what", [name for name in feedback.names() if not name.startswith("other")]
)
@pytest.mark.parametrize("schedule", ["never", "every(3)", "entropy(0.5)"])
def test_path_is_free_exactly_where_another_draw_leaves_it_as_it_was(tiny, schedule, what):
    model = tiny(objective="mse", scale=0.15)
    paths = [
        generate(model, "abc", 12, schedule=schedule, feedback=what, seed=seed).vectors
        for seed in (1, 2)
    ]
    assert path_is_free(schedule, what) == torch.equal(*paths)


def test_path_is_not_free_for_a_collapse_that_revises():
    assert path_is_free("never", "mixture", "nearest")
    assert not path_is_free("never", "mixture", "deferred")


def test_path_is_free_trusts_no_feedback_that_it_does_not_know():
    assert not path_is_free("never", lambda context: context.prediction.vector)
    with pytest.raises(ValueError, match="unknown feedback 'nothing'"):
        path_is_free("never", "nothing")


@pytest.mark.parametrize("schedule", ["always", "every(3)"])
@pytest.mark.parametrize("spec", ["softmax", "mixing"])
def test_recollapse_by_the_same_collapse_gives_the_text_back_whatever_was_fed(tiny, schedule, spec):
    model = tiny(objective="mse", scale=0.15, mixing=3)
    first = generate(model, "ab", 30, collapse=spec, schedule=schedule, temperature=0.7, seed=4)
    same(redecode(model, first, spec, seed=4), first, model)


@pytest.mark.parametrize("spec", ["softmax", "barycentric", "mixing"])
def test_recollapse_takes_both_temperatures_of_the_settings(tiny, spec):
    model = tiny(objective="mse", scale=0.15, mixing=3)
    how = {"schedule": "every(3)", "temperature": 0.7, "soft_temperature": 0, "seed": 4}
    first = generate(model, "ab", 30, collapse=spec, **how)
    same(redecode(model, first, spec, seed=4), first, model)


def test_recollapse_by_a_collapse_that_revises_says_who_asks_it_to(tiny):
    model = tiny(objective="mse")
    with pytest.raises(ValueError, match="several slots at once, which only generate"):
        redecode(model, generate(model, "ab", 5), "deferred")


def test_recollapse_leaves_the_path_and_changes_the_text(tiny):
    model = tiny(objective="mse")
    first = generate(model, "ab", 9, schedule="every(2)", temperature=0.5)
    found = redecode(model, first, "nearest", temperature=0)
    for name in ("vectors", "inputs", "entropy", "distance", "collapsed"):
        assert torch.equal(getattr(found, name), getattr(first, name))
    assert torch.equal(found.top_ids[:, :7], first.top_ids[:, :7])
    assert (found.top_ids == found.token_ids[:, None]).any(1).all()
    assert torch.equal(found.token_ids, collapse.nearest(first.vectors, model.embedding))
    assert found.text == model.tokenizer.decode(found.token_ids)
    expected = {"collapse": "nearest('l2')", "temperature": 0, "schedule": "every(2)"}
    assert expected.items() <= found.settings.items()
    assert first.settings["collapse"] == "softmax"
    assert not found.log_probs.is_inference()


def test_recollapse_takes_temperature_and_seed_of_the_settings(tiny):
    model = tiny(objective="mse")
    first = generate(model, "ab", 25, temperature=0.5, schedule="never")
    assert redecode(model, first, "softmax").text == first.text  # generate()'s seed is 0
    seeded = replace(first, settings={**first.settings, "seed": 9})
    assert (
        redecode(model, seeded, "softmax").text
        == redecode(model, first, "softmax", seed=9).text
        != first.text
    )


def test_recollapse_of_a_stored_path(tiny, tmp_path):
    model = tiny(objective="mse")
    first = generate(model, "ab", 9, schedule="never")
    first.save(tmp_path / "path")
    found = redecode(model, Trajectory.load(tmp_path / "path"), "barycentric")
    same(found, redecode(model, first, "barycentric"), model)


def test_recollapse_asks_step_by_step_what_all_at_once_would_say(tiny):
    """The ways by which draws and the mixing layer are read at once, against the way of every other
    collapse.
    """
    model = tiny(objective="energy(4)", context=14, scale=0.15, mixing=3)
    first = generate(model, "abc", 40, schedule="never", feedback="raw")
    for how in (collapse.Vote(20, 2), collapse.mixing):

        @collapse.with_context
        def other(prediction, embedding, context):
            return how(prediction, embedding, context)  # noqa: B023, called within the loop

        assert redecode(model, first, other).text == redecode(model, first, how).text


def test_recollapse_shows_a_collapse_the_text_so_far(tiny):
    """One that looks at what was shown and remembers: each symbol follows the one shown before."""
    model = tiny(objective="mse")

    @collapse.with_context
    def next_letter(prediction, embedding, context):
        before = context.run.tokens[-1] + context.run.scratch.setdefault("by", 1)
        torch.testing.assert_close(
            model.predict(context.state).vector, prediction.vector, **exact(model)
        )
        return torch.nn.functional.one_hot(before % len(embedding), len(embedding)).float()

    first = generate(model, "ab", 9, schedule="never")
    found = redecode(model, first, next_letter)
    assert found.text == generate(model, "ab", 9, schedule="never", collapse=next_letter).text


@pytest.mark.parametrize("context", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [0, 1, 8, 9, 30])
def test_read_again_gives_the_states_of_reading_one_by_one(tiny, context, length):
    model = tiny(context=context, objective="mse")
    slots = torch.randn(1, length, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        windows, state = read_again(model, slots), model.start()
        states = [one for window in windows for one in window.states()]
        assert len(states) == length + 1
        for t, found in enumerate(states):
            assert found.length == state.length
            torch.testing.assert_close(found.hidden, state.hidden, **exact(model))
            new = torch.full((1, 16), 0.1)  # each may be advanced, whatever the others did
            torch.testing.assert_close(
                model.advance(found, vectors=new).hidden,
                model.advance(state, vectors=new).hidden,
                **exact(model),
            )
            state = model.advance(state, vectors=slots[:, t]) if t < length else state


def test_recollapse_refuses_what_is_not_its_own(tiny):
    model = tiny(objective="mse")
    first = generate(model, "ab", 9, schedule="never")
    with pytest.raises(ValueError, match="not this model's: at step 0"):
        redecode(tiny(objective="mse", seed=1), first, "nearest")
    with pytest.raises(ValueError, match="of another model"):
        redecode(tiny(objective="mse", embedding_dim=8), first, "nearest")
    with pytest.raises(ValueError, match="of another model"):
        redecode(tiny(objective="mse", letters="abc"), first, "nearest")
    arrays = {
        f.name: getattr(first, f.name)
        for f in fields(first)
        if isinstance(getattr(first, f.name), torch.Tensor)
    }
    with pytest.raises(ValueError, match="no step"):
        redecode(
            model,
            replace(first, text="", **{name: array[:0] for name, array in arrays.items()}),
            "nearest",
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"collapse": "fold"}, "unknown collapse 'fold'"),
        ({"temperature": -1.0}, "temperature must be .* not -1.0"),
        ({"collapse": "vote"}, "a distribution over vectors"),
        ({"collapse": "mixing"}, "train_mixing"),
    ],
)
def test_recollapse_says_what_is_wrong(tiny, wrong, message):
    model = tiny(objective="mse")
    with pytest.raises(ValueError, match=message):
        redecode(model, generate(model, "ab", 3), **{"collapse": "nearest", **wrong})


@pytest.mark.parametrize("soft", [None, 0, 1.3])
def test_redecode_with_other_temperatures_is_what_generate_writes_with_them(tiny, soft):
    model = tiny(objective="mse", scale=0.15)
    how = {"schedule": "never", "feedback": "raw", "seed": 4}
    first = generate(model, "ab", 30, temperature=0.7, soft_temperature=0.2, **how)
    second = generate(model, "ab", 30, temperature=0.9, soft_temperature=soft, **how)
    found = redecode(model, first, "softmax", 0.9, seed=4, soft_temperature=soft)
    same(found, second, model)
    assert found.settings == second.settings


def test_redecode_takes_one_temperature_of_the_settings_and_one_that_is_given(tiny):
    model = tiny(objective="mse", scale=0.15)
    how = {"schedule": "never", "feedback": "raw", "seed": 4, "temperature": 0.7}
    first = generate(model, "ab", 30, soft_temperature=0.2, **how)
    found = redecode(model, first, "softmax", seed=4, soft_temperature=1.3)
    same(found, generate(model, "ab", 30, soft_temperature=1.3, **how), model)
    for wrong in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature must be 0 .greedy. or above"):
            redecode(model, first, "softmax", soft_temperature=wrong)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_path_tells_its_seed_and_is_read_again_with_it(tiny, seed):
    model = tiny(objective="mse", scale=0.15)
    how = {"schedule": "never", "feedback": "raw", "temperature": 1}
    first = generate(model, "abc", 30, **how, seed=seed)
    assert first.settings.get("seed", 0) == seed
    assert redecode(model, first, "softmax").text == first.text
    other = redecode(model, first, "softmax", seed=3)
    assert other.settings["seed"] == 3
    assert other.text == generate(model, "abc", 30, **how, seed=3).text
    assert redecode(model, other, "softmax").text == other.text
    assert "seed" not in redecode(model, other, "softmax", seed=0).settings


def test_each_row_tells_its_own_seed(tiny):
    found = generate(tiny(), ["a", "b", "c"], 3, seed=[4, 0, 6])
    assert [one.settings.get("seed") for one in found] == [4, None, 6]
