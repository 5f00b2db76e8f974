"""`retort up` as a process of its own, on a data folder of the test's own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.faults.world import ScriptedServer
from tests.fixtures import processes
from workers.running import State, read_state

PATIENCE = 120.0  # seconds, on a machine that does much else


def until(found: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.05)


class Up:
    """One run of the embedded profile."""

    def __init__(self, data_dir: Path, port: int, words: Sequence[str], settings: Mapping[str, str]) -> None:
        self.data_dir = data_dir
        self.port = port
        self.log = data_dir.with_name(f"{data_dir.name}.log")
        self.environment = {
            **os.environ,
            "RETORT_DATA_DIR": str(data_dir),
            "RETORT_PORT": str(port),
            "RETORT_ENGINE__POLL_SECONDS": "0.5",
            "RETORT_ENGINE__GRACE_SECONDS": "5",
            **settings,
        }
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=Path(__file__).parents[3],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def state(self) -> State | None:
        return read_state(self.data_dir)

    def await_ready(self) -> State:
        until(lambda: self._phase() == "ready" or self.process.poll() is not None, f"ready\n{self.said}")
        state = self.state
        assert state is not None, self.said
        assert state.phase == "ready", self.said
        return state

    def _phase(self) -> str | None:
        state = self.state
        return None if state is None or state.pid != self.process.pid else state.phase

    def child(self, name: str) -> int:
        state = self.state
        assert state is not None, self.said
        return state.children[name]

    def api(self) -> httpx.Client:
        key = (self.data_dir / "admin.key").read_text().strip()
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {key}"},
            timeout=PATIENCE,
            trust_env=False,
        )

    def ended(self) -> int:
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """Whatever is left of it is killed; the leash does the rest."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextmanager
def up(data_dir: Path, port: int, *words: str, **settings: str) -> Iterator[Up]:
    run = Up(data_dir, port, words or ("-m", "app.cli", "up"), settings)
    try:
        yield run
    finally:
        run.close()


def alive(pids: list[int]) -> list[int]:
    return [
        pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def teacher(tmp_path: Path) -> Iterator[ScriptedServer]:
    made = ScriptedServer(tmp_path, {"tokens": 4})
    made.start()
    yield made
    made.stop()


def submit(api: httpx.Client, teacher_url: str, count: int) -> dict[str, Any]:
    """A job of `count` prompts for the scripted teacher."""

    def made(path: str, **body: Any) -> dict[str, Any]:
        answer = api.post(path, json=body)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    if api.get("/v1/teachers/t").status_code == 404:
        made("/v1/teachers", name="t", driver="openai", model="scripted", base_url=f"{teacher_url}/v1")
    prompts = made("/v1/prompt-sets", name="prompts")["id"]
    made(f"/v1/prompt-sets/{prompts}/prompts?seal=true", prompts=[f"prompt {i}" for i in range(count)])
    return made("/v1/jobs", prompt_set=prompts, teachers=["t"])


def counts(api: httpx.Client, job: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/v1/jobs/{job}").json()
    return {**found["counts"], "status": found["status"]}


@pytest.fixture
def port() -> int:
    return processes.free_port()
