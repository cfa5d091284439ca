"""The explorers, used from Python as a person uses them: what a control says is what is written,
drawn and measured.
"""

import base64
import math
import re
import threading

import pytest
import torch
from test_generate import Chain
from test_widgets import CEILING, Gate, carries_a_picture, said, same, wait

from softar_lab import plots
from softar_lab.generation import generate
from softar_lab.metrics.drift import detectors, drift
from softar_lab.metrics.pca import PCABasis
from softar_lab.models.simplex import barycentric
from softar_lab.widgets import CollapseExplorer, TrajectoryExplorer
from softar_lab.widgets import setting as settings
from softar_lab.widgets.compared import Compared

pytestmark = pytest.mark.usefixtures("nothing_raised_or_logged")

SOFT = {"schedule": "never", "feedback": "raw"}


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(objective="mse", scale=0.15)


@pytest.fixture
def explorer(model):
    return CollapseExplorer(model, "abc", steps=9, settings=({}, {"collapse": "nearest", **SOFT}))


def place(model, vectors):
    return PCABasis.fit(model.embedding, 2).transform(vectors)


def drawn(trace):
    return torch.tensor([trace.x, trace.y]).T


# CollapseExplorer


def test_explorer_writes_what_generate_writes(explorer, model):
    first, second = explorer.generate()
    assert same(first, generate(model, "abc", 9, temperature=0.8))
    assert same(second, generate(model, "abc", 9, collapse="nearest", temperature=0.8, **SOFT))


def test_paths_share_a_plane_and_lead_to_the_symbols_read_off_them(explorer, model):
    for which, setting in enumerate(explorer.settings):
        reading, path = explorer.figure.data[which], explorer.figure.data[4 + which]
        torch.testing.assert_close(drawn(path), place(model, setting.trajectory.vectors))
        assert torch.tensor(reading.x[1::3]).allclose(
            place(model, model.embedding)[setting.trajectory.token_ids, 0]
        )
        assert path.visible
        assert path.hovertext[3].startswith(f"{'AB'[which]}, step 3: ")
    assert [trace.visible for trace in explorer.figure.data[6:8]] == [False, False]
    assert list(explorer.figure.data[8].text) == [
        plots.visible(token) for token in model.tokenizer.tokens
    ]


def test_steps_drawn_are_those_the_slider_asks_for(explorer, model):
    explorer.shown.value = (2, 5)
    torch.testing.assert_close(
        drawn(explorer.figure.data[5]), place(model, explorer.settings[1].trajectory.vectors[2:5])
    )
    assert explorer.figure.data[5].hovertext[0].startswith("B, step 2: ")


def test_differences_from_the_first_are_marked(explorer):
    first, second = explorer.generate()
    apart = [a != b for a, b in zip(second.text, first.text, strict=True)]
    assert any(apart)
    assert not all(apart)
    assert explorer.settings[1].text.value == plots.difference_html(
        second, apart, plots.SETTINGS[1]
    )
    assert (
        f"differs from A at {sum(apart)}, first at step {apart.index(True)}"
        in explorer.settings[1].note.value
    )
    assert "font-weight" not in explorer.settings[0].text.value
    explorer.settings[0].collapse.value = "nearest"
    explorer.settings[0].schedule.value, explorer.settings[0].feedback.value = "never", "raw"
    explorer.generate()
    assert "the same text as A" in explorer.settings[1].note.value
    assert "font-weight" not in explorer.settings[1].text.value


@pytest.mark.parametrize("judge", [None, Chain()])
def test_drift_is_measured_by_the_judge_and_drawn(tiny, judge):
    model = tiny(objective="mse", scale=0.15, letters="abc" if judge else "abcdefghijk \n")
    explorer = CollapseExplorer(model, "a", 9, judge=judge, settings=({}, SOFT))
    for setting, line in zip(explorer.settings, explorer.drift_figure.data, strict=False):
        expected = drift(setting.trajectory, model, judge)["kl"].tolist()
        assert setting.drift == pytest.approx(expected)
        assert line.y == tuple(max(x, 1e-3) if math.isfinite(x) else None for x in expected)


