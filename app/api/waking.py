"""Wake-ups are sent from a thread of their own: a broker that is away costs a request nothing."""

import threading

from app.services.ports import Wake


class Waker:
    """A `Wake` that returns at once. Equal wake-ups that wait are sent once."""

    def __init__(self, wake: Wake) -> None:
        self._wake = wake
        self._waiting: set[str | None] = set()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def __call__(self, teacher: str | None) -> None:
        with self._changed:
            self._waiting.add(teacher)
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name="wake-ups", daemon=True)
                self._thread.start()
            self._changed.notify()

    def stop(self, seconds: float = 2) -> None:
        """Send what waits, unless that takes longer."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                waiting, self._waiting = self._waiting, set()
            for teacher in waiting:
                self._wake(teacher)
            if self._stopped and not self._waiting:
                return
