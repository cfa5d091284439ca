"""When a soft token becomes hard."""

import pytest
import torch

from softar_lab.generation import Always, EveryK, Never, schedule
from softar_lab.generation.thought import Thought
from softar_lab.predictor import Prediction


def thought(*steps):
    n = len(steps)
    prediction = Prediction(torch.zeros(n, 3).log_softmax(-1), torch.zeros(n, 2))
    return Thought(torch.tensor(steps), prediction, prediction.probs, torch.zeros(n).long(), torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("spec", "hard"),
    [
        ("always", [1, 1, 1, 1, 1, 1, 1]),
        ("never", [0, 0, 0, 0, 0, 0, 0]),
        ("every", [0, 0, 0, 1, 0, 0, 0]),
        ("every(3)", [0, 0, 1, 0, 0, 1, 0]),
        ("every(k=1)", [1, 1, 1, 1, 1, 1, 1]),
        ("every(100)", [0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_schedule_says_which_of_seven_steps_are_hard(spec, hard):
    assert schedule.resolve(spec)(thought(*range(7))).int().tolist() == hard


def test_every_counts_each_row_for_itself():
    assert EveryK(2)(thought(0, 1, 5, 6)).tolist() == [False, True, True, False]


@pytest.mark.parametrize("strategy", [Always(), Never(), EveryK(3)])
def test_schedules_are_what_their_spec_says(strategy):
    assert schedule.resolve(schedule.SCHEDULES.spec(strategy)) == strategy


@pytest.mark.parametrize("spec", ["every(0)", "every(-2)", "every(1.5)", "every('a')", "every(None)", "every(True)"])
def test_every_names_a_wrong_k(spec):
    with pytest.raises(ValueError, match="every.*"):
        schedule.resolve(spec)


def test_unknown_schedule_lists_the_known():
    with pytest.raises(ValueError, match="unknown schedule 'sometimes'; known: always, never, every"):
        schedule.resolve("sometimes")