@pytest.mark.parametrize(
    ("control", "value"),
    [("collapse", "softmax"), ("collapse", "barycentric"), ("temperature", 0.0)],
)
def test_another_collapse_of_a_free_path_needs_no_generation(
    explorer, model, monkeypatch, control, value
):
    setting = explorer.settings[1]
    before = setting.trajectory.vectors
    options = {"collapse": "nearest", "temperature": 0.8, **SOFT, control: value}
    expected = generate(model, "abc", 9, **options)
    monkeypatch.setattr("softar_lab.widgets.compared.generate", None)
    getattr(setting, control).value = value
    explorer.generate()
    assert setting.trajectory.text == expected.text
    assert setting.trajectory.vectors is before
    assert "B read again in" in said(explorer)
    assert setting.drift == pytest.approx(drift(setting.trajectory, model)["kl"].tolist())


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"schedule": "every(2)"},
        {"feedback": "sampled"},
        {"feedback": "mixture"},
        {"model": "other"},
    ],
)
def test_whatever_moves_the_path_is_written_anew(tiny, model, change):
    models = {"model": model, "other": tiny(objective="mse", scale=0.15, seed=1)}
    explorer = CollapseExplorer(models, "abc", 9, settings=({}, {"collapse": "nearest", **SOFT}))
    setting = explorer.settings[1]
    for name, value in change.items():
        getattr(setting, name).value = value
    setting.collapse.value = "softmax"
    options = {**setting.values(), "collapse": "softmax"}
    assert same(explorer.generate()[1], generate(models[setting.model.value], "abc", 9, **options))
    assert "B written in" in said(explorer) or "sampled" not in change.values()


def test_prompt_steps_and_seed_are_shared(explorer, model):
    explorer.prompt.value, explorer.steps.value, explorer.seed.value = "de", 5, 7
    first, second = explorer.generate()
    assert same(first, generate(model, "de", 5, temperature=0.8, seed=7))
    assert same(
        second, generate(model, "de", 5, collapse="nearest", temperature=0.8, seed=7, **SOFT)
    )


def test_changes_are_answered_in_the_background(explorer, model):
    explorer.settings[0].collapse.value = "nearest"
    expected = generate(model, "abc", 9, collapse="nearest", temperature=0.8)
    wait(
        lambda: (
            same(explorer.settings[0].trajectory, expected)
            and explorer.settings[0].drift is not None
        )
    )
    wait(lambda: "A written in" in said(explorer))


def test_quick_changes_end_in_the_last_setting(explorer, model):
    for i in range(30):
        explorer.settings[1].collapse.value = ("softmax", "barycentric")[i % 2]
        explorer.settings[0].temperature.value = i / 20
    first, second = explorer.generate()
    assert same(first, generate(model, "abc", 9, temperature=1.45))
    assert (
        second.text
        == generate(model, "abc", 9, collapse="barycentric", temperature=0.8, **SOFT).text
    )
    assert None not in (explorer.settings[0].drift, explorer.settings[1].drift)


def test_drift_blocks_nothing_and_belongs_to_the_drawn_trajectory(explorer, model, monkeypatch):
    """A change made while drift is measured is answered first; what was measured of the text before
    is not drawn.
    """
    reached, opened = threading.Event(), threading.Event()

    def slow(*arguments):
        reached.set()
        assert opened.wait(CEILING)
        return drift(*arguments)

    monkeypatch.setattr("softar_lab.widgets.compared.drift", slow)
    setting = explorer.settings[1]
    setting.collapse.value = "softmax"
    assert reached.wait(CEILING)
    assert "measuring the drift" in said(explorer)
    setting.collapse.value = "barycentric"
    expected = generate(model, "abc", 9, collapse="barycentric", temperature=0.8, **SOFT).text
    wait(lambda: setting.trajectory.text == expected and "differs from A" in setting.note.value)
    assert setting.drift is None
    opened.set()
    explorer.generate()
    assert setting.drift == pytest.approx(drift(setting.trajectory, model)["kl"].tolist())
    assert "measuring" not in said(explorer)


def test_settings_are_added_and_removed(explorer):
    explorer.add_button.click()
    explorer.add()
    explorer.settings[3].collapse.value = "barycentric"
    found = explorer.generate()
    assert [setting.name for setting in explorer.settings] == list("ABCD")
    assert same(found[2], found[1])
    assert explorer.add_button.disabled
    assert all(trace.visible for trace in explorer.figure.data[:8])
    with pytest.raises(ValueError, match="4 settings are shown already"):
        explorer.add()
    explorer.remove_button.click()
    explorer.remove()
    explorer.generate()
    assert [trace.visible for trace in explorer.figure.data[4:8]] == [True, True, False, False]
    assert explorer.remove_button.disabled
    explorer.remove_button.disabled = False
    explorer.remove_button.click()
    assert said(explorer).startswith("⚠ two settings are left")


