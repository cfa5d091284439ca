"""How far a model is from the truth (K30): excess bits, Brier-n, calibration. What a text is worth: see `texts`.

Estimates over rows take these for independent; the tokens within one may depend on each other.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ..estimates import Estimate
from ..evaluation import context_of, device_of
from ..predictor import Predictor
from .texts import Judgement, bits_per_char, distinct_n, diversity, judge, repetition

__all__ = [
    "BrierLM",
    "Calibration",
    "Judgement",
    "bits_per_char",
    "brier",
    "brier_exact",
    "brier_lm",
    "calibration",
    "distinct_n",
    "diversity",
    "excess_bits",
    "judge",
    "kl_bits",
    "repetition",
]

_ENTRIES = 2**22  # probabilities held at once by kl_bits: 32 MB a tensor
_OFF = 1e-4  # how far from 1 probabilities may sum: float32 rounding over a large vocabulary stays below
_STREAM = 0xB21E2  # added to brier_lm's seed: rows drawn with the same one must not agree with its samples


# -- against the true distribution ------------------------------------------------------------------------------------


@torch.inference_mode()
def kl_bits(model: Predictor, truth: Predictor, token_ids: Int[Tensor, "B T"]) -> Float64[Tensor, "B T"]:
    """KL(q || p) of the truth's q and the model's p for the token at t, given those before it in its row; in bits.

    Shapes: token_ids (B, T) -> (B, T). Both read each row from its start, and whole distributions are compared, in
    float64 and some rows at a time; rounding in a float32 model may give values down to about -1e-6. Where q is 0 a
    symbol adds nothing; p = 0 where q > 0 gives infinity.
    Raises ValueError for different vocabularies, rows longer than a context + 1, probabilities that do not sum to 1.
    """
    _check_comparable(model, truth, token_ids)
    rows = max(1, _ENTRIES // (token_ids.shape[1] * truth.vocab_size))
    found = []
    for some in token_ids.split(rows):
        log_q, log_p = _next_log_probs(truth, some, "truth"), _next_log_probs(model, some, "model")
        q = log_q.exp()  # (rows, T, V)
        found.append((q * (log_q - log_p)).masked_fill(q == 0, 0).sum(-1) / math.log(2))
    return torch.cat(found)


def excess_bits(model: Predictor, truth: Predictor, token_ids: Int[Tensor, "B T"]) -> Estimate:
    """What the model pays above the truth, in bits per token: `kl_bits` averaged over all positions of all rows.

    Over rows drawn from the truth it estimates the model's cross-entropy minus the truth's entropy, without the noise
    of the symbol drawn at each position that the difference of two scores has. 0 if and only if p = q wherever the
    rows lead. Shapes: token_ids (B, T); standard error over the B rows. Raises as kl_bits does.
    """
    per_row = kl_bits(model, truth, token_ids).mean(1)
    return Estimate.mean(per_row) if per_row.isfinite().all() else Estimate(math.inf, math.nan)


def _next_log_probs(model: Predictor, token_ids: Tensor, name: str) -> Float64[Tensor, "B T V"]:
    log_probs = model.next_log_probs(token_ids.to(device_of(model))).cpu().double()
    total = log_probs.exp().sum(-1)
    wrong = ~((total - 1).abs() <= _OFF)  # so that NaN is wrong
    if wrong.any():
        row, t = wrong.nonzero()[0].tolist()
        raise ValueError(f"the {name}'s probabilities sum to {total[row, t]:.6g}, not 1, at position {t} of a row")
    return log_probs


def _check_comparable(model: Predictor, truth: Predictor, token_ids: Tensor) -> None:
    if token_ids.ndim != 2 or not token_ids.numel():
        raise ValueError(f"token_ids must be rows (B, T) with at least one token, not of shape {(*token_ids.shape,)}")
    tokens = [getattr(getattr(one, "tokenizer", None), "tokens", None) for one in (model, truth)]
    if model.vocab_size != truth.vocab_size or (None not in tokens and tokens[0] != tokens[1]):
        sizes = f"{model.vocab_size} symbols against {truth.vocab_size}"
        raise ValueError(
            f"model and truth must have the same vocabulary: {sizes}, {tokens[0]!r:.60}, {tokens[1]!r:.60}"
        )
    for name, one in (("model", model), ("truth", truth)):
        context = context_of(one)
        if context is not None and token_ids.shape[1] > context + 1:
            raise ValueError(f"rows of {token_ids.shape[1]} tokens; the {name}'s context of {context} allows one more")


# -- from samples alone (CALM, arXiv 2510.27688) ----------------------------------------------------------------------


def brier(first: Int[Tensor, "N n"], second: Int[Tensor, "N n"], reference: Int[Tensor, "N n"]) -> Estimate:
    """Brier-n from two independent samples a prefix: mean of 1{x1=y} + 1{x2=y} - 1{x1=x2}, n tokens as one outcome.

    Shapes: all (N, n). Unbiased for the mean of 2 p(y) - sum_x p(x)²: 1 at best, -1 at worst, largest in expectation
    for p = q. The samples must be draws: two argmax always agree, so that nothing measures sum_x p(x)² any more.
    Standard error over the N. Raises ValueError for unequal or empty shapes.
    """
    return Estimate.mean(_brier_terms(first, second, reference)[:, -1])


def brier_exact(probs: Float[Tensor, "N V"], targets: Int[Tensor, " N"]) -> Float64[Tensor, " N"]:
    """2 p(y) - sum_x p(x)² of each row: what Brier-1's terms are in expectation. Shapes: (N, V), (N,) -> (N,)."""
    _check_probs(probs, targets)
    probs = probs.double()
    return 2 * probs.gather(1, targets[:, None]).squeeze(1) - probs.square().sum(1)


