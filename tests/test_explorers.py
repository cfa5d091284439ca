"""The explorers, used from Python as a person uses them: what a control says is what is written,
drawn and measured.
"""

import base64
import re
import threading

import pytest
import torch
from test_generate import Chain
from test_widgets import CEILING, carries_a_picture, measured, said, same, told, wait

from softar_lab.generation import generate
from softar_lab.metrics.drift import detectors, drift
from softar_lab.metrics.drift_readers import drift_by_reader
from softar_lab.metrics.pca import PCABasis
from softar_lab.models.simplex import barycentric
from softar_lab.widgets import CollapseExplorer, GenerationPanel, TrajectoryExplorer
from softar_lab.widgets import setting as settings
from softar_lab.widgets.readers import readers_for
from softar_lab.widgets.trajectory import DETECTORS

pytestmark = pytest.mark.usefixtures("nothing_raised_or_logged")

SOFT = {"schedule": "never", "feedback": "raw"}


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(objective="mse", scale=0.15)


@pytest.fixture
def explorer(model):
    return CollapseExplorer(model, "abc", steps=9, settings=({}, {"collapse": "nearest", **SOFT}))


def strips(panel):
    """What is drawn below the columns of each river."""
    return [river["strip"] for river in panel.river.rivers["rivers"]]


def rounded(values):
    """Numbers as a river holds them; what is infinite or unknown is a gap."""
    found = torch.as_tensor(values).tolist()
    return [float(f"{x:.3g}") if abs(x) < float("inf") else None for x in found]


# CollapseExplorer


def test_explorer_writes_what_generate_writes(explorer, model):
    explorer.generate()
    first, second = explorer.trajectories
    assert same(first, generate(model, "abc", 9, temperature=0.8))
    assert same(second, generate(model, "abc", 9, collapse="nearest", temperature=0.8, **SOFT))


def test_explorer_begins_with_two_collapses_of_one_path(model):
    explorer = CollapseExplorer(model, "abc", 9)
    assert [setting.collapse.value for setting in explorer.settings] == ["softmax", "nearest"]
    assert list(explorer.river.trajectories) == ["A softmax", "B nearest"]


@pytest.mark.parametrize("judged", [False, True])
def test_drift_is_measured_by_the_judge_and_drawn(tiny, judged):
    judge = Chain() if judged else None
    model = tiny(objective="mse", scale=0.15, letters="abc" if judged else "abcdefghijk \n")
    explorer = CollapseExplorer(model, "a", 9, judge=judge, settings=({}, SOFT))
    assert explorer.river.rivers["strip"]["name"] == "drift"
    for setting, strip in zip(explorer.settings, strips(explorer), strict=True):
        expected = torch.from_numpy(
            drift(setting.trajectory, model, judge)["kl"].to_numpy(copy=True)
        )
        torch.testing.assert_close(setting.drift, expected)
        assert strip == rounded(expected)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("distance", lambda path: path.distance),
        ("entropy", lambda path: path.entropy),
        ("surprise", lambda path: -path.log_probs / torch.log(torch.tensor(2.0))),
    ],
)
def test_strip_shows_what_was_asked_for(explorer, kind, values):
    explorer.strip.value = kind
    wait(lambda: explorer.river.rivers["strip"]["name"] == kind and measured(explorer))
    assert strips(explorer) == [rounded(values(path)) for path in explorer.trajectories]


@pytest.mark.parametrize(
    ("control", "value"),
    [("collapse", "softmax"), ("collapse", "barycentric"), ("temperature", 0.0)],
)
def test_another_collapse_of_a_free_path_needs_no_generation(
    explorer, model, monkeypatch, control, value
):
    setting = explorer.settings[1]
    options = {"collapse": "softmax", "temperature": 0.8, **SOFT, control: value}
    expected = generate(model, "abc", 9, **options)
    setting.collapse.value = "softmax"
    explorer.generate()
    before = setting.trajectory.vectors
    monkeypatch.setattr("softar_lab.widgets.written.stream", None)
    getattr(setting, control).value = value
    wait(lambda: setting.trajectory.text == expected.text and measured(explorer))
    assert setting.trajectory.vectors is before
    with explorer._measuring:
        torch.testing.assert_close(
            setting.drift,
            torch.from_numpy(drift(setting.trajectory, model)["kl"].to_numpy(copy=True)),
        )


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
    explorer.generate()
    options = {**setting.values(), "collapse": "softmax"}
    expected = generate(models[setting.model.value], "abc", 9, **options)
    assert same(explorer.trajectories[1], expected)


