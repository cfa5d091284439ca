"""Distance of a model's distributions from the truth (K30): excess bits, Brier-n, calibration.

Measures of a written text are in `texts`. Standard errors over rows take the rows as independent;
the tokens within one row may depend on each other.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ..core.estimates import Estimate
from ..core.predictor import Predictor, divergence
from .distribution_checks import check_comparable, check_probs, next_log_probs
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

_ENTRIES = 2**22  # probabilities that kl_bits holds at once: 32 MB per tensor
# added to brier_lm's seed, so that its samples do not repeat rows drawn with the same seed
_STREAM = 0xB21E2


# -- against the true distribution -----------------------------------------------------------------


@torch.inference_mode()
def kl_bits(
    model: Predictor, truth: Predictor, token_ids: Int[Tensor, "B T"]
) -> Float64[Tensor, "B T"]:
    """KL(q || p) at each position, in bits: the truth's q against the model's p.

    q and p are the distributions of the token at t, given the tokens before it in its row. Both
    predictors read each row from its start. Whole distributions are compared in float64, some rows
    at a time. Rounding in a float32 model may give values down to about -1e-6. A symbol with q = 0
    adds nothing; p = 0 where q > 0 gives infinity.

    Args:
        model: gives p.
        truth: gives q.
        token_ids: (B, T).

    Returns:
        (B, T), in bits.

    Raises:
        ValueError: where the vocabularies differ, token_ids are empty or not (B, T), a row is
            longer than a context + 1, or probabilities do not sum to 1.
    """
    check_comparable(model, truth, token_ids)
    rows = max(1, _ENTRIES // (token_ids.shape[1] * truth.vocab_size))
    found = []
    for some in token_ids.split(rows):
        log_q, log_p = next_log_probs(truth, some, "truth"), next_log_probs(model, some, "model")
        found.append(divergence(log_q, log_p) / math.log(2))  # (rows, T)
    return torch.cat(found)


def excess_bits(model: Predictor, truth: Predictor, token_ids: Int[Tensor, "B T"]) -> Estimate:
    """Cost of the model above the truth, in bits per token: the mean of `kl_bits`.

    The mean is over all positions of all rows. Over rows drawn from the truth, it estimates the
    model's cross-entropy minus the truth's entropy. The difference of two scores estimates the
    same, but adds the noise of the symbol drawn at each position. The value is 0 if and only if p =
    q at every position of the rows. token_ids are (B, T); the standard error is over the B rows.

    Raises:
        ValueError: as `kl_bits` does.
    """
    per_row = kl_bits(model, truth, token_ids).mean(1)
    return Estimate.mean(per_row) if per_row.isfinite().all() else Estimate(math.inf, math.nan)


# -- from samples alone (CALM, arXiv 2510.27688) ---------------------------------------------------


def brier(
    first: Int[Tensor, "N n"], second: Int[Tensor, "N n"], reference: Int[Tensor, "N n"]
) -> Estimate:
    """Brier-n from two independent samples per prefix, with n tokens as one outcome.

    It is the mean of 1{x1=y} + 1{x2=y} - 1{x1=x2}, an unbiased estimate of the mean of
    2 p(y) - sum_x p(x)²: 1 at best, -1 at worst, and largest in expectation for p = q. The samples
    must be random draws: two argmax samples always agree, and then nothing measures sum_x p(x)².

    Args:
        first: (N, n), the first sample x1 of each prefix.
        second: (N, n), the second sample x2.
        reference: (N, n), the true tokens y.

    Returns:
        The estimate, with its standard error over the N rows.

    Raises:
        ValueError: where the shapes differ or are empty.

    Source: CALM (arXiv 2510.27688).
    """
    return Estimate.mean(_brier_terms(first, second, reference)[:, -1])


def brier_exact(probs: Float[Tensor, "N V"], targets: Int[Tensor, " N"]) -> Float64[Tensor, " N"]:
    """2 p(y) - sum_x p(x)² of each row: the expected value of Brier-1's terms.

    probs (N, V) and targets (N,) give (N,).
    """
    check_probs(probs, targets)
    probs = probs.double()
    return 2 * probs.gather(1, targets[:, None]).squeeze(1) - probs.square().sum(1)


@dataclass(frozen=True)
class BrierLM:
    """The BrierLM score of a model and its factors.

    `score` is 100 (prod_n Brier-n)^(1/n_max), or NaN; then `problem` gives the reason. `brier`
    holds Brier-1, Brier-2, …, each with its standard error.
    """

    score: Estimate
    brier: tuple[Estimate, ...]
    problem: str = ""

    @classmethod
    def of(cls, terms: Float64[Tensor, "N n"]) -> "BrierLM":
        """The score from N independent rows of terms (N, n); column n-1 holds those of Brier-n.

        The score's standard error comes from the delta method.
        """
        each = tuple(Estimate.mean(column) for column in terms.T)
        low = [f"Brier-{n} = {estimate!r}" for n, estimate in enumerate(each, 1) if estimate <= 0]
        if low:  # a product of two negative factors would even look positive
            return cls(
                Estimate(math.nan, math.nan),
                each,
                f"no geometric mean: {', '.join(low)}, not above 0",
            )
        score = 100 * math.prod(each) ** (1 / len(each))
        # delta method: d log score = mean over n of d Brier-n / Brier-n
        relative = Estimate.mean((terms / terms.mean(0)).mean(1))
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

    For each prefix length, the model reads the beginning of each row and samples two continuations
    of n_max tokens. Each token is drawn from the model's p and read before the next. The first n
    tokens of both continuations and of the row give Brier-n. The terms of one row are averaged over
    its prefixes; standard errors are over rows. In rows longer than its context, a model forgets as
    it does in generation.

    Args:
        model: the predictor to be scored.
        token_ids: (B, T), rows of true text.
        prefixes: prefix lengths; None: every n_max-th, from 0.
        n_max: the largest n.
        seed: decides the samples.

    Raises:
        ValueError: where there are no rows or prefixes, or a prefix leaves fewer than n_max tokens.

    Source: CALM (arXiv 2510.27688).
    """
    rows, length = token_ids.shape
    prefixes = sorted(
        set(range(0, length - n_max + 1, max(1, n_max)) if prefixes is None else prefixes)
    )
    if n_max < 1 or not rows or not prefixes or prefixes[0] < 0 or prefixes[-1] > length - n_max:
        raise ValueError(
            f"{rows} rows of {length} tokens, n_max {n_max}, prefixes {prefixes}: nothing or not all fits"
        )
    generator, device = torch.Generator().manual_seed(_STREAM + seed), model.device
    # both samples of a row are decoded in one batch of 2B rows
    twice = token_ids.repeat(2, 1).to(device)
    state, read, terms = model.start(2 * rows), 0, []
    for prefix in prefixes:
        # 1) read on, up to this prefix
        state, read = model.read(state, twice[:, read:prefix]), prefix
        # 2) sample n_max tokens from a branch of the state
        branch, drawn = state, []
        for n in range(n_max):
            branch = model.advance(branch, token_ids=drawn[-1].to(device)) if n else branch
            drawn.append(
                torch.multinomial(model.probs(branch).cpu(), 1, generator=generator).squeeze(1)
            )
        # 3) compare both samples with the row
        first, second = torch.stack(drawn, 1).split(rows)  # (2B, n_max) -> twice (B, n_max)
        terms.append(_brier_terms(first, second, token_ids[:, prefix : prefix + n_max].cpu()))
    return BrierLM.of(torch.stack(terms).mean(0))


