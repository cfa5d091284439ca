"""Vectors and metadata on disk (K17, K40): safetensors, bit-exact, checksummed, never unpickled.

Every file is written under a temporary name, flushed to the disk and renamed. So an interruption at
any moment leaves the old file or the new one. A folder of several files is committed as one by its
manifest (`save_folder`).
"""

import errno
import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pooch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors import torch as safe
from torch import Tensor

VECTORS_FORMAT = "softar-lab/vectors"
VERSION = 1
_CHECKSUM = re.compile(rb'"checksum": ?"([0-9a-f]{64})"')
_UNSET = "0" * 64
# how a file system says that it does not do something
_CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)

Vectors = Mapping[str, Any] | Sequence[Any] | Tensor | np.ndarray  # see save_vectors
Metadata = Mapping[str, Any] | None
Loaded = tuple[Tensor | dict[str, Tensor], dict[str, Any]]  # vectors, metadata


def cache_folder() -> Path:
    """Where downloads and unpacked models are saved: $SOFTAR_CACHE, by default the user's cache."""
    named = os.environ.get("SOFTAR_CACHE")
    return Path(named).expanduser() if named else Path(pooch.os_cache("softar-lab"))


class StoreError(ValueError):
    """A file that cannot be written or trusted; the message names it and what is wrong with it."""


class CheckpointError(StoreError):
    """A checkpoint folder that is missing, damaged, foreign, too new, or of another recipe."""


def write_atomic(path: str | Path, *parts: bytes | memoryview) -> None:
    """Write `parts`, one after the other, to `path`.

    A kill at any moment leaves the old content or the new one.

    Raises:
        StoreError: where the disk is full or the path cannot be written; the message names the
            file, and the old content stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            _flush_to_disk(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # after a rename there is nothing left to remove


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; a no-op on systems that cannot open a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _flush_to_disk(descriptor)
        finally:
            os.close(descriptor)


def _flush_to_disk(descriptor: int) -> None:
    """fsync, where the file system can do it; on shared folders and old CIFS it may not."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise


@contextmanager
def held(folder: str | Path) -> Iterator[None]:
    """Hold a folder for one writer as long as the block lasts; it is made where there is none.

    A process that is killed holds nothing any more. Where the file system knows no locks, nobody is
    kept out.

    Raises:
        CheckpointError: where another writer holds the folder; the message says which.
        StoreError: where the folder cannot be written.
    """
    folder = Path(folder)
    lock, holder = FileLock(folder / ".lock", timeout=0), folder / ".holder"
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock)
        except Timeout:
            whom = holder.read_text() if holder.exists() else "another process"
            raise CheckpointError(
                f"{folder} is being written by {whom}: wait for it, or choose another folder"
            ) from None
        except NotImplementedError:
            pass  # no locks here
        except OSError as error:
            raise StoreError(f"cannot write {folder}: {error.strerror or error}") from error
        write_atomic(holder, f"process {os.getpid()} of {socket.gethostname()}".encode())
        stack.callback(holder.unlink, missing_ok=True)
        yield


# -- one file --------------------------------------------------------------------------------------


def save_vectors(
    path: str | Path, vectors: Vectors, metadata: Metadata = None, width: int | None = None
) -> None:
    """Save vectors and metadata in one safetensors file, bit for bit.

    NaN payloads, -0 and infinities are saved exactly, too.

    Args:
        path: the file.
        vectors: a list of N float32 tensors (m,), saved as one array (N, m); an array of any shape;
            or a mapping of named arrays. NumPy arrays are accepted, too.
        metadata: JSON-able. They come back as JSON: tuples as lists, keys as text.
        width: the m of a list; an empty list needs it.

    Raises:
        StoreError: as `write_atomic` does; for a row unlike the others, a dtype that safetensors
            does not know, metadata that are no JSON. The message names the file and what cannot be
            saved.
    """
    try:
        parts = _parts(vectors, metadata, width)
    except StoreError as error:
        raise StoreError(f"cannot write {path}: {error}") from None
    write_atomic(path, *parts)


def vectors_to_bytes(
    vectors: Vectors, metadata: Metadata = None, width: int | None = None
) -> bytes:
    """The content of such a file; its checksum covers every byte except its own 64 digits."""
    return b"".join(_parts(vectors, metadata, width))


