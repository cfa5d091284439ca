"""Named strategies: a string such as ``"every(4)"`` and an instance such as ``EveryK(4)`` mean the same thing."""

import ast
import dataclasses
from collections.abc import Callable
from typing import Any


class Registry:
    """The members of one axis (collapse, schedule, objective, …) by name.

    A member is a class (its instances are the strategies) or a plain function (it is itself the strategy).
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._members: dict[str, Any] = {}

    def register(self, name: str) -> Callable:
        """Decorator: make the class or function below it known as `name`."""

        def decorate(member):
            self._members[name] = member
            return member

        return decorate

    def names(self) -> list[str]:
        """Every known name, in the order of registration."""
        return list(self._members)

    def check(self, name: str) -> str:
        """Return `name` if it is known; ValueError that lists the known names otherwise."""
        if name not in self._members:
            raise ValueError(f"unknown {self.kind} {name!r}; known: {', '.join(self._members)}")
        return name

    def get(self, name: str) -> Any:
        """The class or function registered as `name`; ValueError that lists the known names otherwise."""
        return self._members[self.check(name)]

    def resolve(self, spec: Any) -> Any:
        """The strategy meant by `spec`: ``"name"``, ``"name(1, key=2)"`` or an instance, which passes through.

        Raises ValueError for an unknown name (listing the known ones) or arguments the strategy does not take.
        """
        if not isinstance(spec, str):
            if callable(spec) and not isinstance(spec, type):
                return spec
            known = ", ".join(self._members)
            raise ValueError(f"a {self.kind} is a name or a callable instance, not {spec!r}; known: {known}")
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
        """The name alone: "mixture" of "mixture(8)"."""
        return spec.partition("(")[0].strip()

    def make(self, spec: str, *first: Any) -> Any:
        """Call the member with `first`, then with the arguments written in `spec`; ValueError as in `resolve`."""
        member = self.get(self.name_of(spec))
        try:
            positional, named = self._arguments(spec)
            return member(*first, *positional, **named)
        except (SyntaxError, TypeError, ValueError) as error:
            raise ValueError(f"{self.kind} {spec!r}: {error}") from None

    def _arguments(self, spec: str) -> tuple[list, dict[str, Any]]:
        """What stands between the brackets, as literals."""
        _, bracket, rest = spec.strip().partition("(")
        call = ast.parse(f"f({rest}" if bracket else "f()", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("not of the form name(argument, key=value)")
        named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        return [ast.literal_eval(node) for node in call.args], named

    def spec(self, strategy: Any) -> str:
        """The string that `resolve` turns back into `strategy`, last fields left out where they are the default.

        A value that no string can say stands there as <its class>; a strategy that is not registered as its repr.
        """
        for name, member in self._members.items():
            if member is strategy:
                return name
            if isinstance(member, type) and type(strategy) is member:
                fields = dataclasses.fields(strategy) if dataclasses.is_dataclass(strategy) else ()
                values = [(getattr(strategy, field.name), field.default) for field in fields]
                while values and values[-1][0] == values[-1][1]:
                    values.pop()
                return f"{name}({', '.join(_literal(value) for value, _ in values)})" if values else name
        return getattr(strategy, "__name__", repr(strategy))


def _literal(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float | tuple | None) else f"<{type(value).__name__}>"
