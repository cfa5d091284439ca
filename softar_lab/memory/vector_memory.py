"""VectorMemory: add vectors with payloads, find the closest ones exactly, save and load (K17, K18)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from ..core.checks import whole_number
from ..core.store import StoreError, held
from . import files
from .files import Segment
from .parts import METRICS, SIZE, Part
from .search import search

Where = Callable[[Any], bool] | Iterable[int] | None


@dataclass(frozen=True)
class Found:
    """What a search found, the closest first; one row per query where several were asked.

    Args:
        ids: ids (…, k).
        scores: their scores (…, k), in float64.
        payloads: what was added with them, a list of k, or a list of such lists.
        score: what a score is: "squared distance", "inner product" or "cosine".
    """

    ids: Int64[Tensor, "*Q k"]
    scores: Float[Tensor, "*Q k"]
    payloads: list[Any]
    score: str


class VectorMemory:
    """Vectors of one width with payloads; the closest to a query are found exactly.

    The order of what is found is that of the exact scores, not of rounded ones, to the last rank;
    equal vectors come in the order of their ids. Neither the batch nor threads have a say in it.

    Args:
        width: how many numbers a vector has.
        metric: "l2" (score: the squared distance, the least first), "dot" (the inner product, the
            greatest first), or "cosine" (the greatest first; with a vector of zeros it is 0).

    Raises:
        ValueError: for a width below 1 or an unknown metric.
    """

    def __init__(self, width: int, metric: str = "l2"):
        self.width = whole_number("width", width)
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
        self.metric = metric
        self._segments: list[Segment] = []
        self._next, self._count = 0, 0
        self._folder: Path | None = None  # where the segments that are saved lie

    def __len__(self) -> int:
        return self._count

    def __contains__(self, number: int) -> bool:
        return self._find(number) is not None

    def __repr__(self) -> str:
        return f"VectorMemory(width={self.width}, metric={self.metric!r}, {len(self):,} vectors)"

    @property
    def ids(self) -> Int64[Tensor, " N"]:
        """The ids of all vectors (N,), ascending; an id is never used twice."""
        alive = [one.part.ids[one.part.alive] for one in self._segments]
        return torch.cat(alive) if alive else torch.empty(0, dtype=torch.int64)

    # -- adding, reading, deleting ---------------------------------------------------------------

    def add(self, vectors: Tensor | np.ndarray, payloads: Sequence[Any] | None = None) -> Tensor:
        """Add vectors.

        Args:
            vectors: (N, m), or one (m,); numbers that float32 holds.
            payloads: one JSON-able value per vector; None: none.

        Returns:
            Their ids (N,).

        Raises:
            ValueError: where vectors have another width, hold NaN, infinity or numbers that float32
                does not hold, or where there are more or fewer payloads than vectors.
        """
        rows = self._checked(vectors, "vectors").clone()
        payloads = None if payloads is None else list(payloads)
        if payloads is not None and len(payloads) != len(rows):
            raise ValueError(f"{len(rows)} vectors need {len(rows)} payloads, not {len(payloads)}")
        ids = torch.arange(self._next, self._next + len(rows))
        for begin in range(0, len(rows), SIZE):
            some = slice(begin, begin + SIZE)
            part = Part.of(rows[some], ids[some], self.metric)
            self._segments.append(Segment(part, payloads and payloads[some]))
        self._next, self._count = self._next + len(rows), self._count + len(rows)
        self._merge()
        return ids

    def _merge(self) -> None:
        """Join small segments, so that there are few and adding stays quick."""
        while len(self._segments) > 1:
            *_, one, other = self._segments
            if not len(one.part) <= 2 * len(other.part) <= 2 * (SIZE - len(one.part)):
                break
            self._segments[-2:] = [self._joined([one, other])]

    def _joined(self, segments: Sequence[Segment]) -> Segment:
        """One segment of the vectors that are left in several."""
        rows = torch.cat([one.part.rows[one.part.alive] for one in segments])
        ids = torch.cat([one.part.ids[one.part.alive] for one in segments])
        payloads = None
        if any(one.payloads is not None for one in segments):
            payloads = [one.payload(row) for one in segments for row in one.left()]
        return Segment(Part.of(rows, ids, self.metric), payloads)

    def _find(self, number: int) -> tuple[Segment, int] | None:
        """The segment and the row of an id; None where there is no such vector."""
        for segment in self._segments:
            ids = segment.part.ids
            if len(ids) and ids[0] <= number <= ids[-1]:
                row = int(torch.searchsorted(ids, number))
                if ids[row] == number and segment.part.alive[row]:
                    return segment, row
        return None

    def _found(self, number: int) -> tuple[Segment, int]:
        found = self._find(number)
        if found is None:
            raise KeyError(f"no vector has the id {number}")
        return found

    def vector(self, number: int) -> Float32[Tensor, " m"]:
        """A copy of the vector with this id (m,); KeyError where there is none."""
        segment, row = self._found(number)
        return segment.part.rows[row].clone()

    def payload(self, number: int) -> Any:
        """What was added with the vector of this id; KeyError where there is none."""
        segment, row = self._found(number)
        return segment.payload(row)

    def delete(self, ids: Iterable[int]) -> None:
        """Delete vectors; all of them, or none where an id is unknown or named twice.

        Raises:
            KeyError: where no vector has one of the ids.
        """
        numbers = [int(number) for number in ids]
        found = [self._found(number) for number in numbers]
        if len(set(numbers)) < len(numbers):
            raise KeyError("an id is to be deleted twice")
        for segment, row in found:
            segment.part.alive[row], segment.saved = False, None
        self._count -= len(numbers)

    # -- searching -------------------------------------------------------------------------------

    def search(self, queries: Tensor | np.ndarray, k: int = 10, where: Where = None) -> Found:
        """The k closest vectors to each query, exactly.

        Args:
            queries: (Q, m), or one query (m,).
            k: how many; where there are fewer, all of them.
            where: which vectors may be found: a test of the payload, or ids; None: all.

        Returns:
            Ids, scores and payloads, the closest first; equal vectors by ascending id.

        Raises:
            ValueError: where queries have another width, or hold NaN or infinity, or k is below 1.
        """
        single, k = np.ndim(queries) == 1, whole_number("k", k)
        queries = self._checked(queries, "queries")
        masks = self._masks(where)
        parts = [one.part for one in self._segments]
        allowed = sum(len(p) if mask is None else int(mask.sum()) for p, mask in zip(parts, masks))
        ids, scores = search(parts, masks, queries, min(k, allowed), self.metric)
        payloads = self._payloads(ids)
        if single:
            ids, scores, payloads = ids[0], scores[0], payloads[0]
        return Found(ids, scores, payloads, METRICS[self.metric])

    def _payloads(self, ids: Int64[Tensor, "Q k"]) -> list[list[Any]]:
        """The payloads of ids that exist, row by row."""
        flat, found = ids.flatten(), [None] * ids.numel()
        firsts = torch.tensor([int(one.part.ids[0]) for one in self._segments])
        segments = torch.searchsorted(firsts, flat, right=True) - 1
        for number in segments.unique().tolist():
            segment = self._segments[number]
            if segment.payloads is None:
                continue
            places = (segments == number).nonzero().flatten()
            rows = torch.searchsorted(segment.part.ids, flat[places])
            for place, row in zip(places.tolist(), rows.tolist()):
                found[place] = segment.payloads[row]
        k = ids.shape[1]
        return [found[i * k : (i + 1) * k] for i in range(len(ids))]

    def _masks(self, where: Where) -> list[Bool[Tensor, " _"] | None]:
        """For each segment the rows that may be found; None: all."""
        masks = []
        ids = None if where is None or callable(where) else torch.tensor(sorted({*map(int, where)}))
        for segment in self._segments:
            part = segment.part
            mask = None if part.alive.all() else part.alive.clone()
            if ids is not None:
                wanted = torch.isin(part.ids, ids)
                mask = wanted if mask is None else mask & wanted
            elif where is not None:
                rows = [row for row in segment.left() if where(segment.payload(row))]
                mask = torch.zeros(len(part), dtype=torch.bool)
                mask[rows] = True
            masks.append(mask)
        return masks

    def _checked(self, vectors: Any, name: str) -> Float32[Tensor, "N m"]:
        """Vectors (N, m) in float32, on the CPU."""
        given = torch.as_tensor(vectors).detach().cpu()
        if given.dim() not in (1, 2) or given.shape[-1] != self.width:
            shape = tuple(given.shape)
            raise ValueError(f"{name} must be (N, {self.width}) or ({self.width},), not {shape}")
        given = given.view(-1, self.width)
        rows = given.to(torch.float32)
        bad = ~torch.isfinite(rows).all(-1)
        if bad.any():
            raise ValueError(
                f"{name}[{int(bad.nonzero()[0])}] holds NaN, infinity, or more than float32 holds"
            )
        if given.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            other = (rows.double() != given.double()).any(-1)
            if other.any():
                row = int(other.nonzero()[0])
                raise ValueError(
                    f"{name}[{row}] is {given.dtype} and would be rounded: give {name}.float()"
                )
        return rows.contiguous()

    # -- on disk ---------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the memory to a folder; what is there already is not written again.

        A kill at any moment leaves the old memory or the new one.

        Raises:
            StoreError: where the folder cannot be written, another process writes it, or a payload
                is no JSON.
        """
        folder = Path(folder).resolve()
        with held(folder):
            # 1) segments without what was deleted; none of another folder
            for at, segment in enumerate(self._segments):
                if not segment.part.alive.all():
                    self._segments[at] = self._joined([segment])
                elif folder != self._folder:
                    segment.saved = None
            self._segments = [one for one in self._segments if len(one.part)]
            # 2) the files
            about = {"width": self.width, "metric": self.metric, "dtype": "float32"}
            about |= {"count": self._count, "next": self._next}
            files.save(folder, about, self._segments)
            self._folder = folder

    @classmethod
    def load(cls, folder: str | Path, verify: bool = False) -> "VectorMemory":
        """A saved memory. Its vectors stay on the disk until a search reads them.

        Args:
            folder: where it was saved.
            verify: read every file once to compare its checksum.

        Raises:
            StoreError: where a file is missing, damaged, foreign or newer; the message names it.
        """
        folder = Path(folder).resolve()
        manifest, segments = files.load(folder, verify)
        memory = cls(manifest["width"], manifest["metric"])
        memory._segments, memory._folder = segments, folder
        memory._next, memory._count = manifest["next"], sum(len(one.part) for one in segments)
        if memory._count != manifest["count"]:
            raise StoreError(f"{folder}: {memory._count} vectors, and the manifest says otherwise")
        return memory
