"""What every panel has: a status line, one worker at a time, a still picture for readers without a kernel."""

import base64
import html
import io
import threading
from collections.abc import Callable
from typing import Any

import ipywidgets as w


class Panel(w.VBox):
    """A VBox with a status line, one worker at a time, and a still picture for readers without a kernel."""

    def __init__(self):
        self.status = w.HTML()
        self.problem = ""  # what the status line says went wrong
        self._order, self._turn = threading.Lock(), threading.Lock()  # to begin work; held by whoever works
        self._drawing = threading.RLock()  # a slider moves while a worker draws
        self._stop = threading.Event()  # of the newest work; older work is told to stop
        super().__init__()

    def _begin(self) -> threading.Event:
        """The stop sign of new work; what was begun before is told to stop, even where it still waits for its turn."""
        with self._order:
            self._stop.set()
            self._stop = threading.Event()
            return self._stop

    def _run(self, work: Callable[[threading.Event], None], stop: threading.Event) -> None:
        """Do `work` once older work has stopped; an error becomes the status line."""
        with self._turn:
            if not stop.is_set():
                self._attempt(work, stop)

    def _attempt(self, action: Callable, *arguments: Any) -> None:
        """Call `action`; Lab hides what a callback raises, so an error becomes the status line."""
        try:
            action(*arguments)
        except Exception as error:
            self.say(str(error) or type(error).__name__, "error")

    def _run_in_background(self, work: Callable[[threading.Event], None]) -> threading.Thread:
        thread = threading.Thread(target=self._run, args=(work, self._begin()), daemon=True)
        thread.start()
        return thread

    def stop(self, *_: Any) -> None:
        """Tell the running work to stop; what it has done so far is shown."""
        self._stop.set()

    def say(self, text: str, kind: str = "info") -> None:
        """Show a line of status; `kind` "error" in red."""
        self.problem = text if kind == "error" else ""
        colour, mark = ("#b00020", "⚠ ") if kind == "error" else ("#5a606e", "")
        self.status.value = f'<span style="color:{colour}">{mark}{html.escape(text)}</span>'

    def still(self):
        """A matplotlib figure of what the panel shows, or None."""
        return None

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**options)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        data["text/plain"] = repr(self)
        figure = self.still()
        if figure is not None:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=72)
            data["image/png"] = base64.b64encode(buffer.getvalue()).decode()
        return bundle
