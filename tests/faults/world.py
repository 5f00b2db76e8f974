"""A service under fault: database, broker, teacher, API and workers as processes of the test's own."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
from sqlalchemy import Engine, func, select

from app.db.migrate import upgrade
from app.db.models import Completion, Leader, Shard, ShardAttempt
from app.db.session import connect, reading
from app.domain.lifecycle import CompletionStatus
from app.storage.places import open_storage
from app.teachers.probe import QUESTION
from tests.fixtures import processes
from tests.fixtures.brokers import Broker, FolderBroker, RabbitMQ, redis_server
from tests.fixtures.jobs import check_whole
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.service import Service
from tests.fixtures.valkey import ValkeyServer

FULL = os.environ.get("RETORT_FAULTS") == "full"
PROMPTS = int(os.environ.get("RETORT_FAULT_PROMPTS", "10000" if FULL else "400"))
SECONDS = float(os.environ.get("RETORT_FAULT_SECONDS", "300" if FULL else "15"))  # of faults at random
PATIENCE = 900.0 if FULL else 180.0
SHORT, LONG = (
    3.0,
    60.0,
)  # leases in seconds: of a worker that a fault is to hit, and of one that is not to lapse
IN_FLIGHT = 32
FLUSH_ROWS = 32
# The highest that a worker's calls in flight and unflushed samples can be together; usually they are far fewer.
MOST_LOST = IN_FLIGHT + 32 * FLUSH_ROWS + IN_FLIGHT

SETTINGS = {
    "RETORT_ENGINE__MAX_IN_FLIGHT": str(IN_FLIGHT),
    "RETORT_ENGINE__FLUSH_ROWS": str(FLUSH_ROWS),
    "RETORT_ENGINE__FLUSH_SECONDS": "0.1",
    "RETORT_ENGINE__POLL_SECONDS": "0.3",
    "RETORT_ENGINE__PARK_SECONDS": "1",
    "RETORT_ENGINE__BACKOFF_SECONDS": "0.1",
    "RETORT_ENGINE__DEADLINE_SECONDS": "15",
    "RETORT_ENGINE__GRACE_SECONDS": "5",
    "RETORT_ENGINE__SHARD_SIZE": "64",
}


class ScriptedServer:
    """The scripted teacher on a port that it keeps over restarts."""

    # Slow enough that a short job, too, is still under way when its fault comes.
    SCRIPT: dict[str, Any] = {"tokens": 8, "delay": 0.02 if FULL else 0.2, "model": "scripted"}  # noqa: RUF012

    def __init__(self, folder: Path, script: dict[str, Any] | None = None) -> None:
        self.port = processes.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.script = dict(script or self.SCRIPT)
        self._log = folder / "teacher.log"
        self._process: Popen[bytes] | None = None
        self._samples_before = 0

    def start(self) -> None:
        command = [sys.executable, "-m", "app.teachers.scripted", "--port", str(self.port)]
        command += ["--script", json.dumps(self.script)]
        self._process = processes.start(command, self._log)
        processes.wait_until_ready(self._process, self._answers, self._log)

    def kill(self) -> None:
        self._samples_before = self.samples()
        assert self._process is not None
        processes.stop(self._process, signal.SIGKILL)
        self._process = None

    def stop(self) -> None:
        if self._process is not None:
            processes.stop(self._process, signal.SIGKILL)

    @property
    def runs(self) -> bool:
        return self._process is not None

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(
            f"{self.url}/_stats", params={"prompt": QUESTION}, trust_env=False
        ).json()
        return found

    def samples(self) -> int:
        """Made for jobs since the start: what probes ask is none of theirs."""
        if self._process is None:
            return self._samples_before
        found = self.stats()
        return self._samples_before + int(found["samples"]) - int(found["samples_for_prompt"])

    def under_way(self) -> int:
        """Calls that it works on just now."""
        found = self.stats() if self._process is not None else {"running": 0, "waiting": 0}
        return int(found["running"]) + int(found["waiting"])

    def change(self, **script: Any) -> None:
        self.script = {**self.script, **script}
        httpx.post(f"{self.url}/_script", json=self.script, trust_env=False).raise_for_status()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/version", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


@dataclass(frozen=True)
class Found:
    """What a run came to. `again`: samples that the teacher made more often than they are stored."""

    prompts: int
    completed: int
    failed: int
    lost: int
    doubled: int
    again: int
    lapsed: int


class World:
    """`kind`: sqlite or postgresql. A test uses it as a context manager; what it submits is checked at its end."""

    def __init__(
        self,
        kind: str,
        folder: Path,
        data: Path | None = None,
        broker: str = "valkey",
        cluster: Path | None = None,
    ) -> None:
        """`data` and `cluster` are other folders for SQLite's file and for PostgreSQL's cluster."""
        self.kind = kind
        self.folder = folder
        self.postgres = PostgresServer(durable=True, folder=cluster) if kind == "postgresql" else None
        self.data = data or folder / "data"
        self.broker = _broker(broker, self.data)
        self.teacher = ScriptedServer(folder)
        self.database_url = ""
        self.service: Service
        self.engine: Engine
        self.jobs: list[str] = []
        self._before = (0, 0)  # samples made and rows completed when the present test began

    def __enter__(self) -> "World":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data.mkdir(parents=True, exist_ok=True)
        if self.postgres is not None:
            self.postgres.__enter__()
            self.database_url = self.postgres.create("retort")
        else:
            self.database_url = f"sqlite:///{self.data / 'retort.db'}"
        upgrade(self.database_url)
        self.engine = connect(self.database_url)
        self.broker.__enter__()
        self.teacher.start()
        settings = {**SETTINGS, "RETORT_STORAGE__URL": str(self.folder / "storage")}
        self.service = Service(self.database_url, self.broker.url, self.data, settings)
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
        self.engine.dispose()
        self.broker.__exit__(None, None, None)
        if self.postgres is not None:
            self.postgres.__exit__(None, None, None)

    # -- one world for many tests ------------------------------------------------------------------------------

    def begin(self) -> None:
        self.jobs = []
        self._before = (self.teacher.samples(), self._completed())

    def tidy(self) -> bool:
        """Bring everything back to the start. False: a job has not ended, so that another world is needed."""
        for worker in self.service.workers:
            processes.stop(worker, signal.SIGKILL)
        self.service.workers.clear()
        if not self.teacher.runs:
            self.teacher.start()
        statuses = [self.service.call("GET", f"/v1/jobs/{job}")["status"] for job in self.jobs]
        self.teacher.change(**{"faults": [], **ScriptedServer.SCRIPT})
        return all(status in ("completed", "failed", "cancelled") for status in statuses)

    # -- the job -----------------------------------------------------------------------------------------------

    def submit(self, prompts: int = PROMPTS, n: int = 1, service: Service | None = None) -> str:
        rows = "".join(
            json.dumps({"prompt": f"prompt {i}", "license": "CC0-1.0"}) + "\n" for i in range(prompts)
        )
        job = (service or self.service).submit(
            "scripted",
            rows.encode(),
            n=n,
            top_logprobs=2,
            sampling={"max_tokens": 8, "seed": 1, "temperature": 1},
        )
        self.jobs.append(str(job["id"]))
        return str(job["id"])

    def start_worker(self, crash: str | None = None, clock: float = 0, lease: float = LONG) -> Popen[bytes]:
        """A worker; with `crash`, one that dies at that instruction, once; `clock`: seconds that its own is off."""
        number = len(self.service.workers)
        environment = {
            **self.service.environment,
            "RETORT_ENGINE__LEASE_SECONDS": str(lease),
            "RETORT_TEST_CLOCK": str(clock),
        }
        if crash is not None:
            environment["RETORT_TEST_CRASH"] = crash
            environment["RETORT_TEST_CRASH_MARK"] = str(self.folder / f"crash-{crash}-{number}")
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
        log = self.folder / f"worker-{number}.log"
        made = processes.start([*command, "--loglevel", "info"], log, environment=environment)
        self.service.workers.append(made)
        return made

    def done(self, job: str) -> int:
        counts = self.service.call("GET", f"/v1/jobs/{job}")["counts"]
        return int(counts["completed"]) + int(counts["failed"])

    def wait_done(self, job: str, share: float, seconds: float = PATIENCE) -> None:
        """Until this share of the rows is recorded."""
        end = time.monotonic() + seconds
        expected = self.service.call("GET", f"/v1/jobs/{job}")["counts"]["expected"]
        while self.done(job) < share * expected:
            assert time.monotonic() < end, f"{self.done(job)} rows in {seconds} s\n{self.logs()}"
            time.sleep(0.05)

    def _completed(self) -> int:
        query = select(func.count()).where(Completion.status == CompletionStatus.COMPLETED)
        with reading(self.engine) as connection:
            return connection.execute(query).scalar_one()

    def at_risk(self) -> int:
        """Calls in flight and answers that no checkpoint holds, of all workers. Exact where they stand still."""
        samples, completed = self._before
        made = self.teacher.samples() + self.teacher.under_way() - samples
        return made - (self._completed() - completed)

    def frozen(self, workers: list[Popen[bytes]]) -> int:
        """Stop these workers (SIGSTOP) in whatever they do; what would be made again if all of them died now."""
        with self._nobody_writes():
            for worker in workers:
                worker.send_signal(signal.SIGSTOP)
            time.sleep(0.2)  # what they sent is under way
            return self.at_risk()

    @contextmanager
    def _nobody_writes(self) -> Iterator[None]:
        """SQLite has one lock for all: nobody would get on while a process stands still that holds it."""
        if self.postgres is not None:
            yield
            return
        path = self.database_url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")

    def leader_pid(self) -> int:
        with reading(self.engine) as connection:
            owner = connection.execute(select(Leader.owner).where(Leader.duty == "dispatch")).scalar_one()
        return int(owner.rsplit(":", 2)[1])

    def check(self, seconds: float = PATIENCE) -> Found:
        """Wait for the end of all jobs, then everything that must hold."""
        completed = failed = prompts = lapsed = lost = doubled = 0
        storage = open_storage(str(self.folder / "storage"))
        for job in self.jobs:
            told = self.wait(job, seconds)["counts"]
            counts = check_whole(self.engine, storage, job)
            assert (told["completed"], told["failed"]) == (counts["completed"], counts["failed"])
            assert told["remaining"] == 0
            completed += counts["completed"]
            failed += counts["failed"]
            prompts += told["expected"]
            lapsed += self._lapsed(job)
            rows, keys = self._stored(job)
            lost, doubled = lost + told["expected"] - keys, doubled + rows - keys
        again = self.teacher.samples() - self._before[0] - completed
        return Found(prompts, completed, failed, lost, doubled, again, lapsed)

    def _stored(self, job: str) -> tuple[int, int]:
        """Rows that have an outcome, and how many different samples they are."""
        mine = Completion.status.in_([CompletionStatus.COMPLETED, CompletionStatus.FAILED])
        key = select(Completion.prompt_number, Completion.teacher, Completion.sample_index, Completion.stage)
        key = key.where(Completion.job_id == job, mine)
        with reading(self.engine) as connection:
            rows = connection.execute(select(func.count()).select_from(key.subquery())).scalar_one()
            keys = connection.execute(
                select(func.count()).select_from(key.distinct().subquery())
            ).scalar_one()
        return rows, keys

    def _lapsed(self, job: str) -> int:
        """Leases of the job's shards that ran out and were taken over."""
        query = (
            select(func.count())
            .select_from(ShardAttempt)
            .join(Shard, Shard.id == ShardAttempt.shard_id)
            .where(Shard.job_id == job, ShardAttempt.outcome == "lost")
        )
        with reading(self.engine) as connection:
            return connection.execute(query).scalar_one()

    def wait_lapsed(self) -> None:
        """Until a worker has taken a shard over from another one."""
        end = time.monotonic() + PATIENCE
        while not any(self._lapsed(job) for job in self.jobs):
            assert time.monotonic() < end, f"no lease ran out\n{self.logs()}"
            time.sleep(0.1)

    def wait(self, job: str, seconds: float = PATIENCE) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while (found := self.service.call("GET", f"/v1/jobs/{job}"))["status"] not in (
            "completed",
            "failed",
            "cancelled",
        ):
            assert time.monotonic() < end, f"{job} did not end in {seconds} s: {found}\n{self.logs()}"
            time.sleep(0.1)
        return found

    def failures(self) -> str:
        """Of each job the first failed row, with its kind and its reason."""
        found = (self.service.call("GET", f"/v1/jobs/{job}/failures")["items"][:1] for job in self.jobs)
        return json.dumps(list(found), indent=1)

    def logs(self) -> str:
        return self.service.logs() + "".join(
            f"\n--- {log.name}\n{log.read_text(errors='replace')[-4000:]}"
            for log in sorted(self.folder.glob("*.log"))
        )


def _broker(name: str, data: Path) -> Broker:
    match name:
        case "valkey":
            return ValkeyServer()
        case "redis":
            return redis_server()
        case "rabbitmq":
            return RabbitMQ()
    return FolderBroker(data)


@contextmanager
def locked(database_url: str, seconds: float) -> Iterator[None]:
    """SQLite: nobody else may write for so long."""
    connection = sqlite3.connect(database_url.removeprefix("sqlite:///"), timeout=30, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    time.sleep(seconds)
    connection.execute("ROLLBACK")
    connection.close()
    yield


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own with so much room. Needs root (CI is)."""
    folder.mkdir(parents=True, exist_ok=True)
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
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return ballast
