"""Panels to play with. Each is a VBox whose controls can be set from Python too: ``panel.collapse.value = "nearest"``.

Long work runs in a worker thread with a Stop button; what goes wrong is said in the panel's status line. Every panel
carries a still picture and a `__repr__` that tells its state, for readers without a kernel.
"""

from .attention import AttentionExplorer
from .collapse import CollapseExplorer
from .generation import GenerationPanel
from .panel import Panel
from .sums import SumExplorer
from .tokens import TokenExplorer
from .training import TrainingMonitor
from .trajectory import TrajectoryExplorer
from .window import WindowExplorer

__all__ = [
    "AttentionExplorer",
    "CollapseExplorer",
    "GenerationPanel",
    "Panel",
    "SumExplorer",
    "TokenExplorer",
    "TrainingMonitor",
    "TrajectoryExplorer",
    "WindowExplorer",
]