def test_prompt_steps_and_seed_are_shared(explorer, model):
    explorer.prompt.value, explorer.steps.value, explorer.seed.value = "de", 5, 7
    explorer.generate()
    first, second = explorer.trajectories
    assert same(first, generate(model, "de", 5, temperature=0.8, seed=7))
    assert same(
        second, generate(model, "de", 5, collapse="nearest", temperature=0.8, seed=7, **SOFT)
    )


def test_drift_blocks_nothing_and_belongs_to_the_drawn_trajectory(explorer, model, monkeypatch):
    """A change made while drift is measured is answered first; what was measured of the text before
    is not drawn.
    """
    reached, opened = threading.Event(), threading.Event()

    def slow(*arguments):
        reached.set()
        assert opened.wait(CEILING)
        return drift(*arguments)

    monkeypatch.setattr("softar_lab.widgets.readers.drift", slow)
    setting = explorer.settings[1]
    setting.collapse.value = "softmax"
    assert reached.wait(CEILING)
    setting.collapse.value = "barycentric"
    expected = generate(model, "abc", 9, collapse="barycentric", temperature=0.8, **SOFT).text
    wait(lambda: setting.trajectory.text == expected)
    assert setting.drift is None
    opened.set()
    explorer.generate()
    torch.testing.assert_close(
        setting.drift, torch.from_numpy(drift(setting.trajectory, model)["kl"].to_numpy(copy=True))
    )


def test_drift_is_split_into_what_is_misread_and_what_is_forgotten(tiny, monkeypatch):
    """By readers fitted on other paths of the same kind; nothing stands for a part that is unknown."""
    for name, few in {"PATHS": 4, "BEGIN": 3, "FITTED": 8}.items():
        monkeypatch.setattr(f"softar_lab.widgets.readers.{name}", few)
    model = tiny(objective="mse", scale=0.15)
    explorer = CollapseExplorer(model, "abc", 9, strip="misread", settings=({}, SOFT))
    soft = explorer.settings[1]
    readers = readers_for(model, soft.values(), "abc", None)
    found = drift_by_reader(soft.trajectory, model, readers)
    parts = {"misread": found["own"] - found["refitted"], "forgotten": found["refitted"]}
    for kind, due in parts.items():
        explorer.strip.value = kind
        wait(lambda kind=kind: (explorer.river.rivers["strip"] or {}).get("name") == kind)
        assert strips(explorer)[1] == rounded(torch.from_numpy(due.to_numpy(copy=True)))
    hard = explorer.settings[0]
    assert hard.part("forgotten") is not None
    assert explorer.problem == ""


def test_no_other_number_stands_for_a_drift_that_is_not_known(tiny, model):
    """It was the distance to the nearest symbol, under the name of the drift."""
    explorer = CollapseExplorer(tiny(letters="ab"), "ab", 4, judge=model)
    assert explorer.river.rivers["strip"] is None
    assert strips(explorer) == [[None] * 4, [None] * 4]


def test_judge_that_could_write_what_the_model_cannot_is_named(tiny, model):
    explorer = CollapseExplorer(tiny(letters="ab"), "ab", 4, judge=model)
    assert "no drift: a predictor that reads along could write" in said(explorer)
    assert explorer.trajectory is not None


def test_models_with_other_tables_and_without_any_are_compared(tiny, model):
    models = {"soft": model, "chain": Chain(), "narrow": tiny(objective="mse", embedding_dim=5)}
    chosen = ({}, {"model": "chain"}, {"model": "narrow"})
    explorer = CollapseExplorer(models, "abc", 6, settings=chosen)
    assert None not in explorer.trajectories
    explorer.plane.value = True
    with_plane = [one.plane in one.children for one in explorer.settings]
    assert with_plane == [True, False, True]
    chains = CollapseExplorer(Chain(), "abc", 6, settings=({}, {"temperature": 0}))
    assert None not in chains.trajectories
    assert "image/png" in chains._repr_mimebundle_()


