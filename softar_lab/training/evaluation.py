"""Evaluations during training: on the whole validation text, or on a stated sample of a long one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..data.corpora import Corpus
from ..models.scoring import Piece, per_char, scored_batches, scored_windows
from ..models.soft_ar import SoftAR

EVAL_TOKENS = (
    200_000  # the validation texts of all built-in corpora are shorter, so they are read whole
)
BRIEF = 2048  # tokens of a brief evaluation, about: it takes less than a step of training


@dataclass(frozen=True)
class Score:
    """The result of one evaluation.

    Attributes:
        nats_per_char: mean nats per character.
        chars: the number of scored characters.
    """

    nats_per_char: float
    chars: int


class HeldOut:
    """The validation text of a run, and the windows of it that each evaluation reads.

    A text of more than `most` tokens is sampled: streams of windows that lie evenly in the text,
    and always the same ones. A stream is a window, or in a model with a memory the windows of one
    document; it is read from its beginning.

    Args:
        model: its tokenizer reads the text.
        corpus: has the text, `corpus.val`.
        most: how many tokens an evaluation reads at most, but at least one window; None: all.

    Attributes:
        chars: how many characters of the whole text can be scored.
    """

    def __init__(self, model: SoftAR, corpus: Corpus, most: int | None):
        self.ids, self.all = scored_windows(model, corpus.val, corpus.separator, "validation")
        self.pieces = self.all if most is None else sampled(self.all, most, model.has_memory)
        self._lengths = model.tokenizer.lengths(self.ids).int()
        self.chars = self._chars(self.all)

    def _chars(self, pieces: list[Piece]) -> int:
        scored = (self._lengths[begin + skip : end].sum() for begin, end, skip in pieces)
        return max(1, int(sum(scored)))

    @torch.inference_mode()
    def score(
        self, model: SoftAR, going_on: Callable[[float], bool], brief: bool = False
    ) -> Score | None:
        """Evaluate a model.

        Args:
            model: the model.
            going_on: gets the share that is done, after each batch; the evaluation ends where it is
                False, without a result.
            brief: read only the first windows.
        """
        most = max(1, BRIEF // model.context) if brief else None
        pieces, parts = self.pieces[:most], []
        total = sum(_scored(piece) for piece in pieces)
        for log_probs in scored_batches(model, self.ids, pieces):
            parts.append(log_probs)
            if not going_on(sum(map(len, parts)) / total):
                return None
        log_probs = torch.cat(parts)
        if len(pieces) == len(self.all):
            found = per_char(model, self.ids, log_probs)
            return Score(-found.double().mean().item(), self.chars)
        chars = self._chars(pieces)
        return Score(-log_probs.double().sum().item() / chars, chars)


def sampled(pieces: list[Piece], most: int, in_streams: bool) -> list[Piece]:
    """Windows that lie evenly in a text, with at most `most` scored tokens, but at least one.

    `in_streams`: a window can only be read after those that it continues, so streams of windows
    are chosen, each from its beginning.
    """
    if sum(map(_scored, pieces)) <= most:
        return pieces
    # 1) the streams: a window that overlaps the one before continues it
    streams: list[list[Piece]] = []
    for i, piece in enumerate(pieces):
        goes_on = i > 0 and pieces[i - 1][0] < piece[0] < pieces[i - 1][1]
        if goes_on and in_streams:
            streams[-1].append(piece)
        else:
            streams.append([piece])
    # 2) as many as hold about what is asked for, and not more than that
    count = max(1, most * len(streams) // sum(map(_scored, pieces)))
    chosen, left = [], most
    for i in range(count):
        for piece in streams[i * len(streams) // count]:
            if _scored(piece) > left and chosen:
                break
            chosen.append(piece)
            left -= _scored(piece)
    return chosen


def _scored(piece: Piece) -> int:
    begin, end, skip = piece
    return end - begin - skip
