"""Going on with a training run exactly where it was saved: what is kept beside the weights, and whose run it is."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .models.soft_ar import SoftAR
from .store import CheckpointError, vectors_from_bytes

PROGRESS, MOMENTS = "training.json", "training.safetensors"


def flat_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's moments as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": tensor.cpu() for i, moments in state.items() for name, tensor in moments.items()}


def resume_run(
    model: SoftAR, optimizers: list, recipe: dict[str, Any], out: Path, defaults: dict[str, Any]
) -> tuple[int, list[dict]]:
    """Put a saved run's weights and moments in place; returns its step and history.

    A run from before a setting of training existed had what is now its default.
    """
    saved, files = SoftAR.load_with_files(out, "cpu")
    if PROGRESS not in files or MOMENTS not in files:
        raise CheckpointError(f"{out} holds a model but no training to resume: resume=False begins anew")
    here = {"model": model.config.to_dict(), "vocabulary": model.tokenizer.to_dict(), "start": model.card["seed"]}
    there = {"model": saved.config.to_dict(), "vocabulary": saved.tokenizer.to_dict(), "start": saved.card["seed"]}
    here, there = {**here, **recipe}, {**there, **{key: saved.card.get(key) for key in recipe}}
    there["train"] = {**defaults, **(there["train"] or {})}
    different = differences(json.loads(json.dumps(here)), there)
    if different:
        raise CheckpointError(f"{out} holds another run ({different}): choose another folder or resume=False")
    state = json.loads(files[PROGRESS])
    moments, _ = vectors_from_bytes(files[MOMENTS], out / MOMENTS)
    model.load_state_dict(saved.state_dict())
    for number, optimizer in enumerate(optimizers):
        nested: dict[int, dict[str, Tensor]] = {}
        for name, tensor in moments.items():
            which, index, field = name.split(".", 2)
            if int(which) == number:
                nested.setdefault(int(index), {})[field] = tensor
        optimizer.load_state_dict({"state": nested, "param_groups": optimizer.state_dict()["param_groups"]})
    return state["step"], state["history"]


def differences(here: Any, there: Any, name: str = "") -> str:
    """What differs between two nested settings, for a message."""
    if isinstance(here, dict) and isinstance(there, dict):
        parts = [differences(here.get(k), there.get(k), f"{name}.{k}" if name else k) for k in {**there, **here}]
        return "; ".join(part for part in parts if part)
    return "" if here == there else f"{name}: saved {there!r:.60}, now {here!r:.60}"