def _brier_terms(first: Tensor, second: Tensor, reference: Tensor) -> Float64[Tensor, "N n"]:
    """The terms of Brier-n in column n-1: those of the first n tokens."""
    if not (first.ndim == 2 and first.shape == second.shape == reference.shape and first.numel()):
        shapes = ", ".join(str((*ids.shape,)) for ids in (first, second, reference))
        raise ValueError(
            f"first, second and reference must have one shape (N, n) and not be empty, not {shapes}"
        )
    x1_y, x2_y, x1_x2 = (
        (a == b).cumprod(1) for a, b in ((first, reference), (second, reference), (first, second))
    )
    return (x1_y + x2_y - x1_x2).double()


# -- calibration -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error `ece` and the calibration curve.

    `curve` has one row per bin: its mean `confidence`, its `accuracy` and its `count`.
    """

    ece: Estimate
    curve: pd.DataFrame


def calibration(
    probs: Float[Tensor, "N V"], targets: Int[Tensor, " N"], bins: int = 15
) -> Calibration:
    """Compare the probability of the most probable symbol with how often that symbol is right.

    ECE = sum_b n_b/N |accuracy - confidence|. All bins hold about equally many predictions. A
    language model is nearly certain almost everywhere, so with bins of equal width all but one
    would be nearly empty, and their ECE would be more biased (arXiv 2012.08668). Equal confidences
    share a bin, so there may be fewer bins. The standard error takes the N rows as independent, and
    the bins and the signs of their gaps as fixed. Chance gaps bias the ECE upwards: a perfectly
    calibrated model gets up to about 0.4 sqrt(bins / N).

    Args:
        probs: (N, V).
        targets: (N,), the true ids.
        bins: the largest number of bins.

    Raises:
        ValueError: where the shapes do not fit, probabilities do not sum to 1, a target is unknown,
            or bins is below 1.
    """
    check_probs(probs, targets)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    confidence, guess = (best.cpu().numpy() for best in probs.double().max(1))
    right = (guess == targets.cpu().numpy()).astype(np.float64)
    # 1) sort the rows into bins of about equal counts
    edges = np.quantile(confidence, np.arange(1, bins) / bins)
    frame = pd.DataFrame({"confidence": confidence, "accuracy": right, "count": 1})
    groups = frame.groupby(np.searchsorted(edges, confidence, side="right"))
    # 2) the mean of sign × gap over all rows is the ECE
    sign = np.sign(groups["accuracy"].transform("mean") - groups["confidence"].transform("mean"))
    curve = groups.agg({"confidence": "mean", "accuracy": "mean", "count": "sum"}).reset_index(
        drop=True
    )
    return Calibration(Estimate.mean((sign * (right - confidence)).to_numpy()), curve)
