"""A configuration is right or says which field is wrong, how, and what would be right."""

import json
from dataclasses import FrozenInstanceError

import pytest

from softar_lab.models.config import PRESETS, ModelConfig


@pytest.mark.parametrize(
    ("given", "table", "width"),
    [
        ({}, "joint(sphere=True)", 128),
        ({"objective": "mse"}, "random(trained=False, sphere=True)", 128),
        ({"objective": "metric"}, "random(trained=False, sphere=True)", 128),
        ({"objective": "mse", "table": "joint", "d_model": 64}, "joint(sphere=True)", 64),
        ({"table": "orthonormal"}, "orthonormal(trained=False)", 10),
        ({"table": "orthonormal", "embedding_dim": 33}, "orthonormal(trained=False)", 33),
    ],
)
def test_config_fills_in_table_and_width(given, table, width):
    config = ModelConfig(vocab_size=10, **given)
    assert (config.table, config.embedding_dim) == (table, width)


def test_config_holds_every_parameter_of_what_it_names():
    config = ModelConfig(vocab_size=10, objective="energy(4)", readout="votes", window="ema")
    assert (config.objective, config.readout) == ("energy(samples=4, alpha=1)", "votes(32)")
    assert "kind='ema(0.98)'" in config.window
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "name", ["vocab_size", "context", "n_layers", "n_heads", "d_model", "embedding_dim"]
)
@pytest.mark.parametrize("value", [0, -3, True])
def test_config_names_the_wrong_number(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be .* at least 1, not {value}"):
        ModelConfig(**{"vocab_size": 10, name: value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"d_model": 30, "n_heads": 4}, "d_model.*30.*n_heads=4"),
        ({"d_model": 12, "n_heads": 4}, "even"),
        ({"objective": "magic"}, "unknown objective 'magic'; known: ce, metric, anchored"),
        ({"table": "magic"}, "unknown table 'magic'; known: joint, random, orthonormal"),
        (
            {"positions": "magic"},
            "unknown positions 'magic'; known: learned, sinusoidal, rotary, none",
        ),
        ({"norm": "batch"}, "unknown norm 'batch'; known: layer, rms"),
        ({"mlp": "relu"}, "unknown mlp 'relu'; known: gelu, gelu-tanh, swiglu"),
        ({"queries_per_key": 3}, r"n_heads \(4\) must be a multiple of queries_per_key, 3"),
        ({"queries_per_key": 0}, "queries_per_key must be a whole number of at least 1, not 0"),
        ({"attention_window": 0}, "attention_window must be a whole number of at least 1, not 0"),
        ({"mlp_ratio": 0}, "mlp_ratio must be above 0, not 0"),
        ({"mlp_ratio": 0.001}, "mlp_ratio"),
        ({"norm_eps": float("inf")}, "norm_eps must be above 0, not inf"),
        ({"rotary_base": -1.0}, "rotary_base must be above 0, not -1.0"),
        (
            {"input_map": False, "embedding_dim": 64},
            r"embedding_dim must be d_model \(128\) with input_map=False, not 64",
        ),
        (
            {"tied": True, "embedding_dim": 64},
            r"embedding_dim must be d_model \(128\) with tied=True, not 64",
        ),
        ({"tied": True, "objective": "mse"}, "tied is for the objective \"ce\".*not 'mse'"),
        (
            {"table": "orthonormal", "embedding_dim": 9},
            r"embedding_dim .*vocab_size \(10\).* not 9",
        ),
    ],
)
def test_config_says_what_would_be_right(given, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(vocab_size=10, **given)


def test_config_is_frozen():
    with pytest.raises(FrozenInstanceError):
        ModelConfig(vocab_size=10).context = 3


@pytest.mark.parametrize(
    "given", [{}, {"objective": "mse", "table": "orthonormal", "positions": "learned"}]
)
def test_from_dict_inverts_to_dict_through_json(given):
    config = ModelConfig(vocab_size=10, **given)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_from_dict_names_the_unknown_field():
    with pytest.raises(ValueError, match="no field colour, size"):
        ModelConfig.from_dict({"vocab_size": 3, "size": 1, "colour": 2})


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_valid_and_takes_changes(name):
    changed = ModelConfig.preset(name, n_layers=1, vocab_size=7)
    assert (changed.n_layers, changed.vocab_size) == (1, 7)
    assert changed.context == ModelConfig.preset(name).context


@pytest.mark.parametrize("name", ["gpt2", "llama2", "mistral"])
def test_presets_of_others_are_made_small_by_three_numbers(name):
    small = ModelConfig.preset(name, n_layers=1, n_heads=4, d_model=16, vocab_size=7)
    assert small.embedding_dim == 16
    assert ModelConfig.from_dict(json.loads(json.dumps(small.to_dict()))) == small


def test_preset_unknown_lists_the_known():
    with pytest.raises(ValueError, match="unknown preset 'gpt9'; known: shakespeare"):
        ModelConfig.preset("gpt9")
