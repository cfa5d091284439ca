"""Measures of one text: its bits, its diversity, and its probability under a judge (K30).

The judge is a trained model or the true language itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from ..core.estimates import Estimate
from ..core.predictor import Predictor
from ..models.scoring import per_char, pieces_of, scores, separator_id


def bits_per_char(log_probs: Float[Tensor, "..."] | Sequence[Float[Tensor, " _"]]) -> Estimate:
    """Mean of -log p / ln 2 over all characters, in bits.

    log_probs, in nats, are (T,) of one text, (B, T) of B texts, or a list of (T_b,), of any
    lengths. Which characters they are of, the function that scored them says: `judge` scores all,
    and `char_log_probs` leaves out the first token of running text.

    The standard error is that of a ratio, all bits over all characters, with the texts as
    independent units: characters of one text depend on each other. So one text alone has no
    standard error (NaN), and windows cut from one text give too small a one. Texts without a
    character are left out. A character of probability 0 makes the mean infinite.

    Raises:
        ValueError: where log_probs hold NaN (the message names the place), have another shape, or
            hold no character at all.
    """
    if isinstance(log_probs, Tensor) and log_probs.ndim not in (1, 2):
        raise ValueError(
            f"log_probs must be (T,), (B, T) or a list of (T,), not of shape {(*log_probs.shape,)}"
        )
    texts = [log_probs] if isinstance(log_probs, Tensor) and log_probs.ndim == 1 else log_probs
    for number, text in enumerate(texts):
        if text.isnan().any():
            raise ValueError(
                f"log_probs hold NaN: text {number}, character {int(text.isnan().nonzero()[0])}"
            )
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
    """Number of different character n-grams / number of all, in (0, 1].

    NaN where the text is shorter than n. It falls with length, so compare only texts of equal
    length.

    Raises:
        ValueError: where n is below 1.

    Source: Li et al. (arXiv 1510.03055).
    """
    grams = _grams(text, n)
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(text: str, n: int, window: int | None = None) -> float:
    """Share in [0, 1) of character n-grams that occurred at most `window` characters before.

    With window None an n-gram may have occurred anywhere before; then the result is seq-rep-n = 1 -
    distinct_n. n = 1 is rep/l for a window of l, taken on the text itself. NaN where the text is
    shorter than n.

    Raises:
        ValueError: where n or window is below 1.

    Source: Welleck et al. (arXiv 1908.04319).
    """
    if window is not None and window < 1:
        raise ValueError(f"window must be None or at least 1, not {window}")
    grams, last, again = _grams(text, n), {}, 0
    for position, gram in enumerate(grams):
        again += gram in last and (window is None or position - last[gram] <= window)
        last[gram] = position
    return again / len(grams) if grams else math.nan


def diversity(text: str) -> dict[str, float | int]:
    """One row of a table: `length`, `distinct_1` … `distinct_4`, and `repetition_16`.

    `repetition_16` is near 1 in a loop and near 0 in prose.
    """
    row = {f"distinct_{n}": distinct_n(text, n) for n in range(1, 5)}
    return {"length": len(text), **row, "repetition_16": repetition(text, 16)}


def _grams(text: str, n: int) -> list[str]:
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    return [text[i : i + n] for i in range(len(text) - n + 1)]


@dataclass(frozen=True)
class Judgement:
    """Log-probabilities of a text's characters under a judge.

    `log_probs` (T,), in nats: -inf at the first impossible character, NaN after it.
    """

    log_probs: Float64[Tensor, " T"]

    @property
    def scored(self) -> Float64[Tensor, " S"]:
        """The log_probs before the first impossible character.

        `bits_per_char` of a list of these has a standard error.
        """
        return self.log_probs[self.log_probs.isfinite()]

    @property
    def possible(self) -> float:
        """Share of the text before its first impossible character; 1 where there is none."""
        return len(self.scored) / len(self.log_probs)

    @property
    def bits_per_char(self) -> Estimate:
        """Mean over `scored`, NaN where that is empty.

        A low value alone proves nothing: see `possible` and `diversity`.
        """
        return bits_per_char(self.scored) if len(self.scored) else Estimate(math.nan, math.nan)


@torch.inference_mode()
def judge(text: str, judge: Predictor, prompt: str = "", separator: str | None = None) -> Judgement:
    """Log-probability that a judge gives to every character of a text after a prompt.

    Every character is judged, the first one given the prompt, or the judge's start alone where there
    is none: log p(text | prompt). (`char_log_probs` without a separator leaves the first token out.)
    The prompt is read, not judged. Prompt and text are tokenized separately. The log-probability of
    a token of several characters goes to its first character.

    The judge reads everything from its start: in one pass if it has no context limit, otherwise in
    `models.scoring.windows`, which are cut at documents where `separator` ends these. The judgement
    ends at the first character that the judge does not know or gives no probability: no language
    defines what follows it. For a standard error, judge documents one by one, each with a beginning
    of its own, and call `bits_per_char` on the list of their `scored`.

    Args:
        text: the characters to be judged.
        judge: a true language or a trained model.
        prompt: the characters before the text.
        separator: the token that ends every document; None for running text.

    Raises:
        ValueError: where the text is empty, the judge has no tokenizer, or the prompt itself is
            impossible.
    """
    if not text:
        raise ValueError("the text to be judged is empty")
    tokenizer, whole = judge.tokenizer, prompt + text
    if tokenizer is None:
        raise ValueError("the judge has no tokenizer, so it cannot read a text")
    # 1) tokenize up to the first character that the judge does not know
    unknown = tokenizer.unknown_in(whole) if tokenizer.unk_id is None else ()
    readable = min((whole.index(char) for char in unknown), default=len(whole))
    ids, lengths = encode_pair(tokenizer, prompt[:readable], whole[len(prompt) : readable])
    # 2) score, and give the result to characters
    read = _read(judge, ids, separator_id(judge, separator))
    ids, lengths = ids[: len(read)], lengths[: len(read)]
    return judgement(per_char(judge, ids, read.double(), lengths), text, prompt)


def encode_pair(tokenizer: Any, prompt: str, text: str) -> tuple[Int64[Tensor, " N"], ...]:
    """Ids (N,) of a prompt and of a text after it, each cut by itself, and their lengths (N,)."""
    after = tokenizer.after(prompt)
    pairs = tokenizer.encode_with_lengths(prompt), after.encode_with_lengths(text)
    ids, lengths = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return ids, lengths


def judgement(log_probs: Float64[Tensor, " C"], text: str, prompt: str) -> Judgement:
    """The judgement of a text, from log p of the first C characters of prompt + text.

    It ends at the first impossible character, or after C characters.

    Raises:
        ValueError: where it ends in the prompt, or the judge has no log p for the first character.
    """
    whole = prompt + text
    found = torch.cat([log_probs, torch.tensor([-math.inf])])
    # the first impossible character, or the end of the text
    stop = int((found == -math.inf).nonzero()[0])
    if stop < len(prompt):
        raise ValueError(
            f"the prompt is impossible for this judge: {whole[stop]!r} at position {stop}"
        )
    if found[len(prompt) : stop].isnan().any():
        raise ValueError("the judge predicts nothing from nothing: give a prompt before the text")
    # cut off the prompt; NaN after the stop
    after = torch.full((max(0, len(whole) - stop - 1),), math.nan, dtype=torch.float64)
    end = max(len(whole), len(log_probs))
    return Judgement(torch.cat([found[: stop + 1], after])[len(prompt) : end])


def _read(
    judge: Predictor, ids: Int[Tensor, " N"], separator: Tensor | None
) -> Float[Tensor, " S"]:
    """log p of each token, the first included.

    A judge that refuses the text is asked token by token, up to the first impossible one.
    """
    if not len(ids):
        return torch.zeros(0)
    pieces = pieces_of(judge, ids, separator) or [(0, 1, 0)]  # a single token gives no window
    pieces[0] = (*pieces[0][:2], 0)  # score the text's first token, too
    try:
        return scores(judge, ids, pieces)
    except ValueError:
        if judge.context is not None:
            raise
    # token by token: if the judge refused for any other reason, it raises here again
    found = []
    for begin, end, _ in pieces:
        state = judge.start()
        for token_id in ids[begin:end, None]:
            found.append(judge.predict(state).log_probs[0, token_id])
            if found[-1] == -math.inf:
                return torch.cat(found)
            state = judge.advance(state, token_ids=token_id)
    return torch.cat(found)
