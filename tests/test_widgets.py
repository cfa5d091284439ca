"""Panels, used from Python as a person uses them: what a control says is what happens, and nothing
goes unsaid.
"""

import base64
import html
import json
import math
import re
import threading
import time
from dataclasses import replace
from random import Random

import ipywidgets
import pytest
import torch
from ipywidgets.widgets import widget as registry
from test_generate import Chain

from softar_lab import plots, widgets
from softar_lab.counting.exact import TWO_STRINGS, CountingModel
from softar_lab.data.corpora import Corpus, load_corpus, load_language, tales_words
from softar_lab.data.languages.tales import TALES
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.evidence import masked
from softar_lab.generation import generate
from softar_lab.generation.collapse import COLLAPSES
from softar_lab.metrics.pca import PCABasis
from softar_lab.metrics.texts import judge
from softar_lab.models.config import ModelConfig
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.config import TrainConfig
from softar_lab.training.loop import train
from softar_lab.widgets import GenerationPanel, TrainingMonitor, written
from softar_lab.widgets import panel as panels
from softar_lab.widgets.score import Scale
from softar_lab.widgets.setting import Choices

pytestmark = pytest.mark.usefixtures("nothing_raised_or_logged")

VIEW = "application/vnd.jupyter.widget-view+json"
SETTINGS = ("collapse", "schedule", "feedback", "temperature")
CEILING = 300  # seconds that nothing takes, on however busy a machine


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(objective="mse", scale=0.15)


@pytest.fixture
def panel(model):
    return GenerationPanel(model, "abc", steps=6)


def carries_a_picture(panel):
    """Whether what a notebook keeps of a panel is a view, its state as text and a still picture."""
    bundle = panel._repr_mimebundle_()
    picture = base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    return (
        picture
        and bundle[VIEW]["model_id"] == panel.model_id
        and bundle["text/plain"] == repr(panel)
    )


def said(panel):
    """The status line as a person reads it."""
    return html.unescape(re.sub("<[^>]*>", "", panel.status.value))


def wait(condition, seconds=CEILING):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def same(one, other):
    """The same settings, text and vectors."""
    equal = (one.text, one.prompt, one.settings) == (other.text, other.prompt, other.settings)
    return equal and torch.equal(one.vectors, other.vectors)


def flows(panel):
    """The texts of a panel's rivers, as the browser gets them."""
    state = panel.river.rivers
    return ["".join(state["tokens"][i] for i in river["ids"]) for river in state["rivers"]]


class Gate:
    """Holds a model after some predictions until it is opened, so that work is under way for
    certain.
    """

    def __init__(self, monkeypatch, model, after):
        predict, self.reached, self.open, self.calls = (
            model.predict,
            threading.Event(),
            threading.Event(),
            0,
        )

        def gated(state):
            self.calls += 1
            if self.calls == after:
                self.reached.set()
                assert self.open.wait(CEILING)
            return predict(state)

        monkeypatch.setattr(model, "predict", gated)


# GenerationPanel


def told(setting):
    """The notes under a setting as a person reads them."""
    return html.unescape(re.sub("<[^>]*>", " ", setting.notes.value))


def differs(setting):
    """What the title of a setting names as different."""
    return re.findall(r"<b>(\w+)</b>", setting.title.value)


def measured(panel):
    """Whether all texts are written and measured."""
    ends = ("a symbol by the writer itself", "impossible", "under", "knows no")
    return "writing" not in said(panel) and all(
        any(end in told(one) for end in ends) for one in panel.settings
    )


def test_panel_writes_at_once(panel, model):
    expected = generate(model, "abc", 6, temperature=0.8)
    assert same(panel.trajectory, expected)
    assert flows(panel) == [expected.text]
    assert "6 symbols, 0 read back soft" in told(panel.first)


def test_generate_writes_what_generate_writes(panel, model):
    panel.collapse.value, panel.schedule.value, panel.feedback.value = "nearest", "every(4)", "raw"
    panel.temperature.value, panel.seed.value, panel.steps.value, panel.prompt.value = (
        0.5,
        7,
        9,
        "de",
    )
    options = {"collapse": "nearest", "schedule": "every(4)", "feedback": "raw", "temperature": 0.5}
    assert same(panel.generate(), generate(model, "de", 9, **options, seed=7))
    assert "9 symbols, 7 read back soft" in told(panel.first)


