"""How whole texts are scored (K11): cut into windows, each token once.

It works with every predictor that has a tokenizer.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from ..core.predictor import Predictor
from .soft_ar import SoftAR

BATCH = 2**15  # tokens that a model reads at once, about
PASS = 2**11  # the same on a CPU, whose caches hold what a small model computes from so many
Piece = tuple[int, int, int]  # begin, end, number of first tokens that are read but not scored


@torch.inference_mode()
def calibrate(
    model: SoftAR, batch: Int[Tensor, "B T"], memory: Float[Tensor, "B M d"] | None = None
) -> None:
    """Fit the objective's readout on training rows (never on validation text)."""
    states = model.layer_states(batch[:, :-1], memory=memory)
    model.objective.calibrate(states[-1].flatten(0, 1), batch.flatten(), model.table.weight)
    if model.levels is not None:
        model.levels.calibrate(states, batch, model.table.weight)


def document_begins(token_ids: Integer[Tensor, " N"], separator: Tensor) -> Int[Tensor, " D"]:
    """Where each document of a stream begins; every document ends with `separator`."""
    ends = (token_ids == separator).nonzero().flatten() + 1
    return torch.cat([torch.zeros(1, dtype=ends.dtype), ends[ends < len(token_ids)]])


def separator_id(model: Predictor, separator: str | None) -> Int[Tensor, ""] | None:
    """The token that ends every document; None where a text is one piece.

    Raises:
        ValueError: where the separator is not a token of its own in the model's tokenizer, or is
            part of another token.
    """
    if not separator:
        return None
    ids = model.tokenizer.encode(separator)
    if len(ids) != 1 or sum(separator in token for token in model.tokenizer.tokens) != 1:
        raise ValueError(
            f"documents end with {separator!r}, which must be a token of its own, and part of no other, for "
            f"{model.tokenizer!r:.60}; a line's end always is, where the text that was fitted has one"
        )
    return ids[0]


def windows(
    token_ids: Int[Tensor, " N"],
    context: int | None,
    separator: Tensor | None,
    overlap: int | None = None,
) -> Iterator[Piece]:
    """Cut a text into windows (begin, end, first scored) of at most context+1 tokens.

    `first scored` counts from `begin`; the tokens before it are only read. Each token is scored
    once. Which tokens are scored depends on the text alone, so the scores of two models with the
    same tokenizer correspond token by token.

    Running text follows the published method of nanoGPT: the windows lie side by side, and the
    first token of each is only read. That token is the last one scored in the previous window; the
    first token of the text is never scored.

    Documents: each window begins with a document and holds as many whole documents as fit. All
    tokens are scored. A document longer than a window continues in the next one.

    Args:
        token_ids: the text (N,).
        context: the model's limit. None: running text is one window, and each document is one
            window.
        separator: the token that ends a document. None: running text.
        overlap: read the text, or each document, as generation reads it: when a window is full, the
            next one begins with this number of latest tokens. The scored tokens are the same as
            without it.
    """
    total = len(token_ids)
    # 1) streams with an overlap, as in generation
    if overlap is not None:
        begins, skip = (
            ([0], 1) if separator is None else (document_begins(token_ids, separator).tolist(), 0)
        )
        for begin, end in zip(begins, [*begins[1:], total], strict=True):
            first = skip
            while begin + first < end:
                yield begin, min(begin + context + 1, end), first
                begin, first = begin + context + 1 - overlap, overlap
        return
    # 2) running text, windows side by side
    if separator is None:
        step = context or max(1, total - 1)
        yield from ((i, min(i + step + 1, total), 1) for i in range(0, total - 1, step))
        return
    # 3) whole documents, as many as fit
    begins = document_begins(token_ids, separator).tolist()
    if context is None:
        yield from (
            (begin, end, 0) for begin, end in zip(begins, [*begins[1:], total]) if begin < end
        )
        return
    begin, cuts = 0, {*begins, total}
    while begin < total:
        end = min(begin + context + 1, total)
        # the last end of a document that fits; in a longer document, the end of the context
        cut = next((e for e in range(end, begin, -1) if e in cuts), end)
        yield begin, cut, 0
        begin = cut


def scored_windows(
    model: Predictor, text: str, separator: str | None, what: str
) -> tuple[Int[Tensor, " N"], list[Piece]]:
    """The ids of a text and its `windows`.

    Raises:
        ValueError: where no token of the text can be scored, or the first one is to be scored by a
            model that predicts none.
    """
    ids = encode(model, text, what)
    return ids, _some_pieces(model, ids, separator, what)


