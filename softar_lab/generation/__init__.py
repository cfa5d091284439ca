"""Generation is four independent choices: collapse (how), schedule (when), feedback (what goes back), window."""

from .deferred import Deferred
from .liquid import Liquid
from .loop import generate, stream
from .schedule import Always, EveryK, Never, Oracle, Retro
from .trajectory import Trajectory

__all__ = ["Always", "Deferred", "EveryK", "Liquid", "Never", "Oracle", "Retro", "Trajectory", "generate", "stream"]