def test_explorer_tells_its_settings_and_carries_a_still_picture(explorer):
    first, second = explorer.trajectories
    assert repr(explorer) == (
        f"CollapseExplorer(prompt='abc': wrote ⟨{first.text!r}⟩; "
        f"collapse=nearest, schedule=never, feedback=raw wrote ⟨{second.text!r}⟩)"
    )
    assert carries_a_picture(explorer)


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


def test_a_text_that_failed_while_it_was_to_be_measured_is_no_error(model):
    setting = CollapseExplorer(model, "abc", steps=9).first
    setting.trajectory = None
    setting.measure_drift(None)
    setting.measure(None)
    assert setting.problem == ""


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
    assert list(walk.river.trajectories.values()) == [other]
    assert TrajectoryExplorer(model, expected).trajectory is expected


@pytest.mark.parametrize("step", [0, 5, 8])
def test_step_moves_the_plane_with_its_spokes(walk, model, step):
    walk.step.value = step
    path, state, basis = walk.trajectory, walk.plane.plane, PCABasis.fit(model.embedding, 2)
    weights = barycentric(path.vectors[[step]], model.embedding)[0]
    first = max(0, step - 5)
    assert state["first"] == first
    close = {"rtol": 1e-3, "atol": 1e-4}  # four digits are sent
    points = basis.transform(path.vectors[first : step + 1])
    torch.testing.assert_close(torch.tensor(state["trail"]), points, **close)
    mixed = basis.transform(weights @ model.embedding)
    torch.testing.assert_close(torch.tensor(state["mixture"]), mixed, **close)
    marked = {symbol: weight for symbol, _, _, weight in state["symbols"] if weight}
    assert len(marked) == min(8, int((weights >= 0.01).sum()))
    for symbol, weight in marked.items():
        token = {"␣": " ", "↵": "\n"}.get(symbol, symbol)
        assert abs(weights[model.tokenizer.tokens.index(token)] - weight) < 6e-4
    assert abs(state["off_hull"] - detectors(path, model)["off_hull"].iloc[step]) < 1e-4
    away = path.vectors[first : step + 1] - basis.mean
    share = (away @ basis.components.T).square().sum() / away.square().sum()
    assert abs(state["held"] - float(share)) < 6e-4


def test_of_a_large_table_only_the_symbols_of_these_steps_are_written(tiny):
    large = tiny(letters="".join(map(chr, range(0x4E00, 0x4E00 + 70))), objective="mse")
    walk = TrajectoryExplorer(large, "", 9, **SOFT)
    walk.step.value = 8
    path, written = walk.trajectory, {one[0] for one in walk.plane.plane["symbols"]}
    assert {path.tokens[i] for i in path.token_ids[3:9].tolist()} <= written
    assert len(written) < 70


@pytest.mark.parametrize(("count", "worth"), [(5, True), (42, False), (400, True)])
def test_a_plane_is_shown_at_once_for_few_symbols_and_for_a_large_table(tiny, count, worth):
    model = tiny(letters="".join(map(chr, range(0x4E00, 0x4E00 + count))))
    assert GenerationPanel(model, "", 2).plane.value == worth


@pytest.mark.parametrize("name", DETECTORS)
def test_strip_shows_the_detectors(walk, model, name):
    walk.detector.value = name
    assert strips(walk) == [rounded(detectors(walk.trajectory, model)[name].to_numpy(copy=True))]


def test_walk_without_vectors_has_a_text_and_candidates():
    walk = TrajectoryExplorer(Chain(), "abc", 5)
    walk.step.value = 3
    assert len(walk.river.rivers["rivers"][0]["ids"]) == 5
    assert "predicts no vectors" in said(walk)
    assert walk.plane not in walk.children
    assert "image/png" in walk._repr_mimebundle_()
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


def test_notes_name_the_share_of_soft_symbols(explorer):
    found = [
        re.search(r"9 symbols, (\d) read back soft", told(one))[1] for one in explorer.settings
    ]
    assert found == ["0", "9"]