def _some_pieces(
    model: Predictor, ids: Int[Tensor, " N"], separator: str | None, what: str
) -> list[Piece]:
    pieces = pieces_of(model, ids, separator_id(model, separator))
    if not pieces:
        raise ValueError(
            f"the {what} text has {len(ids)} token{'s' * (len(ids) != 1)}, so nothing to be scored; "
            "give at least 2"
        )
    if not model.predicts_first and any(skip == 0 for _, _, skip in pieces):
        raise ValueError(
            f"where {separator!r} ends documents, their first tokens are scored, too; this model has "
            "no token to begin with, so it predicts nothing from nothing: give no separator"
        )
    return pieces


def pieces_of(model: Predictor, ids: Int[Tensor, " N"], separator: Tensor | None) -> list[Piece]:
    """The `windows` in which this model reads a text."""
    return list(windows(ids, model.context, separator, model.overlap))


@torch.inference_mode()
def scores(model: Predictor, ids: Int[Tensor, " N"], pieces: list[Piece]) -> Float[Tensor, " S"]:
    """log p of every scored token, in the order of the text."""
    return torch.cat(list(scored_batches(model, ids, pieces)))


def scored_batches(
    model: Predictor, ids: Int[Tensor, " N"], pieces: list[Piece]
) -> Iterator[Float[Tensor, " n"]]:
    """`scores` batch by batch, so that whoever asks, in inference mode, can stop between them."""
    return _asked(model.log_probs, model, ids, pieces)


@torch.inference_mode()
def distributions(
    model: Predictor, ids: Int[Tensor, " N"], pieces: list[Piece]
) -> tuple[Float[Tensor, "S V"], Int[Tensor, " S"]]:
    """log p of every symbol at each scored token (S, V), and these tokens (S,), in text order."""
    found = torch.cat(list(_asked(model.next_log_probs, model, ids, pieces)))
    return found, torch.cat([ids[begin + skip : end] for begin, end, skip in pieces]).cpu()


