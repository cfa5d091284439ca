"""Runs on tasks: they learn, go on to the bit, and name what is wrong."""

import math

import pytest
import torch
from killed import killed_and_resumed

from conftest import enliven
from softar_lab.core.store import CheckpointError
from softar_lab.data.tasks import load_task
from softar_lab.models.config import ModelConfig
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.config import TrainConfig
from softar_lab.training.estimators import ESTIMATORS
from softar_lab.training.loop import TrainingDiverged
from softar_lab.training.reinforcement import ReinforceConfig, reinforce
from softar_lab.training.roll_outs import (
    CONTROLS,
    replaced,
    roll_out,
    score_thoughts,
    step_log_probs,
)
from softar_lab.training.task_run import problems_of_step
from softar_lab.training.thoughts import KINDS, check_fit, lesson, train_thoughts

TASK = load_task("minimum-sum(3, 3)")
SHORT = ReinforceConfig(steps=6, problems=4, group=4, eval_every=2, save_every=2)
LESSON = TrainConfig(steps=6, batch_size=8, eval_every=2, save_every=2)


def fresh(task=TASK, seed=0, alive=True) -> SoftAR:
    shape = {"context": task.length + 4, "n_layers": 1, "n_heads": 2, "d_model": 8}
    config = ModelConfig(vocab_size=task.vocab_size, **shape)
    model = SoftAR(config, task.tokenizer, seed)
    return enliven(model, seed, 0.3) if alive else model


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return all(one[name].equal(other[name]) for name in one)


# -- supervised thoughts -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_supervised_thoughts_learn_a_small_task(kind):
    """Counting has one state a step, so both kinds can learn all problems that they read."""
    task = load_task("counting(3, 2)")
    model, problems = fresh(task, alive=False), task.split().train
    config = TrainConfig(steps=250, batch_size=8, eval_every=0, save_every=0)
    run = train_thoughts(model, task, kind, config, progress=False)
    own = roll_out(model, problems, 1, KINDS[kind], temperature=0).vectors
    score = score_thoughts(model, task, problems, own)
    assert score.accuracy == 1 > task.floor(problems)
    assert score.reward > task.floor(problems) + 0.2
    assert f"{run.accuracy:.1%} of held-out problems right, step 250" in repr(run)


def test_lessons_say_what_each_kind_reads_and_learns(rng):
    model, some = fresh(), TASK.problems[:5]
    states = TASK.states(some).float()
    vectors, targets = lesson(model, TASK, "soft", some, 2, rng())
    assert targets[:, :-1].equal(states)
    assert torch.allclose(vectors, states @ model.embedding)
    assert targets[:, -1].argmax(1).equal(TASK.answers(some))
    chained, targets = lesson(model, TASK, "hard", some, 2, rng())
    assert targets.sum(-1).equal(torch.ones(5, 3))
    assert chained.equal(model.embedding[targets[:, :-1].argmax(-1)])
    assert (states.gather(2, targets[:, :-1].argmax(-1, keepdim=True)) > 0).all()
    paused, targets = lesson(model, TASK, "pause", some, 2, rng())
    assert targets[:, :-1].abs().sum() == 0
    assert paused.equal(paused[:1, :1].expand_as(paused))
    assert paused[0].equal(roll_out(model, some[:1], 2, "pause").vectors[0])
    empty, targets = lesson(model, TASK, "none", some, 0, rng())
    assert (empty.shape[1], targets.shape[1]) == (0, 1)


# -- roll-outs -----------------------------------------------------------------------------------


def test_one_pass_gives_what_the_engine_predicted_step_by_step():
    model = fresh()
    some = TASK.problems[:6]
    made = roll_out(model, some, 2, "mixture", temperature=0)
    log_probs = step_log_probs(model, some, made.vectors)
    probs = log_probs.exp()
    assert torch.allclose(made.vectors, probs[:, :-1] @ model.embedding, atol=1e-5)
    assert made.answers.equal(probs[:, -1].argmax(1))
    score = score_thoughts(model, TASK, some, made.vectors)
    right = probs[:, -1].gather(1, TASK.answers(some)[:, None])
    assert score.reward == pytest.approx(right.mean().item(), rel=1e-5)
    assert score.accuracy == (made.answers == TASK.answers(some)).double().mean()


