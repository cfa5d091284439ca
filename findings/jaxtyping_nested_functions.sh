#!/usr/bin/env bash
# jaxtyping 0.3.11 with beartype 0.23.1: the import hook (and pytest's --jaxtyping-packages) decorates nested functions,
# too, and it does so whenever the outer function runs. beartype writes and compiles a checker for each of them, about a
# millisecond a time, whatever the nested function does. A closure in a function that is called often (a piece of work
# for a thread pool, a sampler made at every step) makes a test suite several times slower, and no profile of the code
# outside the tests shows it. A lambda, functools.partial or a module-level function costs nothing of the kind.
#
# Seen: 20 calls of a function with one annotated closure 11.7 ms, of the same one with a lambda 0.08 ms: 148 times.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "jaxtyping==0.3.11" "beartype==0.23.1" "numpy<3"
mkdir "$folder/checked"
cat > "$folder/checked/__init__.py" <<'PY'
def with_closure(n: int) -> int:
    def add(m: int) -> int:
        return n + m

    return add(1)


def with_lambda(n: int) -> int:
    add = lambda m: n + m
    return add(1)
PY
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import time

from jaxtyping import install_import_hook

with install_import_hook("checked", "beartype.beartype"):
    import checked


def seconds(function):
    function(1)
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(20):
            function(1)
        best = min(best, time.perf_counter() - begin)
    return best


closure, plain = seconds(checked.with_closure), seconds(checked.with_lambda)
print(f"20 calls: with an annotated closure {1e3 * closure:.1f} ms, with a lambda {1e3 * plain:.2f} ms, {closure / plain:.0f} times")
assert closure > 10 * plain, "nested functions are no longer decorated anew at every call"
PY
