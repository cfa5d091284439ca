"""Fitting the layer behind collapse "mixing" (K4) on a trained model, whose body stays as it is."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..data.corpora import Corpus
from ..models.mixing import MixingCollapse
from ..models.soft_ar import SoftAR
from .config import TrainConfig
from .data import TrainingRows


def train_mixing(
    model: SoftAR,
    corpus: Corpus,
    *,
    window: int = 16,
    steps: int = 200,
    batch_size: int = 4,
    rows: int = 256,
    learning_rate: float | int = 1e-3,
    seed: int = 0,
) -> MixingCollapse:
    """Fit a mixing layer on `corpus.train` and put it into the model, as `model.mixing`.

    `model.save` saves it, too. Where the soft token is the head's output, the layer begins as the
    model reads itself. The loss is the cross-entropy of the next symbol. Regression to that
    symbol's row would only find the mean row again, and the reading of the mean row is the trouble.

    Args:
        model: a SoftAR with a tokenizer.
        corpus: the texts.
        window: how many hidden states the layer reads.
        steps: how many steps the fit has.
        batch_size: rows per step.
        rows: how many training rows the body reads, once.
        learning_rate: at the first step; it falls linearly towards 0.
        seed: decides everything.

    Raises:
        ValueError: for a model without a tokenizer, a text shorter than one window, numbers that
            are not above 0.
    """
    for name, value in (("rows", rows), ("learning_rate", learning_rate)):
        if not value > 0:
            raise ValueError(f"train_mixing needs {name} above 0, not {value!r}")
    # 1) the rows, and a layer to begin with
    drawn = TrainingRows(model, corpus, TrainConfig(steps=steps, batch_size=batch_size), seed)
    layer = MixingCollapse(model.config, window, seed).to(model.device)
    _begin_as(model, layer)
    # 2) what the layer reads and predicts
    hidden, targets = _read_rows(model, drawn, rows)
    # 3) fit it
    optimizer = torch.optim.AdamW(
        layer.parameters(), lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.99)
    )
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        # a) draw some rows
        chosen = torch.randint(
            len(hidden), (batch_size,), generator=drawn.generator(step, stream=3)
        )
        # b) the loss of their next symbols, and one step
        log_probs = layer.log_probs(hidden[chosen], model.embedding)
        F.nll_loss(log_probs.flatten(0, 1), targets[chosen].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        falling.step()
    # 4) give it to the model, and record how it was made
    model.mixing = layer.eval().requires_grad_(False)
    model.card["mixing"] = {"corpus": corpus.sha256, "steps": steps, "seed": seed}
    return layer


def _read_rows(
    model: SoftAR, drawn: TrainingRows, count: int
) -> tuple[Float[Tensor, "N T d"], Int[Tensor, "N T"]]:
    """The hidden states of the first `count` rows, read once each, and their next symbols."""
    batches = range(-(-count // drawn.size))
    targets = torch.cat([drawn.batch(i) for i in batches])[:count]  # (N, T)
    with torch.no_grad():
        read = [(drawn.batch(i)[:, :-1], None, drawn.memory(model, i)) for i in batches]
        hidden = torch.cat([model.hidden_states(*one) for one in read])[:count]  # (N, T, d)
    return hidden, targets


def _begin_as(model: SoftAR, layer: MixingCollapse) -> None:
    """Begin as the model reads itself, where its soft token is the head's output.

    The layer's point is then that output. Where a tau reads it, the layer begins with that tau.
    """
    objective = model.objective
    if objective.linear:
        layer.head.weight.data.copy_(objective.head.weight)
        fitted = getattr(objective, "log_tau", getattr(objective.readout, "log_tau", layer.log_tau))
        layer.log_tau.data.copy_(fitted)
