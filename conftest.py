"""What every test run shares: nbval compares all outputs but pictures, and one processor thread is used.

A second thread gains these small models little, and where the machine is busy it makes them several times slower:
each of their many small steps then waits until both threads have had their turn.
"""

import os
from collections import Counter

# Read when torch is loaded, here and in the kernels of the notebooks.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CEILING = 600  # seconds that a kernel may take to hand over its outputs, on a very busy machine

# Their ids are drawn at random, or they hold digits; a picture is never the evidence.
PICTURES = ("image/svg+xml", "application/vnd.plotly.v1+json", "application/vnd.softar.river")


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):  # nbval's collector of one notebook
        collector.skip_compare += PICTURES


def pytest_itemcollected(item):
    if hasattr(item, "output_timeout"):  # nbval's cell; it has no option for this one
        item.output_timeout = CEILING


def pytest_collection_modifyitems(items):
    """Begin with what takes long, so that no worker is left alone with it: notebooks, browser, files
    with slow tests, files of many tests.
    """
    tests = Counter(item.path for item in items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def late(item):
        kind = item.path.suffix != ".ipynb", "browser" not in item.path.parts, item.path not in slow
        return *kind, -tests[item.path]

    items.sort(key=late)  # stable: a file's tests stay together and in order
