"""A GGUF file, every entry of which is used, known to mean nothing, or named in an error (K31).

The package gguf reads the bytes. What a file does not say as others read it (a factor of its
rotation, a bias, a cap) would change every prediction in silence; so nothing may be left over.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import PretrainedError, listed, reason

_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf", re.IGNORECASE)
# Entries about a file, not about what its network or its tokenizer compute.
_NOTES = ("GGUF.", "general.", "quantize.", "imatrix.", "mradermacher.")


class GGUFFile:
    """The entries and the tensors of a GGUF file, or of all parts of a split one.

    `take` and `tensor` note what was asked for; `finish` raises where something was not.

    Raises:
        PretrainedError: where a part is missing, damaged, or holds no language model.
    """

    def __init__(self, path: Path):
        self.path = path
        readers = [_reader(part) for part in parts_of(path)]
        self._entries = {
            name: field.contents()
            for reader in readers[::-1]
            for name, field in reader.fields.items()
        }
        self._tensors = {one.name: one for reader in readers for one in reader.tensors}
        self._left = set(self._entries)
        self._left_tensors = set(self._tensors)
        self._check_parts(len(readers))
        self.architecture = self.take("general.architecture")
        kind = self.take("general.type", "model")
        if kind != "model" or self.architecture is None:
            raise PretrainedError(f"{path}: no language model, but general.type = {kind!r}")

    def take(self, name: str, default: Any = None) -> Any:
        """The value of an entry, which counts as used from now on."""
        self._left.discard(name)
        return self._entries.get(name, default)

    def own(self, name: str, default: Any = None) -> Any:
        """`take` of an entry that the file's architecture puts its name before."""
        return self.take(f"{self.architecture}.{name}", default)

    def need(self, name: str) -> Any:
        """`own` of an entry that must be there.

        Raises:
            PretrainedError: where it is missing.
        """
        found = self.own(name)
        if found is None:
            raise PretrainedError(f"{self.path}: the entry {self.architecture}.{name} is missing")
        return found

    def expect(self, name: str, *values: Any) -> None:
        """Check that an entry of the architecture is missing or has one of some values.

        Raises:
            PretrainedError: where it has another; the message names it.
        """
        self.expect_entry(f"{self.architecture}.{name}", *values)

    def expect_entry(self, name: str, *values: Any) -> None:
        """`expect` of an entry under its full name.

        Raises:
            PretrainedError: where it has another; the message names it.
        """
        found = self.take(name, values[0])
        if found not in values:
            due = " or ".join(repr(value) for value in values)
            self.refuse(f"{name} = {found!r} (read here: {due})")

    def refuse(self, what: str) -> None:
        """Refuse the file.

        Raises:
            PretrainedError: always.
        """
        raise PretrainedError(
            f"{self.path}: this {self.architecture} file cannot be read as it is meant: {what}. "
            "Load the folder or repository that it was made from instead"
        )

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, in torch's order.

        Raises:
            PretrainedError: where the file has no such tensor.
        """
        if name not in self._tensors:
            raise PretrainedError(f"{self.path}: the tensor {name} is missing")
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def tensor(self, name: str) -> Tensor:
        """A tensor in float32, which counts as used from now on.

        Raises:
            PretrainedError: where the file has no such tensor, or it cannot be unpacked.
        """
        from gguf import dequantize

        shape = self.shape(name)
        self._left_tensors.discard(name)
        found = self._tensors[name]
        try:
            values = dequantize(found.data, found.tensor_type)
        except NotImplementedError as error:
            self.refuse(f"{name} has the type {found.tensor_type.name} ({reason(error)})")
        return torch.tensor(values, dtype=torch.float32).reshape(shape)

    def finish(self) -> None:
        """Check that every entry and every tensor was used.

        Raises:
            PretrainedError: where one was not; the message names it.
        """
        if names := sorted(self._left_tensors):
            self.refuse(f"its tensors {listed(names)} have no place in the network")
        notes = {name for name in self._left if name.startswith(_NOTES)}
        if names := sorted(self._left - notes):
            described = [f"{name} = {str(self._entries[name])[:40]}" for name in names]
            self.refuse(f"its entries {listed(described)} are not understood")

    def _check_parts(self, found: int) -> None:
        self.take("split.no")
        count = self.take("split.count", 1)
        tensors = self.take("split.tensors.count", len(self._tensors))
        if count > 1 and found != count:
            raise PretrainedError(
                f"{self.path}: one of {count} parts; their names must end in "
                f"-00001-of-{count:05d}.gguf and so on, and all must be in one folder"
            )
        if tensors != len(self._tensors):
            raise PretrainedError(
                f"{self.path}: {len(self._tensors)} tensors, where split.tensors.count says {tensors}"
            )


def part_names(name: str) -> list[str]:
    """The names of all parts of a split GGUF file, from that of one; else just the name."""
    found = _PART.fullmatch(name)
    if found is None:
        return [name]
    stem, parts = found["stem"], int(found["parts"])
    return [f"{stem}-{i + 1:05d}-of-{parts:05d}.gguf" for i in range(parts)]


def parts_of(path: Path) -> list[Path]:
    """The files that make up a model: the file itself, or all parts of a split one.

    Raises:
        PretrainedError: where there is no such file, or a part of it is missing.
    """
    if not path.is_file():
        raise PretrainedError(
            f"{path}: no such file; give a GGUF file, or the folder that holds it and its name"
        )
    found = [path.parent / name for name in part_names(path.name)]
    if len(found) == 1:
        return [path]
    if missing := [one.name for one in found if not one.is_file()]:
        raise PretrainedError(
            f"{path}: one of {len(found)} parts; {listed(missing)} must be in the same folder"
        )
    return found


def _reader(path: Path) -> Any:
    """The package's reader of one file.

    Raises:
        PretrainedError: where the file cannot be read.
    """
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except Exception as error:  # whatever a damaged file makes the reader stumble over
        raise PretrainedError(
            f"{path}: no GGUF file, or a damaged one ({reason(error)})"
        ) from error
