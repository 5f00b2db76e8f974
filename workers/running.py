"""What runs on a data folder: the locks that its supervisor holds, and what it tells others in `up.json`."""

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

_LOCK, _CHILDREN_LOCK, _STATE = "up.lock", "up.children.lock", "up.json"
_LEFTOVER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class State:
    """A supervisor as it describes itself. `children`: name → pid."""

    pid: int
    phase: Literal["starting", "ready", "stopping"]
    url: str
    broker: str
    started_at: float
    children: dict[str, int]


class AlreadyRunning(Exception):
    """Another supervisor holds the data folder; `state` is what it told, if it did."""

    def __init__(self, data_dir: Path, state: State | None) -> None:
        if state is None:
            who = "another process, which has not said more yet,"
        else:
            since = time.strftime("%H:%M:%S", time.localtime(state.started_at))
            who = f"process {state.pid}, {state.phase} since {since} at {state.url} (broker: {state.broker}),"
        super().__init__(f"{who} serves {data_dir} already")
        self.state = state


class StillLeaving(Exception):
    """Processes of an earlier run do not end."""


def read_state(data_dir: Path) -> State | None:
    """What the supervisor of this folder tells; None where none runs, whatever an earlier one left behind."""
    try:
        with (data_dir / _LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return last_state(data_dir)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None


def last_state(data_dir: Path) -> State | None:
    """What the present or the last supervisor told, if it was killed before it could take that back."""
    try:
        return State(**json.loads((data_dir / _STATE).read_text()))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def write_state(data_dir: Path, state: State) -> None:
    temporary = data_dir / f"{_STATE}.new"
    temporary.write_text(json.dumps(asdict(state)))
    temporary.replace(data_dir / _STATE)


def forget_state(data_dir: Path) -> None:
    (data_dir / _STATE).unlink(missing_ok=True)


@contextmanager
def held(
    data_dir: Path, say: Callable[[str], None], leftover_seconds: float = _LEFTOVER_SECONDS
) -> Iterator[int]:
    """Hold the folder for one supervisor. Gives the descriptor that every child must inherit.

    There are two locks: the supervisor's own, and one that lives as long as any child that inherited it, so that
    nothing starts beside the remains of a supervisor that was killed.
    Raises `AlreadyRunning`, `StillLeaving`.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / _LOCK).open("a") as own, (data_dir / _CHILDREN_LOCK).open("a") as shared:
        if not _taken(own, 1):  # `read_state` of another process can hold it for a moment
            raise AlreadyRunning(data_dir, last_state(data_dir))
        if not _taken(shared, 0.5):
            say("Processes of an earlier run, whose supervisor was killed, are still leaving …")
            if not _taken(shared, leftover_seconds):
                before = last_state(data_dir)
                pids = "" if before is None else f": {' '.join(map(str, before.children.values()))}"
                raise StillLeaving(f"processes of an earlier run do not end; end them by hand{pids}")
        yield shared.fileno()


def _taken(lock: IO[str], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
