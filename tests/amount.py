"""How many cases are generated: SOFTAR_CASES, where it is given.

It is about the number that all tests of a file try together; the oracles count as one file. `make
robust` raises it.
"""

import os


def total(usual: int) -> int:
    """How many cases a file tries; `usual`: where nobody asks for more."""
    return int(os.environ.get("SOFTAR_CASES", usual))


def per_test(usual: int, tests: float) -> int:
    """How many cases each of so many tests tries.

    Args:
        usual: where nobody asks for more.
        tests: how many tests share the cases; one that tries only a part of them counts as that.
    """
    return max(1, round(total(round(usual * tests)) / tests))