@pytest.mark.parametrize(
    ("control", "value", "found"),
    [
        ("collapse", "nearest", lambda t: COLLAPSES.short(t.settings["collapse"])),
        ("schedule", "every(2)", lambda t: t.settings["schedule"]),
        ("feedback", "raw", lambda t: t.settings["feedback"]),
        ("temperature", 0.0, lambda t: t.settings["temperature"]),
        ("prompt", "kji", lambda t: t.prompt),
        ("prompt", "", lambda t: t.prompt),
        ("steps", 3, len),
    ],
)
def test_each_control_takes_effect_by_itself(panel, control, value, found):
    getattr(panel, control).value = value
    wait(lambda: panel.trajectory is not None and found(panel.trajectory) == value)
    wait(lambda: measured(panel))


def test_seed_decides_the_draw(panel, model):
    for seed in range(1, 4):
        panel.seed.value = seed
        assert same(panel.generate(), generate(model, "abc", 6, temperature=0.8, seed=seed))


def test_generate_writes_again_where_nothing_changed(panel, model, monkeypatch):
    """The model itself may have learned in the meantime."""
    before = panel.trajectory
    again = panel.generate()
    assert again is not before
    assert same(again, before)


def test_a_model_without_vectors_has_a_text_and_no_plane(model):
    panel = GenerationPanel({"chain": Chain(), "soft": model}, "abc", 6)
    assert panel.plane.disabled
    assert panel.river.rivers["strip"] is None
    assert panel.trajectory.text == generate(Chain(), "abc", 6, temperature=0.8).text
    assert flows(panel) == [panel.trajectory.text]
    assert "image/png" in panel._repr_mimebundle_()
    panel.model.value = "soft"
    panel.generate()
    assert same(panel.trajectory, generate(model, "abc", 6, temperature=0.8))
    panel.plane.value = True
    assert panel.first.plane in panel.first.children


def test_tokens_longer_than_a_letter_are_written_and_drawn():
    counts = CountingModel.fit(TWO_STRINGS)
    panel = GenerationPanel(counts, "", steps=6)
    assert panel.trajectory.text.startswith("<start>")
    assert "image/png" in panel._repr_mimebundle_()
    panel.prompt.value = "§"
    panel.generate()
    assert "§" in said(panel)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("ab§", "'§' at position 2 is not in the alphabet"),
        ("a" * 13, "the prompt has 13 tokens, the model's context holds 12"),
        ("<b>&", "'<' at position 0"),
    ],
)
def test_a_bad_prompt_is_answered_and_the_old_text_turns_pale(model, prompt, message):
    panel = GenerationPanel(model, "abc", 6)
    before = panel.trajectory
    panel.prompt.value = prompt
    assert panel.generate() is None
    assert said(panel).startswith("⚠ ")
    assert message in said(panel)
    assert message in repr(panel)
    assert "softar-error" in panel.status.value
    assert flows(panel) == [before.text]
    assert [river["stale"] for river in panel.river.rivers["rivers"]] == [True]
    panel.prompt.value = "abc"
    assert same(panel.generate(), before)
    assert "⚠" not in said(panel) + repr(panel)
    assert [river["stale"] for river in panel.river.rivers["rivers"]] == [False]


def test_a_panel_that_begins_with_a_bad_prompt_says_so_and_goes_on(model):
    panel = GenerationPanel(model, "§", 6)
    assert "'§'" in said(panel)
    assert flows(panel) == []
    panel.prompt.value = "abc"
    assert same(panel.generate(), generate(model, "abc", 6, temperature=0.8))


def test_symbols_that_exist_are_offered_and_a_click_takes_one(panel, model):
    panel.prompt.value = "aBc"
    panel.generate()
    offered = [button.description for button in panel.offers.children]
    assert offered[0] == "b"
    assert set(offered) == {
        plots.visible(token) for token in model.tokenizer.tokens if token != "\n"
    }
    panel.offers.children[0].click()
    assert panel.prompt.value == "abc"
    wait(lambda: panel.trajectory is not None and panel.trajectory.prompt == "abc")
    wait(lambda: not panel.offers.children)


def test_an_empty_prompt_starts_from_nothing(model):
    assert same(GenerationPanel(model, steps=6).trajectory, generate(model, "", 6, temperature=0.8))


def test_a_control_takes_no_value_that_it_does_not_offer(panel):
    with pytest.raises(Exception, match="collapse|Invalid selection"):
        panel.collapse.value = "guess"
    panel.temperature.value, panel.steps.value = -1, 0
    assert (panel.temperature.value, panel.steps.value) == (0, 1)
    assert len(panel.generate()) == 1


# -- what a model can do, and what has an effect


