"""Requests drawn at random, most of them wrong: each works, or ends in an error of the lab's own.

An error is the lab's own where a line of the package raises it on purpose, with a message, or where
Python names the argument that a function does not take. What torch, NumPy or Python raise from
within (RuntimeError, KeyError, 'int' object is not iterable) is a fault. The types that the other
tests enforce are switched off here, as they are for a user.
"""

import inspect
import json
import linecache
import math
import re
import shutil
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
import traitlets
from amount import per_test
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import softar_lab
from softar_lab import compare, generate
from softar_lab.core import store
from softar_lab.core.store import CheckpointError, StoreError, save_folder, save_vectors
from softar_lab.core.trajectory import Trajectory
from softar_lab.data.corpora import Corpus
from softar_lab.data.languages.markov import Markov
from softar_lab.generation.collapse import COLLAPSES
from softar_lab.generation.feedback import FEEDBACKS
from softar_lab.generation.schedule import SCHEDULES
from softar_lab.models.soft_ar import MANIFEST, SoftAR
from softar_lab.models.window_memory.layout import Window
from softar_lab.training.config import TrainConfig
from softar_lab.training.loop import TrainingDiverged, train
from softar_lab.training.soft_inputs import SOFT_INPUTS
from softar_lab.widgets import (
    AttentionExplorer,
    CollapseExplorer,
    GenerationPanel,
    Panel,
    SumExplorer,
    TokenExplorer,
    TrajectoryExplorer,
    WindowExplorer,
    written,
)

PACKAGE = Path(softar_lab.__file__).parent
CASES = per_test(60, 7 + 7 / 12)  # seven tests, and seven panels
REQUESTS = settings(
    max_examples=CASES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    report_multiple_bugs=False,
)
# What Python says where a function gets an argument that it does not have.
_UNKNOWN = re.compile(r"unexpected keyword argument|positional arguments? but|missing \d+ required")


def own(error: BaseException) -> bool:
    """Whether an error is the lab's own."""
    if not isinstance(error, ValueError | TypeError | TrainingDiverged) or not str(error):
        return False
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    code = last.tb_frame.f_code
    inside = PACKAGE in Path(code.co_filename).parents
    raised = linecache.getline(code.co_filename, last.tb_lineno).strip().startswith("raise")
    return (inside and raised) or bool(isinstance(error, TypeError) and _UNKNOWN.search(str(error)))


def answered(action):
    """What an action gives, or None where the lab refuses it; any other error is a fault."""
    try:
        return action()
    except Exception as error:
        if own(error):
            return None
        raise


