"""Browser tests run where playwright and a Chromium are; elsewhere they are skipped, and say why."""

from contextlib import ExitStack
from pathlib import Path

import pytest

SHOTS = Path(__file__).parent / "shots"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.fixture(scope="module")
def start_lab(request):
    """start_lab(folder of notebooks) -> a running `lab.Lab`, closed with the module; its manual is lab.py."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    from .lab import Lab, chromium

    if chromium() is None:
        pytest.skip("there is no Chromium on this machine")
    with ExitStack() as stack:
        shots = SHOTS / request.module.__name__
        yield lambda notebooks: stack.enter_context(Lab(notebooks, shots))
