"""CPU and memory of a process and all that it started, from /proc; and on which cores it runs. Linux only."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def pinned(cores: set[int] | None) -> Iterator[None]:
    """What is started inside runs on these cores only; None: on any."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class _Stat:
    parent: int
    ticks: int  # user and system time, of this process and of its children that ended and were waited for


def _stat(pid: int) -> _Stat | None:
    """None: the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before may hold spaces and brackets
    return _Stat(int(fields[1]), sum(map(int, fields[11:15])))


def _numbers() -> list[str]:
    return [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]


def tree(roots: Sequence[int]) -> dict[int, int]:
    """Clock ticks of each living process among `roots` and their descendants."""
    found = {int(name): stat for name in _numbers() if (stat := _stat(int(name)))}
    children: dict[int, list[int]] = {}
    for pid, stat in found.items():
        children.setdefault(stat.parent, []).append(pid)
    wanted, waiting = {}, [pid for pid in roots if pid in found]
    while waiting:
        pid = waiting.pop()
        if pid not in wanted:
            wanted[pid] = found[pid].ticks
            waiting += children.get(pid, [])
    return wanted


def cpu_seconds(roots: Sequence[int]) -> float:
    """User and system seconds that the trees have used so far, processes that ended inside them included.

    A resolution of a hundredth of a second. Take the difference of two calls. A process that ends unwaited for, or is
    adopted by init, is lost: what the contenders start does neither.
    """
    return sum(tree(roots).values()) / _TICKS


def resident_bytes(roots: Sequence[int]) -> int:
    """Memory of the trees now: the proportional set size, so that shared pages count once."""
    return sum(_proportional(pid) for pid in tree(roots))


def _proportional(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass
    return 0


class PeakMemory:
    """Samples the memory of trees in a thread: `with PeakMemory({"worker": pids}) as peak: …; peak.bytes`."""

    def __init__(self, parts: Callable[[], dict[str, list[int]]], every: float = 0.25) -> None:
        self.bytes: dict[str, int] = {}
        self.total = 0
        self._parts = parts
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _look(self) -> None:
        now = {name: resident_bytes(pids) for name, pids in self._parts().items()}
        for name, size in now.items():
            self.bytes[name] = max(size, self.bytes.get(name, 0))
        self.total = max(self.total, sum(now.values()))

    def _watch(self) -> None:
        while not self._over.wait(self._every):
            self._look()


@dataclass(frozen=True, slots=True)
class Used:
    """What a span of time cost: seconds by the clock, CPU-seconds by part, peak bytes by part and of all at once."""

    wall: float
    cpu: dict[str, float]
    peak: dict[str, int]
    peak_total: int


class Meter:
    """Measures a span: `with Meter(parts) as meter: …; meter.used`. `parts`: name → pids of its roots."""

    used: Used

    def __init__(self, parts: dict[str, list[int]]) -> None:
        self._parts = parts
        self._memory = PeakMemory(lambda: parts)

    def __enter__(self) -> "Meter":
        self._memory.__enter__()
        self._before = {name: cpu_seconds(pids) for name, pids in self._parts.items()}
        self._started = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        wall = time.monotonic() - self._started
        cpu = {name: cpu_seconds(pids) - self._before[name] for name, pids in self._parts.items()}
        self._memory.__exit__()
        self.used = Used(wall, cpu, dict(self._memory.bytes), self._memory.total)