@pytest.fixture(autouse=True)
def _as_a_user(monkeypatch):
    """Types are not enforced."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


# -- what is asked for -----------------------------------------------------------------------------

NUMBERS = [0, 1, 2, 3, 0.5, -1, -0.5, 1.5, math.nan, math.inf, -math.inf, 1e-300, 1e308, 10**30]
THINGS = [None, True, "", "1", "a", b"a", [], [1], {}, (), 1j, object(), np.float32(1), np.int64(2)]
THINGS += [torch.tensor(1.0), torch.ones(2), np.ones(2), int, len, lambda context: None]
odd = st.sampled_from(NUMBERS + THINGS)
ARGUMENTS = [
    "",
    "1",
    "2",
    "0",
    "-1",
    "0.5",
    "nan",
    "inf",
    "1e400",
    "1e-320",
    "None",
    "True",
    "'a'",
    "''",
]
ARGUMENTS += [
    "1,2,3",
    "1,",
    "k=2",
    "x=1",
    "1,1",
    "above=0.1,until=0.2",
    "[1]",
    "{}",
    "(",
    ")",
    "<SoftAR>",
]
ARGUMENTS += [
    "0.1,None,<SoftAR>",
    "0.1, 'tales'",
    "0.1,'none'",
    "9" * 5000,
    "1+1",
    "*[1]",
    "**{}",
    "\x00",
]


def specs(registry):
    """Names of an axis with all kinds of arguments, and things that are no names."""
    names = st.sampled_from([*registry.names(), "", "nowhere", " every ", "Softmax"])
    written = st.builds("{}({})".format, names, st.sampled_from(ARGUMENTS))
    broken = st.builds(
        "{}{}".format, names, st.sampled_from(["(", ")", "()", "(1))", "(1) x", "[1]"])
    )
    return sometimes(names, st.one_of(written, written, broken, odd))


def sometimes(usual, wrong=odd):
    """Mostly the usual values, so that what is wrong with one argument is not hidden by another."""
    return st.integers(0, 7).flatmap(lambda n: wrong if n == 7 else usual)


def some(**arguments):
    """Some of the arguments, and now and then one that does not exist."""
    known = st.fixed_dictionaries({}, optional=arguments)
    return sometimes(known, st.builds(dict, known, nowhere=odd))


texts = st.sampled_from(["", "a", "abc", "kk\n", "xyz", "a" * 30, "\ud800", "😀", "\x00"])
prompts = sometimes(st.one_of(texts, st.lists(texts, max_size=3)))
steps = sometimes(st.sampled_from([1, 2, 3, 5]))
temperatures = sometimes(st.sampled_from([0, 1, 0.5]))
seeds = sometimes(
    st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, [0, 1], [0], [], range(2), [None], "ab"])
)
windows = st.sampled_from(
    [None, "full", "masked", "other", "plain", "sum", "bound(2)", "window(1,2)", "window(", "window(-1)", "nowhere", 5,
     Window(1, 1, hard=2, soft=2), Window(1, 1, hard=0)]
)  # fmt: skip
devices = sometimes(
    st.sampled_from(["auto", "cpu"]), st.sampled_from(["cuda", "gpu", "cuda:99", "", None, 5])
)
choices = some(
    collapse=specs(COLLAPSES),
    schedule=specs(SCHEDULES),
    feedback=specs(FEEDBACKS),
    window=windows,
    temperature=temperatures,
    soft_temperature=temperatures,
    seed=seeds,
    device=devices,
)


@pytest.fixture(scope="module")
def models(tiny):
    """One model of each kind: mixtures, vectors, draws, a window with a memory, no vectors."""
    window = "window(1, 1, 3, 3, 'sum', 4)"
    return [
        tiny(n_layers=1),
        tiny(objective="mse", table="orthonormal", n_layers=1),
        tiny(objective="energy(2)", n_layers=1),
        tiny(window=window, n_layers=1),
        Markov([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.9, 0.0, 0.1]], "abc"),
    ]


which = st.integers(0, 4)


# -- generate and compare --------------------------------------------------------------------------


@REQUESTS
@given(which=which, prompt=prompts, steps=steps, choices=choices)
def test_generate_answers_or_refuses(models, which, prompt, steps, choices):
    found = answered(lambda: generate(models[which], prompt, steps, **choices))
    for one in found if isinstance(found, list) else [found]:
        if one is not None:
            assert len(one) == steps
            assert torch.isfinite(one.log_probs).all()
            assert torch.isfinite(one.vectors).all()


@REQUESTS
@given(
    which=which,
    prompts=sometimes(st.lists(texts, max_size=2)),
    options=some(
        collapses=sometimes(st.lists(specs(COLLAPSES), max_size=2)),
        schedules=sometimes(st.lists(specs(SCHEDULES), max_size=2)),
        feedbacks=sometimes(st.lists(specs(FEEDBACKS), max_size=2)),
        seeds=sometimes(st.sampled_from([1, 2])),
        steps=steps,
        temperature=temperatures,
        soft_temperature=temperatures,
        words=sometimes(st.just(["ab", "k"])),
        separator=sometimes(st.sampled_from([None, "\n"])),
        truth=sometimes(st.none()),
    ),
    judge=sometimes(st.just("the model")),
)
def test_compare_answers_or_refuses(models, which, prompts, options, judge):
    judge = models[which] if isinstance(judge, str) and judge == "the model" else judge
    options = {"steps": 2, "seeds": 1, **options, "progress": False}
    frame = answered(lambda: compare(models[which], prompts, judge=judge, **options))
    if frame is not None:
        assert frame.loc[frame["problem"] == "", "bits"].notna().all()


# -- train -----------------------------------------------------------------------------------------

recipes = some(
    batch_size=sometimes(st.sampled_from([1, 2])),
    window=sometimes(st.sampled_from([None, 1, 4])),
    muon_learning_rate=sometimes(st.sampled_from([0.02, 1e30])),
    adam_learning_rate=sometimes(st.sampled_from([3e-3, 1e38])),
    weight_decay=sometimes(st.sampled_from([0.0, 0.1])),
    warmup=sometimes(st.sampled_from([0.0, 0.5])),
    precision=sometimes(st.sampled_from(["auto", "fp32", "bf16"])),
    soft_inputs=st.one_of(st.none(), specs(SOFT_INPUTS)),
    history=sometimes(st.sampled_from([0, 10])),
    eval_every=sometimes(st.sampled_from([0, 1])),
    save_every=sometimes(st.sampled_from([0, 1])),
)
corpora = st.builds(
    lambda train, val, separator: ("odd", train, val, "ab", None, separator),
    sometimes(st.sampled_from(["abcdefghijk \n" * 9, "ab\ncd\n" * 20]), st.one_of(texts, odd)),
    sometimes(st.sampled_from(["abcdefghijk \n" * 2]), st.one_of(texts, odd)),
    sometimes(st.sampled_from([None, "\n"])),
)
SHAPES = (
    {},
    {"objective": "mse"},
    {"objective": "flow(2)"},
    {"window": "window(1, 1, 2, 2, 'sum', 2)"},
)


@pytest.fixture(scope="module")
def saved_run(tiny, corpus, tmp_path_factory):
    """A run of two steps, saved."""
    folder = tmp_path_factory.mktemp("run")
    run_of(tiny, {}, corpus, TrainConfig(steps=2, batch_size=1), out=folder)
    return folder


def run_of(tiny, shape, *arguments, **options):
    model = tiny(alive=False, n_layers=1, d_model=8, context=6, **shape)
    return train(model, *arguments, progress=False, **options)


@pytest.mark.filterwarnings("ignore:.*characters of the .* text are not in the vocabulary")
@REQUESTS
@given(
    shape=st.sampled_from(SHAPES),
    corpus=sometimes(corpora),
    steps=sometimes(st.sampled_from([1, 2])),
    recipe=recipes,
    options=some(
        seed=seeds,
        device=devices,
        eval_tokens=sometimes(st.sampled_from([None, 1, 10])),
        resume=sometimes(st.booleans()),
        on_step=sometimes(st.none()),
    ),
    again=st.booleans(),
)
def test_train_answers_or_refuses(
    tiny, tmp_path, saved_run, shape, corpus, steps, recipe, options, again
):
    out = tmp_path / "run"
    if again:
        shutil.copytree(saved_run, out, dirs_exist_ok=True)

    def action():
        text = Corpus(*corpus) if isinstance(corpus, tuple) and len(corpus) == 6 else corpus
        return run_of(tiny, shape, text, TrainConfig(steps=steps, **recipe), out=out, **options)

    run = answered(action)
    assert run is None or not math.isnan(run.val_bits_per_char)
    if again:  # nothing that was saved is lost
        assert SoftAR.load(out, "cpu").card["steps_done"] >= 1
    shutil.rmtree(out, ignore_errors=True)


# -- damaged files ---------------------------------------------------------------------------------


def damaged(data: bytes, where: float, what: int) -> bytes:
    """The content cut short, with a byte changed, or with bytes more."""
    at = int(where * (len(data) - 1))
    if what == 0:
        return data[:at]
    if what == 1:
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    return data[:at] + b"\x00\xff" * what + data[at:]


@pytest.fixture(scope="module")
def path_file(models, tmp_path_factory):
    file = tmp_path_factory.mktemp("paths") / "path.safetensors"
    generate(models[1], "abc", 5, schedule="never").save(file)
    return file


@REQUESTS
@given(where=st.floats(0, 1), what=st.integers(0, 3))
def test_a_damaged_trajectory_is_refused(path_file, tmp_path, where, what):
    content = path_file.read_bytes()
    file = tmp_path / "damaged.safetensors"
    file.write_bytes(damaged(content, where, what))
    with pytest.raises(StoreError, match=re.escape(str(file))):
        Trajectory.load(file)
    assert path_file.read_bytes() == content


json_like = st.sampled_from(
    [None, True, 0, -1, 1.5, "", "a", [], ["a"], [1], {}, {"a": 1}, [[]], 10**30]
)
arrays = st.sampled_from(
    [torch.zeros(0), torch.zeros(5), torch.zeros(5, 3), torch.zeros(5, dtype=torch.long), torch.tensor(1.0),
     torch.full((5, 8), 99), torch.zeros(5, dtype=torch.bool), torch.full((5,), -1), torch.full((5, 16), math.nan)]
)  # fmt: skip


@REQUESTS
@given(data=st.data())
def test_a_trajectory_whose_parts_do_not_fit_is_refused(path_file, tmp_path, data):
    """Sound files with odd content: it loads and can be used, or is refused."""
    held, told = store.load_vectors(path_file)
    field = data.draw(st.sampled_from([*told, *held, "more"]))
    if field in told:
        told = {**told, field: data.draw(json_like)}
    else:
        held = {**held, field: data.draw(arrays)}
    if data.draw(st.booleans()):
        held.pop(data.draw(st.sampled_from(sorted(held))))
    save_vectors(tmp_path / "odd.safetensors", held, told)
    try:
        found = Trajectory.load(tmp_path / "odd.safetensors")
    except StoreError:
        return
    assert len(found.candidates(0)) == found.top_ids.shape[1]
    assert repr(found)


@REQUESTS
@given(data=st.data())
def test_a_damaged_checkpoint_is_refused(saved_run, tmp_path, data):
    folder = tmp_path / "model"
    shutil.copytree(saved_run, folder, dirs_exist_ok=True)
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    name = data.draw(st.sampled_from(files))
    content = damaged(
        (folder / name).read_bytes(), data.draw(st.floats(0, 1)), data.draw(st.integers(0, 3))
    )
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(str(folder))):
        SoftAR.load_with_files(folder, "cpu")


@REQUESTS
@given(data=st.data())
def test_a_checkpoint_of_an_odd_recipe_is_refused(saved_run, tmp_path, data):
    """Sound folders whose manifest says something odd."""
    manifest, files = store.load_folder(saved_run, MANIFEST, json_format(saved_run))
    part = data.draw(st.sampled_from([key for key in manifest if key not in ("files", "checksum")]))
    if isinstance(manifest[part], dict) and data.draw(st.booleans()):
        field = data.draw(st.sampled_from([*manifest[part], "more"]))
        manifest = {**manifest, part: {**manifest[part], field: data.draw(json_like)}}
    else:
        manifest = {**manifest, part: data.draw(json_like)}
    if data.draw(st.booleans()):
        files = {name: files[name] for name in data.draw(st.sets(st.sampled_from(sorted(files))))}
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    body = {key: value for key, value in manifest.items() if key not in ("files", "checksum")}
    save_folder(folder, body, files, MANIFEST)
    try:
        model = SoftAR.load(folder, "cpu")
    except CheckpointError:
        return
    assert model.tokenizer is None or generate(model, model.tokenizer.tokens[0], 2).text


def json_format(folder) -> str:
    return json.loads((folder / MANIFEST).read_text())["format"]


# -- panels ----------------------------------------------------------------------------------------


@pytest.fixture
def errors(monkeypatch):
    """What a panel's actions raised, before it became a line of text; work is done at once."""
    found = []

    def attempt(self, action, *arguments):
        try:
            action(*arguments)
        except Exception as error:
            found.append(error)
            self.say(str(error) or type(error).__name__, "error")

    def recording(function):
        def recorded(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except Exception as error:
                found.append(error)
                raise

        return recorded

    monkeypatch.setattr(Panel, "_attempt", attempt)
    monkeypatch.setattr(
        Panel, "_run_in_background", lambda self, work: self._run(work, self._begin())
    )
    for name in ("stream", "redecode", "part_of_drift", "readers_for"):
        monkeypatch.setattr(written, name, recording(getattr(written, name)))
    return found


STORY = "One day the king had a ball. Who has the ball? The king.\n"


@pytest.fixture(scope="module")
def panels(models):
    """Makers of panels, by name; "chain" has no vectors."""
    mixture, vectors, _, window, chain = models
    rows, words = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), list("abcde")
    return {
        "generation": lambda: GenerationPanel(
            {"m": mixture, "v": vectors, "chain": chain}, "ab", 3
        ),
        "collapse": lambda: CollapseExplorer({"m": mixture, "chain": chain}, "ab", 3),
        "trajectory": lambda: TrajectoryExplorer(vectors, "ab", 3, schedule="never"),
        "tokens": lambda: TokenExplorer({"m": mixture, "chain": chain}, "ab"),
        "sums": lambda: SumExplorer(rows, words, "a + b"),
        "attention": lambda: AttentionExplorer(mixture, "abc"),
        "window": lambda: WindowExplorer(window, STORY),
    }


