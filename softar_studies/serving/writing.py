"""How a served model writes: with the lab's engine, one part after the other, up to a stop."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softar_lab.core.threads import limited
from softar_lab.external.pretrained.tokenizer import REPLACEMENT
from softar_lab.generation.config import GenerationConfig
from softar_lab.generation.generate import prepare
from softar_lab.generation.recorder import Recorder

from .served import Entry, Prompt, Served, entries, spelled

SPELLING = 8  # tokens that may spell one character: the half bytes of the longest


@dataclass(frozen=True)
class Part:
    """A part of what one row writes: a text, its tokens, and at the end why it ended.

    Attributes:
        row: the choice that it belongs to.
        text: of all its tokens.
        tokens: the part of `text` that each token adds, and what the model says of the token.
        finish: "stop" or "length"; None: it goes on.
    """

    row: int
    text: str
    tokens: tuple[tuple[str, Entry | None], ...]
    finish: str | None = None


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How a prompt is to be continued.

    Args:
        max_tokens: of each row.
        temperature: 0 is greedy.
        seeds: one for each row.
        stop: texts; a row ends before the first one that it completes.
        best: how many of the most probable tokens are named at each step.
    """

    max_tokens: int
    temperature: float
    seeds: tuple[int, ...]
    stop: tuple[str, ...] = ()
    best: int = 0


def written(
    served: Served, prompt: Prompt, wish: Wish, cancelled: Callable[[], bool]
) -> Iterator[Part]:
    """What the rows write, in parts; the symbols are those of `generate` with the same seeds.

    Of a prompt that is longer than the context, the latest tokens are read.
    """
    rows = [Row(served, i, prompt, wish.stop) for i in range(len(wish.seeds))]
    if wish.max_tokens:
        for step in _steps(
            served, prompt, wish, lambda: cancelled() or all(r.finish for r in rows)
        ):
            for row, entry in zip(rows, step, strict=True):
                yield from row.add(entry)
    for row in rows:
        yield from row.end()


def _steps(
    served: Served, prompt: Prompt, wish: Wish, stop: Callable[[], bool]
) -> Iterator[list[Entry]]:
    """One entry per row, step by step, as the engine writes them."""
    model, ids, count = served.model, prompt.own_ids, len(wish.seeds)
    if model.context is not None and model.overlap is None:
        ids = ids[-model.context :]
    config = GenerationConfig(
        steps=wish.max_tokens, temperature=wish.temperature, seed=wish.seeds, **served.choices
    )
    engine, _ = prepare(model, [ids] * count, config)
    recorder = engine.recorder = StepRecorder(engine.recorder, wish.best)
    running = engine.generate(stop)
    ended = False
    while not ended:
        with torch.inference_mode(), limited(model.work * count):
            ended = next(running, running) is running
        yield from recorder.take()


class StepRecorder(Recorder):
    """Records what a client is answered: each step's symbols, and the log-probs of the best.

    Where no step may change later, each is final at once. `best`: how many are named.
    """

    def __init__(self, recorder: Recorder, best: int):
        final = recorder.reach == 0
        # without a table no vectors are computed, which nobody asks for here
        super().__init__(None if final else recorder.embedding, recorder.reach, recorder.look)
        self.best, self.final = best, final
        self.figures: list[list[Entry]] = []  # per step, one per row
        self.symbols = 0  # steps whose symbols are final

    def keep(
        self, prediction: Any, token_ids: Tensor, collapsed: Tensor, inputs: Tensor | None
    ) -> bool:
        """Record one more step; see `Recorder.keep`."""
        full = super().keep(prediction, token_ids, collapsed, inputs)
        if self.final:
            self.flush()
        return full or self.final

    def reduce(
        self, log_probs: Tensor, vectors: Tensor, token_ids: Tensor, **paths: Tensor | None
    ) -> None:
        """Reduce S steps of B rows; see `Recorder.reduce`."""
        rows = token_ids.shape[1]
        flat = entries(log_probs.flatten(0, 1).cpu(), token_ids.flatten().cpu(), self.best)
        self.figures += [flat[i : i + rows] for i in range(0, len(flat), rows)]

    def settle(self, token_ids: Tensor, collapsed: Tensor, inputs: Tensor) -> None:
        """Count S steps as final; their symbols are those that were reduced."""
        self.symbols += len(token_ids)

    def take(self) -> list[list[Entry]]:
        """The steps that are final and were not taken yet."""
        n = min(self.symbols, len(self.figures))
        taken, self.figures, self.symbols = self.figures[:n], self.figures[n:], self.symbols - n
        return taken