@dataclass(frozen=True)
class BrierLM:
    """score: 100 (prod_n Brier-n)^(1/n_max), NaN where `problem` says why; brier: Brier-1, …, each with its error."""

    score: Estimate
    brier: tuple[Estimate, ...]
    problem: str = ""

    @classmethod
    def of(cls, terms: Float64[Tensor, "N n"]) -> "BrierLM":
        """From N independent rows of terms, column n-1 for Brier-n. The score's standard error: delta method."""
        each = tuple(Estimate.mean(column) for column in terms.T)
        low = [f"Brier-{n} = {estimate!r}" for n, estimate in enumerate(each, 1) if estimate <= 0]
        if low:  # two negative factors would even multiply to a positive
            return cls(Estimate(math.nan, math.nan), each, f"no geometric mean: {', '.join(low)}, not above 0")
        score = 100 * math.prod(each) ** (1 / len(each))
        relative = Estimate.mean((terms / terms.mean(0)).mean(1))  # d log score = mean over n of d Brier-n / Brier-n
        return cls(Estimate(score, score * relative.standard_error), each)


@torch.inference_mode()
def brier_lm(
    model: Predictor,
    token_ids: Int[Tensor, "B T"],
    prefixes: Iterable[int] | None = None,
    n_max: int = 4,
    seed: int = 0,
) -> BrierLM:
    """BrierLM of a model on rows of true text.

    At each length in `prefixes` (None: every n_max-th, from 0) the model reads that much of a row and writes two
    continuations of n_max tokens, each token drawn from its own p and read before the next; their first n tokens
    against the row's give Brier-n. A row's terms are averaged over its prefixes, standard errors are over rows.
    Shapes: token_ids (B, T). Beyond its context a model forgets in its own way.
    Raises ValueError where there are no rows or a prefix leaves fewer than n_max tokens.
    """
    rows, length = token_ids.shape
    prefixes = sorted(set(range(0, length - n_max + 1, max(1, n_max)) if prefixes is None else prefixes))
    if n_max < 1 or not rows or not prefixes or prefixes[0] < 0 or prefixes[-1] > length - n_max:
        raise ValueError(f"{rows} rows of {length} tokens, n_max {n_max}, prefixes {prefixes}: nothing or not all fits")
    generator, device = torch.Generator().manual_seed(_STREAM + seed), device_of(model)
    twice = token_ids.repeat(2, 1).to(device)
    state, read, terms = model.start(2 * rows), 0, []
    for prefix in prefixes:
        state, read = model.read(state, twice[:, read:prefix]), prefix
        branch, drawn = state, []
        for n in range(n_max):
            branch = model.advance(branch, token_ids=drawn[-1].to(device)) if n else branch
            drawn.append(torch.multinomial(model.probs(branch).cpu(), 1, generator=generator).squeeze(1))
        first, second = torch.stack(drawn, 1).split(rows)  # (2B, n_max) -> twice (B, n_max)
        terms.append(_brier_terms(first, second, token_ids[:, prefix : prefix + n_max].cpu()))
    return BrierLM.of(torch.stack(terms).mean(0))


