"""Fitting exit heads (K25) to a trained model, whose body stays as it is."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..data.corpora import Corpus
from ..models.exit_heads import ExitHeads
from ..models.scoring import document_begins, encode, separator_id
from ..models.soft_ar import SoftAR
from .config import TrainConfig
from .data import TrainingRows


def train_exits(
    model: SoftAR,
    corpus: Corpus,
    *,
    steps: int = 300,
    batch_size: int = 2048,
    tokens: int = 40_000,
    learning_rate: float | int = 1e-2,
    seed: int = 0,
) -> ExitHeads:
    """Fit exit heads on `corpus.train` and put them into the model, as `model.exits`.

    Each head learns what the whole model says: the loss is KL(model || head). Then one temperature
    per head is fitted on the first half of `corpus.val`. `model.save` saves the heads, too.

    Args:
        model: a SoftAR with a tokenizer and no structured window.
        corpus: the texts.
        steps: how many steps the fit has.
        batch_size: positions per step.
        tokens: how many training positions the body reads, once, and at most of validation text.
        learning_rate: at the first step; it falls linearly towards 0.
        seed: decides everything.

    Raises:
        ValueError: for a model without a tokenizer, or with a structured window or one layer.

    Source: arXiv 2407.21082.
    """
    if model.config.layout is not None:
        raise ValueError("exit heads are for plain windows; this model has a structured one")
    if model.config.n_layers < 2:
        raise ValueError("a model of one layer has no layer to exit from")
    drawn = TrainingRows(model, corpus, TrainConfig(), seed)
    config = model.config
    heads = ExitHeads(config.n_layers, config.d_model, config.vocab_size).to(model.device)
    # 1) what the layers hold, and what the model says of it
    states, _ = _read(model, drawn.calibration(tokens)[: -(-tokens // len(drawn.offsets))])
    with torch.no_grad():
        wanted = model.objective.predict(states[-1], model.table.weight).log_probs.clone()
    # 2) fit the heads, side by side
    optimizer = torch.optim.AdamW(heads.parameters(), lr=learning_rate, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        generator = drawn.generator(step, stream=3)
        chosen = torch.randint(len(wanted), (batch_size,), generator=generator).to(model.device)
        loss = sum(
            F.kl_div(
                torch.log_softmax(heads.logits(layer, state[chosen]), -1),
                wanted[chosen],
                reduction="batchmean",
                log_target=True,
            )
            for layer, state in enumerate(states[:-1], 1)
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        falling.step()
    # 3) the temperatures, on text that no head has read
    text = corpus.val[: len(corpus.val) // 2]
    held_out = rows_of(model, corpus, encode(model, text, "validation"), tokens)
    heads.eval().requires_grad_(False)
    with torch.no_grad():
        heads.fit_temperatures(*_read(model, held_out))
    # 4) give them to the model, and record how they were made
    model.exits = heads
    model.card["exits"] = {"corpus": corpus.sha256, "steps": steps, "seed": seed}
    return heads


def rows_of(
    model: SoftAR, corpus: Corpus, ids: Int[Tensor, " N"], tokens: int
) -> Int[Tensor, "B T"]:
    """Rows of one context each, from the beginning of a text, with about `tokens` tokens.

    In a corpus of documents each row begins where a document does.
    """
    length = model.config.tokens + 1
    if corpus.separator:
        begins = document_begins(ids, separator_id(model, corpus.separator).cpu())
    else:
        begins = torch.arange(0, len(ids), length)
    begins = begins[begins + length <= len(ids)][: max(1, tokens // length)]
    if not len(begins):
        raise ValueError(f"the text has {len(ids)} tokens, one row needs {length}")
    return ids[begins[:, None] + torch.arange(length)].to(model.device)


@torch.no_grad()
def _read(
    model: SoftAR, rows: Int[Tensor, "B T"]
) -> tuple[list[Float[Tensor, "N d"]], Int[Tensor, " N"]]:
    """The states of every layer at every position (N, d), and the symbols there (N,)."""
    parts = [model.layer_states(some[:, :-1]) for some in rows.split(16)]
    states = [torch.cat(layer).flatten(0, 1).clone() for layer in zip(*parts, strict=True)]
    return states, rows.flatten()
