"""Interactive panels; each one is a VBox whose controls can also be set from Python.

For example ``panel.collapse.value = "nearest"``. Long work runs in a worker thread with a Stop
button. The panel's status line shows errors. For readers without a kernel, every panel has a still
picture and a `__repr__` that describes its state.
"""

from .attention import AttentionExplorer
from .collapse import CollapseExplorer
from .exits import ExitExplorer
from .generation import GenerationPanel
from .memory import MemoryExplorer
from .panel import Panel
from .prompt import PromptExplorer
from .river import River
from .sums import SumExplorer
from .thoughts import ThoughtExplorer
from .tokens import TokenExplorer
from .training import TrainingMonitor
from .trajectory import TrajectoryExplorer
from .window import WindowExplorer

__all__ = [
    "AttentionExplorer",
    "CollapseExplorer",
    "ExitExplorer",
    "GenerationPanel",
    "MemoryExplorer",
    "Panel",
    "PromptExplorer",
    "River",
    "SumExplorer",
    "ThoughtExplorer",
    "TokenExplorer",
    "TrainingMonitor",
    "TrajectoryExplorer",
    "WindowExplorer",
]
