"""Becomes a program that dies with its parent, however the parent ends: `python -I -S leash.py PARENT PROGRAM …`.

On Linux the kernel is asked to kill it, and this process turns into the program. Elsewhere this process stays and
watches its standard input, a pipe that only the parent writes to: its end means that the parent is gone. SIGKILL is
meant: nobody is left to wait for a drain, and killing any process loses nothing that was committed.
Standard library only, so that it starts in milliseconds.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import NoReturn

_PR_SET_PDEATHSIG = 1


def _become(parent: int, command: list[str]) -> NoReturn:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel knew of our wish
        sys.exit("the parent is gone")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.execv(command[0], command)


def _watch(command: list[str]) -> int:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=False)

    def pass_on(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    def kill_at_end() -> None:
        while os.read(0, 1):
            pass
        child.kill()

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    threading.Thread(target=kill_at_end, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    if sys.platform == "linux":
        _become(int(sys.argv[1]), sys.argv[2:])
    ended = _watch(sys.argv[2:])
    sys.exit(ended if ended >= 0 else 128 - ended)
