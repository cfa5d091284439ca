"""One training step: rows, loss, gradient, and one step of each optimizer (K1, K11).

Muon trains the matrices, AdamW the rest.
"""

import torch

from ..models.soft_ar import SoftAR
from .config import TrainConfig
from .data import TrainingRows
from .soft_inputs import SOFT_INPUTS, soft_rows


def make_optimizers(model: SoftAR, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between input and head; AdamW for table, head, norms and start."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = name.startswith(("input", "body.blocks")) and parameter.ndim == 2
            (matrices if is_matrix else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay),
        torch.optim.AdamW(
            rest, lr=config.adam_learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
        ),
    ]


def _share(config: TrainConfig, step: int) -> float:
    """The share of the full learning rate at a step: a linear rise, then a linear fall to zero."""
    rise = max(1, round(config.warmup * config.steps))
    return min((step + 1) / rise, (config.steps - step) / max(1, config.steps - rise))


def step_optimizers(
    optimizers: list[torch.optim.Optimizer], config: TrainConfig, step: int
) -> None:
    """One step of each optimizer, at its learning rate of this step; the gradients are cleared."""
    share = _share(config, step)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("full_lr", group["lr"])
            group["lr"] = share * group["full_lr"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def active_levels(count: int, step: int, config: TrainConfig) -> int:
    """How many of `count` levels are trained at a step: the first always, then one more each."""
    if not config.level_curriculum:
        return count
    done = step / (config.level_curriculum * config.steps)
    return min(count, 1 + int(done * count))


def update(
    model: SoftAR,
    rows: TrainingRows,
    step: int,
    optimizers: list[torch.optim.Optimizer],
    config: TrainConfig,
) -> float:
    """Make step `step` with every optimizer; returns the mean loss."""
    # 1) the rows of this step
    batch, noise = rows.batch(step), rows.generator(step, stream=1)
    with autocast(model.device, config.precision):
        # 2) what the body reads: hard tokens, or soft ones made from them
        read, memory = {"token_ids": batch[:, :-1]}, rows.memory(model, step)
        if config.soft_inputs:
            how, soft = SOFT_INPUTS.make(config.soft_inputs), rows.generator(step, stream=2)
            read = {
                "vectors": soft_rows(model, batch[:, :-1], how, step / config.steps, soft, memory)
            }
        if model.levels is None:
            states = [model.hidden_states(**read, memory=memory)]  # (B, T+1, d)
        else:
            states = model.layer_states(**read, memory=memory)  # one for each layer
    # 3) the loss, in float32, and its gradient
    loss = (
        model.objective.loss(states[-1].float(), batch, model.table.weight, noise)
        + model.table.penalty()
    )
    if model.levels is not None:
        active = active_levels(len(model.levels.levels), step, config)
        of_levels = model.levels.loss(states, batch, model.table.weight, noise, active)
        loss = loss + config.level_weight * of_levels
    loss.backward()
    # 4) one step of each optimizer, at its learning rate of this step
    step_optimizers(optimizers, config, step)
    return loss.item()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 for matrix products where it helps ("auto"), or where it is asked for."""
    if precision == "auto":
        has_bf16 = (
            torch.ops.mkldnn._is_mkldnn_bf16_supported
            if device.type == "cpu"
            else torch.cuda.is_bf16_supported
        )
        precision = "bf16" if has_bf16() else "fp32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