def test_what_a_model_cannot_do_is_absent(tiny, model):
    models = {"mean": model, "samples": tiny(objective="energy"), "chain": Chain()}
    panel = GenerationPanel(models, "abc", 3)
    for name, one in models.items():
        panel.model.value = name
        for choice in ("collapse", "schedule", "feedback"):
            for value in getattr(panel, choice).options:
                if one.embedding is None and (choice, value[:8]) != ("schedule", "always"):
                    continue  # it is grey, or asks more of a state than this class in a test has
                options = {"schedule": "never"} if choice == "feedback" else {}
                assert len(generate(one, "abc", 1, **{**options, choice: value})) == 1
    assert "vote" not in GenerationPanel(model, "abc", 3).collapse.options
    assert "vote" in GenerationPanel(models["samples"], "abc", 3).collapse.options
    assert panel.schedule.options == ("always",)
    with pytest.raises(ValueError, match="schedule 'never' asks what model 'model' cannot do"):
        GenerationPanel(Chain(), "abc", 3, settings=[{"schedule": "never"}])


def test_a_choice_stays_where_the_other_model_can_do_it(tiny, model):
    panel = GenerationPanel({"one": model, "chain": Chain(), "two": tiny(seed=1)}, "abc", 3)
    panel.schedule.value, panel.collapse.value = "every(2)", "nearest"
    panel.model.value = "two"
    assert (panel.schedule.value, panel.collapse.value) == ("every(2)", "nearest")
    panel.model.value = "chain"
    assert (panel.schedule.value, panel.collapse.value) == ("always", "softmax")


@pytest.mark.parametrize("schedule", ["always", "every(2)", "never", "random", "entropy(1)"])
@pytest.mark.parametrize("feedback", ["mixture", "raw", "gumbel"])
def test_what_is_grey_has_no_effect(tiny, schedule, feedback):
    """Every control that is grey is tried: the text stays the same."""
    model = tiny(objective="mse", scale=0.3)
    for collapse, temperature in (("softmax", 0), ("softmax", 0.8), ("nearest", 0.8)):
        one = {"collapse": collapse, "schedule": schedule, "feedback": feedback}
        one["temperature"] = temperature
        choices = Choices({"model": model}, [schedule], **one)
        text = generate(model, "abc", 12, **one).text
        others = {} if choices.draws() else {"seed": 5}
        others |= {"feedback": "hidden"} if choices.feedback.disabled else {}
        others |= {"temperature": 2.0} if choices.temperature.disabled else {}
        for name, value in others.items():
            assert generate(model, "abc", 12, **{**one, name: value}).text == text, name
        assert choices.feedback.disabled == (schedule == "always")
        assert choices.temperature.disabled == (collapse == "nearest")


def test_seed_is_grey_where_nothing_is_drawn(panel):
    assert not panel.seed.disabled
    panel.temperature.value = 0
    assert panel.seed.disabled
    panel.schedule.value, panel.feedback.value = "never", "gumbel"
    assert not panel.seed.disabled


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        ({"temperature": 0}, "softmax at temperature 0 picks a symbol → show it → read back that"),
        ({"collapse": "nearest", "schedule": "never"}, "nearest picks a symbol → show it → but read back the mixture"),
        ({"schedule": "every(4)", "feedback": "raw"}, "read back its own vector where every(4) says so, else the raw."),
        ({"schedule": "liquid"}, "its mixture matures (liquid)"),
    ],
)  # fmt: skip
def test_one_line_says_what_happens_at_each_step(model, choices, line):
    assert line in told(GenerationPanel(model, "abc", 3, settings=[choices]).first)


def test_every_control_has_a_question_and_a_tooltip(panel):
    for control in (*panel.first.controls, panel.prompt, panel.steps, panel.seed, panel.strip):
        assert "?" in control.description
        assert control.tooltip
    for button in (panel.button, panel.stop_button, panel.add_button, panel.remove_button):
        assert button.tooltip


# -- while it is written


def test_stop_ends_a_long_text_early_and_leaves_what_was_written(panel, model, monkeypatch):
    gate = Gate(monkeypatch, model, after=5)
    panel.steps.value = 2000
    assert gate.reached.wait(CEILING)
    panel.stop_button.click()
    gate.open.set()
    wait(lambda: "5 symbols" in told(panel.first))
    monkeypatch.undo()
    assert panel.trajectory.text == generate(model, "abc", 50, temperature=0.8).text[:5]
    assert [len(text) for text in flows(panel)] == [5]
    assert panel.step.max == panel.play.max == 4


