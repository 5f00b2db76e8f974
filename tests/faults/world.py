"""A service under fault: database, broker, teacher, API and workers as processes of the test's own."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx

from app.db.migrate import upgrade
from app.db.session import connect
from app.storage.places import open_storage
from tests.fixtures import processes
from tests.fixtures.jobs import check_whole
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.service import Service
from tests.fixtures.valkey import ValkeyServer

FULL = os.environ.get("RETORT_FAULTS") == "full"
PROMPTS = int(os.environ.get("RETORT_FAULT_PROMPTS", "10000" if FULL else "600"))
LEASE = 3.0
IN_FLIGHT = 32
FLUSH_ROWS = 32
WORKERS = 2
# What a fault may cost at the most: per worker that it hits, the calls in flight and what no checkpoint holds yet.
REPEATED_PER_WORKER = IN_FLIGHT + 16 * FLUSH_ROWS


class ScriptedServer:
    """The scripted teacher on a port that it keeps over restarts."""

    def __init__(self, folder: Path, script: dict[str, Any]) -> None:
        self.port = processes.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.script = script
        self._log = folder / "teacher.log"
        self._process: Popen[bytes] | None = None
        self.samples_before = 0

    def start(self) -> None:
        command = [sys.executable, "-m", "app.teachers.scripted", "--port", str(self.port)]
        command += ["--script", json.dumps(self.script)]
        self._process = processes.start(command, self._log)
        processes.wait_until_ready(self._process, self._answers, self._log)

    def kill(self) -> None:
        self.samples_before += int(self.stats()["samples"])
        assert self._process is not None
        processes.stop(self._process, signal.SIGKILL)

    def stop(self) -> None:
        if self._process is not None:
            processes.stop(self._process, signal.SIGKILL)

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/_stats", trust_env=False).json()
        return found

    def samples(self) -> int:
        return self.samples_before + int(self.stats()["samples"])

    def change(self, **script: Any) -> None:
        self.script = {**self.script, **script}
        httpx.post(f"{self.url}/_script", json=self.script, trust_env=False).raise_for_status()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/version", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


class World:
    def __init__(self, kind: str, folder: Path, data: Path | None = None) -> None:
        self.kind = kind
        self.folder = folder
        self.postgres = PostgresServer(durable=True) if kind == "postgresql" else None
        self.broker = ValkeyServer()
        self.teacher = ScriptedServer(folder, {"tokens": 8, "delay": 0.02, "model": "scripted"})
        self._data = data or folder / "data"
        self.database_url = ""
        self.service: Service

    def __enter__(self) -> "World":
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.postgres is not None:
            self.postgres.__enter__()
            self.database_url = self.postgres.create("retort")
        else:
            self._data.mkdir(parents=True, exist_ok=True)
            self.database_url = f"sqlite:///{self._data / 'retort.db'}"
        upgrade(self.database_url)
        self.broker.__enter__()
        self.teacher.start()
        settings = {
            "RETORT_ENGINE__LEASE_SECONDS": str(LEASE),
            "RETORT_ENGINE__MAX_IN_FLIGHT": str(IN_FLIGHT),
            "RETORT_ENGINE__FLUSH_ROWS": str(FLUSH_ROWS),
            "RETORT_ENGINE__FLUSH_SECONDS": "0.1",
            "RETORT_ENGINE__POLL_SECONDS": "0.3",
            "RETORT_ENGINE__PARK_SECONDS": "1",
            "RETORT_ENGINE__BACKOFF_SECONDS": "0.1",
            "RETORT_ENGINE__DEADLINE_SECONDS": "15",
            "RETORT_ENGINE__GRACE_SECONDS": "3",
            "RETORT_ENGINE__SHARD_SIZE": "64",
            "RETORT_STORAGE__URL": str(self.folder / "storage"),
        }
        self.service = Service(self.database_url, self.broker.url, self._data, settings)
        self.service.start_api()
        self.service.call(
            "POST",
            "/v1/teachers",
            json={"name": "scripted", "driver": "openai", "model": "scripted", "base_url": f"{self.teacher.url}/v1",
                  "options": {"provider": "vllm"}, "license": "CC0-1.0"},
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.service.stop()
        self.teacher.stop()
        self.broker.__exit__(None, None, None)
        if self.postgres is not None:
            self.postgres.__exit__(None, None, None)

    # -- the job -----------------------------------------------------------------------------------------------

    def submit(self, prompts: int = PROMPTS, n: int = 1) -> str:
        rows = "".join(
            json.dumps({"prompt": f"prompt {i}", "license": "CC0-1.0"}) + "\n" for i in range(prompts)
        )
        job = self.service.submit(
            "scripted",
            rows.encode(),
            n=n,
            top_logprobs=2,
            sampling={"max_tokens": 8, "seed": 1, "temperature": 1},
        )
        return str(job["id"])

    def start_worker(self, crash: str | None = None, clock: float = 0) -> Popen[bytes]:
        """A worker; with `crash`, one that dies at that instruction, once."""
        number = len(self.service.workers)
        environment = {**self.service.environment, "RETORT_TEST_CLOCK": str(clock)}
        if crash is not None:
            environment["RETORT_TEST_CRASH"] = crash
            environment["RETORT_TEST_CRASH_MARK"] = str(self.folder / f"crash-{crash}")
        command = [sys.executable, "-m", "tests.faults.worker", "-A", "workers.celery", "worker"]
        command += [
            "--pool",
            "threads",
            "--concurrency",
            "2",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ]
        log = self._data / f"worker-{number}.log"
        made = processes.start([*command, "--loglevel", "info"], log, environment=environment)
        self.service.workers.append(made)
        return made

    def done(self, job: str) -> int:
        counts = self.service.call("GET", f"/v1/jobs/{job}")["counts"]
        return int(counts["completed"]) + int(counts["failed"])

    def wait_done(self, job: str, share: float, seconds: float = 60) -> None:
        """Until this share of the rows is recorded."""
        end = time.monotonic() + seconds
        expected = self.service.call("GET", f"/v1/jobs/{job}")["counts"]["expected"]
        while self.done(job) < share * expected:
            assert time.monotonic() < end, f"{self.done(job)} rows in {seconds} s\n{self.service.logs()}"
            time.sleep(0.05)

    def check(self, job: str, seconds: float = 120) -> dict[str, int]:
        """Wait for the end, then everything that must hold. Returns counts, and how many samples were made again."""
        ended = self.service.wait(f"/v1/jobs/{job}", seconds)
        engine = connect(self.database_url)
        counts = check_whole(engine, open_storage(str(self.folder / "storage")), job)
        engine.dispose()
        told = ended["counts"]
        assert (told["completed"], told["failed"]) == (counts["completed"], counts["failed"])
        again = self.teacher.samples() - counts["completed"]
        return {**counts, "again": again}


@contextmanager
def locked(database_url: str, seconds: float) -> Iterator[None]:
    """SQLite: nobody else may read or write for so long."""
    connection = sqlite3.connect(database_url.removeprefix("sqlite:///"), timeout=30, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    time.sleep(seconds)
    connection.execute("ROLLBACK")
    connection.close()
    yield


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own with so much room. Needs root (CI is)."""
    folder.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "tmpfs", str(folder)], check=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Use up the disk. Returns the ballast; deleting it makes room again."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return ballast


def worker_pid_of(owner: str) -> int:
    """The process of a worker's id `host:pid:nonce`."""
    host, pid, _ = owner.rsplit(":", 2)
    assert host == socket.gethostname()
    return int(pid)
