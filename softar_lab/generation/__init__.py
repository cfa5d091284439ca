"""Generation is four independent choices: collapse (how), schedule (when), feedback (what goes back), window."""

from .loop import generate
from .schedule import Always, EveryK, Never, Oracle
from .trajectory import Trajectory

__all__ = ["Always", "EveryK", "Never", "Oracle", "Trajectory", "generate"]
