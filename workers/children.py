"""A supervised child process: it never outlives its supervisor, and is started again when it dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_LEASH = Path(__file__).with_name("leash.py")
_LONG_LIVED = 30.0  # seconds; one that lived so long is started again at once
_LONGEST_WAIT = 10.0
_LOG_BYTES = 8 * 1024 * 1024


class Child:
    """One program, its output in a log file, which is put aside as `….1` when it has grown."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        inherited: Sequence[int] = (),
    ) -> None:
        """`inherited`: file descriptors that the child is to keep open."""
        self.name = name
        self.restarts = 0
        self._command = list(command)
        self._log = log
        self._environment = dict(environment)
        self._inherited = tuple(inherited)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._short_lives = 0
        self._restart_at: float | None = None

    def start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._log.exists() and self._log.stat().st_size > _LOG_BYTES:
            self._log.replace(self._log.with_name(self._log.name + ".1"))
        with self._log.open("ab") as output:
            # In a session of its own: Ctrl-C reaches the supervisor alone, which then stops its children in order.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_LEASH), str(os.getpid()), *self._command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                pass_fds=self._inherited,
                start_new_session=True,
            )
        self._started = time.monotonic()
        self._restart_at = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def revive(self, died: Callable[[int], None]) -> str | None:
        """Start it again if it died, later and later where it dies young. A sentence for a person where that happens.

        `died` is told the pid of one that is found dead, once.
        """
        if self._process is None or self._process.poll() is None:
            return None
        news = None
        if self._restart_at is None:
            died(self._process.pid)
            young = time.monotonic() - self._started < _LONG_LIVED
            self._short_lives = self._short_lives + 1 if young else 0
            wait = min(_LONGEST_WAIT, 0.25 * 2**self._short_lives) if young else 0.0
            self._restart_at = time.monotonic() + wait
            again = f"in {wait:.1f} s" if wait else "now"
            news = f"The {self.name} {_ending(self._process.returncode)}; it is started again {again}. Log: {self._log}"
        if time.monotonic() >= self._restart_at:
            self._close_leash()
            self.restarts += 1
            self.start()
        return news

    def ask_to_stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self, seconds: float, at_once: Callable[[], bool] = lambda: False) -> None:
        """SIGTERM; SIGKILL where that is not enough in time, or as soon as `at_once()`."""
        if self._process is None:
            return
        self.ask_to_stop()
        end = time.monotonic() + seconds
        while self._process.poll() is None:
            if at_once() or time.monotonic() > end:
                self._process.kill()
                self._process.wait()
            time.sleep(0.02)
        self._close_leash()

    def last_words(self, lines: int = 15) -> str:
        if not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def _close_leash(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
