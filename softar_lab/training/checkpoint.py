"""Resuming a training run exactly: what is saved beside the weights, and whose run it is."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.cells import differences
from ..core.store import CheckpointError, vectors_from_bytes
from ..models.soft_ar import SoftAR
from .config import TrainConfig

PROGRESS, MOMENTS = "training.json", "training.safetensors"
READOUT = "readout"  # in MOMENTS: what soft inputs are made through, which evaluations do not touch


def flat_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments of an optimizer as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{i}.{name}": tensor.cpu()
        for i, moments in state.items()
        for name, tensor in moments.items()
    }


def load_moments(optimizers: list, moments: dict[str, Tensor]) -> None:
    """Give optimizers the moments that `flat_state` named, each name behind its optimizer's number."""
    for number, optimizer in enumerate(optimizers):
        nested: dict[int, dict[str, Tensor]] = {}
        for name, tensor in moments.items():
            which, index, field = name.split(".", 2)
            if int(which) == number:
                nested.setdefault(int(index), {})[field] = tensor
        optimizer.load_state_dict(
            {"state": nested, "param_groups": optimizer.state_dict()["param_groups"]}
        )


def resume_run(
    model: SoftAR, optimizers: list, recipe: dict[str, Any], out: Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Load the weights and moments of a saved run.

    A run that is older than a setting of training counts as having the setting's default.

    Args:
        model: gets the weights, and on its card where the run was prolonged.
        optimizers: get the moments.
        recipe: of the run that is to continue; that of the saved run must be equal, except for what
            decides nothing, and except for a larger number of steps.
        out: the checkpoint folder.

    Returns:
        What `training.json` holds: its step, the loss of that step and the seconds so far (not in
        older runs), and its history. And the readout through which it makes soft inputs; in a run
        saved before that was apart, this is the model's readout.

    Raises:
        CheckpointError: where the folder holds no training, or another run.
    """
    # 1) the saved run must be the same one
    saved, files = SoftAR.load_with_files(out, "cpu")
    if PROGRESS not in files or MOMENTS not in files:
        raise CheckpointError(
            f"{out} holds a model but no training to resume: resume=False begins anew"
        )
    here = {
        "model": model.config.to_dict(),
        "vocabulary": model.tokenizer.to_dict(),
        "start": model.card["seed"],
    }
    stored = {
        "model": saved.config.to_dict(),
        "vocabulary": saved.tokenizer.to_dict(),
        "start": saved.card["seed"],
    }
    here, stored = {**here, **recipe}, {**stored, **{key: saved.card.get(key) for key in recipe}}
    stored["train"] = asdict(TrainConfig(**(stored["train"] or {})))
    here = json.loads(json.dumps(here))
    steps, before = here["train"]["steps"], stored["train"]["steps"]
    if different := differences(_deciding(here), _deciding(stored)):
        raise CheckpointError(
            f"{out} holds another run ({different}): choose another folder or resume=False"
        )
    if steps < before:
        raise CheckpointError(
            f"{out} holds a run of {before} steps, which can be prolonged but not cut to {steps}: "
            "choose another folder or resume=False"
        )
    # 2) its weights and moments
    state = json.loads(files[PROGRESS])
    moments, _ = vectors_from_bytes(files[MOMENTS], out / MOMENTS)
    model.load_state_dict(saved.state_dict())
    readout = {
        name: moments.pop(f"{READOUT}.{name}", one.clone())
        for name, one in model.objective.readout.state_dict().items()
    }
    load_moments(optimizers, moments)
    # 3) where it was prolonged
    prolonged = saved.card.get("prolonged", [])
    if steps > before:
        prolonged = [*prolonged, {"step": state["step"], "steps": before}]
    if prolonged:
        model.card["prolonged"] = prolonged
    return state, readout


def _deciding(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without what decides nothing, and without the steps, which may be prolonged."""
    free = {"train": ("save_every", "steps"), "corpus": ("name",)}
    return {
        **recipe,
        **{
            part: {name: value for name, value in (recipe[part] or {}).items() if name not in names}
            for part, names in free.items()
        },
    }
