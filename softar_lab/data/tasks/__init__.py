"""Tasks that are solved in steps, of which everything is known: states, optimum, floors."""

from . import counting, graphs, sums  # noqa: F401  (they register their tasks)
from .task import TASKS, Split, Task, load_task

__all__ = ["TASKS", "Split", "Task", "load_task"]