def test_letters_appear_while_they_are_written(panel, model, monkeypatch):
    monkeypatch.setattr(written, "PAUSE", 0)
    monkeypatch.setattr(written, "WORK", 0)
    seen, show = [], panel.river.show

    def watched(rivers, strip, name, writing, stale):
        show(rivers, strip, name, writing, stale)
        seen.append((next(iter(rivers.values())).text, writing))

    monkeypatch.setattr(panel.river, "show", watched)
    panel.steps.value = 100
    text = panel.generate().text
    growing = [one for one, writing in seen if writing]
    assert len(growing) >= 100 // written.LEAST
    assert all(text.startswith(one) for one in growing)
    assert seen[-1] == (text, False)


def test_stop_between_two_settings_shows_the_first(panel, model, monkeypatch):
    panel.add(temperature=0.0)
    panel.generate()
    before = panel.settings[1].trajectory
    gate = Gate(monkeypatch, model, after=6)  # the last step of the first setting
    panel.prompt.value = "kji"
    assert gate.reached.wait(CEILING)
    panel.stop()
    gate.open.set()
    wait(lambda: "stopped before it was written anew" in told(panel.settings[1]))
    assert panel.trajectory.prompt == "kji"
    assert flows(panel)[0] == panel.trajectory.text
    assert panel.settings[1].trajectory is before
    monkeypatch.undo()
    panel.generate()
    assert [one.prompt for one in panel.trajectories] == ["kji", "kji"]


def test_button_writes_in_the_background(panel, model, monkeypatch):
    gate = Gate(monkeypatch, model, after=2)
    before = panel.trajectory
    panel.button.click()
    assert gate.reached.wait(CEILING)
    assert said(panel) == "writing …"
    assert panel.trajectory is before
    gate.open.set()
    wait(lambda: panel.trajectory is not before and measured(panel))
    assert (
        panel.trajectory.text == before.text
    )  # a gated model is written by the loop, else by the short way


def test_quick_changes_end_in_the_last_setting(panel, model):
    for i in range(40):
        panel.temperature.value = i / 20
        panel.collapse.value = ("softmax", "barycentric")[i % 2]
        panel.prompt.value = "abcdefghijk"[: i % 11]
    expected = generate(model, "abcdef", 6, collapse="barycentric", temperature=1.95)
    wait(lambda: panel.trajectory and same(panel.trajectory, expected) and measured(panel))
    wait(lambda: flows(panel) == [expected.text])


@pytest.mark.slow
def test_generate_is_not_stopped_by_a_change_made_before_it(panel, monkeypatch):
    """Threads that are slow to start: a change's worker may come to life only once generate() is at
    work.
    """
    run = threading.Thread.run
    monkeypatch.setattr(threading.Thread, "run", lambda self: (time.sleep(0.02), run(self)))
    panel.steps.value = 400
    for temperature in (0.1, 0.2, 0.3):
        panel.temperature.value = temperature
        trajectory = panel.generate()
        assert (len(trajectory), trajectory.settings["temperature"]) == (400, temperature)


def test_stepping_while_generating_draws_no_nonsense(panel):
    """A slider moved, as fast as may be, while workers draw."""
    panel.add()
    for i in range(60):
        panel.step.value = i % 6
        panel.plane.value = bool(i // 7 % 2)
        if i % 5 == 0:
            panel.seed.value = i
    panel.generate()
    assert flows(panel) == [one.text for one in panel.trajectories]
    panel.plane.value, panel.step.value = True, 5
    basis = PCABasis.fit(panel.models["model"].embedding, 2)
    for setting in panel.settings:
        place = basis.transform(setting.trajectory.vectors)[:, :2]
        torch.testing.assert_close(
            torch.tensor(setting.plane.plane["trail"]), place, rtol=1e-3, atol=1e-4
        )


# -- one to four settings


def test_another_setting_begins_as_a_copy_of_the_first_and_names_what_differs(panel, model):
    panel.schedule.value, panel.temperature.value = "never", 0.3
    panel.add_button.click()
    second = panel.settings[1]
    assert second.values() == panel.first.values()
    assert "the same choices as A" in second.title.value
    second.feedback.value = "raw"
    assert differs(second) == ["feedback"]
    assert "only" in second.title.value
    panel.generate()
    assert list(panel.river.trajectories) == ["A mixture", "B raw"]
    second.temperature.value = 0
    assert differs(second) == ["feedback", "temperature"]
    assert same(panel.trajectories[0], generate(model, "abc", 6, **panel.first.values()))
    panel.generate()
    assert same(panel.trajectories[1], generate(model, "abc", 6, **second.values()))


def test_settings_are_added_and_removed(panel):
    for _ in range(3):
        panel.add_button.click()
    panel.generate()
    assert [setting.name for setting in panel.settings] == list("ABCD")
    assert len(set(flows(panel))) == 1
    assert panel.add_button.disabled
    with pytest.raises(ValueError, match="there are 4 settings"):
        panel.add()
    for _ in range(3):
        panel.remove_button.click()
    panel.generate()
    assert list(panel.river.trajectories) == [""]
    assert panel.remove_button.disabled
    panel.remove_button.disabled = False
    panel.remove_button.click()
    assert said(panel).startswith("⚠ only one setting is left")


def test_several_settings_from_the_beginning_are_all_shown(model):
    settings = [{"temperature": 0}, {"temperature": 0, "schedule": "never"}]
    panel = GenerationPanel(model, "abc", 6, settings=settings)
    assert list(panel.river.trajectories) == ["A always", "B never"]
    assert flows(panel) == [generate(model, "abc", 6, **one).text for one in settings]
    for wrong, error in (([], ValueError), ([{}] * 5, ValueError), ([{"colour": 1}], TypeError)):
        with pytest.raises(error):
            GenerationPanel(model, "abc", 6, settings=wrong)
    for wrong in ({"collapse": "guess"}, {"model": "x"}, {"schedule": "every(-1)"}):
        with pytest.raises(ValueError, match=r"unknown|every"):
            GenerationPanel(model, "abc", 6, settings=[wrong])
    with pytest.raises(ValueError, match="unknown strip 'colour'; known: distance"):
        GenerationPanel(model, "abc", 6, strip="colour")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5000}, "steps must be a whole number of at least 1 and at most 2000, not 5000"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"settings": [{"temperature": 5}]}, r"temperature.* must be in \[0, 2\], not 5"),
        ({"settings": [{"temperature": math.nan}]}, r"must be in \[0, 2\], not nan"),
        ({"models": {}}, "at least one model"),
    ],
)
def test_what_a_control_cannot_hold_is_refused(model, options, message):
    """A slider alone would move the value to its end, and say nothing."""
    with pytest.raises(ValueError, match=message):
        GenerationPanel(**{"models": model, "prompt": "abc", "steps": 3, **options})


