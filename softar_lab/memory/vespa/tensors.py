"""Vespa's tensors: their types, and their cells as JSON, checked before anything leaves.

The engine fills a vector that is too short with zeros, takes "NaN" for a number, and takes a label
`blocks` for a form of its own where cells are not wrapped. So lengths are compared here, numbers
are finite, and every tensor is written in its wrapped form.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_TYPE = re.compile(r"tensor<(\w+)>\((.*)\)")
_DIMENSION = re.compile(r"([a-z_][A-Za-z0-9_]*)(?:\[(\d+)\]|(\{\}))")
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufdd0-\ufddf]")
CELLS = {"float": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


def checked_text(text: Any) -> str:
    """A text, where the engine takes all its characters.

    Raises:
        ValueError: for no text, a control character, a surrogate or what is no character.
    """
    if not isinstance(text, str):
        raise ValueError(f"{text!r:.60} is no text")
    found = _NO_TEXT.search(text)
    wrong = found[0] if found else next((one for one in text if ord(one) & 0xFFFE == 0xFFFE), None)
    if wrong is not None:
        raise ValueError(f"the engine takes no text with U+{ord(wrong):04X}: {text!r:.60}")
    return text


@dataclass(frozen=True)
class TensorType:
    """A type such as tensor<float>(t{},d[64]).

    Args:
        cell: the type of a number, a member of `CELLS`.
        mapped: the name of the mapped dimension; None: there is none.
        indexed: the name of the indexed dimension; None: there is none.
        size: its size.
    """

    cell: str
    mapped: str | None
    indexed: str | None
    size: int = 0

    @classmethod
    def parse(cls, text: str) -> "TensorType":
        """The type that a text names.

        Raises:
            ValueError: for anything else than at most one mapped and one indexed dimension of at
                least one number, with different names, of a known cell type.
        """
        found = _TYPE.fullmatch(text)
        wanted = "tensor<float>(d[64]), tensor<float>(w{}) or tensor<float>(t{},d[64])"
        if not found or found[1] not in CELLS:
            raise ValueError(f"{text!r} is no tensor type that is written here: {wanted}")
        dimensions = [_DIMENSION.fullmatch(one.strip()) for one in found[2].split(",")]
        if not all(dimensions):
            raise ValueError(f"{text!r} has a dimension that is none: {wanted}")
        mapped = [one[1] for one in dimensions if one[3]]
        indexed = [(one[1], int(one[2])) for one in dimensions if not one[3]]
        names = {*mapped, *(name for name, _ in indexed)}
        if len(mapped) > 1 or len(indexed) > 1 or len(names) < len(dimensions):
            raise ValueError(f"{text!r}: at most one mapped and one indexed dimension, two names")
        if any(size < 1 for _, size in indexed):
            raise ValueError(f"{text!r}: a dimension holds at least one number")
        name, size = indexed[0] if indexed else (None, 0)
        return cls(found[1], mapped[0] if mapped else None, name, size)

    def __str__(self) -> str:
        """The type with its mapped dimension first, as the engine has it."""
        parts = [f"{self.mapped}{{}}"] if self.mapped else []
        parts += [f"{self.indexed}[{self.size}]"] if self.indexed else []
        return f"tensor<{self.cell}>({','.join(parts)})"

    def encode(self, value: Any) -> dict[str, Any]:
        """A value as JSON, wrapped.

        Args:
            value: a vector (m,) of an indexed type; {label: number} of a mapped one; {label: vector
                (m,)} of both.

        Raises:
            ValueError: for another shape, a label that is no text, NaN, infinity, or a number that
                the cell type does not hold.
        """
        if self.mapped is None:
            return {"values": self._numbers(value)}
        if not isinstance(value, Mapping):
            raise ValueError(f"{self} needs labels: a mapping, not {type(value).__name__}")
        for label in value:
            if not isinstance(label, str) or not label:
                raise ValueError(f"{self}: a label must be a text that is not empty, not {label!r}")
            checked_text(label)
        if self.indexed is None:
            return {"cells": {label: self._number(one) for label, one in value.items()}}
        return {"blocks": {label: self._numbers(one) for label, one in value.items()}}

    def decode(self, cells: Any) -> Tensor | dict[str, Any]:
        """The value that `encode` wrote, numbers in float32.

        Raises:
            ValueError: for another form than `encode` writes, or what it refuses.
        """
        form = "values" if self.mapped is None else "blocks" if self.indexed else "cells"
        if not isinstance(cells, Mapping) or set(cells) != {form}:
            raise ValueError(f"{self} is written as {{{form!r}: …}}, not {cells!r:.60}")
        found = cells[form]
        if self.mapped is None:
            return torch.tensor(self._numbers(found), dtype=torch.float32)
        if not isinstance(found, Mapping):
            raise ValueError(f"{self}: {form} must have labels, not {found!r:.60}")
        if self.indexed is None:
            return {label: self._number(one) for label, one in found.items()}
        return {
            label: torch.tensor(self._numbers(one), dtype=torch.float32)
            for label, one in found.items()
        }

    def _numbers(self, vector: Any) -> list[float]:
        if isinstance(vector, Mapping | str):
            raise ValueError(f"{self} needs a vector, not {vector!r:.60}")
        numbers = vector.tolist() if isinstance(vector, Tensor) else list(vector)
        if len(numbers) != self.size:
            raise ValueError(f"{self}: a vector has {self.size} numbers, not {len(numbers)}")
        return [self._number(one) for one in numbers]

    def _number(self, value: Any) -> float:
        if isinstance(value, bool | str) or value is None:
            raise ValueError(f"{self}: {value!r} is no number")
        number = float(value)
        held = float(torch.tensor(number).to(CELLS[self.cell])) if math.isfinite(number) else None
        if held != number:
            raise ValueError(f"{self} does not hold {number!r}")
        return number
