"""Checks of arguments that many classes share."""

from dataclasses import fields
from numbers import Integral
from typing import Any

import numpy as np


def whole_number(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """The value as an int, where it is a whole number from `least` to `most`.

    NumPy's integers are whole numbers; True and False are not.

    Args:
        name: how the message calls the value, such as "ModelConfig.n_layers".
        value: what was given.
        least: the smallest allowed number.
        most: the largest allowed number; None: there is none.

    Raises:
        ValueError: for anything else, naming the value and what would be right.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        up_to = "" if most is None else f" and at most {most}"
        raise ValueError(f"{name} must be a whole number of at least {least}{up_to}, not {value!r}")
    return int(value)


def plain(value: Any) -> Any:
    """A NumPy number as a Python number; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def plain_fields(config: Any) -> None:
    """Replace the NumPy numbers in a frozen dataclass by Python numbers, which JSON can hold."""
    for one in fields(config):
        object.__setattr__(config, one.name, plain(getattr(config, one.name)))