def test_a_model_without_a_tokenizer_is_named(model):
    bare = SoftAR(model.config)
    assert "tokenizer" in GenerationPanel(bare, "abc", 3).problem
    assert "NoneType" not in GenerationPanel(bare, "abc", 3).problem


def test_a_text_is_measured_by_who_wrote_it_while_all_is_written_anew(model):
    """The choices are forgotten then, and the text that is being measured is still there."""
    setting = GenerationPanel(model, "abc", 5).first
    setting.asked, setting.verdict = {}, ""
    setting.measure(None)
    setting.measure_drift(None)
    assert setting.verdict
    assert setting.drift is not None


def test_a_change_writes_its_own_setting_alone(panel, model):
    panel.add(temperature=0.0)
    panel.generate()
    first = panel.trajectory
    panel.settings[1].collapse.value = "barycentric"
    panel.generate()
    assert panel.trajectory is first


def test_one_setting_that_fails_leaves_the_others(tiny, model):
    models = {"model": model, "few": tiny(letters="ab")}
    panel = GenerationPanel(models, "abc", 6, settings=[{"model": "few"}, {}])
    assert panel.trajectory is None
    assert same(panel.trajectories[1], generate(model, "abc", 6, temperature=0.8))
    assert said(panel).startswith("⚠ A: 'c' at position 2 is not in the alphabet")
    assert "model=few wrote nothing: 'c'" in repr(panel)
    assert [button.description for button in panel.offers.children] == ["a", "b"]


def test_a_step_moves_the_plane_and_leaves_text_and_river(panel, model):
    panel.plane.value = True
    before = panel.first.notes.value, panel.river.rivers
    for step in (4, 1):
        panel.step.value = step
        assert panel.first.plane.plane["first"] + len(panel.first.plane.plane["trail"]) - 1 == step
        assert (panel.first.notes.value, panel.river.rivers) == before


def test_step_slider_ends_where_the_text_ends(panel):
    panel.step.value = 5
    panel.steps.value = 3
    panel.generate()
    assert (panel.step.value, panel.step.max, panel.play.max) == (2, 2, 2)


def click(panel, name, step, symbol):
    """What the browser sends where a candidate is clicked."""
    river = list(panel.river.trajectories).index(name)
    number = panel.river.rivers["tokens"].index(symbol)
    panel.river._handle_custom_msg({"force": {"river": river, "step": step, "symbol": number}}, [])