def test_one_setting_that_fails_leaves_the_others(explorer):
    explorer.settings[0].collapse.value = "vote"
    first, second = explorer.generate()
    assert first is None
    assert second is not None
    assert said(explorer).startswith(
        '⚠ A: collapse "vote" needs a model that predicts a distribution'
    )
    assert "A: collapse=vote wrote nothing: coll" in repr(explorer)
    assert not explorer.figure.data[4].visible
    assert "A" not in explorer.settings[1].note.value
    explorer.settings[0].collapse.value = "softmax"
    assert None not in explorer.generate()
    assert "⚠" not in said(explorer)


def test_stop_leaves_the_settings_that_were_not_reached_and_says_so(explorer, model, monkeypatch):
    before = explorer.settings[1].trajectory
    gate = Gate(monkeypatch, model, after=4)
    explorer.prompt.value = "de"
    assert gate.reached.wait(CEILING)
    explorer.stop_button.click()
    gate.open.set()
    wait(lambda: "stopped before it was written anew" in explorer.settings[1].note.value)
    assert explorer.settings[1].trajectory is before
    assert len(explorer.settings[0].trajectory) < 9
    monkeypatch.undo()
    assert [one.prompt for one in explorer.generate()] == ["de", "de"]
    assert "stopped" not in explorer.settings[1].note.value


def test_models_without_that_table_are_compared_but_not_drawn(tiny, model):
    models = {"soft": model, "chain": Chain(), "narrow": tiny(objective="mse", embedding_dim=5)}
    settings = ({}, {"model": "chain"}, {"model": "narrow"})
    explorer = CollapseExplorer(models, "abc", 6, settings=settings)
    assert None not in explorer.generate()
    assert [trace.visible for trace in explorer.figure.data[4:8]] == [True, False, False, False]
    assert "B, C" in explorer.missing.value
    chains = CollapseExplorer(Chain(), "abc", 6, settings=({}, {"temperature": 0}))
    assert None not in chains.generate()
    assert "image/png" in chains._repr_mimebundle_()


def test_judge_that_could_write_what_the_model_cannot_is_named(tiny, model):
    explorer = CollapseExplorer(tiny(letters="ab"), "ab", 4, judge=model)
    assert "no drift: a predictor that reads along could write" in said(explorer)
    assert explorer.settings[0].trajectory is not None


def test_settings_that_make_no_sense_are_refused(model):
    with pytest.raises(ValueError, match="2 to 4, not 1"):
        CollapseExplorer(model, settings=({},))
    with pytest.raises(ValueError, match="unknown collapse 'guess'"):
        CollapseExplorer(model, settings=({}, {"collapse": "guess"}))
    with pytest.raises(ValueError, match="unknown model 'x'; known: model"):
        CollapseExplorer(model, settings=({}, {"model": "x"}))
    assert (
        CollapseExplorer(model, "a", 3, settings=({}, {"schedule": "every(3)"}))
        .settings[1]
        .schedule.value
        == "every(3)"
    )


def test_explorer_tells_its_settings_and_carries_a_still_picture(explorer):
    first, second = explorer.generate()
    assert repr(explorer) == (
        f"CollapseExplorer(prompt='abc': A: wrote ⟨{first.text!r}⟩; "
        f"B: collapse=nearest, schedule=never, feedback=raw wrote ⟨{second.text!r}⟩)"
    )
    assert carries_a_picture(explorer)


# TrajectoryExplorer


@pytest.fixture
def walk(model):
    return TrajectoryExplorer(model, "abc", 9, temperature=0.8, **SOFT)


def test_a_prompt_is_continued_and_its_trajectory_drawn(walk, model):
    expected = generate(model, "abc", 9, temperature=0.8, **SOFT)
    assert same(walk.trajectory, expected)
    assert said(walk) == "9 steps, 9 of them left soft"
    other = generate(model, "de", 4)
    walk.step.value = 8
    walk.show(other)
    assert (walk.trajectory, walk.step.value, walk.step.max, walk.play.max) == (other, 3, 3, 3)
    assert TrajectoryExplorer(model, expected).trajectory is expected


