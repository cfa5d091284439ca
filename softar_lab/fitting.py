"""What is fitted on a trained model, its body left as it is: the layer behind collapse "mixing" (K4)."""

import torch
from torch.nn import functional as F

from .batches import TrainConfig, TrainingRows
from .models.mixing import MixingCollapse
from .models.soft_ar import SoftAR
from .sources.corpora import Corpus


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
    """Fit a mixing layer on `corpus.train` and give it to the model (`model.mixing`); `model.save` keeps it.

    The body reads `rows` training rows once; the layer sees `batch_size` of them a step. It begins, where the head is
    linear, as the model reads itself. Its loss is the cross-entropy of the next symbol: regression to that symbol's row
    would only find the mean row again, whose reading is the trouble. The seed decides everything.

    Raises ValueError for a model without a tokenizer, a text shorter than one window, numbers that are not above 0.
    """
    for name, value in (("rows", rows), ("learning_rate", learning_rate)):
        if not value > 0:
            raise ValueError(f"train_mixing needs {name} above 0, not {value!r}")
    drawn = TrainingRows(model, corpus, TrainConfig(steps=steps, batch_size=batch_size), seed)
    layer = MixingCollapse(model.config, window, seed).to(model.device)
    _begin_as(model, layer)
    batches = range(-(-rows // batch_size))
    targets = torch.cat([drawn.batch(i) for i in batches])[:rows]  # (rows, T+1)
    with torch.no_grad():
        read = [(drawn.batch(i)[:, :-1], None, drawn.memory(model, i)) for i in batches]
        hidden = torch.cat([model.hidden_states(*one) for one in read])[:rows]  # (rows, T+1, d)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.99))
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        chosen = torch.randint(len(hidden), (batch_size,), generator=drawn.generator(step, stream=3))
        log_probs = layer.log_probs(hidden[chosen], model.embedding)
        F.nll_loss(log_probs.flatten(0, 1), targets[chosen].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        falling.step()
    model.mixing = layer.eval().requires_grad_(False)
    model.card["mixing"] = {"corpus": corpus.sha256, "steps": steps, "seed": seed}
    return layer


def _begin_as(model: SoftAR, layer: MixingCollapse) -> None:
    """Where the soft token is the head's output, begin with that point; where a tau reads it, with that tau."""
    objective = model.objective
    if objective.linear:
        layer.head.weight.data.copy_(objective.head.weight)
        fitted = getattr(objective, "log_tau", getattr(objective.readout, "log_tau", layer.log_tau))
        layer.log_tau.data.copy_(fitted)
