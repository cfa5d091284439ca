"""What every test run shares: nbval compares all outputs but pictures, and one processor thread is used.

A second thread gains these small models little, and where the machine is busy it makes them several times slower:
each of their many small steps then waits until both threads have had their turn.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded, here and in the notebooks' kernels

PICTURES = ("image/svg+xml", "application/vnd.plotly.v1+json")  # ids drawn at random; never the evidence


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):  # nbval's collector of one notebook
        collector.skip_compare += PICTURES
