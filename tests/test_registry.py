"""Names, specs with arguments and instances mean the same; every other spec is refused with the
known names.
"""

import re
from dataclasses import dataclass

import pytest

from softar_lab.core.registry import Registry
from softar_lab.generation.schedule import SCHEDULES

SHAPES = Registry("shape")


@SHAPES.register("circle")
@dataclass(frozen=True)
class Circle:
    radius: float = 1.0

    def __post_init__(self):
        if self.radius <= 0:
            raise ValueError(f"radius must be above 0, not {self.radius}")

    def __call__(self):
        return self.radius


@SHAPES.register("box")
@dataclass(frozen=True)
class Box:
    width: int = 1
    colour: str = "red"

    def __call__(self):
        return self.width


@SHAPES.register("point")
def point():
    return 0


def test_names_are_in_the_order_of_registration():
    assert SHAPES.names() == ["circle", "box", "point"]


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        ("circle", Circle()),
        (" circle ( ) ", Circle()),
        ("circle(2.5)", Circle(2.5)),
        ("circle(radius=2.5)", Circle(2.5)),
        ("box(3, colour='a)b,(c')", Box(3, "a)b,(c")),
        ("box(\n  3,\n)", Box(3)),
        (Circle(7.0), Circle(7.0)),
        ("point", point),
        ("point()", point),
        (point, point),
    ],
)
def test_resolve_takes_names_arguments_and_instances(spec, meant):
    assert SHAPES.resolve(spec) == meant


@pytest.mark.parametrize("strategy", [Circle(), Circle(0.1), Box(3, 'it\'s "blue"'), point])
def test_spec_and_resolve_are_inverse(strategy):
    assert SHAPES.resolve(SHAPES.spec(strategy)) == strategy


@pytest.mark.parametrize(
    ("strategy", "spec"),
    [
        (Circle(), "circle(1.0)"),
        (Circle(2.5), "circle(2.5)"),
        (Box(), "box(width=1, colour='red')"),
        (Box(3), "box(width=3, colour='red')"),
        (Box(Circle(), "blue"), "box(width=<Circle>, colour='blue')"),
        (point, "point"),
    ],
)
def test_spec_holds_every_parameter(strategy, spec):
    assert SHAPES.spec(strategy) == spec


class Holder:
    """Made with two arguments of its own; what comes behind a star is nobody's setting."""

    def __init__(self, size, rows, rate: float = 0.5, kind: str = "sum", *, out: int | None = None):
        self.rate = rate


def test_complete_writes_out_every_parameter():
    holders = Registry("holder")
    holders.register("holder")(Holder)
    assert holders.complete("holder", 1, 2) == "holder(rate=0.5, kind='sum')"
    assert holders.complete("holder(kind='ema')", 1, 2) == "holder(rate=0.5, kind='ema')"
    assert SHAPES.complete("circle") == "circle(1.0)"
    assert SHAPES.complete(SHAPES.spec(Box())) == SHAPES.spec(Box())
    assert SHAPES.complete("point") == "point"
    with pytest.raises(ValueError, match=r"holder 'holder\(speed=1\)'"):
        holders.complete("holder(speed=1)", 1, 2)


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        ("circle(1.0)", "circle"),
        ("circle(2.5)", "circle(2.5)"),
        ("box(width=1, colour='blue')", "box(colour='blue')"),
        ("point", "point"),
        ("box(width=<Circle>, colour='red')", "box(width=<Circle>, colour='red')"),
        ("whatever", "whatever"),
    ],
)
def test_short_leaves_out_defaults_and_what_it_does_not_know_as_it_is(spec, label):
    assert SHAPES.short(spec) == label


def test_spec_of_what_is_not_registered_is_its_name():
    assert SHAPES.spec(len) == "len"


@pytest.mark.parametrize("spec", ["triangle", "", "(3)", "Circle", "triangle(3)", "circle2"])
def test_resolve_unknown_name_lists_the_known_ones(spec):
    with pytest.raises(ValueError, match=r"unknown shape .*; known: circle, box, point"):
        SHAPES.resolve(spec)


UNREADABLE = """
circle(     | circle(1         | circle)         | circle(1) + box(2) | circle(1)(2)  | circle(1))   | circle 1
circle(-1)  | circle(1, 2)     | circle(side=1)  | circle('a')        | circle(radius)| circle(*[1]) | circle(**{})
circle(\0)  | circle(getcwd()) | circle(1 or 2)  | point(3)
"""


@pytest.mark.parametrize(
    "spec", [*re.split(r" *[|\n] *", UNREADABLE.strip()), None, 3, ["circle"], Circle]
)
def test_resolve_refuses_what_it_cannot_read(spec):
    with pytest.raises(ValueError, match="shape"):
        SHAPES.resolve(spec)


def test_resolve_runs_no_code(tmp_path):
    with pytest.raises(ValueError, match="shape"):
        SHAPES.resolve(f"circle(open({str(tmp_path / 'made')!r}, 'w'))")
    assert not list(tmp_path.iterdir())


def test_get_returns_the_member_itself():
    assert SHAPES.get("circle") is Circle
    with pytest.raises(ValueError, match="known: circle"):
        SHAPES.get("triangle")


def test_a_name_is_taken_once_and_may_be_defined_again():
    names = Registry("shape")

    def define():
        @names.register("point")
        def point():
            return 1

        return point

    define()
    again = define()  # a cell of a notebook, run again
    assert names.get("point") is again
    with pytest.raises(ValueError, match=r"shape 'point' is there already \(.*define.*point\)"):

        @names.register("point")
        def another():
            return 2

    assert names.get("point") is again


@pytest.mark.parametrize(
    "spec", ["oracle(0.1, None, <SoftAR>)", "oracle(<SoftAR>)", "oracle(above=0.1, truth=<SoftAR>)"]
)
def test_an_object_that_no_string_can_say_is_refused_wherever_it_stands(spec):
    with pytest.raises(ValueError, match="<SoftAR> stands for an object .*give it as an instance"):
        SCHEDULES.resolve(spec)


@pytest.mark.parametrize("spec", [5, None, 1.5, object()])
def test_what_is_no_name_is_refused(spec):
    with pytest.raises(ValueError, match="a schedule is"):
        SCHEDULES.resolve(spec)