def _brier_terms(first: Tensor, second: Tensor, reference: Tensor) -> Float64[Tensor, "N n"]:
    """Column n-1: the terms of Brier-n, of the first n tokens."""
    if not (first.ndim == 2 and first.shape == second.shape == reference.shape and first.numel()):
        shapes = ", ".join(str((*ids.shape,)) for ids in (first, second, reference))
        raise ValueError(f"first, second and reference must have one shape (N, n) and not be empty, not {shapes}")
    x1_y, x2_y, x1_x2 = ((a == b).cumprod(1) for a, b in ((first, reference), (second, reference), (first, second)))
    return (x1_y + x2_y - x1_x2).double()


# -- calibration ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """ece: expected calibration error; curve: a row a bin, its mean `confidence`, its `accuracy` and its `count`."""

    ece: Estimate
    curve: pd.DataFrame


def calibration(probs: Float[Tensor, "N V"], targets: Int[Tensor, " N"], bins: int = 15) -> Calibration:
    """Is the most probable symbol right as often as its probability says? ECE = sum_b n_b/N |accuracy - confidence|.

    Shapes: probs (N, V), targets (N,). Bins hold equally many: a language model is nearly certain nearly everywhere,
    so bins of equal width would stand empty but for one, and their ECE is the more biased (arXiv 2012.08668). Equal
    confidences share a bin, so there may be fewer. Standard error over the N as if independent, with the bins and the
    signs of their gaps held fixed. Chance gaps bias it upwards: to about 0.4 sqrt(bins / N) at most where all is right.
    Raises ValueError for unequal shapes, probabilities that do not sum to 1, unknown targets, bins below 1.
    """
    _check_probs(probs, targets)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    confidence, guess = (best.cpu().numpy() for best in probs.double().max(1))
    right = (guess == targets.cpu().numpy()).astype(np.float64)
    edges = np.quantile(confidence, np.arange(1, bins) / bins)
    frame = pd.DataFrame({"confidence": confidence, "accuracy": right, "count": 1})
    groups = frame.groupby(np.searchsorted(edges, confidence, side="right"))
    sign = np.sign(groups["accuracy"].transform("mean") - groups["confidence"].transform("mean"))
    curve = groups.agg({"confidence": "mean", "accuracy": "mean", "count": "sum"}).reset_index(drop=True)
    return Calibration(Estimate.mean((sign * (right - confidence)).to_numpy()), curve)


def _check_probs(probs: Tensor, targets: Tensor) -> None:
    if probs.ndim != 2 or targets.shape != probs.shape[:1] or not probs.numel():
        raise ValueError(f"probs must be (N, V), targets (N,), not {(*probs.shape,)} and {(*targets.shape,)}")
    wrong = ~((probs >= 0).all(1) & ((probs.sum(1) - 1).abs() <= _OFF))  # so that NaN is wrong
    if wrong.any():
        raise ValueError(
            f"row {int(wrong.nonzero()[0])} of probs is no distribution: below 0, NaN or a sum other than 1"
        )
    if targets.min() < 0 or targets.max() >= probs.shape[1]:
        raise ValueError(f"targets must lie in 0 … {probs.shape[1] - 1}")
