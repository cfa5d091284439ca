"""The model of a GGUF file as a folder of transformers in the lab's cache, made once."""

import json
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from ....core.store import StoreError, cache_folder, write_atomic
from ..errors import PretrainedError
from .config import config_of
from .file import GGUFFile, parts_of
from .vocabulary import tokenizer_of
from .weights import weights_of

MANIFEST = "unpacked.json"
FORMAT = 3  # of a copy; before 3, what transformers did not read of a file was lost in silence


def unpacked(file: Path) -> Path:
    """The folder that holds a GGUF file's model; it is made where it is missing or damaged.

    Its name holds a digest of the file, or of all parts of a split one.

    Raises:
        PretrainedError: where the file cannot be read as it is meant, or the folder not written.
    """
    digest = 0
    for part in parts_of(file):
        digest = _crc32(part, digest)
    folder = cache_folder() / "pretrained" / f"{file.stem}-{digest:08x}"
    if not _is_whole(folder):
        _unpack(file, folder)
    return folder


def _unpack(file: Path, folder: Path) -> None:
    """Read a file and save its model in a folder.

    Nothing is written before every entry and tensor is accounted for. The manifest is written last
    and marks the copy as complete.
    """
    from safetensors.torch import save

    # 1) read the file
    source = GGUFFile(file)
    config = config_of(source)
    weights, kind = weights_of(source, config)
    tokenizer = tokenizer_of(source)
    source.finish()
    # 2) write everything; an old copy goes first, the new manifest comes last
    about = {**config.to_dict(), "architectures": [kind], "dtype": "float32"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in (MANIFEST, "generation_config.json"):
            with suppress(FileNotFoundError):
                (folder / old).unlink()
        tokenizer.save_pretrained(folder)
        write_atomic(folder / "config.json", json.dumps(about, indent=1).encode())
        write_atomic(folder / "model.safetensors", save(weights, {"format": "pt"}))
        sums = {path.name: _crc32(path) for path in sorted(folder.iterdir()) if path.is_file()}
        manifest = {"format": FORMAT, "source": file.name, "crc32": sums}
        write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    except (OSError, StoreError) as error:
        raise PretrainedError(
            f"{folder}: the unpacked model cannot be stored ({error}); SOFTAR_CACHE names another folder"
        ) from error


def _crc32(path: Path, digest: int = 0) -> int:
    """The checksum of a file, which may be larger than the memory, after that of others."""
    with path.open("rb") as file:
        while block := file.read(2**24):
            digest = zlib.crc32(block, digest)
    return digest


def _is_whole(folder: Path) -> bool:
    """Whether there is a copy in which every byte is as it was written."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        sums = manifest["crc32"]
        return manifest["format"] == FORMAT and all(
            _crc32(folder / name) == crc for name, crc in sums.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