def test_controls_replace_the_thoughts_by_what_they_say():
    model, some = fresh(), TASK.problems[:6]
    own = roll_out(model, some, 2, "mixture").vectors
    found = replaced(model, TASK, some, own)
    assert tuple(found) == CONTROLS
    assert all(vectors.shape == own.shape for vectors in found.values())
    assert found["other"][1].equal(own[0])
    assert torch.allclose(found["mean"], own.mean(0))
    assert torch.allclose(found["exact"], TASK.states(some).float() @ model.embedding)
    hard = found["hard"][..., None, :] - model.embedding  # each thought is a row
    assert hard.norm(dim=-1).amin(-1).max() == 0


# -- reinforcement -------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["hard", "gaussian", "mixture", "exact"])
def test_rewards_alone_make_answers_better(estimator):
    """A task of 9 symbols and one thought, from a model that knows nothing."""
    task = load_task("minimum-sum(2, 2)")
    model = fresh(task)
    config = ReinforceConfig(steps=60, problems=4, group=8, learning_rate=0.03, eval_every=1)
    run = reinforce(model, task, estimator, config, progress=False)
    rewards = run.history["loss"]
    assert -rewards.iloc[-10:].mean() > -rewards.iloc[:10].mean() + 0.2
    rows = {"exact": 0, "mixture": 4}.get(estimator, 32)
    assert run.history["roll_outs"].iloc[-1] == 60 * rows


def stopper(step):
    """A callback that ends a run after a step."""
    return lambda event: event["step"] == step


@pytest.mark.parametrize("estimator", ["sampled(2)", "gumbel", "dirichlet", "straight-through"])
def test_a_run_stopped_at_any_step_goes_on_to_the_same_bits(estimator, tmp_path):
    whole = reinforce(fresh(), TASK, estimator, SHORT, seed=3, progress=False)
    for stop_at in (1, 4, 5):
        out = tmp_path / str(stop_at)
        options = {"out": out, "seed": 3, "progress": False}
        watch = stopper(stop_at)
        part = reinforce(fresh(), TASK, estimator, SHORT, on_step=watch, **options)
        assert part.interrupted
        assert part.history["step"].iloc[-1] == stop_at
        rest = reinforce(fresh(seed=9), TASK, estimator, SHORT, **options)
        assert not rest.interrupted
        assert same(weights(whole.model), weights(rest.model))
        assert whole.history.drop(columns="seconds").equals(rest.history.drop(columns="seconds"))


@pytest.mark.parametrize("kind", KINDS)
def test_supervised_runs_go_on_to_the_same_bits(kind, tmp_path):
    whole = train_thoughts(fresh(), TASK, kind, LESSON, seed=3, progress=False)
    options = {"out": tmp_path, "seed": 3, "progress": False}
    train_thoughts(fresh(), TASK, kind, LESSON, on_step=lambda e: e["step"] == 3, **options)
    rest = train_thoughts(fresh(seed=9), TASK, kind, LESSON, **options)
    assert same(weights(whole.model), weights(rest.model))
    saved = SoftAR.load(tmp_path, "cpu")
    assert same(weights(saved), weights(rest.model))
    assert saved.card["thoughts"]["steps_done"] == 6


def test_evaluating_changes_no_weight_and_no_draw():
    often = reinforce(fresh(), TASK, "hard", SHORT, progress=False).model
    seldom = ReinforceConfig(steps=6, problems=4, group=4, eval_every=0)
    assert same(
        weights(often), weights(reinforce(fresh(), TASK, "hard", seldom, progress=False).model)
    )


def test_runs_of_one_seed_draw_other_problems_where_their_kind_differs():
    problems = torch.arange(1000)[:, None]
    recipes = [{"what": what, "seed": 3} for what in ("thoughts", "reinforcement")]
    drawn = [problems_of_step(problems, 64, one, 5)[0].flatten().tolist() for one in recipes]
    assert drawn[0][:8] != drawn[1][:8]
    assert drawn[0] == problems_of_step(problems, 64, recipes[0], 5)[0].flatten().tolist()


