"""What a batch of freely written texts is worth: judged side by side, with what a low number of bits would hide."""

import re
from collections.abc import Collection, Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..evaluation import Piece, context_of, overlap_of, scores, windows
from ..generation.trajectory import Trajectory
from ..predictor import Predictor
from .texts import Judgement, distinct_n, judge, repetition

WORD = re.compile(r"\w+")


@torch.inference_mode()
def judge_texts(
    texts: Sequence[str], judging: Predictor, prompts: Sequence[str] | None = None, separator: str | None = None
) -> list[Judgement]:
    """`texts.judge` of many texts, each after its prompt; a model with a context reads them 64 windows at a time.

    Such a model reads running text in windows that overlap by half, so that each character has at least half a
    context before it, as when the model itself writes on; documents, where `separator` ends them, as `evaluation`'s
    windows hold them. Raises ValueError as `judge` does, and for other than one prompt a text.
    """
    prompts = [""] * len(texts) if prompts is None else list(prompts)
    if len(prompts) != len(texts):
        raise ValueError(f"{len(prompts)} prompts for {len(texts)} texts; give one a text, or none")
    context, tokenizer = context_of(judging), getattr(judging, "tokenizer", None)
    wholes = [prompt + text for prompt, text in zip(prompts, texts)]
    if context is None or tokenizer is None or not all(texts) or _any_unknown(tokenizer, wholes):
        return [judge(text, judging, prompt, separator) for text, prompt in zip(texts, prompts)]
    ids = [tokenizer.encode(whole) for whole in wholes]
    end = tokenizer.encode(separator)[0] if separator else None
    pieces, begin = [], 0
    for one in ids:
        cut = _overlapping(len(one), context) if end is None else windows(one, context, end, overlap_of(judging))
        pieces += [(begin + first, begin + last, skip) for first, last, skip in cut]
        begin += len(one)
    found = scores(judging, torch.cat(ids), pieces).double().split([len(one) for one in ids])
    return [Judgement(_ended(one[len(prompt) :])) for one, prompt in zip(found, prompts)]


def _any_unknown(tokenizer, wholes: list[str]) -> bool:
    return tokenizer.unk_id is None and any(tokenizer.unknown_in(whole) for whole in wholes)


def _overlapping(length: int, context: int) -> list[Piece]:
    """Windows (begin, end, how many are only read), all scored once; each new one begins half a context later."""
    pieces, done, half = [], 0, max(1, context // 2)
    while done < length:
        begin = 0 if not done else done - (context + 1 - half)
        end = min(begin + context + 1, length)
        pieces.append((begin, end, done - begin))
        done = end
    return pieces


def _ended(log_probs: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """NaN after the first impossible character."""
    impossible = log_probs.isneginf().cumsum(0)
    return log_probs.masked_fill((impossible - log_probs.isneginf().long()) > 0, torch.nan)


def known_words(text: str, words: Collection[str], prompt: str = "") -> float:
    """Share of a text's words that are among `words`; NaN where it has none.

    The first goes on where the prompt stopped; the last, if the text ends in it, may be unfinished and is left out.
    """
    whole = prompt + text
    found = [match for match in WORD.finditer(whole) if len(prompt) < match.end() < len(whole)]
    return sum(match.group() in words for match in found) / len(found) if found else float("nan")


def score_texts(
    trajectories: Sequence[Trajectory],
    judging: Predictor,
    words: Collection[str] | None = None,
    separator: str | None = None,
) -> pd.DataFrame:
    """A row a text: what a judge, another model or the language itself, and the text's own looks say of it.

    `bits`: per character, over the `scored` ones before the first that is impossible; `possible`: their share. A
    language gives most free texts few possible characters and no bits after them, since it says nothing of what
    follows an impossible one: then take `scored` (how far the text holds) from the language, and `bits` from a model
    that holds everything possible. `distinct_4` and `repetition_16` tell loops, which score anything; `known_words`, if
    `words` are given, the share of words among them. Means over texts: `bits` weighted by `scored`.
    """
    texts, prompts = [one.text for one in trajectories], [one.prompt for one in trajectories]
    rows = [
        {
            "bits": float(found.bits_per_char),
            "scored": len(found.scored),
            "possible": found.possible,
            "distinct_4": distinct_n(text, 4),
            "repetition_16": repetition(text, 16),
            **({} if words is None else {"known_words": known_words(text, words, prompt)}),
        }
        for text, prompt, found in zip(texts, prompts, judge_texts(texts, judging, prompts, separator))
    ]
    return pd.DataFrame(rows).rename_axis("text")