def test_a_losing_candidate_is_forced_and_a_change_of_a_control_forgets_it(panel, model):
    panel.temperature.value = 0.0
    free = panel.generate()
    chosen = free.tokens[int(free.token_ids[2])]
    symbol = next(one for one, _ in free.candidates(2) if one != chosen)
    click(panel, "", 2, symbol)
    expected = generate(model, "abc", 6, temperature=0, forced={2: symbol})
    wait(lambda: same(panel.trajectory, expected) and flows(panel) == [expected.text])
    assert panel.river.rivers["rivers"][0]["forced"] == [2]
    later = next(one for one, _ in expected.candidates(4) if one != expected.text[4])
    click(panel, "", 4, later)
    both = generate(model, "abc", 6, temperature=0, forced={2: symbol, 4: later})
    wait(lambda: same(panel.trajectory, both))
    assert same(panel.generate(), free)
    assert panel.river.rivers["rivers"][0]["forced"] == []


def test_forcing_in_one_of_two_settings_leaves_the_other(panel):
    panel.add(schedule="never")
    panel.generate()
    before = panel.first.trajectory
    name, second = "B never", panel.settings[1].trajectory
    symbol = next(one for one, _ in second.candidates(0) if one != second.text[0])
    click(panel, name, 0, symbol)
    wait(lambda: panel.settings[1].trajectory.text[0] == symbol and measured(panel))
    assert panel.first.trajectory is before
    assert [river["forced"] for river in panel.river.rivers["rivers"]] == [[], [0]]


# -- what a text is worth


def test_without_a_judge_the_panel_says_that_the_writer_judges_itself(panel):
    own = -float(panel.trajectory.log_probs.mean()) / math.log(2)
    assert f"{own:.2f} bits a symbol by the writer itself" in told(panel.first)


def test_a_judge_is_asked_and_named(tiny, model):
    other = tiny(objective="ce", seed=3)
    panel = GenerationPanel(model, "abc", 9, judge=other)
    bits = float(judge(panel.trajectory.text, other, "abc").bits_per_char)
    assert f"{bits:.2f} bits a character under the judge" in told(panel.first)


def test_the_true_grammar_judges_what_was_trained_on_its_texts(tiny):
    model = tiny(letters="".join(sorted(set(load_corpus("mess3").val))))
    model.card["corpus"] = {"name": "mess3"}
    text = model.tokenizer.tokens[0]
    panel = GenerationPanel(model, text, 9)
    truth = judge(panel.trajectory.text, load_language("mess3"), text)
    bits = f"{float(truth.bits_per_char):.2f} bits a character under the true grammar of mess3"
    assert bits in told(panel.first)


def test_words_that_exist_and_where_the_grammar_ends_are_told():
    tales = load_language("tales")
    scale = Scale(tales, "the true grammar of tales", frozenset(tales_words().words))
    story = TALES.sample(Random(0))
    path = replace(generate(Chain(), "a", 1), prompt=story[:8], text=story[8:])
    bits = float(judge(path.text, tales, path.prompt).bits_per_char)
    assert scale.score(path) == (
        f"100 % of its words exist · {bits:.2f} bits a character under the true grammar of tales"
    )
    broken = replace(path, text=story[8:40] + "hald the ring. ")
    assert re.search(
        r"^\d\d % of its words exist · the true grammar of tales follows \d+ of 47 characters",
        scale.score(broken),
    )


# -- words as tokens


@pytest.fixture(scope="module")
def of_words(tiny):
    """A model of letters that stand for words, as `tales-words` is."""
    words = tales_words()
    letters = words.encode(" ".join(words.words))
    model = tiny(letters="".join(sorted(letters)), objective="mse", scale=0.15)
    model.card["corpus"] = {"name": "tales-words"}
    return model


def test_a_model_of_words_reads_and_writes_words(of_words):
    panel = GenerationPanel(of_words, "One day the king", 6, settings=[{"temperature": 0}])
    alphabet = tales_words()
    letters = generate(of_words, alphabet.encode("One day the king"), 6, temperature=0).text
    whole = alphabet.decode(alphabet.encode("One day the king") + letters)
    assert "One day the king" + panel.trajectory.text == whole
    state = panel.river.rivers
    assert "".join(state["rivers"][0]["pieces"]) == panel.trajectory.text
    assert [state["tokens"][i] for i in state["rivers"][0]["ids"]] == [
        alphabet.decode(letter) for letter in letters
    ]
    assert of_words.tokenizer.tokens[0] == "\ue000"  # the model itself stays as it is


def test_an_unknown_word_offers_words_and_a_losing_word_is_forced(of_words):
    panel = GenerationPanel(of_words, "One day the kings", 4, settings=[{"temperature": 0}])
    assert "'kings' at position 12" in said(panel)
    assert panel.offers.children[0].description == "king"
    panel.offers.children[0].click()
    wait(lambda: panel.trajectory is not None and measured(panel))
    path = panel.trajectory
    word = next(one for one, _ in path.candidates(1) if one != path.tokens[path.token_ids[1]])
    click(panel, "", 1, word)
    wait(lambda: panel.trajectory.settings.get("forced") == [[1, word]])
    assert panel.trajectory.tokens[panel.trajectory.token_ids[1]] == word


