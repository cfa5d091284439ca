"""A trajectory comes back from the disk bit for bit, or not at all."""

import pickle
import random
from dataclasses import fields, replace

import pytest
import torch
from test_soft_ar import Bomb, damaged

from softar_lab.core.store import StoreError, load_vectors, save_vectors
from softar_lab.generation import Trajectory, generate

TEXT = 'né\u2028🎈\x00"\\\n'


def make(steps=3, width=4, **changes):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, steps, width, generator=generator)
    if vectors.numel() and width >= 3:
        vectors[0, 0, :3] = torch.tensor([float("nan"), -0.0, float("inf")])
    whole = Trajectory(
        prompt=TEXT,
        text=TEXT[::-1],
        tokens=tuple(TEXT),
        token_ids=torch.arange(steps),
        vectors=vectors[0],
        inputs=vectors[1],
        log_probs=-torch.rand(steps, generator=generator),
        entropy=torch.rand(steps, generator=generator),
        distance=torch.full((steps,), float("nan")),
        collapsed=torch.arange(steps) % 2 == 0,
        top_ids=torch.arange(steps * 2).view(steps, 2) % len(TEXT),
        top_probs=torch.rand(steps, 2, generator=generator),
        settings={"temperature": 0.1 + 0.2, "schedule": "every(3)", "seed": 2**62, "nothing": None},
    )
    return replace(whole, **changes)


def content(trajectory):
    """Everything, with tensors as their bytes."""
    values = {field.name: getattr(trajectory, field.name) for field in fields(trajectory)}
    return {
        name: (value.dtype, value.shape, value.numpy().tobytes())
        if isinstance(value, torch.Tensor)
        else value
        for name, value in values.items()
    }


@pytest.mark.parametrize(("steps", "width"), [(3, 4), (1, 1), (0, 4), (5, 0)])
def test_save_and_load_are_bit_exact(tmp_path, steps, width):
    trajectory = make(steps, width)
    trajectory.save(tmp_path / "é.safetensors")
    assert content(Trajectory.load(tmp_path / "é.safetensors")) == content(trajectory)


@pytest.mark.parametrize("schedule", ["always", "never"])
def test_generated_trajectories_are_saved_and_loaded(tiny, tmp_path, schedule):
    trajectory = generate(tiny(objective="mse"), "abc", 5, schedule=schedule)
    trajectory.save(tmp_path / "t")
    assert content(Trajectory.load(tmp_path / "t")) == content(trajectory)


def test_len_and_candidates():
    trajectory = make(3)
    assert len(trajectory) == 3
    expected = list(zip("né", trajectory.top_probs[0].tolist()))
    assert trajectory.candidates(0) == expected


def test_three_hundred_damaged_trajectories_are_refused(tmp_path):
    path, chance, bomb = tmp_path / "t", random.Random(1), pickle.dumps(Bomb(tmp_path / "exploded"))
    make().save(path)
    good = path.read_bytes()
    save_vectors(path, {"vectors": torch.zeros(3, 4)}, {"kind": "other"})
    other, refused = path.read_bytes(), 0
    for _ in range(300):
        kind, bad = damaged(good, chance, [other, good], bomb)
        path.write_bytes(bad)
        try:
            Trajectory.load(path)
        except StoreError as error:
            assert str(path) in str(error), (kind, error)
            refused += 1
        else:
            assert bad == good, f"{kind} was not noticed"
    assert refused > 270
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("missing", ["kind", "prompt", "text", "tokens", "settings"])
def test_load_of_a_sealed_file_without_its_metadata_says_so(tmp_path, missing):
    make().save(tmp_path / "t")
    arrays, metadata = load_vectors(tmp_path / "t")
    save_vectors(
        tmp_path / "t", arrays, {key: value for key, value in metadata.items() if key != missing}
    )
    with pytest.raises(StoreError, match="t: .*trajectory"):
        Trajectory.load(tmp_path / "t")


@pytest.mark.parametrize(
    "change", ["missing", "more", "shorter", "flat", "dtype", "id", "candidate"]
)
def test_load_of_a_sealed_file_with_other_arrays_says_so(tmp_path, change):
    make().save(tmp_path / "t")
    arrays, metadata = load_vectors(tmp_path / "t")
    if change == "missing":
        del arrays["entropy"]
    else:
        arrays |= {
            "more": {"extra": torch.zeros(1)},
            "shorter": {"log_probs": arrays["log_probs"][:-1]},
            "flat": {"vectors": arrays["vectors"].flatten()},
            "dtype": {"token_ids": arrays["token_ids"].float()},
            "id": {"token_ids": arrays["token_ids"] + 1000},
            "candidate": {"top_ids": arrays["top_ids"] - 1000},
        }[change]
    save_vectors(tmp_path / "t", arrays, metadata)
    with pytest.raises(StoreError, match="t: .*trajectory"):
        Trajectory.load(tmp_path / "t")


def test_load_of_nothing_says_so(tmp_path):
    with pytest.raises(StoreError, match="cannot read"):
        Trajectory.load(tmp_path / "nothing")
