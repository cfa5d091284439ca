"""A vector memory on disk: a folder of segments that one manifest commits.

A segment holds up to `SIZE` rows with their ids and what bounds their scores, in one file of
`core.store`, and beside it the payloads as JSON, one per line. Segments are never changed: new ones
are written under new names, the manifest names those that count, and only then the others are
removed. So a kill at any moment leaves the old memory or the new one, and saving again writes only
what is new.
"""

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.store import (
    StoreError,
    load_folder,
    load_vectors,
    save_folder,
    save_vectors,
    write_atomic,
)
from .parts import GROUP, METRICS, SIZE, Part

FORMAT, VERSION, MANIFEST = "softar-lab/memory", 1, "memory.json"
_ARRAYS = ("rows", "ids", "scale", "centre", "squares", "reach")


class MappedPayloads(Sequence):
    """Payloads in a file of JSON lines, each read when it is asked for.

    Args:
        path: the file.
        offsets: where each line begins, and the end (n+1,).

    Raises:
        StoreError: where the file does not end where its offsets do.
    """

    def __init__(self, path: Path, offsets: Tensor):
        self.path, self.offsets = path, offsets
        try:
            self.data = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {path}: {error}") from None
        if len(self.data) != int(offsets[-1]):
            raise StoreError(
                f"{path}: {len(self.data):,} bytes, and its segment says {int(offsets[-1]):,}"
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, at: int) -> Any:
        if not 0 <= at < len(self):
            raise IndexError(at)
        begin, end = self.offsets[at : at + 2].tolist()
        try:
            return json.loads(self.data[begin:end].tobytes())
        except ValueError:
            raise StoreError(f"{self.path}: damaged (line {at + 1} is no JSON)") from None


@dataclass
class Segment:
    """A part with its payloads; `saved` is the file that holds it as it is, if there is one."""

    part: Part
    payloads: Sequence[Any] | None = None  # None: no row has one
    saved: dict[str, Any] | None = None

    def left(self) -> list[int]:
        """The rows that are not deleted."""
        return self.part.alive.nonzero().flatten().tolist()

    def payload(self, row: int) -> Any:
        """The payload of a row."""
        return None if self.payloads is None else self.payloads[row]


def save(folder: Path, about: dict[str, Any], segments: Sequence[Segment]) -> None:
    """Write the segments that are not in the folder yet, and commit all of them.

    Args:
        folder: where they go.
        about: width, metric and whatever else the manifest holds.
        segments: all that the memory holds.

    Raises:
        StoreError: where a file cannot be written, or a payload is no JSON.
    """
    for segment in segments:
        if segment.saved is None or not (folder / segment.saved["vectors"]).exists():
            segment.saved = _write(folder, segment, about)
    entries = [segment.saved for segment in segments]
    save_folder(
        folder,
        {"format": FORMAT, "version": VERSION, **about, "segments": entries},
        {},
        MANIFEST,
    )
    wanted = {name for entry in entries for name in (entry["vectors"], entry["payloads"]) if name}
    for path in [*folder.glob("segment-*"), *folder.glob(".segment-*.tmp")]:
        if path.name not in wanted:
            path.unlink(missing_ok=True)


def _write(folder: Path, segment: Segment, about: dict[str, Any]) -> dict[str, Any]:
    """Write one segment; return its entry in the manifest."""
    part, name = segment.part, f"segment-{secrets.token_hex(8)}"
    arrays = {array: vars(part)[array] for array in _ARRAYS}
    entry = {"vectors": f"{name}.safetensors", "payloads": None, "rows": len(part)}
    if segment.payloads is not None:
        lines = [_line(payload, number) for payload, number in zip(segment.payloads, part.ids)]
        arrays["offsets"] = torch.tensor([0, *map(len, lines)]).cumsum(0)
        text = b"".join(lines)
        entry |= {"payloads": f"{name}.jsonl", "sha256": hashlib.sha256(text).hexdigest()}
        write_atomic(folder / entry["payloads"], text)
    save_vectors(
        folder / entry["vectors"], arrays, {key: about[key] for key in ("width", "metric")}
    )
    return entry


def _line(payload: Any, number: Tensor) -> bytes:
    try:
        return json.dumps(payload, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"the payload of id {int(number)} is no JSON: {error}") from None


def load(folder: Path, verify: bool) -> tuple[dict[str, Any], list[Segment]]:
    """The manifest and the segments of a saved memory, memory-mapped.

    Raises:
        StoreError: where a file is missing, damaged, foreign or newer; the message names it.
    """
    if not (folder / MANIFEST).is_file():
        raise StoreError(f"{folder} holds no vector memory ({MANIFEST} is missing)")
    manifest, _ = load_folder(folder, MANIFEST, FORMAT)
    try:
        right = manifest["dtype"] == "float32" and manifest["metric"] in METRICS
        entries = [dict(entry) for entry in manifest["segments"]] if right else None
        if entries is None:
            raise ValueError(f"dtype {manifest['dtype']!r}, metric {manifest['metric']!r}")
        return manifest, [_read(folder, entry, manifest, verify) for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{folder / MANIFEST}: damaged, or not of this lab ({error})") from None


def _read(folder: Path, entry: dict[str, Any], manifest: dict[str, Any], verify: bool) -> Segment:
    """One segment, checked as far as that needs no reading of its rows, or wholly."""
    path, n, width = folder / entry["vectors"], entry["rows"], manifest["width"]
    arrays, about = load_vectors(path, verify=verify)
    if about != {"width": width, "metric": manifest["metric"]}:
        raise StoreError(f"{path}: of another memory ({about})")
    groups = -(-n // GROUP)
    shapes = {"rows": (n, width), "centre": (width,), "reach": (groups,)}
    for name in _ARRAYS:
        found = tuple(arrays[name].shape) if name in arrays else None
        if found != shapes.get(name, (n,)) or n > SIZE:
            raise StoreError(f"{path}: damaged ({name} has shape {found})")
    part = Part(**{name: arrays[name] for name in _ARRAYS}, alive=torch.ones(n, dtype=torch.bool))
    if entry["payloads"] is None:
        return Segment(part, None, entry)
    if len(arrays["offsets"]) != n + 1:
        raise StoreError(f"{path}: damaged ({len(arrays['offsets'])} offsets of {n} payloads)")
    payloads = MappedPayloads(folder / entry["payloads"], arrays["offsets"])
    if verify and hashlib.sha256(payloads.data).hexdigest() != entry["sha256"]:
        raise StoreError(f"{payloads.path}: damaged (its checksum does not match its content)")
    return Segment(part, payloads, entry)
