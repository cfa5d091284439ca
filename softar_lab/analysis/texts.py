"""What a text is worth: its bits, its diversity, and what a judge says who may be the language itself (K30)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ..estimates import Estimate
from ..evaluation import context_of, pieces_of, scores
from ..generation.trajectory import Trajectory
from ..predictor import Predictor


def bits_per_char(log_probs: Float[Tensor, "..."] | Sequence[Float[Tensor, " _"]]) -> Estimate:
    """Mean of -log p / ln 2 over all characters, in bits.

    Shapes: log_probs (T,) of one text, (B, T) of B texts, or a list of texts (T_b,) of any lengths; in nats. The
    standard error is that of a ratio, all bits over all characters, with texts as the independent units: characters
    of one text depend on each other, so one text alone tells none (NaN), and windows cut from one text tell too
    little. Texts without a character are left out. A character of probability 0 makes the mean infinite.
    Raises ValueError for NaN, naming where, and where there is no character at all.
    """
    if isinstance(log_probs, Tensor) and log_probs.ndim not in (1, 2):
        raise ValueError(f"log_probs must be (T,), (B, T) or a list of (T,), not of shape {(*log_probs.shape,)}")
    texts = [log_probs] if isinstance(log_probs, Tensor) and log_probs.ndim == 1 else log_probs
    for number, text in enumerate(texts):
        if text.isnan().any():
            raise ValueError(f"log_probs hold NaN: text {number}, character {int(text.isnan().nonzero()[0])}")
    texts = [text.double() for text in texts if len(text)]
    if not texts:
        raise ValueError("log_probs are empty: no character to take the mean over")
    bits = np.array([text.sum().item() for text in texts]) / -math.log(2)
    lengths = np.array([len(text) for text in texts])
    mean = bits.sum() / lengths.sum()
    if math.isinf(mean):
        return Estimate(mean, math.nan)
    return Estimate(mean, Estimate.mean((bits - mean * lengths) / lengths.mean()).standard_error)


def distinct_n(text: str, n: int) -> float:
    """Different n-grams of characters / all n-grams, in (0, 1] (Li et al., arXiv 1510.03055).

    It falls with length: compare texts of equal length. NaN where the text is shorter than n.
    Raises ValueError for n below 1.
    """
    grams = _grams(text, n)
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(text: str, n: int, window: int | None = None) -> float:
    """Share of n-grams of characters that began once already, at most `window` characters before; in [0, 1).

    None, anywhere before: then it is seq-rep-n = 1 - distinct_n; n = 1 is rep/l for a window of l, taken on the text
    itself (Welleck et al., arXiv 1908.04319). NaN where the text is shorter than n.
    Raises ValueError for n or window below 1.
    """
    if window is not None and window < 1:
        raise ValueError(f"window must be None or at least 1, not {window}")
    grams, last, again = _grams(text, n), {}, 0
    for position, gram in enumerate(grams):
        again += gram in last and (window is None or position - last[gram] <= window)
        last[gram] = position
    return again / len(grams) if grams else math.nan


def diversity(text: str) -> dict[str, float | int]:
    """A table's row: length, distinct_1 … distinct_4, and repetition_16, near 1 in a loop and near 0 in prose."""
    row = {f"distinct_{n}": distinct_n(text, n) for n in range(1, 5)}
    return {"length": len(text), **row, "repetition_16": repetition(text, 16)}


def _grams(text: str, n: int) -> list[str]:
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    return [text[i : i + n] for i in range(len(text) - n + 1)]


@dataclass(frozen=True)
class Judgement:
    """log_probs (T,), in nats, of a text's characters: -inf at the first impossible one, NaN after it."""

    log_probs: Float64[Tensor, " T"]

    @property
    def scored(self) -> Float64[Tensor, " S"]:
        """log_probs before the first impossible character; bits_per_char of a list of these has a standard error."""
        return self.log_probs[self.log_probs.isfinite()]

    @property
    def possible(self) -> float:
        """Share of the text before its first impossible character; 1 where there is none."""
        return len(self.scored) / len(self.log_probs)

    @property
    def bits_per_char(self) -> Estimate:
        """Mean over `scored`, NaN where that is empty. Low alone proves nothing: see `possible` and `diversity`."""
        return bits_per_char(self.scored) if len(self.scored) else Estimate(math.nan, math.nan)


@torch.inference_mode()
def judge(text: str, judge: Predictor, prompt: str = "", separator: str | None = None) -> Judgement:
    """What a judge, a true language or a trained model, gives every character of a text that follows a prompt.

    The prompt is read, not judged. All is read from the judge's start: by a model without a context limit in one go,
    otherwise in evaluation's `windows`; by documents, where `separator` ends them. The first character to which the
    judge gives no probability, or that it does not know, ends the judgement: no language says what follows that.
    (Documents judged one by one each have a beginning, and bits_per_char of all their `scored` a standard error.)
    Raises ValueError for an empty text, a judge without a tokenizer, or a prompt that is itself impossible.
    """
    if not text:
        raise ValueError("the text to be judged is empty")
    tokenizer, whole = getattr(judge, "tokenizer", None), prompt + text
    if tokenizer is None:
        raise ValueError("the judge has no tokenizer, so it cannot read a text")
    unknown = tokenizer.unknown_in(whole) if tokenizer.unk_id is None else ()
    readable = min((whole.index(char) for char in unknown), default=len(whole))
    ids, end = tokenizer.encode(whole[:readable]), tokenizer.encode(separator)[0] if separator else None
    found = torch.cat([_read(judge, ids, end).double(), torch.tensor([-math.inf])])
    stop = int((found == -math.inf).nonzero()[0])  # the first impossible character, or the end of the whole
    if stop < len(prompt):
        raise ValueError(f"the prompt is impossible for this judge: {whole[stop]!r} at position {stop}")
    log_probs = torch.full((len(whole) + 1,), math.nan, dtype=torch.float64)
    log_probs[: stop + 1] = found[: stop + 1]
    return Judgement(log_probs[len(prompt) : -1])


def _read(judge: Predictor, ids: Int[Tensor, " N"], separator: Tensor | None) -> Float[Tensor, " S"]:
    """log p of each token, the first included; of a judge that refuses the text, up to the first impossible one."""
    if not len(ids):
        return torch.zeros(0)
    pieces = pieces_of(judge, ids, separator) or [(0, 1, 0)]  # one character has no running text
    pieces[0] = (*pieces[0][:2], 0)
    try:
        return scores(judge, ids, pieces)
    except ValueError:
        if context_of(judge) is not None:
            raise
    found = []
    for begin, end, _ in pieces:  # token by token; any other reason to refuse is met, and raised, again
        state = judge.start()
        for token_id in ids[begin:end, None]:
            found.append(judge.predict(state).log_probs[0, token_id])
            if found[-1] == -math.inf:
                return torch.cat(found)
            state = judge.advance(state, token_ids=token_id)
    return torch.cat(found)


def differing(one: Trajectory, other: Trajectory) -> list[bool]:
    """At each step of `one`, whether it shows another symbol than `other` does, or goes on where that has ended."""
    theirs = [other.tokens[i] for i in other.token_ids.tolist()]
    ours = [one.tokens[i] for i in one.token_ids.tolist()]
    return [t >= len(theirs) or symbol != theirs[t] for t, symbol in enumerate(ours)]
