"""Ctrl-C and the notebook's stop button as an event, so that no step is left half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class _BrokenOff(KeyboardInterrupt):
    """Ctrl-C within `Interruption.breaking_off`."""


class Interruption(threading.Event):
    """Ctrl-C as an event."""

    breaks_off = False

    @contextmanager
    def breaking_off(self) -> Iterator[None]:
        """End the block at once where Ctrl-C is pressed in it: for work that can be taken back."""
        with suppress(_BrokenOff):
            self.breaks_off = True
            yield
            self.breaks_off = False
        self.breaks_off = False


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Turn Ctrl-C (and the notebook's stop button) into an event: no step is left half done.

    A second Ctrl-C raises KeyboardInterrupt at once. Outside the main thread nothing is caught.
    """
    stop = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handler(signum, frame):
        if stop.is_set():  # the second time: stop now
            raise KeyboardInterrupt
        stop.set()
        if stop.breaks_off:
            raise _BrokenOff

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
