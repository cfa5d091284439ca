"""The structured window (K8): how a memory of the past and the tokens share the slots of a context.

    start | aggregate | segment sums | hard tokens … | soft tokens …

The memory comes first under the causal mask, and it covers only what is older than the window's
first token. While a window lasts, the memory does not change. When the window is full, a new one
begins with its latest tokens, and what is older is folded into the memory. `memories.py` holds the
kinds of memory.
"""

from dataclasses import dataclass, replace
from typing import Any

from ...core.checks import whole_number
from ...core.registry import Registry
from .memories import MEMORIES

CONTROLS = ("masked", "other", "full")
LAYOUTS = Registry("window")


@LAYOUTS.register("window")
@dataclass(frozen=True)
class Window:
    """The layout of a window: the slots of the memory, then the slots of the tokens.

    One of `hard` and `soft` may be None: all slots that remain. hard=0: every token may stay soft.

    Args:
        aggregate: number of slots for everything that is older than the segments.
        segments: number of slots for stretches of `stretch` tokens just before the window.
        hard: number of tokens that are always hard.
        soft: number of newest tokens, the only ones that may stay soft. An older token is grounded:
            it becomes the symbol that was emitted (K5).
        kind: what a memory slot holds, a member of `memories.MEMORIES` such as "sum", "ema(0.98)",
            "bound" or "gist".
        stretch: tokens per segment.
        keep: how many of the latest tokens a new window begins with. None: half of them, or `soft`
            where that is more.
        control: "masked": the memory slots are those of an empty memory. "other": they hold the
            memory of another row of the batch. "full": nothing may leave the window; it is an error
            where something must.

    Raises:
        ValueError: where a field is out of range, naming the field and its value.
    """

    aggregate: int = 1
    segments: int = 2
    hard: int | None = 97
    soft: int | None = None
    kind: str = "sum"
    stretch: int = 32
    keep: int | None = None
    control: str | None = None

    def __post_init__(self):
        for name in ("aggregate", "segments", "hard", "soft", "stretch", "keep"):
            value, least = getattr(self, name), int(name in ("stretch", "keep"))
            if value is None and name in ("hard", "soft", "keep"):
                continue
            object.__setattr__(self, name, whole_number(f"Window.{name}", value, least))
        if self.hard is None and self.soft is None:
            raise ValueError(
                "Window.hard and Window.soft cannot both be None: give one, the other is what remains"
            )
        object.__setattr__(self, "kind", MEMORIES.complete(self.kind, *[None] * 3))
        if self.control is not None and self.control not in CONTROLS:
            raise ValueError(
                f"Window.control must be None or one of {', '.join(CONTROLS)}, not {self.control!r}"
            )

    @property
    def memory(self) -> int:
        """How many slots the memory has."""
        return self.aggregate + self.segments

    def tokens(self, context: int) -> int:
        """How many tokens a window holds in a context of `context` slots.

        Raises:
            ValueError: where they do not fit.
        """
        rest = context - self.memory
        asked = (self.hard or 0) + (self.soft or 0)
        count = asked if None not in (self.hard, self.soft) else rest
        if not max(1, asked) <= count <= rest:
            raise ValueError(
                f"{self.memory} memory slots and {max(1, asked)} tokens do not fit into a context of {context}: "
                f"hard + soft must be 1 … {max(1, rest)}"
            )
        if self.keep is not None and self.keep > count:
            raise ValueError(
                f"Window.keep must be at most the window's {count} tokens, not {self.keep}"
            )
        return count

    def newest(self, context: int) -> int | None:
        """How many of the latest tokens may stay soft; None where all may."""
        if self.hard == 0:
            return None
        return self.soft if self.soft is not None else self.tokens(context) - self.hard

    def kept(self, context: int) -> int:
        """How many of the latest tokens a new window begins with.

        The token that did not fit into the old window is one of them.
        """
        return self.keep or max(1, self.tokens(context) // 2, self.newest(context) or 0)

    def stride(self, context: int) -> int:
        """How many tokens leave a window together: windows begin at multiples of it."""
        return self.tokens(context) + 1 - self.kept(context)


def resolve(spec: Any, own: Window | None = None) -> Window | None:
    """The window that `spec` names.

    Args:
        spec: None, "plain" (no memory), a kind of memory ("bound"), "full", "window(1, 2)" or a
            Window. With `own`, also "masked" or "other", which change its control, and None means
            `own` as it is.
        own: the window that a model has.

    Raises:
        ValueError: for an unknown name, listing the known ones, or arguments that make no sense.
    """
    if spec is None or isinstance(spec, Window):
        return own if spec is None else spec
    if not isinstance(spec, str):
        raise ValueError(f"a window is None, a name or a Window, not {spec!r:.80}")
    name = LAYOUTS.name_of(spec)
    if name == "window":
        return LAYOUTS.make(spec)
    if name in MEMORIES.names():
        return replace(own, kind=spec) if own else Window(kind=spec)
    if spec == "plain":
        return Window(0, 0, hard=0)
    if spec == "full":
        return replace(own or Window(0, 0), hard=0, soft=None, keep=None, control="full")
    if spec in CONTROLS and own is not None:
        return replace(own, control=spec)
    raise ValueError(f"unknown window {spec!r}; known: {', '.join(names())}")


def names() -> list[str]:
    """Every name that `resolve` knows."""
    return ["plain", *MEMORIES.names(), "window", *CONTROLS]