# -- what a page gets


def weight(widget):
    """The size of all that a page is sent of a widget and its parts, in bytes."""
    parts, found = [widget], {}
    while parts:
        one = parts.pop()
        if one.model_id not in found:
            state = one.get_state()
            found[one.model_id] = len(json.dumps(state, default=str))
            inner = one.children if isinstance(one, ipywidgets.Box) else ()
            parts += [
                *inner,
                *(value for value in vars(one).values() if isinstance(value, ipywidgets.Widget)),
            ]
    return sum(found.values())


def test_a_panel_sends_less_than_four_hundred_kilobytes(model):
    for settings in ([{}], [{}, {"schedule": "never"}]):
        assert weight(GenerationPanel(model, "abc", 80, settings=settings)) < 150_000


def test_a_cell_that_runs_again_frees_what_it_had(model, monkeypatch):
    ran = ["one", "first"]
    monkeypatch.setattr(panels, "_running_cell", lambda: tuple(ran))
    monkeypatch.setattr(panels, "_made", {})
    older = [GenerationPanel(model, "abc", 3), GenerationPanel(model, "abc", 3)]
    assert all(one.comm is not None for one in older)
    count = len(registry._instances)
    ran[:] = "two", "second"
    other = GenerationPanel(model, "abc", 3)
    assert older[0].comm is not None
    one = len(registry._instances) - count
    ran[:] = "one", "third"
    newer = GenerationPanel(model, "abc", 3)
    assert all(one.comm is None for one in older)
    assert all(one.river.comm is None for one in older)
    assert (newer.comm is not None, other.comm is not None) == (True, True)
    assert len(registry._instances) <= count  # two are gone, two have come
    assert one > 10


def test_repr_tells_the_state_and_masks_what_was_written(panel):
    assert repr(panel) == (f"GenerationPanel(prompt='abc': wrote ⟨{panel.trajectory.text!r}⟩)")


@pytest.mark.parametrize("prompt", ["abc", "§"])
def test_mimebundle_carries_a_still_picture_and_the_state(model, prompt):
    panel = GenerationPanel(model, prompt, 6)
    bundle = panel._repr_mimebundle_()
    assert bundle["text/plain"] == repr(panel)
    assert ("image/png" in bundle) == (
        prompt == "abc"
    )  # where nothing was written, there is no picture
    if prompt == "abc":
        assert carries_a_picture(panel)
    else:
        assert bundle[VIEW]["model_id"] == panel.model_id


# TrainingMonitor

SHORT = TrainConfig(steps=6, batch_size=2, eval_every=3)


@pytest.fixture
def monitor(tiny, corpus):
    return TrainingMonitor(tiny(alive=False, context=8), corpus, SHORT)


def test_train_trains_as_train_does_and_draws_it(monitor, tiny, corpus):
    run, expected = (
        monitor.train(),
        train(tiny(alive=False, context=8), corpus, SHORT, progress=False),
    )
    columns = ["step", "train_loss", "val_bits_per_char"]
    assert run.history[columns].equals(expected.history[columns])
    loss, bits = monitor.figure.data
    assert list(loss.x) == [1, 2, 3, 4, 5, 6]
    assert list(bits.x) == [3, 6]
    assert list(bits.y) == run.history["val_bits_per_char"].tolist()
    assert monitor.bar.value == monitor.bar.max == 6
    assert (
        said(monitor)
        == f"done: {run.val_bits_per_char:.3f} bits per character on the validation text"
    )


def test_train_again_says_that_it_goes_on(monitor):
    assert monitor.button.description == "Train"
    monitor.train()
    assert monitor.button.description == "Train on"
    assert "from the weights that are trained now" in monitor.button.tooltip


def test_train_hands_its_options_on(tiny, corpus, tmp_path):
    TrainingMonitor(
        tiny(alive=False, context=8), corpus, SHORT, out=tmp_path / "run", seed=3
    ).train()
    again = TrainingMonitor(
        tiny(alive=False, context=8), corpus, SHORT, out=tmp_path / "run", seed=3
    )
    run = again.train()  # it was finished: nothing is left to do, and all is shown
    assert run.model.card["train_seed"] == 3
    assert list(again.figure.data[1].x) == [3, 6]
    assert again.bar.value == 6


