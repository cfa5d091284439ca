"""Picture: a plotly figure that the browser draws from its state.

plotly's own FigureWidget sends changes as messages. A browser that needs more than two seconds to
load plotly loses them (`findings/anywidget_two_seconds.sh`), and its picture stays empty for good.
A state is not lost: whoever comes late reads it as it is.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as w
import plotly.graph_objects as go
import traitlets
from plotly.offline import get_plotlyjs, get_plotlyjs_version


@cache
def _library() -> w.HTML:
    """plotly.js (5 MB), sent to a page once and shared by all its pictures; never displayed."""
    return w.HTML(get_plotlyjs())


class Picture(anywidget.AnyWidget):
    """A plotly figure on a page: change `figure`, then call `draw()`.

    Only visible traces are sent: the empty 3-D scene of an invisible trace would lie over a plane
    and catch the pointer.

    Args:
        figure: the figure to draw, as it is now.
    """

    _esm = Path(__file__).with_suffix(".js")
    library = traitlets.Instance(w.HTML).tag(sync=True, **w.widget_serialization)
    version = traitlets.Unicode(get_plotlyjs_version()).tag(sync=True)
    traces = traitlets.List().tag(sync=True)
    figure_layout = traitlets.Dict().tag(sync=True)

    def __init__(self, figure: go.Figure):
        self.figure = figure
        super().__init__(library=_library(), **self._state())

    def _state(self) -> dict[str, Any]:
        state = json.loads(self.figure.to_json())  # as JSON has it: a NaN is null
        shown = [trace for trace in state["data"] if trace.get("visible", True)]
        return {"traces": shown, "figure_layout": state["layout"]}

    def draw(self) -> None:
        """Send what changed in the figure since the last call."""
        state = self._state()
        with self.hold_sync():
            self.traces, self.figure_layout = state["traces"], state["figure_layout"]

    def on_point_click(self, handler: Callable[[dict[str, Any]], None]) -> None:
        """Call `handler` with {"trace", "x", "y"} of each point or cell that is clicked."""
        self.on_msg(lambda _, content, __: handler(content["clicked"]))
