"""The base class of all panels."""

import base64
import html
import io
import json
import threading
from collections.abc import Callable
from typing import Any

import ipywidgets as w
from IPython import get_ipython

# Theme colours, so that a panel is readable on a dark page; ipywidgets cuts long labels off.
STYLE = """<style>
.softar-panel { overflow: hidden; }
.softar-panel .widget-label { white-space: normal; }
.softar-question { flex-flow: column; align-items: stretch; height: auto; }
.softar-question > .widget-label { width: auto; text-align: left; line-height: 1.3; height: auto; }
.softar-question > select, .softar-question > input { width: 100%; flex: none; height: 28px; }
.softar-question.widget-slider { display: grid; grid-template-columns: 1fr auto; }
.softar-question.widget-slider > .widget-label { grid-column: 1 / 3; }
.softar-question.widget-slider > .slider-container { align-self: center; min-width: 60px; }
.softar-question > select:disabled, .softar-question > input:disabled { opacity: .45; }
.softar-note { color: var(--jp-content-font-color2, #5a606e); font-size: 12px; line-height: 1.45; }
div.softar-note.softar-error { font-size: 13px; }
.softar-error, .softar-note.softar-error { color: var(--jp-error-color1, #b00020); }
</style>"""
_made: dict[str, tuple[str, list["Panel"]]] = {}  # by cell: its latest execution, and its panels

RIVER = "application/vnd.softar.river"  # data of a river, for pages without a kernel: JSON, as one string


class Panel(w.VBox):
    """A VBox with a status line, one worker at a time, and a still picture.

    The still picture is for readers without a kernel. Where a cell of a notebook runs again, the
    panels that it made before are closed: they would take memory in the kernel and in the page.
    """

    problem = ""  # the error in the status line; "" without one
    river = None  # the River of a panel that has one

    def __init__(self):
        self.status, self.look = w.HTML(), w.HTML(STYLE)
        self._order, self._turn = (
            threading.Lock(),  # held while new work replaces the stop event
            threading.Lock(),  # held by the work that is running
        )
        self._drawing = threading.RLock()  # a slider may move while a worker draws
        self._stop = threading.Event()  # belongs to the newest work; older events are set
        self._links: list[w.Widget] = []
        super().__init__()
        self.add_class("softar-panel")
        _close_older(self)

    def _link(self, *ends: tuple[w.Widget, str]) -> None:
        """Link the first end to each other one in the browser, until the panel is freed."""
        self._links += [w.jslink(ends[0], other) for other in ends[1:]]

    def _begin(self) -> threading.Event:
        """Return the stop event of new work, and stop all older work, even if it still waits."""
        with self._order:
            self._stop.set()
            self._stop = threading.Event()
            return self._stop

    def _run(self, work: Callable[[threading.Event], None], stop: threading.Event) -> None:
        """Do `work` once older work has stopped; the status line shows an error."""
        with self._turn:
            if not stop.is_set():
                self._attempt(work, stop)

    def _attempt(self, action: Callable, *arguments: Any) -> None:
        """Call `action` and show its error in the status line: JupyterLab hides such errors."""
        try:
            action(*arguments)
        except Exception as error:
            self.say(str(error) or type(error).__name__, "error")

    def _run_in_background(self, work: Callable[[threading.Event], None]) -> threading.Thread:
        thread = threading.Thread(target=self._run, args=(work, self._begin()), daemon=True)
        thread.start()
        return thread

    def stop(self, *_: Any) -> None:
        """Ask the running work to stop; the panel displays what it has done so far."""
        self._stop.set()

    def free(self) -> None:
        """Stop the work, and close the panel and all its parts, in the kernel and in the page."""
        self.stop()
        for link in self._links:
            link.close()
        _close(self)

    def say(self, text: str, kind: str = "info") -> None:
        """Put `text` into the status line, in red where `kind` is "error"."""
        self.problem = text if kind == "error" else ""
        look, mark = ("softar-error", "⚠ ") if kind == "error" else ("", "")
        self.status.value = f'<div class="softar-note {look}">{mark}{html.escape(text)}</div>'

    def still(self):
        """Return a matplotlib figure of what the panel displays, or None."""
        return None

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return with_still(self, super()._repr_mimebundle_(**options))


def note(text: str) -> str:
    """HTML of a small line; `text` is HTML, too."""
    return f'<div class="softar-note">{text}</div>'


def with_still(widget: Any, bundle: Any) -> dict[str, Any]:
    """The mime bundle of a widget, with its `repr` as text and its still picture.

    What its river displays is there, too, so that pages without a kernel can draw it.
    """
    data = bundle[0] if isinstance(bundle, tuple) else bundle or {}
    data["text/plain"] = repr(widget)
    if (figure := widget.still()) is not None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=72)
        data["image/png"] = base64.b64encode(buffer.getvalue()).decode()
    if widget.river is not None and widget.river.trajectories:
        data[RIVER] = json.dumps(widget.river.rivers, separators=(",", ":"), ensure_ascii=False)
    return data


def _close(widget: w.Widget) -> None:
    """Close a widget with its children, its layout and its style."""
    inner = widget.children if isinstance(widget, w.Box) else ()
    styles = [getattr(widget, name) for name in ("layout", "style") if name in widget.trait_names()]
    for part in (*inner, *styles):
        if isinstance(part, w.Widget) and part.comm is not None:
            _close(part)
    widget.close()


def _close_older(panel: Panel) -> None:
    """Free the panels that earlier executions of the running cell have made."""
    cell, execution = _running_cell()
    if not cell:
        return
    before, panels = _made.get(cell, (execution, []))
    if before != execution:
        for older in panels:
            older.free()
        panels = []
    _made[cell] = execution, [*panels, panel]


def _running_cell() -> tuple[str, str]:
    """The ids of the notebook's cell that runs and of its execution; "" where there is none."""
    kernel = getattr(get_ipython(), "kernel", None)  # of IPython alone there is none
    request = kernel.get_parent("shell") if kernel else {}
    return request.get("metadata", {}).get("cellId", ""), request.get("header", {}).get(
        "msg_id", ""
    )