class Row:
    """One row while it is written: what is spelled, held back and handed over.

    Text is held back while it may be the beginning of a stop, and tokens while they spell half a
    character.
    """

    def __init__(self, served: Served, number: int, prompt: Prompt, stop: tuple[str, ...]):
        self.served, self.number, self.stop = served, number, stop
        self.before = prompt.ids[-SPELLING:].tolist()  # what the next tokens are spelled behind
        self.spelling: list[Entry] = []  # tokens whose characters are not complete
        self.text = ""  # all that is spelled
        self.held: list[tuple[int, str, Entry]] = []  # (where it begins in the text, piece, entry)
        self.finish: str | None = None

    def add(self, entry: Entry) -> Iterator[Part]:
        """Write one more token, and hand over what may be read."""
        if self.finish:
            return
        if entry.token_id in self.served.end_ids:
            self._spell()
            self.held.append((len(self.text), "", entry))
            self.finish = self.finish or "stop"
            yield self._part(len(self.text))
            return
        self.spelling.append(entry)
        self._spell(complete=True)
        if self.finish:
            yield self._part(len(self.text))
        elif part := self._part(len(self.text) - self._begun()):
            yield part

    def end(self) -> Iterator[Part]:
        """What remains when nothing more is written."""
        if self.finish:
            return
        self._spell()
        self.finish = self.finish or "length"
        yield self._part(len(self.text))

    def _spell(self, complete: bool = False) -> None:
        """Spell the tokens that wait; `complete`: only where they spell whole characters."""
        ids = [entry.token_id for entry in self.spelling]
        pieces = spelled(self.served.tokenizer, self.before, ids)
        half = "".join(pieces).endswith(REPLACEMENT)
        if complete and half and len(ids) < SPELLING:
            return
        for piece, entry in zip(pieces, self.spelling, strict=True):
            self._read(piece, entry)
        self.before = ids or self.before
        self.spelling = []

    def _read(self, piece: str, entry: Entry) -> None:
        """Add a piece to the text, which is cut where it completes a stop."""
        begin = len(self.text)
        if self.finish:  # it shares its character with the token that completed the stop
            self.held.append((begin, "", entry))
            return
        self.text += piece
        self.held.append((begin, piece, entry))
        longest = max(map(len, self.stop), default=0)
        places = [(self.text.find(one, max(0, begin - longest)), len(one)) for one in self.stop]
        if ends := [(at + length, at) for at, length in places if at >= 0]:
            self.text, self.finish = self.text[: min(ends)[1]], "stop"

    def _begun(self) -> int:
        """How many of the last characters may be the beginning of a stop."""
        sizes = (
            n
            for one in self.stop
            for n in range(len(one) - 1, 0, -1)
            if self.text.endswith(one[:n])
        )
        return max(sizes, default=0)

    def _part(self, limit: int) -> Part | None:
        """The tokens that end before `limit`, or all where the row has ended."""
        ready = [one for one in self.held if self.finish or one[0] + len(one[1]) <= limit]
        self.held = self.held[len(ready) :]
        tokens = tuple((piece[: max(0, limit - begin)], entry) for begin, piece, entry in ready)
        if not tokens and not self.finish:
            return None
        return Part(self.number, "".join(piece for piece, _ in tokens), tokens, self.finish)
