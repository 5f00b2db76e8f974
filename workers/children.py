"""Child processes that never outlive their parent, however it ends, and that are started again when they die."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_TERM = int(signal.SIGTERM)


def _die_with(parent: int) -> None:
    """In the child, before exec: on Linux the kernel sends SIGTERM when the parent is gone, a kill -9 included."""
    os.setsid()  # Ctrl-C reaches the supervisor alone; it then stops its children in order
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _TERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


class Child:
    """One supervised program, its output in a log file."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.starts = 0
        self._command = list(command)
        self._log = log
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._restart_at = 0.0

    def start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()
        linux = sys.platform == "linux"
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                preexec_fn=(lambda: _die_with(parent)) if linux else None,
                start_new_session=not linux,
            )
        self.starts += 1
        self._started = time.monotonic()
        self._restart_at = 0.0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def revive(self) -> str | None:
        """Start it again if it died, at most every few seconds where it dies at once. A sentence where it did."""
        if self._process is None or self._process.poll() is None:
            return None
        if not self._restart_at:
            lived = time.monotonic() - self._started
            self._restart_at = time.monotonic() + (
                0 if lived > 30 else min(10.0, 0.5 * 2 ** min(self.starts, 5))
            )
        if time.monotonic() < self._restart_at:
            return None
        ended = self._process.returncode
        self.start()
        return f"{self.name} ended with {ended} and was started again; its log: {self._log}"

    def stop(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL where that is not enough in time."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_words(self, lines: int = 15) -> str:
        if not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])
