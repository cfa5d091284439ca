"""Objectives: what the model's output is and how it is trained (K1, K7, K22).

Each objective is one class and defines its p(w | prefix). To add one, subclass `Objective` and
decorate the class with ``@OBJECTIVES.register("name")``; see base.py.
"""

# The names of the objectives are listed in the order of these imports.
from . import likelihoods, regressions, densities, samplers  # noqa: F401, I001
from .base import OBJECTIVES, Objective, make_objective, names
from .readouts import READOUTS, Readout, squared_distance

__all__ = [
    "OBJECTIVES",
    "READOUTS",
    "Objective",
    "Readout",
    "make_objective",
    "names",
    "squared_distance",
]
