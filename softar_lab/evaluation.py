"""How whole texts are scored: cut into windows, every character once, by any predictor that has a tokenizer (K11)."""

import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .models.soft_ar import SoftAR
from .predictor import Predictor

Piece = tuple[int, int, int]  # begin, end, how many of its first tokens are only read


@torch.inference_mode()
def calibrate(model: SoftAR, batch: Int[Tensor, "B T"], memory: Float[Tensor, "B M d"] | None = None) -> None:
    """Fit the objective's reading of vectors on training rows (never on validation text)."""
    hidden = model.hidden_states(batch[:, :-1], memory=memory).flatten(0, 1)
    model.objective.calibrate(hidden, batch.flatten(), model.table.weight)


def context_of(model: Predictor) -> int | None:
    """How many tokens a model holds at most when it predicts one; None: all there are (counts, true languages)."""
    config = getattr(model, "config", None)
    return getattr(config, "tokens", getattr(config, "context", None))


def overlap_of(model: Predictor) -> int | None:
    """How many tokens are read again where a text goes on from window to window; None: each begins from nothing."""
    config = getattr(model, "config", None)
    return config.kept if getattr(config, "layout", None) else None


def device_of(model: Predictor) -> torch.device:
    """Where a model computes; the CPU for those that do not say."""
    return getattr(model, "device", torch.device("cpu"))


def document_begins(token_ids: Int[Tensor, " N"], separator: Tensor) -> Int[Tensor, " D"]:
    """Where each document of a stream begins; every document ends with `separator`."""
    ends = (token_ids == separator).nonzero().flatten() + 1
    return torch.cat([torch.zeros(1, dtype=ends.dtype), ends[ends < len(token_ids)]])


def windows(
    token_ids: Int[Tensor, " N"], context: int | None, separator: Tensor | None, overlap: int | None = None
) -> Iterator[Piece]:
    """Cut a text into (begin, end, first scored) windows of at most context+1 tokens; each token is scored once.

    Running text: the published way of nanoGPT, windows side by side, the first character of each only read (it is the
    last one scored in the window before; the text's first is never scored). Documents: each window begins with a
    document and holds as many whole ones as fit, all scored; a longer document goes on in the next window.
    A model without a limit (None) reads running text in one window, documents one by one. So what is scored depends
    on the text alone, and the scores of two models lie side by side, character by character.

    With an `overlap` a text, or each document, is a stream read as generation reads it: when a window is full, the next
    begins with the latest so many tokens. The same tokens are scored.
    """
    total = len(token_ids)
    if overlap is not None:
        begins, skip = ([0], 1) if separator is None else (document_begins(token_ids, separator).tolist(), 0)
        for begin, end in zip(begins, [*begins[1:], total], strict=True):
            first = skip
            while begin + first < end:
                yield begin, min(begin + context + 1, end), first
                begin, first = begin + context + 1 - overlap, overlap
        return
    if separator is None:
        step = context or max(1, total - 1)
        yield from ((i, min(i + step + 1, total), 1) for i in range(0, total - 1, step))
        return
    begins = document_begins(token_ids, separator).tolist()
    if context is None:
        yield from ((begin, end, 0) for begin, end in zip(begins, [*begins[1:], total]) if begin < end)
        return
    begin, cuts = 0, {*begins, total}
    while begin < total:
        end = min(begin + context + 1, total)
        cut = next((e for e in range(end, begin, -1) if e in cuts), end)
        yield begin, cut, 0
        begin = cut


def scored_windows(
    model: Predictor, text: str, separator: str | None, what: str
) -> tuple[Int[Tensor, " N"], list[Piece]]:
    """The ids of a text and its `windows`; ValueError where nothing of it can be scored."""
    ids = encode(model, text, what)
    pieces = pieces_of(model, ids, model.tokenizer.encode(separator)[0] if separator else None)
    if not pieces:
        raise ValueError(f"the {what} text has 1 character, so nothing to be scored; give at least 2")
    return ids, pieces


def pieces_of(model: Predictor, ids: Int[Tensor, " N"], separator: Tensor | None) -> list[Piece]:
    """The `windows` in which this model reads a text."""
    return list(windows(ids, context_of(model), separator, overlap_of(model)))


@torch.inference_mode()
def scores(model: Predictor, ids: Int[Tensor, " N"], pieces: list[Piece]) -> Float[Tensor, " S"]:
    """log p of every scored token, in the order of the text."""
    return torch.cat([model.log_probs(*read).cpu()[scored] for read, scored in _batches(model, ids, pieces)])


