"""Panels, used from Python as a person uses them: what a control says is what happens, and nothing
goes unsaid.
"""

import base64
import html
import re
import threading
import time

import pytest
import torch
from test_generate import Chain

from softar_lab import plots, widgets
from softar_lab.counting.exact import TWO_STRINGS, CountingModel
from softar_lab.data.corpora import Corpus
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.evidence import masked
from softar_lab.generation import generate
from softar_lab.generation.collapse import COLLAPSES
from softar_lab.metrics.pca import PCABasis
from softar_lab.models.config import ModelConfig
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.config import TrainConfig
from softar_lab.training.loop import train
from softar_lab.widgets import GenerationPanel, TrainingMonitor

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


def drawn(setting):
    """The last steps in a setting's plane (n, 2)."""
    trail = setting.figure.data[1]
    return torch.tensor([trail[axis] for axis in "xy"]).T


def place(model, trajectory):
    """The coordinates of a path in its table's plane (T, 2)."""
    return PCABasis.fit(model.embedding).transform(trajectory.vectors)[:, :2]


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


def test_panel_writes_at_once(panel, model):
    expected = generate(model, "abc", 6, temperature=0.8)
    assert same(panel.trajectory, expected)
    assert panel.first.text.value == plots.text_html(expected)
    assert flows(panel) == [expected.text]
    assert re.fullmatch(r"6 steps, 0 soft, \d+\.\d\d bits a symbol", said(panel))


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
    assert said(panel).startswith("9 steps, 7 soft")


@pytest.mark.parametrize(
    ("control", "value", "found"),
    [
        ("collapse", "nearest", lambda t: COLLAPSES.short(t.settings["collapse"])),
        ("schedule", "never", lambda t: t.settings["schedule"]),
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
    wait(lambda: found(panel.trajectory) == value)
    wait(lambda: "bits a symbol" in said(panel))


def test_seed_decides_the_draw(panel, model):
    for seed in range(1, 4):
        panel.seed.value = seed
        assert same(panel.generate(), generate(model, "abc", 6, temperature=0.8, seed=seed))


def test_model_is_chosen_by_name(tiny, model):
    """Tables of different widths: a picture of one model's path needs that model's basis, at any
    moment.
    """
    narrow = tiny(objective="mse", embedding_dim=5, seed=1)
    panel = GenerationPanel({"wide": model, "narrow": narrow}, "abc", 6)
    panel.model.value = "narrow"
    assert same(panel.generate(), generate(narrow, "abc", 6, temperature=0.8))
    assert flows(panel) == [panel.trajectory.text]
    panel.plane.value = True
    torch.testing.assert_close(drawn(panel.first), place(narrow, panel.trajectory)[:1])


def test_a_model_without_vectors_has_a_text_and_no_path(model):
    panel = GenerationPanel({"chain": Chain(), "soft": model}, "abc", 6)
    panel.plane.value = True
    assert panel.first.plane not in panel.first.children
    assert panel.river.rivers["strip"] is None
    assert panel.trajectory.text == generate(Chain(), "abc", 6, temperature=0.8).text
    panel.step.value = 3
    assert flows(panel) == [panel.trajectory.text]
    assert "image/png" in panel._repr_mimebundle_()
    panel.schedule.value = "never"
    panel.generate()
    assert "reads no vectors" in said(panel)
    panel.schedule.value, panel.model.value = "always", "soft"
    panel.generate()
    assert panel.first.plane in panel.first.children
    torch.testing.assert_close(drawn(panel.first), place(model, panel.trajectory)[:4])


def test_tokens_longer_than_a_letter_are_written_and_drawn():
    counts = CountingModel.fit(TWO_STRINGS)
    panel = GenerationPanel(counts, "", steps=6)
    assert panel.trajectory.text.startswith("<start>")
    assert "image/png" in panel._repr_mimebundle_()
    panel.prompt.value = "§"
    panel.generate()
    assert "§" in said(panel)


def test_model_chosen_in_vain_leaves_the_picture_of_the_other(tiny, model):
    panel = GenerationPanel(
        {"wide": model, "narrow": tiny(objective="mse", embedding_dim=5)}, "abc", 6
    )
    written = panel.trajectory
    panel.prompt.value = "§"
    panel.model.value = "narrow"
    panel.generate()
    panel.step.value, panel.plane.value = 3, True
    torch.testing.assert_close(drawn(panel.first), place(model, written)[:4])
    assert flows(panel) == [written.text]
    assert "image/png" in panel._repr_mimebundle_()
    assert "§" in said(panel)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("ab§", "'§'"),
        ("a" * 13, "the prompt has 13 tokens, the model's context holds 12"),
        ("<b>&", "'<'"),
    ],
)
def test_a_bad_prompt_is_answered_in_the_status_line(model, prompt, message):
    for panel in (GenerationPanel(model, prompt), GenerationPanel(model, "abc")):
        panel.prompt.value = prompt
        panel.generate()
        assert said(panel).startswith("⚠ ")
        assert message in said(panel)
        assert message in repr(panel)
        assert "#b00020" in panel.status.value
        panel.prompt.value = "abc"
        assert same(panel.generate(), generate(model, "abc", 80, temperature=0.8))
        assert "⚠" not in said(panel) + repr(panel)


