"""Named strategies: the string ``"every(4)"`` and the instance ``EveryK(4)`` mean the same."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

from .checks import plain


class Registry:
    """The members of one axis (collapse, schedule, objective, …) by name.

    A member is a class, whose instances are the strategies, or a plain function, which is itself
    the strategy.

    Args:
        kind: the name of the axis, for messages.
        adapt: turns a callable that does not declare what it needs, such as a plain function, into
            one that does.
    """

    def __init__(self, kind: str, adapt: Callable[[Any], Any] = lambda strategy: strategy):
        self.kind, self.adapt = kind, adapt
        self._members: dict[str, Any] = {}

    def register(self, name: str) -> Callable:
        """Decorator: register the class or function below it as `name`.

        Raises:
            ValueError: where another member has this name. (The same one may be defined again, as
                when a notebook's cell is run again.)
        """

        def decorate(member):
            existing = self._members.get(name)
            if existing is not None and _place(existing) != _place(member):
                raise ValueError(
                    f"the {self.kind} {name!r} is there already ({'.'.join(_place(existing))}): "
                    "choose another name"
                )
            self._members[name] = member if isinstance(member, type) else self.adapt(member)
            return self._members[name]

        return decorate

    def names(self) -> list[str]:
        """Every known name, in the order of registration."""
        return list(self._members)

    def check(self, name: str) -> str:
        """Return `name` if it is known.

        Raises:
            ValueError: for an unknown name; the message lists the known ones.
        """
        if name not in self._members:
            raise ValueError(f"unknown {self.kind} {name!r}; known: {', '.join(self._members)}")
        return name

    def get(self, name: str) -> Any:
        """The class or function registered as `name`; ValueError as in `check`."""
        return self._members[self.check(name)]

    def resolve(self, spec: Any) -> Any:
        """The strategy meant by `spec`: ``"name"``, ``"name(1, key=2)"`` or an instance.

        An instance passes through, adapted if it is a callable that declares nothing.

        Raises:
            ValueError: for an unknown name (the message lists the known ones) or arguments that the
                strategy does not take.
        """
        if not isinstance(spec, str):
            if callable(spec) and not isinstance(spec, type):
                return self.adapt(spec)
            known = ", ".join(self._members)
            raise ValueError(
                f"a {self.kind} is a name or a callable instance, not {spec!r}; known: {known}"
            )
        member = self.get(self.name_of(spec))
        if isinstance(member, type):
            return self.make(spec)
        try:
            if any(self._arguments(spec)):
                raise ValueError("it takes no arguments")
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{self.kind} {spec!r}: {error}") from None
        return member

    def name_of(self, spec: str) -> str:
        """The name alone: "mixture" for "mixture(8)".

        Raises:
            ValueError: for what is no text.
        """
        if not isinstance(spec, str):
            raise ValueError(f"a {self.kind} is given by its name, not by {spec!r:.80}")
        return spec.partition("(")[0].strip()

    def make(self, spec: str, *first: Any) -> Any:
        """Call the member with `first` and the arguments in `spec`; ValueError as in `resolve`."""
        member = self.get(self.name_of(spec))
        try:
            positional, named = self._arguments(spec)
            return member(*first, *positional, **named)
        except (SyntaxError, TypeError, ValueError) as error:
            raise ValueError(f"{self.kind} {spec!r}: {error}") from None

    def complete(self, spec: str, *first: Any) -> str:
        """`spec` with every parameter written out, for members that `make` calls with `first`.

        "successor" becomes "successor(0.5)".

        Raises:
            ValueError: as in `resolve`.
        """
        arguments = {key: value for key, (value, _) in self._parameters(spec, first).items()}
        return _written(self.name_of(spec), arguments, bare=len(arguments) == 1)

    def short(self, spec: str, *first: Any) -> str:
        """`spec` without the parameters that have their defaults, for a label.

        "successor(0.5)" becomes "successor". What `resolve` does not know stays as it is.
        """
        try:
            parameters = self._parameters(spec, first)
        except ValueError:
            return spec
        arguments = {key: value for key, (value, default) in parameters.items() if value != default}
        return _written(self.name_of(spec), arguments, bare=[*arguments] == [*parameters][:1])

    def _parameters(self, spec: str, first: tuple) -> dict[str, tuple[Any, Any]]:
        """Value and default of each parameter behind `first`; ValueError as in `resolve`."""
        member = self.get(self.name_of(spec))
        try:
            positional, named = self._arguments(spec)
            if not isinstance(member, type) and not first:  # a function that is itself the strategy
                return {}
            bound = inspect.signature(member).bind(*first, *positional, **named)
        except (SyntaxError, TypeError, ValueError) as error:
            raise ValueError(f"{self.kind} {spec!r}: {error}") from None
        bound.apply_defaults()
        known = [
            one
            for one in bound.signature.parameters.values()
            if one.kind is one.POSITIONAL_OR_KEYWORD
        ]
        return {one.name: (bound.arguments[one.name], one.default) for one in known[len(first) :]}

    def _arguments(self, spec: str) -> tuple[list, dict[str, Any]]:
        """The arguments between the brackets, as literals: positional ones and named ones."""
        _, bracket, rest = spec.strip().partition("(")
        if instance := re.search(r"(?:^|[=,])\s*(<\w+>)\s*[,)]", rest):
            raise ValueError(
                f"{instance[1]} stands for an object that no string can say: give it as an instance"
            )
        call = ast.parse(f"f({rest}" if bracket else "f()", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("not of the form name(argument, key=value)")
        named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        return [ast.literal_eval(node) for node in call.args], named

    def spec(self, strategy: Any) -> str:
        """The string that `resolve` turns back into `strategy`, with every parameter written out.

        It is "every(4)", never "every", so a default that changes later cannot relabel what was
        recorded. A value that no string can express becomes <its class>, which `resolve` refuses. A
        strategy that is not registered becomes its own name, or its repr where it has none.
        """
        for name, member in self._members.items():
            if member is strategy:
                return name
            if isinstance(member, type) and type(strategy) is member:
                fields = dataclasses.fields(strategy) if dataclasses.is_dataclass(strategy) else ()
                arguments = {
                    field.name: getattr(strategy, field.name) for field in fields if field.init
                }
                return _written(name, arguments, bare=len(arguments) == 1)
        return name_of(strategy)


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A function, or any other callable, as a member of an axis; it has the name of what it calls."""

    function: Callable

    def __post_init__(self):
        object.__setattr__(self, "__doc__", self.function.__doc__)
        object.__setattr__(self, "__name__", name_of(self.function))

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def _place(member: Any) -> tuple[str, str]:
    """Module and name of a class or function."""
    member = member.function if isinstance(member, Adapted) else member
    return getattr(member, "__module__", ""), getattr(member, "__qualname__", repr(member))


def _written(name: str, values: dict[str, Any], bare: bool) -> str:
    """The string of a member: every(4) where `bare`, else entropy(above=0.5, until=None)."""
    if not values:
        return name
    if bare and not isinstance(next(iter(values.values())), bool):
        return f"{name}({_literal(*values.values())})"
    return f"{name}({', '.join(f'{key}={_literal(value)}' for key, value in values.items())})"


def _literal(value: Any) -> str:
    value = plain(value)
    return (
        repr(value)
        if isinstance(value, str | int | float | tuple | None)
        else f"<{type(value).__name__}>"
    )


def name_of(strategy: Any) -> str:
    """A function's own name; the repr of anything that has none."""
    return getattr(strategy, "__name__", repr(strategy))
