#!/usr/bin/env bash
# jaxtyping 0.3.11 with beartype 0.23.1: a function decorated with @jaxtyped(typechecker=beartype) checks every argument twice in
# a call that goes well, and binds the call to the signature each time; beartype alone checks it once. (The first check
# is of the arguments apart, so that an error can say which one was wrong.) One would expect one check per argument, and
# the price of beartype. In code of many small calls on small arrays it is most of the time: a test suite that puts
# this decorator on a package (pytest --jaxtyping-packages) spent more than half of its time there.
#
# Needs about half a minute. Exit code 1 if the behaviour is another one.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q jaxtyping==0.3.11 beartype==0.23.1 numpy==2.3.5
cat >"$place/count.py" <<'PY'
from timeit import timeit

from beartype import beartype
from jaxtyping import jaxtyped


class Counting(type):
    checks = 0

    def __instancecheck__(cls, value):
        Counting.checks += 1
        return isinstance(value, int)


class Number(metaclass=Counting):
    pass


def plain(x: Number) -> str:
    return "done"


def checks(function) -> int:
    Counting.checks = 0
    assert function(3) == "done"
    return Counting.checks


alone, both = beartype(plain), jaxtyped(plain, typechecker=beartype)
print("checks of the argument in one call: beartype", checks(alone), "jaxtyped", checks(both))
costs = [min(timeit(lambda: f(3), number=20_000) for _ in range(5)) for f in (alone, both)]
print("a call of jaxtyped costs more than twice one of beartype:", costs[1] > 2 * costs[0])
PY
"$place/venv/bin/python" "$place/count.py" | tee "$place/out"
grep -q 'beartype 1 jaxtyped 2' "$place/out" && grep -q 'than twice one of beartype: True' "$place/out"
