"""The service that the demo works with: the one that runs already, or one of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from app.cli.outcome import CommandFailed, Exit
from app.settings import Settings
from workers.running import State, read_state

_STOP_SECONDS = 60.0


@contextmanager
def running_service(settings: Settings, keep: bool, console: Console) -> Iterator[str]:
    """Gives the service's URL. One that was started here is stopped at the end, unless `keep`.

    It is on a leash, a pipe: it drains when this process is gone, however that ends. Raises `CommandFailed`.
    """
    data_dir = settings.data_dir
    found = read_state(data_dir)
    while found is not None and found.phase == "stopping":
        time.sleep(0.1)
        found = read_state(data_dir)
    if found is not None:
        state = _ready(data_dir, None, console)
        console.print(f"[bold]Service[/]   runs already at {state.url}")
        yield state.url
        return
    process = _start(settings, keep)
    try:
        state = _ready(data_dir, process, console)
        console.print(f"[bold]Service[/]   started at {state.url}: API, worker, SQLite")
        console.print(f"          broker: {state.broker}", soft_wrap=True, markup=False)
        yield state.url
    except BaseException:
        _stop(process, console)
        raise
    if not keep:
        _stop(process, console)


def _start(settings: Settings, keep: bool) -> "subprocess.Popen[bytes]":
    log = _log(settings.data_dir)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if _taken(settings):
        environment["RETORT_PORT"] = "0"
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "workers.embedded", *([] if keep else ["--leashed"])],
            stdin=subprocess.DEVNULL if keep else subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )


def _taken(settings: Settings) -> bool:
    """Whether another program listens where the service would: then any free port does."""
    try:
        socket.create_server((settings.host, settings.port)).close()
    except OSError:
        return True
    return False


def _ready(data_dir: Path, process: "subprocess.Popen[bytes] | None", console: Console) -> State:
    with console.status("Starting the service …"):
        while True:
            state = read_state(data_dir)
            if state is not None and state.phase == "ready":
                return state
            if process is not None and process.poll() is not None:
                said = _log(data_dir).read_text(errors="replace").strip()
                raise CommandFailed(f"the service did not start:\n{said}", Exit.FAILED, "not-started")
            if process is None and state is None:
                raise CommandFailed("the service went away: run the demo again", Exit.FAILED, "not-started")
            time.sleep(0.1)


def _stop(process: "subprocess.Popen[bytes]", console: Console) -> None:
    """Drain. Another Ctrl-C does not wait for the calls in flight; nothing that was recorded is lost by that."""
    process.terminate()
    end = time.monotonic() + _STOP_SECONDS
    asked = 1
    with console.status("Stopping the service …"):
        while process.poll() is None:
            try:
                if time.monotonic() > end:
                    process.kill()
                time.sleep(0.05)
            except KeyboardInterrupt:
                asked += 1
                if asked == 2:
                    process.terminate()
                else:
                    process.kill()


def _log(data_dir: Path) -> Path:
    return data_dir / "logs" / "up.log"