def test_an_empty_prompt_starts_from_nothing(model):
    assert same(GenerationPanel(model, steps=6).trajectory, generate(model, "", 6, temperature=0.8))


def test_a_control_takes_no_value_that_it_does_not_offer(panel):
    with pytest.raises(Exception, match="collapse|Invalid selection"):
        panel.collapse.value = "guess"
    panel.temperature.value, panel.steps.value = -1, 0
    assert (panel.temperature.value, panel.steps.value) == (0, 1)
    assert len(panel.generate()) == 1


def test_stop_ends_a_long_text_early_and_leaves_what_was_written(panel, model, monkeypatch):
    gate = Gate(monkeypatch, model, after=5)
    panel.steps.value = 2000
    assert gate.reached.wait(CEILING)
    panel.stop_button.click()
    gate.open.set()
    wait(lambda: "steps" in said(panel))
    assert said(panel).startswith("5 steps")
    monkeypatch.undo()
    assert panel.trajectory.text == generate(model, "abc", 50, temperature=0.8).text[:5]
    assert [len(text) for text in flows(panel)] == [5]
    assert panel.step.max == panel.play.max == 4


def test_stop_between_two_settings_shows_the_first(panel, model, monkeypatch):
    panel.second.temperature.value = 0.0
    panel.compare.value = True
    panel.generate()
    before = panel.second.trajectory
    panel.prompt.value = "kji"
    gate = Gate(monkeypatch, model, after=6)  # the last step of the first setting
    thread = threading.Thread(target=panel.generate)
    thread.start()
    assert gate.reached.wait(CEILING)
    panel.stop()
    gate.open.set()
    thread.join(CEILING)
    assert panel.trajectory.prompt == "kji"
    assert flows(panel)[0] == panel.trajectory.text
    assert panel.second.trajectory is before
    assert said(panel).count("steps") == 1


def test_button_writes_in_the_background(panel, model, monkeypatch):
    gate = Gate(monkeypatch, model, after=2)
    before = panel.trajectory
    panel.button.click()
    assert gate.reached.wait(CEILING)
    assert said(panel) == "writing …"
    assert panel.trajectory is before
    gate.open.set()
    wait(lambda: "6 steps" in said(panel))
    assert panel.trajectory is not before
    assert (
        panel.trajectory.text == before.text
    )  # a gated model is written by the loop, else by the short way


