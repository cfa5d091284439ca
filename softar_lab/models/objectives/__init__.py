"""What the output is and how it is trained (K1, K7, K22). Each objective is one class and states its p(w | prefix).

A new one subclasses `Objective` and is decorated with ``@OBJECTIVES.register("name")``; see base.py.
"""

from . import likelihoods, regressions, densities, samplers  # noqa: F401, I001  (the order in which names are listed)
from .base import OBJECTIVES, Objective, make_objective, names
from .readouts import READOUTS, Readout, squared_distance

__all__ = ["OBJECTIVES", "READOUTS", "Objective", "Readout", "make_objective", "names", "squared_distance"]
