"""The documents of a memory, as a feed for Vespa, and the same read back."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.store import StoreError, write_atomic
from ..vector_memory import VectorMemory
from .application import checked_name, package, tensor_types
from .tensors import checked_text

Terms = Mapping[int, Mapping[str, float]]  # id -> {term: weight}
Tokens = Mapping[int, Tensor]  # id -> vectors (t, m)
_ID = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


def document(
    number: int,
    dense: Tensor,
    payload: Any = None,
    sparse: Mapping[str, float] | None = None,
    multi: Tensor | None = None,
    metric: str = "l2",
) -> dict[str, Any]:
    """One document as the feed has it, checked.

    Args:
        number: the id.
        dense: its vector (m,).
        payload: JSON-able; its entry "text", if it has one, is indexed as text. It is written in
            ASCII, so that no character of it is one that the engine refuses.
        sparse: weights of terms.
        multi: one vector per token (t, m).
        metric: under "cosine" a vector of zeros is refused, since the engine may not find it.

    Raises:
        ValueError: where the engine would take it as something else, naming the id.
    """
    kinds, fields = tensor_types(len(dense)), {"number": number}
    if metric == "cosine" and not dense.any():
        raise ValueError(f"id {number}: Vespa's angular metric knows no vector of zeros")
    try:
        if payload is not None:
            fields["payload"] = json.dumps(payload, allow_nan=False)
            text = payload.get("text") if isinstance(payload, Mapping) else None
            if text not in (None, ""):  # the engine stores an empty text as none
                fields["text"] = checked_text(text)
        fields["dense"] = kinds["dense"].encode(dense)
        if sparse is not None:
            fields["sparse"] = kinds["sparse"].encode(sparse)
        if multi is not None:
            blocks = {str(at): row for at, row in enumerate(multi)}
            fields["multi"] = kinds["multi"].encode(blocks)
    except (ValueError, TypeError) as error:
        raise ValueError(f"id {number}: {error}") from None
    return {"id": checked_id(str(number)), "fields": fields}


def checked_id(text: str) -> str:
    """A document's id, where it is one part of a path.

    Raises:
        ValueError: for anything else than letters, digits, _, - and single dots between them.
    """
    if not _ID.fullmatch(text):
        raise ValueError(f"the id {text!r} must be letters, digits, _ and -, without `..` or /")
    return text


def documents(
    memory: VectorMemory, sparse: Terms | None = None, multi: Tokens | None = None
) -> Iterator[dict[str, Any]]:
    """The documents of a memory; arguments as for `to_vespa`."""
    for name, given in (("sparse", sparse), ("multi", multi)):
        if given is not None and (missing := [n for n in memory.ids.tolist() if n not in given]):
            raise ValueError(f"{name} has nothing for the id {missing[0]}: give {{}} or no rows")
    for number in memory.ids.tolist():
        yield document(
            number,
            memory.vector(number),
            memory.payload(number),
            None if sparse is None else sparse[number],
            None if multi is None else multi[number],
            memory.metric,
        )


def to_vespa(
    folder: str | Path,
    memory: VectorMemory,
    name: str = "memory",
    sparse: Terms | None = None,
    multi: Tokens | None = None,
) -> None:
    """Write a memory as a Vespa application and a feed (K18).

    `vespa deploy FOLDER/application` and `vespa feed FOLDER/feed.jsonl` bring it to an engine.

    Args:
        folder: where `application/` and `feed.jsonl` go.
        memory: the vectors and their payloads.
        name: of the application and of its document type.
        sparse: weights of terms by id, if documents are searched by them, too.
        multi: vectors of tokens (t, m) by id.

    Raises:
        ValueError: where the engine would take something otherwise than it is meant.
        StoreError: where a file cannot be written.
    """
    folder = Path(folder)
    checked_name("document type", name)
    lines = []
    for one in documents(memory, sparse, multi):
        line = {"put": f"id:{name}:{name}::{one['id']}", "fields": one["fields"]}
        lines.append(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    encodings = [key for key, given in (("sparse", sparse), ("multi", multi)) if given is not None]
    app = package(name, memory.width, memory.metric, encodings)
    app.to_files(_made(folder / "application"))
    write_atomic(folder / "feed.jsonl", *lines)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def read_feed(path: str | Path, width: int) -> Iterator[dict[str, Any]]:
    """The documents of a feed that `to_vespa` wrote, their tensors as values.

    Raises:
        StoreError: for a line that is none of these, naming it.
    """
    kinds = tensor_types(width)
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from None
    with file:
        for at, line in enumerate(file, 1):
            try:
                fields = json.loads(line)["fields"]
                tensors = {key: kinds[key].decode(fields[key]) for key in kinds if key in fields}
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(f"{path}: line {at} is no document ({error})") from None
            yield fields | tensors
