"""Measures of many generated texts under a judge, and of faults that low bits would hide.

Such faults are loops and words that do not exist.
"""

import re
from collections.abc import Collection, Sequence

import pandas as pd
import torch

from ..core.predictor import Predictor
from ..core.trajectory import Trajectory
from ..models.scoring import Piece, per_char, scores, separator_id, windows
from .texts import Judgement, distinct_n, encode_pair, judge, judgement, repetition

WORD = re.compile(r"\w+")


@torch.inference_mode()
def judge_texts(
    texts: Sequence[str],
    judging: Predictor,
    prompts: Sequence[str] | None = None,
    separator: str | None = None,
) -> list[Judgement]:
    """`texts.judge` of many texts, each after its prompt, in batches where the judge has a context.

    A model with a context reads 64 windows at a time. Windows of running text overlap by half, so
    that each character has at least half a context before it (or all the text there is), as in
    generation. Documents are read in `models.scoring.windows`. Where the judge has no context or
    tokenizer, a text is empty, or a character is unknown, every text goes through `judge` by
    itself.

    Args:
        texts: the texts to be judged.
        judging: the judge.
        prompts: one prompt per text; None for no prompts.
        separator: the token that ends every document; None for running text.

    Raises:
        ValueError: as `judge` does, or where there is not one prompt per text.
    """
    prompts = [""] * len(texts) if prompts is None else list(prompts)
    if len(prompts) != len(texts):
        raise ValueError(f"{len(prompts)} prompts for {len(texts)} texts; give one a text, or none")
    context, tokenizer = judging.context, judging.tokenizer
    wholes = [prompt + text for prompt, text in zip(prompts, texts)]
    if context is None or tokenizer is None or not all(texts) or _any_unknown(tokenizer, wholes):
        return [judge(text, judging, prompt, separator) for text, prompt in zip(texts, prompts)]
    # 1) tokenize prompt and text separately, as in generation
    pairs = [encode_pair(tokenizer, prompt, text) for prompt, text in zip(prompts, texts)]
    ids, lengths = zip(*pairs, strict=True) if pairs else ((), ())
    # 2) cut each text into windows, as positions in the concatenation of all texts
    end = separator_id(judging, separator)
    pieces, begin = [], 0
    for one in ids:
        cut = (
            _overlapping(len(one), context)
            if end is None
            else windows(one, context, end, judging.overlap)
        )
        pieces += [(begin + first, begin + last, skip) for first, last, skip in cut]
        begin += len(one)
    # 3) score all windows, then split into texts and characters
    found = scores(judging, torch.cat(ids), pieces).double().split([len(one) for one in ids])
    return [
        judgement(per_char(judging, *one), text, prompt)
        for *one, text, prompt in zip(ids, found, lengths, texts, prompts)
    ]


def _any_unknown(tokenizer, wholes: list[str]) -> bool:
    return tokenizer.unk_id is None and any(tokenizer.unknown_in(whole) for whole in wholes)


def _overlapping(length: int, context: int) -> list[Piece]:
    """Windows (begin, end, number of tokens only read) in which every token is scored once.

    Each new window reads again the latest half context or so.
    """
    pieces, done, half = [], 0, max(1, context // 2)
    while done < length:
        begin = 0 if not done else done - (context + 1 - half)
        end = min(begin + context + 1, length)
        pieces.append((begin, end, done - begin))
        done = end
    return pieces


def known_words(text: str, words: Collection[str], prompt: str = "") -> float:
    """Share of a text's words that are among `words`; NaN where it has none.

    A first word that began in the prompt is counted as a whole. A word at the very end of the text
    may be unfinished and is left out.
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
    """One row per text: measures under a judge, and measures of the text alone.

    `bits`: mean per character over the `scored` ones, those before the first impossible character;
    `possible`: their share. `distinct_4` and `repetition_16` detect loops, which can have any
    number of bits. `known_words`, if `words` are given: the share of the text's words among them.

    A true language gives most generated texts few possible characters, and no bits after them. So
    take `scored` (how far the text is possible) from the language, and `bits` from a model that
    gives every symbol some probability. For means over texts, weight `bits` by `scored`.

    Args:
        trajectories: one per text.
        judging: the judge, another model or the language itself.
        words: the known words.
        separator: the token that ends every document; None for running text.
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
        for text, prompt, found in zip(
            texts, prompts, judge_texts(texts, judging, prompts, separator)
        )
    ]
    return pd.DataFrame(rows).rename_axis("text")
