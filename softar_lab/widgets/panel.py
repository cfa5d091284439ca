"""The base class of all panels."""

import base64
import html
import io
import json
import threading
from collections.abc import Callable
from typing import Any

import ipywidgets as w

RIVER = "application/vnd.softar.river"  # data of a river, for pages without a kernel: JSON, as one string


class Panel(w.VBox):
    """A VBox with a status line, one worker at a time, and a still picture.

    The still picture is for readers without a kernel.
    """

    problem = ""  # the error in the status line; "" without one
    river = None  # the River of a panel that has one

    def __init__(self):
        self.status = w.HTML()
        self._order, self._turn = (
            threading.Lock(),  # held while new work replaces the stop event
            threading.Lock(),  # held by the work that is running
        )
        self._drawing = threading.RLock()  # a slider may move while a worker draws
        self._stop = threading.Event()  # belongs to the newest work; older events are set
        super().__init__()

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

    def say(self, text: str, kind: str = "info") -> None:
        """Put `text` into the status line, in red where `kind` is "error"."""
        self.problem = text if kind == "error" else ""
        colour, mark = ("#b00020", "⚠ ") if kind == "error" else ("#5a606e", "")
        self.status.value = f'<span style="color:{colour}">{mark}{html.escape(text)}</span>'

    def still(self):
        """Return a matplotlib figure of what the panel displays, or None."""
        return None

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return with_still(self, super()._repr_mimebundle_(**options))


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