@pytest.mark.parametrize("step", [0, 5, 8])
def test_step_moves_text_candidates_cursor_and_hull(walk, model, step):
    walk.step.value = step
    one, weights = walk.trajectory, barycentric(walk.trajectory.vectors, model.embedding)[step]
    assert walk.text.value == plots.text_html(one, step)
    assert walk.candidates.value == plots.candidates_html(one, step)
    assert walk.curves.layout.shapes[0].x0 == walk.curves.layout.shapes[0].x1 == step
    traces = {trace.name: trace for trace in walk.figure.data}
    torch.testing.assert_close(drawn(traces["path so far"]), place(model, one.vectors[: step + 1]))
    ends = torch.stack([one.vectors[step], weights @ model.embedding])
    torch.testing.assert_close(drawn(traces["off the hull"]), place(model, ends), atol=1e-5, rtol=0)
    heavy = [i for i in weights.argsort(descending=True).tolist() if weights[i] >= 0.01]
    torch.testing.assert_close(drawn(traces["weights"]), place(model, model.embedding[heavy]))
    off = detectors(one, model)["off_hull"].iloc[step]
    assert re.search(rf"off the hull:</b> {off:.3f}", walk.mixture.value)


def test_curves_are_the_detectors(walk, model):
    expected = detectors(walk.trajectory, model)
    for line, name in zip(walk.curves.data, plots.CURVES, strict=True):
        assert list(line.y) == expected[name].tolist()


def test_walk_without_vectors_has_a_text_and_candidates():
    walk = TrajectoryExplorer(Chain(), "abc", 5)
    walk.step.value = 3
    assert walk.candidates.value == plots.candidates_html(walk.trajectory, 3)
    assert "predicts no vectors" in said(walk)
    assert "image/png" not in walk._repr_mimebundle_()
    assert "shows" in repr(walk)


def test_errors_are_reported(model):
    walk = TrajectoryExplorer(model, "§")
    assert said(walk).startswith("⚠ ")
    assert "§" in repr(walk)
    walk.step.value = 0
    walk.show(generate(model, "ab", 3))
    assert said(walk) == "3 steps, 0 of them left soft"


def test_walk_tells_its_step_and_carries_a_still_picture(walk):
    walk.step.value = 4
    one = walk.trajectory
    assert repr(walk).startswith(
        "TrajectoryExplorer(prompt='abc', collapse=softmax, schedule=never, feedback=raw, temperature=0.8 wrote "
        f"⟨{one.text!r}⟩; step 4 of 9 shows ⟨{one.text[4]!r}⟩: entropy ⟨{float(one.entropy[4]):.3g}⟩, "
    )
    assert base64.b64decode(walk._repr_mimebundle_()["image/png"]).startswith(b"\x89PNG")


def test_a_setting_with_another_control_writes_what_generate_writes(model, monkeypatch):
    """Whatever a control is called, a text that is read again is the one it would be if written."""
    control = None, lambda value: settings.menu("Soft temp.", [None, 0, 0.5], value)
    monkeypatch.setitem(settings.CHOICES, "soft_temperature", control)
    explorer = CollapseExplorer(model, "abc", steps=9, settings=({}, SOFT))
    one = explorer.settings[1]
    for value in (0, 0.5, None):
        one.soft_temperature.value = value
        explorer.generate()
        expected = generate(model, "abc", 9, **one.values(), seed=explorer.seed.value)
        assert one.trajectory.text == expected.text


def test_a_setting_removed_while_it_is_measured_leaves_no_curve(model, monkeypatch):
    explorer = CollapseExplorer(model, "abc", steps=9, settings=({}, {}, {"collapse": "nearest"}))
    assert list(explorer.drift_figure.data[2].y)
    last, measure = explorer.settings[2], Compared.measure

    def removed_meanwhile(setting, *arguments):
        measure(setting, *arguments)
        if setting is last:
            explorer.columns.children = explorer.settings[:2]
            explorer._clear(2)

    monkeypatch.setattr(Compared, "measure", removed_meanwhile)
    last._measured = None, []
    explorer._measure(explorer._stop)
    assert last.drift is not None
    assert not list(explorer.drift_figure.data[2].y or ())


def test_a_text_that_failed_while_it_was_to_be_measured_is_no_error(model):
    explorer = CollapseExplorer(model, "abc", steps=9)
    setting = explorer.settings[0]
    setting.written = None
    setting.measure(explorer.models, None)
    assert setting.problem == ""
