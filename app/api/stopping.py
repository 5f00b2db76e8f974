"""Streams without an end must end when the server is told to stop: it waits for every open answer first.

The server's own signal handlers are in place when the app starts; ours notes the signal and hands it on.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Whether this process was told to stop."""

    def __init__(self) -> None:
        self._told = threading.Event()

    def __call__(self) -> bool:
        return self._told.is_set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within this block a signal is noted. Outside the main thread there are no signals, and nothing to do."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, self._noting(handler))
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _noting(
        self, handler: Callable[[int, FrameType | None], object]
    ) -> Callable[[int, FrameType | None], None]:
        def note(number: int, frame: FrameType | None) -> None:
            self._told.set()
            handler(number, frame)

        return note
