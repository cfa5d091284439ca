"""Vectors and their metadata on disk (K17, K40): safetensors, bit-exact, checksummed, never unpickled.

Every file is written under a temporary name, flushed to the disk and renamed, so that an interruption at any moment
leaves the old file or the new one. A folder of several files is committed as one by its manifest (`save_folder`).
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

VECTORS_FORMAT = "softar-lab/vectors"
VERSION = 1
_CHECKSUM = re.compile(rb'"checksum": ?"([0-9a-f]{64})"')
_UNSET = "0" * 64


class StoreError(ValueError):
    """A file that cannot be written or trusted; the message names it and says what is wrong with it."""


class CheckpointError(StoreError):
    """A checkpoint folder that is missing, damaged, foreign, newer than this code, or of another recipe."""


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` so that a kill at any moment leaves the old content or the new one.

    Raises StoreError naming the file when the disk is full or the place cannot be written; what was there stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # after a rename there is nothing left to remove


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; a no-op on systems that cannot open a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- one file --------------------------------------------------------------------------------------


def save_vectors(path: str | Path, vectors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Save named arrays and JSON-able metadata in one safetensors file, bit for bit (NaN, -0 and infinities too)."""
    write_atomic(path, vectors_to_bytes(vectors, metadata))


def vectors_to_bytes(vectors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> bytes:
    """The content of such a file. Its checksum covers every byte but its own 64 digits."""
    header = {
        "format": VECTORS_FORMAT,
        "version": str(VERSION),
        "metadata": json.dumps(dict(metadata or {}), sort_keys=True),
        "checksum": _UNSET,
    }
    contiguous = torch.contiguous_format  # a copy each, since safetensors refuses arrays that share memory
    arrays = {name: tensor.detach().clone(memory_format=contiguous) for name, tensor in vectors.items()}
    return _sealed(tensors_to_bytes(arrays, header))


def load_vectors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The named arrays and the metadata of a file written by `save_vectors`.

    Raises StoreError naming the file and what is wrong with it: missing, truncated, damaged, foreign or newer.
    """
    return vectors_from_bytes(read_bytes(path), path)


def vectors_from_bytes(data: bytes, path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`load_vectors` of a content already read; `path` is for the messages."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise StoreError(f"{path}: not a safetensors file, or cut short ({len(data)} bytes)")
    try:
        header = json.loads(data[8 : 8 + size])["__metadata__"]
        foreign = header["format"] != VECTORS_FORMAT
        version = int(header["version"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise StoreError(f"{path}: not a file of this lab (its header does not say so)") from None
    if foreign:
        raise StoreError(f"{path}: not a file of this lab (format {header['format']!r})")
    if version != VERSION:
        raise StoreError(f"{path}: format version {version}; this code reads version {VERSION}")
    if not _is_sealed(data, 8 + size):
        raise StoreError(f"{path}: damaged (its checksum does not match its content)")
    try:
        arrays, metadata = tensors_from_bytes(data), json.loads(header["metadata"])
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path}: damaged ({error})") from None
    if not isinstance(metadata, dict):
        raise StoreError(f"{path}: damaged (its metadata is no dictionary)")
    return arrays, metadata


def read_bytes(path: str | Path) -> bytes:
    """The content of a file; StoreError naming it where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from None


def _sealed(data: bytes) -> bytes:
    """`data` with its unset checksum replaced by the digest of all its bytes."""
    found = _CHECKSUM.search(data)
    return data[: found.start(1)] + hashlib.sha256(data).hexdigest().encode() + data[found.end(1) :]


def _is_sealed(data: bytes, end: int) -> bool:
    """Whether the checksum found before `end` is the digest of all bytes of `data` but its own."""
    found = _CHECKSUM.search(data, 0, end)
    if not found:
        return False
    digest = hashlib.sha256(data[: found.start(1)] + _UNSET.encode() + data[found.end(1) :])
    return digest.hexdigest().encode() == found.group(1)


# -- a folder of files that belong together --------------------------------------------------------


def save_folder(folder: str | Path, manifest: Mapping[str, Any], files: Mapping[str, bytes], name: str) -> None:
    """Commit several files as one: all of them or, after a kill at any moment, the ones that were there before.

    The manifest `name` (JSON) holds the digest of every file. New files first lie beside the old ones under
    their digest; renaming the manifest is the moment of commitment; only then do they take their places.
    """
    folder = Path(folder)
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    for file, data in files.items():
        write_atomic(_pending(folder, file, digests[file]), data)
    body = {"checksum": _UNSET, **manifest, "files": digests}  # first, so that no other can be taken for it
    text = (json.dumps(body, indent=1) + "\n").encode()
    write_atomic(folder / name, _sealed(text))
    try:
        for file, digest in digests.items():
            os.replace(_pending(folder, file, digest), folder / file)
        for pattern in ("*.pending", ".*.pending.*.tmp", f".{name}.*.tmp"):  # of a writer that was killed
            for leftover in folder.glob(pattern):
                leftover.unlink(missing_ok=True)
    except OSError as error:  # committed all the same: a file not yet in its place is read where it lies
        raise StoreError(f"cannot write {folder}: {error.strerror or error}") from error


def load_folder(folder: str | Path, name: str, format: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the verified files of a folder written by `save_folder`.

    Raises CheckpointError naming the file that is missing, damaged, foreign or newer.
    """
    folder = Path(folder)
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no checkpoint ({name} is missing)")
    manifest = _read_manifest(path, format)
    return manifest, {file: _read_member(folder, file, digest) for file, digest in manifest["files"].items()}


def _read_manifest(path: Path, format: str) -> dict[str, Any]:
    try:
        data = read_bytes(path)
        manifest = json.loads(data.decode())
        found, version = manifest["format"], manifest["version"]
        digests = {str(file): str(digest) for file, digest in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged, or not a checkpoint of this lab ({type(error).__name__})") from None
    except StoreError as error:
        raise CheckpointError(str(error)) from None
    if found != format:
        raise CheckpointError(f"{path}: not a {format} file (format {found!r})")
    if version != VERSION:
        raise CheckpointError(f"{path}: format version {version!r}; this code reads version {VERSION}")
    if not _is_sealed(data, len(data)):
        raise CheckpointError(f"{path}: damaged (its checksum does not match its content)")
    if any(Path(file).name != file for file in digests):
        raise CheckpointError(f"{path}: names a file outside its folder")
    return manifest


def _read_member(folder: Path, file: str, digest: str) -> bytes:
    for path in (folder / file, _pending(folder, file, digest)):  # pending: a kill between commitment and rename
        if path.is_file():
            data = read_bytes(path)
            if hashlib.sha256(data).hexdigest() == digest:
                return data
    problem = "damaged (its checksum is not the one in its manifest)" if (folder / file).exists() else "missing"
    raise CheckpointError(f"{folder / file}: {problem}")


def _pending(folder: Path, file: str, digest: str) -> Path:
    return folder / f"{file}.{digest[:16]}.pending"