@torch.inference_mode()
def distributions(
    model: Predictor, ids: Int[Tensor, " N"], pieces: list[Piece]
) -> tuple[Float[Tensor, "S V"], Int[Tensor, " S"]]:
    """log p of every symbol wherever a token is scored (S, V), and the tokens themselves (S,), in text order."""
    found = [(model.next_log_probs(*read).cpu()[at], read[0].cpu()[at]) for read, at in _batches(model, ids, pieces)]
    log_probs, targets = zip(*found, strict=True)
    return torch.cat(log_probs), torch.cat(targets)


def _batches(model: Predictor, ids: Tensor, pieces: list[Piece]) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Windows as padded rows (B, T), with the memory of what stood before them where the model has one, and a mask
    (B, T) of what is scored, 64 at a time.

    A model without a limit gets them one by one: it may refuse the padding that rows of unequal length need.
    """
    size, memory = 64 if context_of(model) else 1, memories(model, ids, pieces)
    for first in range(0, len(pieces), size):
        group = pieces[first : first + size]
        batch = torch.zeros(len(group), max(end - begin for begin, end, _ in group), dtype=torch.long)
        scored = torch.zeros(batch.shape, dtype=torch.bool)
        for row, (begin, end, skip) in enumerate(group):
            batch[row, : end - begin] = ids[begin:end]
            scored[row, skip : end - begin] = True
        slots = [next(memory) for _ in group] if getattr(model, "memory", None) is not None else []
        yield (batch.to(device_of(model)), *([torch.cat(slots)] if slots else [])), scored


def memories(model: Predictor, ids: Int[Tensor, " N"], pieces: list[Piece]) -> Iterator[Float[Tensor, "1 M d"]]:
    """The memory slots of one window after the other; one that overlaps the one before it goes on with its stream.

    With the control "other" a window gets those of one in another document, as far from its beginning as can be; in
    running text, of one half the text away.
    """
    if model.config.layout.control == "other":
        own = list(memories(model.with_window(replace(model.config.layout, control=None)), ids, pieces))
        yield from (own[i] for i in _others(pieces))
        return
    carry, before = model.fold(1), (0, 0, 0)
    for piece in pieces:
        on = before[0] < piece[0] < before[1]
        carry = model.fold(carry, ids[None, before[0] : piece[0]].to(model.device)) if on else model.fold(1)
        before = piece
        yield model.recall(carry)


def _others(pieces: list[Piece]) -> list[int]:
    """For each window, the number of the one whose memory it is shown: of the next stream with a window so deep."""
    streams, depth = [], []
    for i, (begin, _, _) in enumerate(pieces):
        new = not i or not pieces[i - 1][0] < begin < pieces[i - 1][1]
        streams.append(streams[-1] + new if i else 0)
        depth.append(0 if new else depth[-1] + 1)
    order = sorted(range(len(pieces)), key=lambda i: (depth[i], streams[i]))
    shift, found = 1 if streams[-1] else len(pieces) // 2, [0] * len(pieces)
    for at, i in enumerate(order):
        found[i] = order[(at + shift) % len(order)]
    return found


def char_log_probs(model: Predictor, text: str, separator: str | None = None) -> Float[Tensor, " S"]:
    """log p of every scored character of a text (S,), in nats, in windows of the model's context (see `windows`).

    A model with a structured window carries its memory from window to window, at the same cost however long the text.

    Raises ValueError for an empty text, one of which nothing can be scored, or a model without a tokenizer.
    """
    return scores(model, *scored_windows(model, text, separator, "given"))


def evaluate(model: Predictor, text: str, separator: str | None = None) -> float:
    """Mean nats per character over the whole of `text` (see `windows` for what is scored)."""
    return -char_log_probs(model, text, separator).double().mean().item()


def encode(model: Predictor, text: str, what: str) -> Int[Tensor, " N"]:
    """Ids of a text; characters the tokenizer does not know are left out, with a warning that counts them.

    Raises ValueError where nothing is left, or for a model without a tokenizer.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(f"the model has no tokenizer, so it cannot read the {what} text")
    unknown = tokenizer.unknown_in(text)
    if unknown and tokenizer.unk_id is None:
        shown = ", ".join(repr(c) for c in list(unknown)[:5])
        warnings.warn(
            f"{sum(unknown.values())} characters of the {what} text are not in the vocabulary ({shown}) and are left "
            "out; CharTokenizer.fit(text, unk=True) reads them as <unk>",
            stacklevel=3,
        )
        text = text.translate({ord(c): None for c in unknown})
    if not text:
        raise ValueError(f"the {what} text is empty")
    return tokenizer.encode(text)