@pytest.mark.parametrize("expected", [False, True])
def test_a_step_of_noiseless_thoughts_takes_one_row_per_problem(expected):
    config = ReinforceConfig(steps=2, problems=4, group=4, expected_answers=expected)
    run = reinforce(fresh(), TASK, "mixture", config, progress=False)
    assert run.history["roll_outs"].iloc[-1] == 8


def test_a_run_goes_on_only_as_the_run_that_it_is(tmp_path):
    options = {"out": tmp_path, "progress": False}
    reinforce(fresh(), TASK, "hard", SHORT, **options)
    with pytest.raises(
        CheckpointError, match="another run .*estimator: saved 'hard', now 'mixture'"
    ):
        reinforce(fresh(), TASK, "mixture", SHORT, **options)
    with pytest.raises(CheckpointError, match="another run .*what: saved"):
        train_thoughts(fresh(), TASK, "soft", LESSON, **options)
    again = reinforce(fresh(), TASK, "mixture", SHORT, resume=False, **options)
    assert again.history["step"].tolist() == [2, 4, 6]
    fresh().save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="holds a model but no run on a task"):
        reinforce(fresh(), TASK, "hard", SHORT, out=tmp_path / "model", progress=False)


@pytest.mark.parametrize("run", ["reinforce", "thoughts"])
def test_a_run_that_diverges_names_the_step_and_what_to_lower(run, tmp_path):
    model = fresh()

    def poison(event):
        if event["step"] == 3:
            model.body.blocks[0].mlp_in.weight.data[0, 0] = math.nan

    options = {"out": tmp_path, "progress": False, "on_step": poison}
    start = {
        "reinforce": lambda: reinforce(model, TASK, "hard", SHORT, **options),
        "thoughts": lambda: train_thoughts(model, TASK, "soft", LESSON, **options),
    }
    with pytest.raises(TrainingDiverged, match=r"step 3: lower \w*learning_rate"):
        start[run]()
    assert SoftAR.load(tmp_path).card["thoughts"]["steps_done"] == 2


def test_what_does_not_fit_is_named():
    model = fresh()
    other = load_task("counting(3, 3)")
    with pytest.raises(
        ValueError, match=r"symbols are not those of counting\(modulus=3, length=3\)"
    ):
        reinforce(model, other)
    with pytest.raises(ValueError, match="3 symbols and 5 thoughts are more than .* context of 7"):
        reinforce(model, TASK, config=ReinforceConfig(thoughts=5))
    with pytest.raises(ValueError, match="unknown kind 'loud'; known: soft, hard, pause, none"):
        train_thoughts(model, TASK, "loud")
    for field, value in {"window": 8, "soft_inputs": "scheduled(0.5)"}.items():
        config = TrainConfig(steps=2, **{field: value})
        with pytest.raises(ValueError, match=rf"TrainConfig\.{field} has no meaning for thoughts"):
            train_thoughts(model, TASK, config=config)
    with pytest.raises(ValueError, match="unknown estimator 'guess'"):
        reinforce(model, TASK, "guess")
    with pytest.raises(ValueError, match="must be a task, such as load_task"):
        check_fit(model, "minimum-sum", None)
    with pytest.raises(ValueError, match="model must be a SoftAR"):
        check_fit("tales", TASK, None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, r"ReinforceConfig\.steps must be a whole number of at least 1, not 0"),
        ("group", 0, r"ReinforceConfig\.group must be a whole number"),
        ("thoughts", -1, r"ReinforceConfig\.thoughts must be a whole number of at least 0"),
        ("learning_rate", 0, r"ReinforceConfig\.learning_rate must be above 0, not 0"),
    ],
)
def test_a_recipe_out_of_range_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        ReinforceConfig(**{field: value})


def test_every_estimator_is_registered_by_its_name():
    names = ["hard", "sampled", "gaussian", "gumbel", "dirichlet", "straight-through", "mixture"]
    assert ESTIMATORS.names() == [*names, "exact"]


@pytest.mark.slow
def test_reinforce_killed_at_any_moment_goes_on_to_the_same_bits(tmp_path):
    """At least ten kills at random times, and kills between the file operations of every save."""
    killed_and_resumed(tmp_path, "rewards")
