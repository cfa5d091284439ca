"""What thoughts hold, read by a probe; and the panel that shows it."""

import pytest
import torch

from conftest import enliven
from softar_lab.data.tasks import load_task
from softar_lab.metrics.beliefs import BeliefProbe, overlap, states_held
from softar_lab.models.config import ModelConfig
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.reinforcement import ReinforceConfig
from softar_lab.widgets import ThoughtExplorer

TASK = load_task("minimum-sum(3, 3)")
RECIPE = ReinforceConfig(steps=4, problems=2, group=2, expected_answers=True, eval_every=2)


def model_of(task=TASK) -> SoftAR:
    shape = {"context": 6, "n_layers": 1, "n_heads": 2, "d_model": 8, "embedding_dim": 4}
    model = SoftAR(ModelConfig(vocab_size=task.vocab_size, **shape), task.tokenizer)
    return enliven(model, 0, 0.3)


# -- the probe -----------------------------------------------------------------------------------


def test_probe_reads_mixtures_of_independent_rows_exactly(rng):
    """Of V <= m rows a mixture is a linear image; the ridge of 1e-3 costs about as much."""
    table = torch.randn(5, 8, generator=rng(1), dtype=torch.float64)
    states = torch.rand(400, 5, generator=rng(2), dtype=torch.float64).pow(4)
    states = states / states.sum(1, keepdim=True)
    probe = BeliefProbe((states @ table)[:300], states[:300])
    found = probe.read((states @ table)[300:])
    assert torch.allclose(found.sum(1), torch.ones(100, dtype=torch.float64))
    assert overlap(found, states[300:]).min() > 0.97
    wrong = BeliefProbe((states @ table)[:300], states[:300].roll(1, 0))
    assert overlap(wrong.read((states @ table)[300:]), states[300:]).mean() < 0.8


def test_probe_needs_more_vectors_than_numbers():
    with pytest.raises(ValueError, match="4 soft tokens are too few to fit a map of 4 numbers"):
        BeliefProbe(torch.zeros(4, 4), torch.zeros(4, 3))


def test_overlap_and_states_held_of_known_distributions():
    one = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    other = torch.tensor([[0.25] * 4, [0.0, 1.0, 0.0, 0.0]])
    assert overlap(one, other).tolist() == [0.5, 0.0]
    assert states_held(one).tolist() == [2.0, 1.0]
    assert states_held(other)[0] == pytest.approx(4)


# -- the panel -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_raised_or_logged")
def test_panel_shows_each_thought_beside_what_it_should_hold():
    explorer = ThoughtExplorer(model_of(), TASK, "1 2 2", config=RECIPE)
    assert list(explorer.beliefs) == [
        *("1: exact", "1: thought", "2: exact", "2: thought", "answer")
    ]
    exact = TASK.states(explorer.read_question())[0]
    assert explorer.beliefs["2: exact"].equal(exact[1])
    assert explorer.right == "+1"
    assert repr(explorer).startswith("ThoughtExplorer('1 2 2', 2 soft thoughts: answers ⟨")
    explorer.thoughts.value = 3
    assert len(explorer.beliefs) == 7
    for thinking in ("hard", "pause", "exact"):
        explorer.thinking.value = thinking
        assert not explorer.problem
    explorer.thoughts.value = 0
    assert list(explorer.beliefs) == ["answer"]
    assert explorer.still() is not None


def test_panel_names_what_is_no_problem_and_goes_on():
    explorer = ThoughtExplorer(model_of(), TASK, config=RECIPE)
    explorer.question.value = "1 2 7"
    assert "'1 2 7' is no problem of minimum-sum(largest=3, length=3)" in explorer.problem
    assert "nothing, '1 2 7' is no problem" in repr(explorer)
    explorer.question.value = "2 2 2"
    assert not explorer.problem
    assert explorer.right == "+2"


@pytest.mark.usefixtures("nothing_raised_or_logged")
def test_panel_trains_a_copy_and_draws_share_and_direction():
    model = model_of()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    explorer = ThoughtExplorer(model, TASK, estimator="hard", config=RECIPE)
    explorer.train()
    assert "of held-out problems right" in explorer.status.value
    share, direction = explorer.curves.data
    assert list(share.x) == list(direction.x) == [8, 16]
    assert all(-1 <= value <= 1 for value in direction.y)
    assert all(before[name].equal(one) for name, one in model.state_dict().items())
    moved = explorer.model.state_dict()
    assert any(not before[name].equal(one) for name, one in moved.items())


def test_direction_of_a_task_too_large_to_enumerate_is_left_out():
    task = load_task("minimum-sum(9, 3)")
    explorer = ThoughtExplorer(model_of(task), task, config=RECIPE)
    explorer.config = ReinforceConfig(problems=60)  # 60 x 64² rows
    assert explorer.direction() is None
