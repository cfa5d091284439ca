"""Distributions that can be measured: of one vocabulary, within the context, summing to 1."""

from jaxtyping import Float64
from torch import Tensor

from ..core.predictor import Predictor

# largest error of a sum of probabilities: float32 rounding over a large vocabulary stays below it
_OFF = 1e-4


def next_log_probs(model: Predictor, token_ids: Tensor, name: str) -> Float64[Tensor, "B T V"]:
    """A model's log p of every symbol at every t of rows (B, T), in float64 on the CPU.

    Raises:
        ValueError: where probabilities do not sum to 1; the message calls the model `name`.
    """
    log_probs = model.next_log_probs(token_ids.to(model.device)).cpu().double()
    total = log_probs.exp().sum(-1)
    wrong = ~((total - 1).abs() <= _OFF)  # written so that NaN counts as wrong
    if wrong.any():
        row, t = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"the {name}'s probabilities sum to {total[row, t]:.6g}, not 1, at position {t} of a row"
        )
    return log_probs


def check_comparable(model: Predictor, truth: Predictor, token_ids: Tensor) -> None:
    """Raise ValueError where two predictors or rows (B, T) cannot be compared.

    The vocabularies must be the same, and a row at most one token longer than a context.
    """
    if token_ids.ndim != 2 or not token_ids.numel():
        raise ValueError(
            f"token_ids must be rows (B, T) with at least one token, not of shape {(*token_ids.shape,)}"
        )
    tokens = [one.tokenizer and one.tokenizer.tokens for one in (model, truth)]
    if model.vocab_size != truth.vocab_size or (None not in tokens and tokens[0] != tokens[1]):
        sizes = f"{model.vocab_size} symbols against {truth.vocab_size}"
        raise ValueError(
            f"model and truth must have the same vocabulary: {sizes}, {tokens[0]!r:.60}, {tokens[1]!r:.60}"
        )
    for name, one in (("model", model), ("truth", truth)):
        context = one.context
        if context is not None and token_ids.shape[1] > context + 1:
            raise ValueError(
                f"rows of {token_ids.shape[1]} tokens; the {name}'s context of {context} allows one more"
            )


def check_probs(probs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless probs (N, V) are distributions and targets (N,) ids of theirs."""
    if probs.ndim != 2 or targets.shape != probs.shape[:1] or not probs.numel():
        raise ValueError(
            f"probs must be (N, V), targets (N,), not {(*probs.shape,)} and {(*targets.shape,)}"
        )
    # written so that NaN counts as wrong
    wrong = ~((probs >= 0).all(1) & ((probs.sum(1) - 1).abs() <= _OFF))
    if wrong.any():
        raise ValueError(
            f"row {int(wrong.nonzero()[0])} of probs is no distribution: below 0, NaN or a sum other than 1"
        )
    if targets.min() < 0 or targets.max() >= probs.shape[1]:
        raise ValueError(f"targets must lie in 0 … {probs.shape[1] - 1}")