def test_quick_changes_end_in_the_last_setting(panel, model):
    for i in range(40):
        panel.temperature.value = i / 20
        panel.collapse.value = ("softmax", "nearest")[i % 2]
        panel.prompt.value = "abcdefghijk"[: i % 11]
    expected = generate(model, "abcdef", 6, collapse="nearest", temperature=1.95)
    wait(lambda: same(panel.trajectory, expected) and "steps" in said(panel))
    wait(lambda: panel.first.text.value == plots.text_html(expected))


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
    panel.compare.value = True
    for i in range(60):
        panel.step.value = i % 6
        panel.plane.value = bool(i // 7 % 2)
        if i % 5 == 0:
            panel.seed.value = i
    panel.generate()
    assert said(panel).count("6 steps") == 2
    assert flows(panel) == [one.trajectory.text for one in (panel.first, panel.second)]
    panel.plane.value, panel.step.value = True, 5
    for setting in (panel.first, panel.second):
        torch.testing.assert_close(
            drawn(setting), place(panel.models["model"], setting.trajectory)[:6]
        )


def test_compare_shows_two_settings_side_by_side(panel, model):
    panel.second.collapse.value, panel.second.schedule.value = "nearest", "never"
    assert panel.first in panel._columns.children
    assert panel.second not in panel._columns.children
    panel.compare.value = True
    panel.generate()
    assert panel._columns.children == (panel.first, panel.second)
    assert same(panel.first.trajectory, generate(model, "abc", 6, temperature=0.8))
    options = {"collapse": "nearest", "schedule": "never", "temperature": 0.8}
    assert same(panel.second.trajectory, generate(model, "abc", 6, **options))
    assert said(panel).count("6 steps") == 2
    assert repr(panel).count("wrote") == 2
    panel.compare.value = False
    panel.generate()
    assert panel._columns.children == (panel.first,)
    assert repr(panel).count("wrote") == 1


def test_the_second_setting_begins_as_a_copy_of_the_first(panel):
    panel.schedule.value, panel.temperature.value = "never", 0.3
    panel.second.feedback.value = "raw"  # what was chosen for it stays
    panel.compare.value = True
    second = panel.second.values()
    assert second == {**panel.first.values(), "feedback": "raw"}
    panel.generate()
    assert list(panel.river.trajectories) == ["A mixture", "B raw"]


def test_two_settings_from_the_beginning_are_both_shown(model):
    settings = [{"temperature": 0}, {"temperature": 0, "schedule": "never"}]
    panel = GenerationPanel(model, "abc", 6, settings=settings)
    assert panel.compare.value
    assert list(panel.river.trajectories) == ["A always", "B never"]
    assert flows(panel) == [
        generate(model, "abc", 6, **{**one, "temperature": 0}).text for one in settings
    ]
    for wrong, error in (([], ValueError), ([{}] * 3, ValueError), ([{"colour": 1}], TypeError)):
        with pytest.raises(error):
            GenerationPanel(model, "abc", 6, settings=wrong)


def test_a_step_moves_the_plane_and_leaves_text_and_river(panel, model):
    panel.plane.value = True
    before = panel.first.text.value, panel.river.rivers
    for step in (4, 1):
        panel.step.value = step
        torch.testing.assert_close(drawn(panel.first), place(model, panel.trajectory)[: step + 1])
        assert (panel.first.text.value, panel.river.rivers) == before


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
    panel.compare.value = True
    panel.second.schedule.value = "never"
    panel.generate()
    before = panel.first.trajectory.text
    name, second = "B never", panel.second.trajectory
    symbol = next(one for one, _ in second.candidates(0) if one != second.text[0])
    click(panel, name, 0, symbol)
    wait(lambda: panel.second.trajectory.text[0] == symbol)
    wait(lambda: "bits a symbol" in said(panel))
    assert panel.first.trajectory.text == before
    assert [river["forced"] for river in panel.river.rivers["rivers"]] == [[], [0]]


def test_figures_are_filled_in_place(panel):
    before, traces = panel.first.figure, [trace.uid for trace in panel.first.figure.data]
    panel.plane.value, panel.seed.value = True, 5
    panel.generate()
    assert panel.first.figure is before
    assert [trace.uid for trace in before.data] == traces


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
