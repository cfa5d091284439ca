"""Checks shapes and types as `jaxtyping.jaxtyped` does, in a fraction of its time.

pytest's option --jaxtyping-packages puts `jaxtyping.jaxtyped` on every function and class of the
package. For the wording of its errors that decorator binds each call to the signature and checks
the arguments twice, which was more than half of the suite's time. Importing this module, before the
package, replaces it: one check by beartype, inside one context of axis names, and none of the
latter where no annotation has a shape. `test_typed.py` holds both decorators together.
"""

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial, wraps
from typing import get_args

import jaxtyping
from beartype import BeartypeConf, beartype

ORIGINAL = jaxtyping.jaxtyped
AXES = ORIGINAL("context")  # names of axes mean the same from here to its end; it holds no state
strict = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def has_shape(hint: object) -> bool:
    """Whether an annotation holds an array type such as Float[Tensor, "B m"]."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(has_shape, hint if isinstance(hint, list) else get_args(hint)))


def only_original(fn: Callable) -> bool:
    """Whether jaxtyping must resolve names in quotes, or the function goes on after its call."""
    quoted = any(isinstance(hint, str) for hint in fn.__annotations__.values())
    return quoted or inspect.isgeneratorfunction(fn) or inspect.iscoroutinefunction(fn)


def checked(fn=None, *, typechecker):
    """`jaxtyping.jaxtyped(fn, typechecker=typechecker)` in less time, for beartype."""
    if fn is None:
        return partial(checked, typechecker=typechecker)
    if inspect.isclass(fn):
        init = vars(fn).get("__init__")
        if is_dataclass(fn) and inspect.isfunction(init) and inspect.unwrap(init) is init:
            fn.__init__ = checked(init, typechecker=typechecker)
        return fn
    if only_original(fn):
        return ORIGINAL(fn, typechecker=typechecker)
    shaped = any(map(has_shape, fn.__annotations__.values()))
    return _wrapped(fn, strict(fn), shaped) if fn.__annotations__ else fn


def _wrapped(fn: Callable, checking: Callable, shaped: bool) -> Callable:
    """Call `checking`, unless checks are switched off (jaxtyping.config)."""

    @wraps(fn)
    def with_axes(*args, **kwargs):
        if jaxtyping.config.jaxtyping_disable:
            return fn(*args, **kwargs)
        with AXES:
            return checking(*args, **kwargs)

    @wraps(fn)
    def without(*args, **kwargs):
        if jaxtyping.config.jaxtyping_disable:
            return fn(*args, **kwargs)
        return checking(*args, **kwargs)

    return with_axes if shaped else without


jaxtyping.jaxtyped = checked