def controls(panel):
    """The controls of a panel by name, those of its settings too."""
    found = {
        name: control
        for name, control in vars(panel).items()
        if isinstance(control, traitlets.HasTraits) and "value" in control.trait_names()
    }
    if isinstance(panel, GenerationPanel):
        for setting in panel.settings:
            found |= {f"{setting.name}.{one.description}": one for one in setting.controls}
    return {name: one for name, one in found.items() if hasattr(one, "description")}


values = st.one_of(
    odd,
    texts,
    specs(SCHEDULES),
    st.integers(-5, 40),
    st.tuples(st.integers(-5, 40), st.integers(-5, 40)),
)


@pytest.mark.parametrize(
    "name", ["generation", "collapse", "trajectory", "tokens", "sums", "attention", "window"]
)
@settings(REQUESTS, max_examples=max(1, CASES // 12))
@given(data=st.data())
def test_a_panel_answers_or_refuses(panels, errors, name, data):
    panel = panels[name]()
    for _ in range(data.draw(st.integers(1, 4))):
        control = data.draw(st.sampled_from(sorted(controls(panel))))
        widget = controls(panel)[control]
        offered = getattr(widget, "options", ())
        value = data.draw(st.one_of(values, st.sampled_from(offered)) if offered else values)
        value = value[1] if offered and isinstance(value, tuple) and value in offered else value
        try:
            widget.value = value
        except (traitlets.TraitError, TypeError, ValueError, OverflowError) as error:
            frames = inspect.getinnerframes(error.__traceback__)
            assert "softar_lab" not in frames[-1].filename, error  # the control itself refuses it
        assert repr(panel)
    if data.draw(st.booleans()):
        panel.still()
    for error in errors:
        assert own(error), repr(error)
    errors.clear()