def _parts(vectors: Vectors, metadata: Metadata, width: int | None) -> list[bytes | memoryview]:
    """The header of such a file, then each array.

    The library is not used here: it would copy 25 MB three times and shuffle the header.
    """
    # 1) what the header holds besides the arrays
    words = {
        "format": VECTORS_FORMAT,
        "version": str(VERSION),
        "metadata": _json(metadata or {}),
        "checksum": _UNSET,
    }
    if width is not None and isinstance(vectors, Mapping | Tensor | np.ndarray):
        raise StoreError("width is for a list of vectors; an array has its own")
    if not isinstance(vectors, Mapping):
        vectors = {
            "vectors": vectors
            if isinstance(vectors, Tensor | np.ndarray)
            else _stacked(vectors, width)
        }
        # the array to return; a file of named arrays, as every older file, lacks this entry
        words["array"] = "vectors"
    # 2) the arrays and where each one lies
    arrays = {name: _array(name, value) for name, value in vectors.items()}
    header, parts, end = {"__metadata__": words}, [], 0
    # the widest dtype comes first, so that all arrays are aligned
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].element_size(), item[0])):
        parts.append(array.flatten().view(torch.uint8).numpy().data)
        begin, end = end, end + parts[-1].nbytes
        header[name] = {
            "dtype": _dtype_name(array.dtype),
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    # 3) the header as text
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > 100_000_000:
        raise StoreError(f"safetensors takes 100 MB of metadata; these are {len(text):,} bytes")
    return [_sealed(len(text).to_bytes(8, "little") + text, *parts), *parts]


def _stacked(rows: Sequence[Any], width: int | None) -> Tensor:
    """A list of float32 tensors (m,) as one (N, m); StoreError names the first one that is not."""
    if not rows and (width is None or width < 0):
        raise StoreError(
            "an empty list does not say how wide its vectors would be: save_vectors(path, [], width=64)"
        )
    if width is None and isinstance(rows[0], Tensor) and rows[0].dim() == 1:
        width = len(rows[0])
    for i, row in enumerate(rows):
        if not (isinstance(row, Tensor) and row.dtype == torch.float32 and row.shape == (width,)):
            found = (
                f"{row.dtype} of shape {tuple(row.shape)}"
                if isinstance(row, Tensor)
                else f"a {type(row).__name__}"
            )
            raise StoreError(
                f"vectors[{i}] is {found}, not float32 of shape ({'m' if width is None else width},)"
            )
    return torch.stack(list(rows)).detach().cpu() if rows else torch.empty(0, width)


def _array(name: str, value: Any) -> Tensor:
    """A contiguous copy, so that nobody changes it while it is written.

    Raises:
        StoreError: where safetensors could not save it.
    """
    try:
        array = torch.tensor(value) if isinstance(value, np.ndarray) else value
        if name.encode() == b"__metadata__":
            raise ValueError("safetensors keeps this name for itself")
        _dtype_name(array.dtype)
        return array.detach().cpu().clone(memory_format=torch.contiguous_format)
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise StoreError(
            f"array {name!r} cannot be kept: {type(value).__name__}, {error}"
        ) from None


@cache
def _dtype_name(dtype: torch.dtype) -> str:
    """What safetensors calls a dtype; raises where it cannot write it or cannot read it back."""
    safe.load(empty := safe.save({"x": torch.empty(0, dtype=dtype)}))
    return json.loads(empty[8:])["x"]["dtype"]


def _json(metadata: Mapping[str, Any]) -> str:
    for key, value in metadata.items():
        try:
            json.dumps({key: value}, sort_keys=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise StoreError(f"metadata[{key!r}] is no JSON: {error}") from None
    if len(kinds := {type(key).__name__ for key in metadata}) > 1:
        raise StoreError(
            f"the keys of metadata are of several types ({', '.join(sorted(kinds))}): give texts"
        )
    return json.dumps(dict(metadata), sort_keys=True)


def load_vectors(path: str | Path, verify: bool = True) -> Loaded:
    """The vectors that `save_vectors` saved, memory-mapped, and their metadata.

    You may write into the tensors: the file never changes, and saving to its path again leaves them
    whole. But as with every mapping, a program that overwrites the file in place may change them,
    and one that cuts it short makes touching them a bus error. `.clone()` those that must outlive
    such programs.

    Args:
        path: the file.
        verify: read the whole file once to compare its checksum. Without it only what you touch is
            read, damaged or not.

    Returns:
        The rows of a list (N, m), an array, or a dict of named arrays; and the metadata.

    Raises:
        StoreError: where the file is missing, truncated, damaged, foreign or newer; the message
            names it and what is wrong with it.
    """
    try:
        with open(path, "rb") as file:
            data = _content(file)
            if isinstance(data, bytes):  # what cannot be mapped
                return _load(data, path, lambda: safe.load(data), verify)
            # this very file, even if another one takes its name meanwhile
            same = f"/dev/fd/{file.fileno()}"
            return _load(
                data, path, lambda: safe.load_file(same if os.path.exists(same) else path), verify
            )
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from None


def _content(file: BinaryIO) -> bytes | mmap:
    """The content of an open file, memory-mapped where the file system can do it."""
    if not os.fstat(file.fileno()).st_size:
        return b""
    try:
        return mmap(file.fileno(), 0, access=ACCESS_READ)
    except OSError as error:
        if error.errno not in (errno.ENODEV, *_CANNOT):
            raise
        return file.read()


def vectors_from_bytes(data: bytes, path: str | Path) -> Loaded:
    """`load_vectors` for content that is already read; `path` is for the messages."""
    return _load(data, path, lambda: safe.load(data))


def _load(
    data: bytes | mmap, path: str | Path, read: Callable[[], dict[str, Tensor]], verify: bool = True
) -> Loaded:
    """Check a content, then `read` the arrays in it."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise StoreError(f"{path}: not a safetensors file, or cut short ({len(data)} bytes)")
    try:
        header = json.loads(data[8 : 8 + size])["__metadata__"]
        form, version = header["format"], int(header["version"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise StoreError(f"{path}: not a file of this lab (its header does not say so)") from None
    if form != VECTORS_FORMAT:
        raise StoreError(f"{path}: not a file of this lab (format {form!r})")
    if version != VERSION:
        raise StoreError(f"{path}: format version {version}; this code reads version {VERSION}")
    if verify and not _is_sealed(data, 8 + size):
        raise StoreError(f"{path}: damaged (its checksum does not match its content)")
    try:
        arrays, metadata = read(), {**json.loads(header["metadata"])}
        return arrays[header["array"]] if "array" in header else arrays, metadata
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,  # RecursionError is one
    ) as error:
        raise StoreError(f"{path}: damaged ({error})") from None


def read_bytes(path: str | Path) -> bytes:
    """The content of a file; StoreError, which names it, where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from None


def _sealed(data: bytes, *more: memoryview) -> bytes:
    """`data` with its unset checksum replaced by the digest of all its bytes and of `more`."""
    found, digest = _CHECKSUM.search(data), hashlib.sha256(data)
    for part in more:
        digest.update(part)
    return data[: found.start(1)] + digest.hexdigest().encode() + data[found.end(1) :]


def _is_sealed(data: bytes | mmap, end: int) -> bool:
    """Whether the checksum found before `end` is the digest of all bytes of `data` but its own."""
    head, rest = data[:end], memoryview(data)[end:]  # a mapping is hashed without a copy
    found = _CHECKSUM.search(head)
    return found is not None and _sealed(head.replace(found[1], _UNSET.encode(), 1), rest) == head


# -- a folder of files that belong together --------------------------------------------------------


def save_folder(
    folder: str | Path, manifest: Mapping[str, Any], files: Mapping[str, bytes], name: str
) -> None:
    """Commit several files as one.

    A kill at any moment leaves all of the new files or all of the old ones. The manifest `name`
    (JSON) holds the digest of every file. New files are first written beside the old ones under
    their digest. Renaming the manifest commits them. Only then do they take their places.

    Args:
        folder: where they go.
        manifest: what the manifest holds besides the digests; JSON-able.
        files: the content of each file.
        name: the file name of the manifest.

    Raises:
        StoreError: where a file cannot be written.
    """
    folder = Path(folder)
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    for file, data in files.items():
        write_atomic(_pending(folder, file, digests[file]), data)
    body = {
        "checksum": _UNSET,  # first, so that no other one can be taken for it
        **manifest,
        "files": digests,
    }
    write_atomic(folder / name, _sealed((json.dumps(body, indent=1) + "\n").encode()))
    try:
        for file, digest in digests.items():
            os.replace(_pending(folder, file, digest), folder / file)
        # remove what a killed writer left behind
        for pattern in ("*.pending", ".*.pending.*.tmp", f".{name}.*.tmp"):
            for leftover in folder.glob(pattern):
                leftover.unlink(missing_ok=True)
    except OSError as error:
        # still committed: a file that is not yet in its place is read where it lies
        raise StoreError(f"cannot write {folder}: {error.strerror or error}") from error


def load_folder(
    folder: str | Path, name: str, format: str
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the verified files of a folder written by `save_folder`.

    Raises:
        CheckpointError: where a file is missing, damaged, foreign or newer; the message names it.
    """
    folder = Path(folder)
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no checkpoint ({name} is missing)")
    manifest = _read_manifest(path, format)
    return manifest, {
        file: _read_member(folder, file, digest) for file, digest in manifest["files"].items()
    }


def _read_manifest(path: Path, format: str) -> dict[str, Any]:
    try:
        data = read_bytes(path)
        manifest = json.loads(data.decode())
        found, version = manifest["format"], manifest["version"]
        digests = {str(file): str(digest) for file, digest in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: damaged, or not a checkpoint of this lab ({type(error).__name__})"
        ) from None
    except StoreError as error:
        raise CheckpointError(str(error)) from None
    if found != format:
        raise CheckpointError(f"{path}: not a {format} file (format {found!r})")
    if version != VERSION:
        raise CheckpointError(
            f"{path}: format version {version!r}; this code reads version {VERSION}"
        )
    if not _is_sealed(data, len(data)):
        raise CheckpointError(f"{path}: damaged (its checksum does not match its content)")
    if any(Path(file).name != file for file in digests):
        raise CheckpointError(f"{path}: names a file outside its folder")
    return manifest


def _read_member(folder: Path, file: str, digest: str) -> bytes:
    # a file is still pending after a kill between the commit and its rename
    for path in (folder / file, _pending(folder, file, digest)):
        if path.is_file():
            data = read_bytes(path)
            if hashlib.sha256(data).hexdigest() == digest:
                return data
    problem = (
        "damaged (its checksum is not the one in its manifest)"
        if (folder / file).exists()
        else "missing"
    )
    raise CheckpointError(f"{folder / file}: {problem}")


def _pending(folder: Path, file: str, digest: str) -> Path:
    return folder / f"{file}.{digest[:16]}.pending"