def test_train_button_works_in_the_background_and_stop_ends_it(tiny, corpus):
    monitor = TrainingMonitor(
        tiny(alive=False, context=8), corpus, TrainConfig(steps=100_000, batch_size=2)
    )
    monitor.button.click()
    wait(lambda: len(monitor._losses) > 2)
    monitor.stop_button.click()
    wait(lambda: monitor.run is not None and "stopped" in said(monitor))
    assert monitor.run.interrupted
    done = int(monitor.run.history["step"].iloc[-1])
    assert 2 < done < 100_000
    assert monitor.bar.value == done
    assert list(monitor.figure.data[1].x) == monitor.run.history["step"].tolist()


def test_train_says_what_went_wrong(tiny):
    corpus = Corpus("short", train="abc", val="abc", test="abc")
    monitor = TrainingMonitor(tiny(alive=False), corpus, SHORT)
    assert monitor.train() is None
    assert said(monitor).startswith("⚠ the training text has 3 tokens")
    assert repr(monitor).startswith(
        "TrainingMonitor(short, 6 steps: not trained: the training text has 3"
    )
    assert "image/png" not in monitor._repr_mimebundle_()


def test_train_that_fails_does_not_return_the_run_before(monitor):
    monitor.train()
    monitor.corpus = Corpus("short", train="abc", val="abc", test="abc")
    assert monitor.train() is None


def test_train_that_diverges_names_the_step(tiny, corpus):
    wild = TrainConfig(steps=50, batch_size=2, adam_learning_rate=1e30, muon_learning_rate=1e30)
    monitor = TrainingMonitor(tiny(alive=False, context=8), corpus, wild)
    assert monitor.train() is None
    assert re.match(r"⚠ the loss is (nan|inf) at step \d+", said(monitor))


def test_monitor_repr_and_mimebundle_tell_the_state(monitor):
    assert repr(monitor) == "TrainingMonitor(letters, 6 steps: not trained yet)"
    assert set(monitor._repr_mimebundle_()) == {"text/plain", VIEW}
    run = monitor.train()
    assert (
        repr(monitor)
        == f"TrainingMonitor(letters, 6 steps: {masked(run.val_bits_per_char)} bits per character)"
    )
    bundle = monitor._repr_mimebundle_()
    assert bundle["text/plain"] == repr(monitor)
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")


def test_an_error_without_words_is_named_by_its_kind():
    panel = widgets.Panel()

    def fail():
        raise KeyError

    panel._attempt(fail)
    assert said(panel) == "⚠ KeyError"


def test_a_panel_of_two_symbols_and_one_of_two_numbers_work():
    """They have one and two principal directions, of which a plane wants two."""
    tokenizer = CharTokenizer.fit("ab")
    for size in ({"d_model": 16, "n_heads": 2}, {"d_model": 16, "n_heads": 2, "embedding_dim": 2}):
        model = SoftAR(ModelConfig(vocab_size=2, n_layers=1, **size), tokenizer)
        panel = GenerationPanel(model, "ab", 5)
        panel.plane.value = True
        assert panel.problem == ""
        assert "image/png" in panel._repr_mimebundle_()


def test_a_run_that_goes_on_is_drawn_from_its_beginning(tiny, corpus, tmp_path):
    def monitor(**more):
        return TrainingMonitor(tiny(alive=False, context=8), corpus, SHORT, out=tmp_path, **more)

    whole = TrainingMonitor(tiny(alive=False, context=8), corpus, SHORT)
    whole.train()
    halted = monitor()
    halted._show = lambda event: event["step"] == 4 and halted.stop()
    assert halted.train().interrupted
    later = monitor()  # another panel knows the losses of the evaluations only
    later.train()
    assert list(later.figure.data[0].x) == [3, 5, 6]
    assert list(later.figure.data[1].x) == [3, 6]
    assert list(later.figure.data[1].y) == list(whole.figure.data[1].y)


def test_the_same_panel_keeps_the_losses_that_it_drew(tiny, corpus, tmp_path):
    panel = TrainingMonitor(tiny(alive=False, context=8), corpus, SHORT, out=tmp_path)
    show, whole = panel._show, TrainingMonitor(tiny(alive=False, context=8), corpus, SHORT)
    panel._show = lambda event: (show(event), event["step"] == 4 and panel.stop())
    panel.train()
    panel._show, panel.model = show, tiny(alive=False, context=8)
    panel.train()
    whole.train()
    for one, other in zip(panel.figure.data, whole.figure.data, strict=True):
        assert (list(one.x), list(one.y)) == (list(other.x), list(other.y))


def test_a_menu_returns_to_its_last_choice_where_nothing_is_chosen(panel):
    before = panel.collapse.value
    panel.collapse.value = None
    assert panel.collapse.value == before