def _asked(
    ask: Callable[..., Tensor], model: Predictor, ids: Tensor, pieces: list[Piece]
) -> Iterator[Tensor]:
    """Yield what `ask` finds at the scored tokens of some windows at a time, in text order.

    These are 64, or fewer where windows are long. `ask` gets padded rows (B, T) and, if the model
    has a memory, the memory slots before each window. Windows of about the same length are read
    together, so that little is padding.

    A model without a limit gets one window at a time: it may refuse the padding that rows of
    unequal length need.
    """
    size = max(1, min(64, BATCH // model.context)) if model.context else 1
    memory = memories(model, ids, pieces)
    for first in range(0, len(pieces), size):
        group = pieces[first : first + size]
        slots = [next(memory) for _ in group] if model.has_memory else []
        found = [ids[:0]] * len(group)
        for rows in _alike(group, PASS if model.device.type == "cpu" else BATCH):
            longest = max(end - begin for begin, end, _ in (group[row] for row in rows))
            batch = torch.zeros(len(rows), longest, dtype=torch.long)
            for at, (begin, end, _) in enumerate(group[row] for row in rows):
                batch[at, : end - begin] = ids[begin:end]
            read = [batch.to(model.device)]
            if slots:
                read.append(torch.cat([slots[row] for row in rows]))
            for row, of_row in zip(rows, ask(*read).cpu(), strict=True):
                begin, end, skip = group[row]
                found[row] = of_row[skip : end - begin]
        yield torch.cat(found)


def _alike(pieces: list[Piece], most: int) -> Iterator[list[int]]:
    """The numbers of the windows, those of about the same length together.

    Each group has at most `most` tokens, padding included, or is a single window.
    """
    lengths = [end - begin for begin, end, _ in pieces]
    group: list[int] = []
    for i in sorted(range(len(pieces)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[i] > most:
            yield group
            group = []
        group.append(i)
    yield group


def memories(
    model: Predictor, ids: Int[Tensor, " N"], pieces: list[Piece]
) -> Iterator[Float[Tensor, "1 M d"]]:
    """Yield the memory slots of each window, in order.

    A window that overlaps the previous one continues its stream.

    With the control "other", a window gets the slots of another window: one in another document,
    equally far from its beginning where possible; in running text, one half the text away.

    Raises:
        ValueError: with the control "other", where the text has a single window.
    """
    if model.config.layout.control == "other":
        if len(pieces) < 2:
            raise ValueError(
                'window "other" gives a window the memory of another: the text needs at least two'
            )
        own = list(
            memories(model.with_window(replace(model.config.layout, control=None)), ids, pieces)
        )
        yield from (own[i] for i in _others(pieces))
        return
    memory_state, before = model.update_memory(1), (0, 0, 0)
    for piece in pieces:
        on = before[0] < piece[0] < before[1]
        memory_state = (
            model.update_memory(memory_state, ids[None, before[0] : piece[0]].to(model.device))
            if on
            else model.update_memory(1)
        )
        before = piece
        yield model.read_memory(memory_state)


def _others(pieces: list[Piece]) -> list[int]:
    """For each window, the number of the window whose memory it gets under the control "other".

    That window is equally deep in its stream, but in the next stream. Where no other stream is that
    deep, it is the window half of all windows away.
    """
    depth: list[int] = []
    for i, (begin, _, _) in enumerate(pieces):
        on = i > 0 and pieces[i - 1][0] < begin < pieces[i - 1][1]
        depth.append(depth[-1] + 1 if on else 0)
    alike: dict[int, list[int]] = {}
    for i, deep in enumerate(depth):
        alike.setdefault(deep, []).append(i)
    found = [(i + len(pieces) // 2) % len(pieces) for i in range(len(pieces))]
    for group in alike.values():
        if len(group) > 1:
            for i, other in zip(group, [*group[1:], group[0]]):
                found[i] = other
    return found


def per_char(
    model: Predictor,
    ids: Int[Tensor, " N"],
    log_probs: Float[Tensor, " S"],
    lengths: Int[Tensor, " N"] | None = None,
) -> Float[Tensor, " C"]:
    """log p of the last S of N tokens, distributed over their C characters.

    The first character of a token gets the log p of the token, the others get 0. So a mean over
    characters, or a sum over whole tokens, is right for tokens of any length. A half byte that
    begins no character adds its log p to the character it belongs to, or, where that one is not
    scored, to the first that is.

    `lengths`: the number of characters of each token in the text that was given, as the tokenizer's
    `encode_with_lengths` has them; None: in the text that the ids decode to.
    """
    lengths = model.tokenizer.lengths(ids) if lengths is None else lengths
    lengths = lengths[len(ids) - len(log_probs) :]
    if bool((lengths == 1).all()):
        return log_probs
    begins = (lengths.cumsum(0) - lengths - (lengths == 0).long()).clamp_min(0)
    return log_probs.new_zeros(max(1, int(lengths.sum()))).index_add(0, begins, log_probs)


def char_log_probs(
    model: Predictor, text: str, separator: str | None = None
) -> Float[Tensor, " C"]:
    """log p of every scored character of a text (C,), in nats, in windows of the model's context.

    What is scored depends on `separator`, so sums with and without it are not the same quantity.
    Without it, the first token of the text is only read, and all others are scored given what
    stands before them: log p(text | its first token). With it, every token is scored, the first
    one given the model's start alone: log p(text). A tool that puts a token of its own before a
    text, such as lm-eval, scores a third quantity: that of `char_log_probs(model, token + text)`.

    See `windows` for the cuts, and `per_char` for tokens of several characters. A model with a
    structured window carries its memory from window to window; the cost per window does not depend
    on the length of the text.

    Args:
        model: any predictor with a tokenizer.
        text: what is scored.
        separator: the token that ends every document; None: running text.

    Returns:
        log p (C,). Without a separator C is the number of characters behind the first token.

    Raises:
        ValueError: where the text is empty, no token of it can be scored, the model has no
            tokenizer, or documents are scored by a model that predicts no first token.
    """
    text = known_text(model, text, "given")
    ids, lengths = model.tokenizer.encode_with_lengths(text)
    pieces = _some_pieces(model, ids, separator, "given")
    return per_char(model, ids, scores(model, ids, pieces), lengths)


def evaluate(model: Predictor, text: str, separator: str | None = None) -> float:
    """Mean nats per scored character of `text`, for tokens of any length.

    It is the mean of `char_log_probs`, which says what is scored: without a separator all but the
    first token, with one all tokens. The mean is over as many characters as are scored.
    """
    return -char_log_probs(model, text, separator).double().mean().item()


def encode(model: Predictor, text: str, what: str) -> Int[Tensor, " N"]:
    """Ids of a text. Characters that the tokenizer does not know are left out.

    A warning counts them.

    Raises:
        ValueError: where nothing is left, or the model has no tokenizer.
    """
    return model.tokenizer.encode(known_text(model, text, what))


def known_text(model: Predictor, text: str, what: str) -> str:
    """What `encode` encodes: a text without the characters that the tokenizer refuses."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(f"the model has no tokenizer, so it cannot read the {what} text")
    unknown = tokenizer.unknown_in(text)
    if unknown and tokenizer.unk_id is None:
        shown = ", ".join(repr(c) for c in list(unknown)[:5])
        warnings.warn(
            f"{sum(unknown.values())} characters of the {what} text are not in the vocabulary ({shown}) and are left "
            "out; CharTokenizer.fit(text, unk=True) reads them as <unk>",
            stacklevel=4,
        )
        text = text.translate({ord(c): None for c in unknown})
    if not text:
        raise ValueError(f"the {what} text is empty")
    return text
