"""Generation is four independent choices: collapse (how), schedule (when), feedback (what goes
back), window.
"""

from ..core.trajectory import Trajectory
from . import controls as controls  # registers them
from .deferred import Deferred
from .generate import generate, joined, stream
from .liquid import Liquid
from .schedule import Always, EveryK, Never, Oracle, Retro

__all__ = [
    "Always",
    "Deferred",
    "EveryK",
    "Liquid",
    "Never",
    "Oracle",
    "Retro",
    "Trajectory",
    "generate",
    "joined",
    "stream",
]
