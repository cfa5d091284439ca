"""Checks of arguments that many classes share."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

import numpy as np

SEEDS = -(2**63), 2**64 - 1  # the least and the largest seed of torch's generators


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


def real_number(name: str, value: Any, wanted: str, holds: Callable[[Any], bool]) -> Any:
    """The value, where it is a real number that is as wanted; True and False are none.

    Args:
        name: how the message calls the value.
        value: what was given.
        wanted: what would be right, in words, such as "above 0".
        holds: whether a number is right.

    Raises:
        ValueError: for anything else, naming the value and what would be right.
    """
    if not isinstance(value, Real) or isinstance(value, bool) or not holds(value):
        raise ValueError(f"{name} must be {wanted}, not {value!r:.80}")
    return value


def unicode_text(text: str) -> str:
    """The text, where it is Unicode: without half of a surrogate pair.

    Raises:
        ValueError: at the first lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text is no Unicode: a lone surrogate at character {error.start}"
        ) from None
    return text


def sequence(name: str, value: Any, of: str, empty: str = "") -> list[Any]:
    """The members of a list, a tuple, a range or the like, at least one; a text is none of these.

    Raises:
        ValueError: for anything else, naming the value; `of` says what its members should be, and
            `empty` is the message where there are none.
    """
    try:
        members = None if isinstance(value, str | bytes | Mapping) else list(value)
    except TypeError:
        members = None
    if members is None:
        raise ValueError(f"{name} must be a list of {of}, not {value!r:.80}")
    if not members:
        raise ValueError(empty or f"{name} is empty: give at least one of {of}")
    return members


def plain(value: Any) -> Any:
    """A NumPy number as a Python number; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def plain_fields(config: Any) -> None:
    """Replace the NumPy numbers in a frozen dataclass by Python numbers, which JSON can hold."""
    for one in fields(config):
        object.__setattr__(config, one.name, plain(getattr(config, one.name)))
