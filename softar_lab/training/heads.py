"""Fitting heads to a trained model whose body stays as it is: exit heads and levels (K24, K25)."""

from copy import deepcopy
from dataclasses import replace

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
    _check(model, "exit heads")
    if model.config.n_layers < 2:
        raise ValueError("a model of one layer has no layer to exit from")
    config, drawn = model.config, TrainingRows(model, corpus, TrainConfig(), seed)
    heads = ExitHeads(config.n_layers, config.d_model, config.vocab_size).to(model.device)
    # 1) what the layers hold, and what the model says of it
    states = [state.flatten(0, 1) for state in _read(model, _rows(drawn, tokens))]
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
        states = [state.flatten(0, 1) for state in _read(model, held_out)]
        heads.fit_temperatures(states, held_out.flatten())
    # 4) give them to the model, and record how they were made
    model.exits = heads
    model.card["exits"] = {"corpus": corpus.sha256, "steps": steps, "seed": seed}
    return heads


def train_levels(
    model: SoftAR,
    corpus: Corpus,
    levels: str,
    *,
    steps: int = 300,
    batch_size: int = 8,
    tokens: int = 40_000,
    learning_rate: float | int = 1e-2,
    seed: int = 0,
) -> SoftAR:
    """A copy of a trained model with levels, of which only the heads are fitted.

    So it writes what the model writes; what its layers know of the future is read, not taught. To
    teach it, train a model whose config has levels.

    Args:
        model: a SoftAR with a tokenizer and no structured window.
        corpus: the texts.
        levels: a member of LEVELS, such as "multi-token(8)".
        steps: how many steps the fit has.
        batch_size: rows per step.
        tokens: how many training positions the body reads, once.
        learning_rate: at the first step; it falls linearly towards 0.
        seed: decides everything.

    Raises:
        ValueError: for a model without a tokenizer, with a structured window, or unknown levels.
    """
    _check(model, "levels")
    # 1) the same model, and heads that say nothing yet
    config = replace(model.config, levels=levels)
    other = SoftAR(config, model.tokenizer, seed, rows=model.embedding.cpu())
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith(("levels.", "exits."))}
    other.load_state_dict({**other.state_dict(), **kept})
    made = {"corpus": corpus.sha256, "steps": steps, "seed": seed}
    other.card, other.exits = {**model.card, "levels": made}, deepcopy(model.exits)
    other = other.to(model.device).eval()
    # 2) what the layers hold
    drawn = TrainingRows(other, corpus, TrainConfig(), seed)
    rows = _rows(drawn, tokens)
    states, table = _read(other, rows), other.embedding
    # 3) fit the heads
    optimizer = torch.optim.AdamW(other.levels.parameters(), lr=learning_rate, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        generator = drawn.generator(step, stream=3)
        chosen = torch.randint(len(rows), (batch_size,), generator=generator).to(model.device)
        some = [state[chosen] for state in states]
        count = len(other.levels.levels)
        other.levels.loss(some, rows[chosen], table, generator, count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        falling.step()
    with torch.no_grad():
        other.levels.calibrate(states, rows, table)
    return other


def _check(model: SoftAR, what: str) -> None:
    if model.config.layout is not None:
        raise ValueError(f"{what} are for plain windows; this model has a structured one")


def _rows(drawn: TrainingRows, tokens: int) -> Int[Tensor, "B T"]:
    """Training rows with about `tokens` tokens."""
    return drawn.calibration(tokens)[: -(-tokens // len(drawn.offsets))]


def rows_of(
    model: SoftAR, corpus: Corpus, ids: Int[Tensor, " N"], tokens: int
) -> Int[Tensor, "B T"]:
    """Rows of one context each, from the beginning of a text, with about `tokens` tokens.

    In a corpus of documents each row begins where a document does.

    Raises:
        ValueError: where the text is shorter than one row.
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
def _read(model: SoftAR, rows: Int[Tensor, "B T"]) -> list[Float[Tensor, "B T d"]]:
    """The states of every layer before each token of the rows (B, T, d)."""
    parts = [model.layer_states(some[:, :-1]) for some in rows.split(16)]
    return [torch.cat(layer).clone() for layer in zip(*parts, strict=True)]
