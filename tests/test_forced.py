"""Forced symbols: a step emits what the caller asks for and reads it as a hard token; the rest is
as it would be after that.
"""

import pytest
import torch

import softar_lab as lab
from softar_lab.core.trajectory import Trajectory
from softar_lab.counting.exact import CountingModel
from softar_lab.generation import fast_path, numpy_path

PATHS = ("vectors", "inputs", "log_probs", "entropy", "collapsed", "token_ids")


def losing(trajectory, step) -> str:
    """A candidate of a step that was not chosen."""
    chosen = trajectory.tokens[int(trajectory.token_ids[step])]
    return next(symbol for symbol, _ in trajectory.candidates(step) if symbol != chosen)


@pytest.mark.parametrize("schedule", ["always", "never", "every(3)", "retro(2)", "liquid(3)"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_forced_steps_before_it_do_not_change_and_it_is_hard(tiny, schedule, temperature):
    model = tiny()
    choices = {"schedule": schedule, "temperature": temperature, "seed": 3}
    free = lab.generate(model, "ab", 20, **choices)
    symbol = losing(free, 7)
    forced = lab.generate(model, "ab", 20, forced={7: symbol}, **choices)
    assert forced.text[:7] == free.text[:7]
    assert forced.text[7] == symbol
    assert forced.collapsed[7]
    assert torch.equal(forced.vectors[:7], free.vectors[:7])
    assert torch.equal(forced.inputs[7], model.embedding[forced.token_ids[7]])


def test_forced_hard_text_goes_on_as_after_a_prompt_with_that_symbol(tiny):
    model = tiny(context=64)
    free = lab.generate(model, "ab", 20, temperature=0)
    symbol = losing(free, 7)
    forced = lab.generate(model, "ab", 20, temperature=0, forced={7: symbol})
    after = lab.generate(model, "ab" + free.text[:7] + symbol, 12, temperature=0)
    assert forced.text[8:] == after.text
    assert torch.equal(forced.vectors[8:], after.vectors)


def test_forced_soft_path_goes_on_from_the_row_of_that_symbol(tiny):
    """A loop that reads the inputs of the path predicts the vectors of the path."""
    model = tiny(objective="mse", context=64)
    forced = lab.generate(
        model, "ab", 12, schedule="never", feedback="raw", forced={4: "c"}, temperature=0
    )
    state = model.read(model.start(1), model.tokenizer.encode("ab")[None])
    for vector, fed_back in zip(forced.vectors, forced.inputs, strict=True):
        assert torch.equal(model.predict(state).vector[0], vector)
        state = model.advance(state, vectors=fed_back[None])
    assert forced.collapsed.tolist() == [step == 4 for step in range(12)]


@pytest.mark.parametrize("schedule", ["always", "never", "every(3)"])
def test_forced_batch_is_each_row_alone_and_the_fast_path_the_loop(tiny, monkeypatch, schedule):
    model, prompts = tiny(context=12), ["abcdefg", "k", "", "hij ab"]
    choices = {"schedule": schedule, "forced": {0: "a", 9: 2, 29: "b"}, "seed": 1}
    batch = lab.generate(model, prompts, 30, **choices)
    monkeypatch.setattr(fast_path, "suits", lambda *_: False)
    monkeypatch.setattr(numpy_path, "suits", lambda *_: False)
    for prompt, row in zip(prompts, batch, strict=True):
        alone = lab.generate(model, prompt, 30, **choices)
        assert all(torch.equal(getattr(row, name), getattr(alone, name)) for name in PATHS)
        assert row.token_ids[9] == 2


def test_forced_counts_go_on_from_the_symbol():
    """A model without vectors, too: behind "c" there is only "b"."""
    tokenizer = lab.CharTokenizer.fit("abc")
    model = CountingModel.fit(["abababababcbcbcb"], 1, tokenizer=tokenizer)
    path = lab.generate(model, "a", 2, temperature=0, forced={0: "c"})
    assert path.text == "cb"


def test_forced_steps_are_recorded_and_come_back(tiny, tmp_path):
    path = lab.generate(tiny(), "ab", 10, forced={7: "c", 2: 1})
    assert path.settings["forced"] == [[2, 1], [7, "c"]]
    path.save(tmp_path / "path.safetensors")
    assert Trajectory.load(tmp_path / "path.safetensors").settings == path.settings
    assert "forced" not in lab.generate(tiny(), "ab", 10).settings


@pytest.mark.parametrize(
    ("forced", "reason"),
    [
        ({10: "a"}, "a forced step must be a whole number of at least 0 and at most 9, not 10"),
        ({-1: "a"}, "a forced step must be a whole number of at least 0 and at most 9, not -1"),
        ({True: "a"}, "a forced step must be a whole number of at least 0 and at most 9, not True"),
        ({2: "ab"}, "step 2 can be forced to one symbol of the vocabulary, not to 'ab'"),
        ({2: ""}, "step 2 can be forced to one symbol of the vocabulary, not to ''"),
        ({2: 999}, "step 2 can be forced to one symbol of the vocabulary, not to 999"),
        ({2: "Ω"}, "Ω"),
    ],
)
def test_forced_steps_that_cannot_be_are_refused(tiny, forced, reason):
    with pytest.raises(ValueError, match=reason):
        lab.generate(tiny(), "ab", 10, forced=forced)


def test_forced_steps_and_slots_decided_together_do_not_go_together(tiny):
    with pytest.raises(ValueError, match=r"deferred\(.*decides several steps together"):
        lab.generate(tiny(), "ab", 10, collapse="deferred(2)", schedule="never", forced={2: "a"})
