"""Children on a leash, the locks of a data folder, and the broker that is chosen."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from tests.integration.embedded.conftest import alive, until
from workers.broker import socket_path, start_broker
from workers.children import Child
from workers.running import AlreadyRunning, State, StillLeaving, held, last_state, read_state, write_state

FOR_EVER = "import time\nprint('here', flush=True)\ntime.sleep(600)"
STATE = State(
    pid=1, phase="ready", url="http://127.0.0.1:1", broker="none", started_at=0.0, children={"worker": 2}
)


def child(tmp_path: Path, program: str) -> Child:
    return Child("worker", [sys.executable, "-c", program], tmp_path / "worker.log", os.environ)


def test_a_child_is_started_again_later_and_later_and_told_of_once(tmp_path: Path) -> None:
    died: list[int] = []
    made = child(tmp_path, "raise SystemExit(3)")
    made.start()
    waits = []
    for _ in range(3):
        until(lambda: not made.running, "it ends")
        news = made.revive(died.append)
        assert news is not None
        assert "ended with exit code 3; it is started again in" in news
        waits.append(float(news.split("again in ")[1].split(" s")[0]))
        assert made.revive(died.append) is None or made.running, "the news are told once"
        until(
            lambda: made.revive(died.append) is None and made.restarts > len(waits) - 1, "it is started again"
        )
    assert waits == [0.5, 1.0, 2.0]
    assert len(died) == 3
    made.stop(1)


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    made = child(tmp_path, "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOR_EVER)
    made.start()
    until(lambda: "here" in made.last_words(), "it is there")
    began = time.monotonic()
    made.stop(0.3)
    assert not made.running
    assert time.monotonic() - began < 60
    other = child(tmp_path, "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOR_EVER)
    other.start()
    other.stop(600, at_once=lambda: True)
    assert not other.running


def test_a_child_dies_with_its_parent_and_is_not_reached_by_ctrl_c(tmp_path: Path) -> None:
    program = f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from pathlib import Path
from workers.children import Child
made = Child("worker", [sys.executable, "-c", {FOR_EVER!r}], Path({str(tmp_path / "child.log")!r}), os.environ)
made.start()
print(made.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        until(lambda: "here" in (tmp_path / "child.log").read_text(), "the child runs")
        assert os.getsid(pid) == pid
        parent.send_signal(signal.SIGKILL)
    until(lambda: alive([pid]) == [], "the child's end")


def test_a_log_that_has_grown_is_put_aside(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_bytes(b"x" * (9 << 20))
    made = child(tmp_path, "print('new')")
    made.start()
    until(lambda: not made.running, "it ends")
    assert log.read_text() == "new\n"
    assert (tmp_path / "worker.log.1").stat().st_size == 9 << 20
    made.stop(1)


def test_one_supervisor_holds_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert read_state(folder) is None
    with held(folder, lambda text: None):
        write_state(folder, STATE)
        assert read_state(folder) == STATE
        with pytest.raises(AlreadyRunning, match="process 1, ready since"), held(folder, lambda text: None):
            pass
    assert read_state(folder) is None, "what a dead supervisor told is not believed"
    assert last_state(folder) == STATE, "but it tells whose leases to free"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', '{"pid": 1, "more": 2}'])
def test_a_state_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "up.json").write_text(content)
    assert last_state(tmp_path) is None


def test_nothing_starts_beside_the_remains_of_a_killed_supervisor(tmp_path: Path) -> None:
    said: list[str] = []
    with held(tmp_path, said.append) as inherited:
        remains = subprocess.Popen(
            [sys.executable, "-c", FOR_EVER], stdout=subprocess.DEVNULL, pass_fds=[inherited]
        )
        write_state(tmp_path, STATE)
    try:
        with (
            pytest.raises(StillLeaving, match="end them by hand: 2"),
            held(tmp_path, said.append, leftover_seconds=0.5),
        ):
            pass
        assert "still leaving" in said[0]
    finally:
        remains.kill()
        remains.wait()
    with held(tmp_path, said.append):
        pass


def test_the_broker_is_private(tmp_path: Path) -> None:
    broker = start_broker(tmp_path, tmp_path / "logs")
    assert broker.child is not None
    try:
        socket = Path(broker.url.removeprefix("redis+socket://"))
        assert socket.stat().st_mode & 0o777 == 0o700
        with redis.Redis(unix_socket_path=str(socket)) as client:
            assert client.config_get("save")["save"] == ""
            assert client.config_get("port")["port"] == "0"
    finally:
        broker.child.stop(5)


@pytest.mark.parametrize("name", ["a folder with spaces", "é", "x" * 120])
def test_a_folder_that_no_socket_can_lie_in(tmp_path: Path, name: str) -> None:
    socket = socket_path(tmp_path / name)
    assert not socket.is_relative_to(tmp_path)
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    assert socket_path(tmp_path / name) == socket, "the next start finds the same"
    socket.parent.chmod(0o755)
    with pytest.raises(PermissionError, match="not private"):
        socket_path(tmp_path / name)
    socket.parent.rmdir()


def test_files_where_no_server_starts(tmp_path: Path) -> None:
    folder = tmp_path / "absent"  # no server can work in it
    broker = start_broker(folder, tmp_path / "logs")
    assert broker.child is None
    assert broker.url == "filesystem://"
    assert "did not start: Valkey" in broker.title
