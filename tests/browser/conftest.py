"""Browser tests run where playwright and a Chromium are; elsewhere they are skipped, and say
why.
"""

from functools import partial
from pathlib import Path

import pytest

SHOTS = Path(__file__).parent / "shots"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.fixture(scope="package")
def jupyter_lab():
    """The one server and browser of all browser tests; closed after them, since an open page keeps
    computing.
    """
    pytest.importorskip("playwright", reason="playwright is not installed")
    from .lab import Lab, chromium

    if chromium() is None:
        pytest.skip("there is no Chromium on this machine")
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def start_lab(jupyter_lab, request):
    """start_lab(folder of notebooks) -> the `lab.Lab` of all tests, on a copy of them; its manual
    is lab.py.
    """
    return partial(jupyter_lab.take, shots=SHOTS / request.module.__name__)
