"""The journal of a sweep: one line per finished cell, added as soon as the cell is finished."""

import json
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.store import StoreError, held

FORMAT = {"format": "softar-lab/sweep", "version": 1}
FLUSH_EVERY = 1.0  # seconds


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Args:
        rows: its figures, one dict per row of the table; none where it failed.
        seconds: how long it ran.
        problem: why it failed; empty where it did not.
    """

    rows: list[dict[str, Any]]
    seconds: float
    problem: str = ""


class Journal:
    """Finished cells on disk, in `folder`/cells.jsonl; holds the folder for one writer.

    A line is in the system's hands when `add` returns, so a killed process loses nothing; the
    disk has it within about a second. A line that was cut off by a kill or a full disk is removed;
    its cell runs again. Of two lines with one key the later one counts.

    Raises:
        CheckpointError: where another process writes the folder.
        StoreError: where the file is foreign, damaged, or cannot be written.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / "cells.jsonl"
        self._stack, self._at, self._failed = ExitStack(), {}, set()

    def __enter__(self) -> "Journal":
        with ExitStack() as stack:
            stack.enter_context(held(self.path.parent))
            try:
                self._file = stack.enter_context(open(self.path, "a+b", buffering=0))
            except OSError as error:
                raise StoreError(f"cannot write {self.path}: {error.strerror}") from error
            self._size = self._read()
            self._flushed = time.monotonic()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *problem: object) -> None:
        os.fsync(self._file.fileno())
        self._stack.close()

    def __contains__(self, key: str) -> bool:
        return key in self._at

    def failed(self, key: str) -> bool:
        """Whether the cell with this key is finished, and failed."""
        return key in self._failed

    def add(self, key: str, outcome: Outcome) -> None:
        """Add a finished cell.

        Raises:
            StoreError: where the disk is full or the file cannot be written; what was there stays.
        """
        self._write(key, asdict(outcome))
        if time.monotonic() - self._flushed > FLUSH_EVERY:
            os.fsync(self._file.fileno())
            self._flushed = time.monotonic()

    def __getitem__(self, key: str) -> Outcome:
        begin, end = self._at[key]
        found = json.loads(os.pread(self._file.fileno(), end - begin, begin)[9:])
        return Outcome(**found["outcome"])

    def _write(self, key: str, outcome: dict[str, Any]) -> None:
        content = json.dumps({"key": key, "outcome": outcome}).encode()
        line = b"%08x %s\n" % (zlib.crc32(content), content)
        try:
            written = self._file.write(line)
        except OSError as error:
            written, reason = 0, error.strerror
        else:
            reason = "the disk took only a part of a line"
        if written != len(line):
            os.ftruncate(self._file.fileno(), self._size)  # no half a line stays
            raise StoreError(f"cannot write {self.path}: {reason}; the finished cells are safe")
        self._remember(key, outcome, len(line))

    def _remember(self, key: str, outcome: dict[str, Any], length: int) -> None:
        self._at[key] = (self._size, self._size + length)
        (self._failed.add if outcome["problem"] else self._failed.discard)(key)
        self._size += length

    def _read(self) -> int:
        """Read the whole file; return its length without a line that was cut off."""
        self._size = 0
        lines = self._lines()
        if (head := next(lines, None)) is None:
            line = json.dumps(FORMAT).encode() + b"\n"
            os.ftruncate(self._file.fileno(), 0)  # part of a first line, at most
            self._file.write(line)
            return len(line)
        if self._parsed(head, 1) != FORMAT:
            raise StoreError(f"{self.path} is no journal of a sweep that this version can read")
        self._size = len(head)
        for number, line in enumerate(lines, 2):
            content = line[9:-1]
            if line[:9] != b"%08x " % zlib.crc32(content):
                raise StoreError(
                    f"{self.path}: line {number} is damaged: delete it to run its cell again"
                )
            found = self._parsed(content, number)
            self._remember(found["key"], found["outcome"], len(line))
        os.ftruncate(self._file.fileno(), self._size)
        return self._size

    def _lines(self) -> Iterator[bytes]:
        """The whole lines of the file."""
        self._file.seek(0)
        rest = b""
        while block := self._file.read(1 << 20):
            *lines, rest = (rest + block).split(b"\n")
            yield from (line + b"\n" for line in lines)

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            return json.loads(line)
        except ValueError:
            raise StoreError(f"{self.path}: line {number} is no line of a sweep") from None
