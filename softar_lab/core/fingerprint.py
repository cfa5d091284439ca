"""A digest of what decides an object's answers: saved results are keyed by it."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

_IDLE = {"training", "card"}  # attributes of a module that change no answer


def fingerprint(thing: Any) -> str:
    """A digest of an object: its class, its settings, and its weights to the bit.

    It is the same on every machine, device and run. A function counts by its name, a dataclass by
    its fields, an object with a state of its own for pickling by that. What a module keeps under a
    name with an underscore does not count, nor what a cached property holds.
    """
    digest = hashlib.sha256()
    for part in _parts(thing, ()):
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()[:32]


def _parts(thing: Any, inside: tuple[int, ...]) -> Iterator[bytes]:
    """All that is in an object, as bytes; `inside` are the ids of the objects that hold it."""
    yield type(thing).__qualname__.encode()
    if id(thing) in inside:
        return  # it holds itself
    inside = (*inside, id(thing))
    # 1) numbers in bulk
    if isinstance(thing, torch.Tensor):
        thing = thing.detach().cpu().contiguous()
        yield f"{thing.dtype} {tuple(thing.shape)}".encode()
        yield thing.flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(thing, np.ndarray) and thing.dtype != object:
        yield f"{thing.dtype} {thing.shape}".encode()
        yield np.ascontiguousarray(thing).tobytes()
    # 2) collections; the order of a set means nothing
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            yield from _parts(key, inside)
            yield from _parts(value, inside)
    elif isinstance(thing, set | frozenset):
        yield from sorted(b"".join(_parts(one, inside)) for one in thing)
    elif isinstance(thing, list | tuple | np.ndarray):
        for one in thing:
            yield from _parts(one, inside)
    # 3) objects, by what they hold
    elif isinstance(thing, nn.Module):
        yield from _parts(dict(thing.state_dict()), inside)
        settings = {name for name in vars(thing) if not name.startswith("_")} - _IDLE
        yield from _parts({name: vars(thing)[name] for name in sorted(settings)}, inside)
    elif callable(thing) and hasattr(thing, "__qualname__"):
        yield thing.__qualname__.encode()
    elif is_dataclass(thing):
        yield from _parts({one.name: getattr(thing, one.name) for one in fields(thing)}, inside)
    elif type(thing).__getstate__ is not object.__getstate__:
        yield from _parts(thing.__getstate__(), inside)
    elif hasattr(thing, "__dict__"):
        cached = {name for name in vars(thing) if _is_cached(type(thing), name)}
        yield from _parts({k: v for k, v in vars(thing).items() if k not in cached}, inside)
    else:
        yield repr(thing).encode()


def _is_cached(kind: type, name: str) -> bool:
    """Whether an attribute holds the value of a cached property."""
    return any(isinstance(vars(base).get(name), cached_property) for base in kind.__mro__)
