"""Whole numbers: which values count as one, and what the message says of the others."""

import dataclasses
import json
import math

import jaxtyping
import numpy as np
import pytest
import torch

from softar_lab.core.checks import real_number, sequence, whole_number
from softar_lab.generation import EveryK, generate
from softar_lab.generation.config import GenerationConfig
from softar_lab.generation.feedback import Mixture
from softar_lab.models.config import ModelConfig
from softar_lab.training.config import TrainConfig


@pytest.mark.parametrize("value", [3, np.int64(3), np.int32(3), np.uint8(3)])
def test_whole_number_is_an_int(value):
    found = whole_number("n", value)
    assert found == 3
    assert type(found) is int


@pytest.mark.parametrize("value", [True, np.True_, 3.0, np.float64(3), "3", None, torch.tensor(3)])
def test_whole_number_refuses_what_is_none(value):
    with pytest.raises(ValueError, match="n must be a whole number of at least 1, not"):
        whole_number("n", value)


@pytest.mark.parametrize(
    ("value", "least", "most", "message"),
    [
        (0, 1, None, "M.n must be a whole number of at least 1, not 0"),
        (-1, 0, None, "M.n must be a whole number of at least 0, not -1"),
        (27, 1, 26, "M.n must be a whole number of at least 1 and at most 26, not 27"),
    ],
)
def test_whole_number_says_what_would_be_right(value, least, most, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        whole_number("M.n", value, least, most)


def test_whole_number_may_be_a_bound_itself():
    assert [whole_number("n", value, 0, 2) for value in (0, 1, 2)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("kind", "name", "more"),
    [
        (EveryK, "k", {}),
        (GenerationConfig, "steps", {}),
        (TrainConfig, "window", {}),
        (ModelConfig, "n_layers", {"vocab_size": 5}),
    ],
)
def test_configs_hold_numpys_integers_as_ints_and_refuse_truth_values(
    kind, name, more, monkeypatch
):
    """Ints can be saved; a NumPy integer would break JSON."""
    # as outside of pytest, where no annotation is enforced
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    config = kind(**{name: np.int64(3)}, **more)
    assert json.dumps(getattr(config, name)) == "3"
    assert dataclasses.replace(config) == config
    with pytest.raises(ValueError, match="must be a whole number of at least 1, not True"):
        kind(**{name: True}, **more)


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), 0.5])
def test_numpy_numbers_are_numbers_and_can_be_recorded(number, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    configs = [
        TrainConfig(muon_learning_rate=number, weight_decay=number),
        ModelConfig(vocab_size=5, norm_eps=number),
        GenerationConfig(temperature=number),
    ]
    for config in configs:
        json.dumps([v for v in vars(config).values() if isinstance(v, float)])
    assert GenerationConfig(feedback=Mixture(number)).recorded()["feedback"] == (
        "mixture(temperature=0.5, top_k=None)"
    )


def test_numpy_seeds_are_seeds(tiny, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    texts = [
        generate(tiny(), ["ab", "c"], 6, seed=seeds)[0].text
        for seeds in ([1, 2], np.array([1, 2]), (np.int64(1), np.int32(2)))
    ]
    assert len(set(texts)) == 1
    assert GenerationConfig(seed=np.int64(3)).seeds(2) == (3, 3)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(2), np.int64(3)])
def test_real_number_takes_numbers(value):
    assert real_number("x", value, "above 0", lambda one: one > 0) is value


@pytest.mark.parametrize("value", [0, -1.5, math.nan, True, None, "1", [1], 1j, np.ones(2)])
def test_real_number_names_the_value_and_what_would_be_right(value):
    with pytest.raises(ValueError, match="x must be above 0, not "):
        real_number("x", value, "above 0", lambda one: one > 0)


@pytest.mark.parametrize(
    "value", [[1], (1,), range(1, 2), {1}, iter([1]), np.ones(1, int), torch.ones(1)]
)
def test_sequence_takes_what_can_be_listed(value):
    assert sequence("x", value, "numbers") == [1]


@pytest.mark.parametrize(
    "value", [None, 5, "abc", b"abc", {1: 2}, torch.tensor(1), np.array(1), object()]
)
def test_sequence_refuses_texts_and_single_things(value):
    with pytest.raises(ValueError, match="x must be a list of numbers, not "):
        sequence("x", value, "numbers")
    with pytest.raises(ValueError, match="x is empty: give at least one of numbers"):
        sequence("x", [], "numbers")
