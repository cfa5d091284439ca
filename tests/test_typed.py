"""The decorator that checks the package in tests lets through and refuses what jaxtyping's does."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
import typed
from beartype import beartype
from jaxtyping import Float, Int
from torch import Tensor

import softar_lab as lab

DECORATORS = {"ours": typed.checked, "jaxtyping's": typed.ORIGINAL}
Table = Float[Tensor, "V m"]
ROWS, OTHER, IDS = torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64)


def made(decorator: Callable) -> SimpleNamespace:
    """Functions and classes of each kind that the package has."""
    check = decorator(typechecker=beartype)

    @check
    def same(one: Table, other: Table | None = None, *more: int, last: float = 0.0) -> Table:
        return one if last == 0.0 else one[:, :1]

    @check
    def looked_up(ids: Int[Tensor, " B"], table: Table) -> tuple[Float[Tensor, "B m"], int]:
        return table[ids], len(ids) if len(table) == 2 else "two"

    @check
    def plain(number: int, names: tuple[str, ...] = ()) -> str:
        return f"{number}" if number else number

    @check
    def quoted(one: "Table", other: "Table") -> "int":
        return len(one)

    @check
    def pieces(tables: list[Table]) -> Iterator[Table]:
        yield from tables

    @check
    def numbers(most: int) -> Iterator[int]:
        yield from range(most)

    @check
    def outer(one: Table, other: Table) -> int:
        return len(same(other))  # whose names of axes are its own

    @check
    @dataclass(frozen=True)
    class Pair:
        one: Table
        ids: Int[Tensor, " V"]
        name: str = ""

        @property
        @check
        def width(self) -> int:
            return self.one.shape[1] if self.name != "odd" else "wide"

        @staticmethod
        @check
        def fixed(one: Table) -> Table:
            return one

    @check
    class Child(Pair):
        pass

    return SimpleNamespace(**{name: one for name, one in locals().items() if name != "check"})


CASES = {
    "same shapes": lambda m: m.same(ROWS, ROWS, 1, 2),
    "None is allowed": lambda m: m.same(ROWS),
    "two shapes": lambda m: m.same(ROWS, OTHER),
    "a dimension too few": lambda m: m.same(ROWS[0]),
    "whole numbers": lambda m: m.same(ROWS.long()),
    "no tensor": lambda m: m.same([[0.0]]),
    "one of many": lambda m: m.same(ROWS, None, 1, "2"),
    "by name": lambda m: m.same(ROWS, last="0"),
    "returned shape": lambda m: m.same(ROWS, last=1.0),
    "unknown argument": lambda m: m.same(ROWS, least=1.0),
    "missing argument": lambda m: m.same(),
    "shapes among several": lambda m: m.looked_up(IDS, ROWS),
    "returned part": lambda m: m.looked_up(IDS, OTHER),
    "floats for ids": lambda m: m.looked_up(IDS.float(), ROWS),
    "plain": lambda m: m.plain(1, ("a",)),
    "plain wrong": lambda m: m.plain("1"),
    "plain inside": lambda m: m.plain(1, (2,)),
    "plain returned": lambda m: m.plain(0),
    "quoted": lambda m: m.quoted(ROWS, ROWS),
    "quoted wrong": lambda m: m.quoted(ROWS, OTHER),
    "generator": lambda m: list(m.pieces([ROWS, ROWS])),
    "generator wrong": lambda m: m.pieces([IDS]),
    "plain generator": lambda m: list(m.numbers(3)),
    "plain generator wrong": lambda m: m.numbers("3"),
    "nested": lambda m: m.outer(ROWS, ROWS),
    "nested wrong": lambda m: m.outer(ROWS, OTHER),
    "class": lambda m: m.Pair(ROWS, IDS).width,
    "class shapes": lambda m: m.Pair(OTHER, IDS),
    "class names": lambda m: m.Child(ROWS, IDS, name=1),
    "property": lambda m: m.Pair(ROWS, IDS, "odd").width,
    "static": lambda m: m.Pair.fixed(IDS),
}


def outcome(ask: Callable, functions: SimpleNamespace) -> str:
    """What came of a call: the type of its error, or "fine"."""
    try:
        ask(functions)
    except Exception as error:
        return type(error).__name__
    return "fine"


@pytest.mark.parametrize("case", CASES)
def test_both_decorators_say_the_same(case):
    found = {outcome(CASES[case], made(decorator)) for decorator in DECORATORS.values()}
    assert len(found) == 1, found
    good = ("same shapes", "None is allowed", "shapes among several", "plain", "quoted")
    fine = case in (*good, "generator", "plain generator", "nested", "class")
    assert (found == {"fine"}) == fine


@pytest.mark.parametrize("decorator", DECORATORS)
def test_what_was_decorated_looks_as_before(decorator):
    functions = made(DECORATORS[decorator])
    for name in ("same", "plain", "quoted", "pieces"):
        found = getattr(functions, name)
        assert found.__name__ == name
        assert list(inspect.signature(found).parameters)
        assert found.__wrapped__.__name__ == name


@pytest.mark.parametrize("decorator", DECORATORS)
def test_checks_can_be_switched_off(monkeypatch, decorator):
    functions = made(DECORATORS[decorator])
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert outcome(CASES["two shapes"], functions) == "fine"
    assert outcome(CASES["plain wrong"], functions) == "fine"


def test_the_package_is_checked():
    with pytest.raises(jaxtyping.TypeCheckError):
        lab.generation.feedback.mixture(torch.zeros(2, 3), torch.zeros(4, 5))
    with pytest.raises(jaxtyping.TypeCheckError):
        lab.ModelConfig(vocab_size="many")
    assert jaxtyping.jaxtyped is typed.checked
