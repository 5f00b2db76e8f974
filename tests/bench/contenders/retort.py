"""Retort itself, embedded (SQLite) and scaled (PostgreSQL), as a user's processes: API, worker, broker, database."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Engine, func, select, text

from app.db.migrate import upgrade
from app.db.models import Completion, Segment
from app.db.session import connect, reading
from app.domain.lifecycle import CompletionStatus
from tests.bench.contenders.base import CORE, Outcome, Task, bytes_in
from tests.bench.null_teacher import MODEL, ROOT
from tests.bench.process_tree import Meter, Used, pinned
from tests.fixtures import processes
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.service import Json, Service
from tests.fixtures.valkey import ValkeyServer

_JOB_SECONDS = 3600.0


class BenchService(Service):
    """A service whose processes are pinned and known by part."""

    def __init__(self, database_url: str, broker: ValkeyServer, folder: Path, **settings: str) -> None:
        super().__init__(database_url, broker.url, folder, settings)
        self.database_url = database_url
        self.parts: dict[str, list[int]] = {"broker": [broker.pid]}

    def start(self, workers: int = 1) -> None:
        with pinned(CORE):
            for number in range(workers):
                self._start_bench_worker(number)
            self.start_api()
        assert self.api is not None
        self.parts["API"] = [self.api.pid]
        self.parts["worker"] = [worker.pid for worker in self.workers]
        self._until_workers_beat(workers)

    def _start_bench_worker(self, number: int) -> None:
        command = [sys.executable, "-m", "tests.bench.worker", "-A", "workers.celery", "worker"]
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
        self.workers.append(
            processes.start([*command, "--loglevel", "warning"], log, environment=self.environment)
        )

    def _until_workers_beat(self, wanted: int) -> None:
        engine = connect(self.database_url)
        end = time.monotonic() + 60
        while True:
            with reading(engine) as connection:
                if connection.execute(text("SELECT count(*) FROM worker")).scalar_one() >= wanted:
                    break
            if time.monotonic() > end:
                raise RuntimeError(f"no worker within 60 s:\n{self.logs()}")
            time.sleep(0.05)
        engine.dispose()

    def register(self, base_url: str, driver: str = "openai") -> None:
        options = {"provider": "vllm"} if driver == "openai" else {}
        self.call(
            "POST",
            "/v1/teachers",
            json={"name": "bench", "driver": driver, "model": MODEL, "base_url": base_url,
                  "options": options, "license": "CC0-1.0"},
        )  # fmt: skip

    def load_prompts(self, prompts: list[str]) -> str:
        """A sealed prompt set. Returns its id."""
        made = self.call("POST", "/v1/prompt-sets", json={"name": "bench"})
        lines = b"\n".join(orjson.dumps({"prompt": prompt, "license": "CC0-1.0"}) for prompt in prompts)
        self.call(
            "POST",
            f"/v1/prompt-sets/{made['id']}/prompts",
            params={"seal": True},
            content=lines,
            headers={"Content-Type": "application/x-ndjson"},
            timeout=600,
        )
        return str(made["id"])

    def submit_job(self, prompt_set: str, task: Task) -> str:
        body = {
            "prompt_set": prompt_set,
            "teachers": ["bench"],
            "top_logprobs": task.shape.k,
            "sampling": {"temperature": 1.0, "max_tokens": task.shape.tokens, "seed": 1},
        }
        return str(self.call("POST", "/v1/jobs", json=body)["id"])

    def run_job(self, prompt_set: str, task: Task) -> tuple[Json, Used]:
        """Submit the job and wait for its end. Raises where it does not complete."""
        task.before()
        with Meter(self.parts) as meter:
            ended = self.until_ended(self.submit_job(prompt_set, task))
        began, end = (datetime.fromisoformat(ended[name]) for name in ("created_at", "ended_at"))
        used = meter.used
        return ended, Used((end - began).total_seconds(), used.cpu, used.peak, used.peak_total)

    def until_ended(self, job: str, look: float = 1.0) -> Json:
        end = time.monotonic() + _JOB_SECONDS
        wait = 0.1
        while (found := self.call("GET", f"/v1/jobs/{job}"))["status"] not in (
            "completed",
            "failed",
            "cancelled",
        ):
            if time.monotonic() > end:
                raise RuntimeError(f"the job did not end: {found}\n{self.logs()}")
            time.sleep(wait)
            wait = min(look, wait * 1.5)
        if found["status"] != "completed" or found["counts"]["failed"]:
            raise RuntimeError(f"the job failed: {found}\n{self.logs()}")
        return found


def recorded(database: Engine, job: str) -> int:
    """Completions that are really there."""
    with reading(database) as connection:
        return connection.execute(
            select(func.count()).where(
                Completion.job_id == job, Completion.status == CompletionStatus.COMPLETED
            )
        ).scalar_one()


def database_bytes(database: Engine) -> int:
    """Bytes in use: free pages do not count."""
    with reading(database) as connection:
        if database.dialect.name == "postgresql":
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.exec_driver_sql("VACUUM")
            return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())
        values = [
            int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
            for name in ("page_count", "freelist_count", "page_size")
        ]
    return (values[0] - values[1]) * values[2]


def segment_bytes(database: Engine) -> int:
    with reading(database) as connection:
        return connection.execute(select(func.coalesce(func.sum(Segment.n_bytes), 0))).scalar_one()


@dataclass
class Retort:
    """`database`: sqlite or postgresql. `flush_sleep`: a deliberate slow-down, seconds in each checkpoint."""

    name: str
    title: str
    database: str
    flush_sleep: float = 0.0
    driver: str = "openai"
    durable: bool = True
    most_rows: int | None = None
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def reads_answers_only(self) -> bool:
        return self.driver == "openai"

    def prepare(self) -> None:
        """All that it needs is in the environment of the tests."""

    def answer(self, task: Task) -> Outcome:
        with self.running(task.folder, task.in_flight) as service:
            service.register(task.base_url, self.driver)
            prompt_set = service.load_prompts(task.prompts())
            database = connect(service.database_url)
            before = database_bytes(database)
            job, used = service.run_job(prompt_set, task)
            rows = recorded(database, job["id"])
            kept = database_bytes(database) - before + bytes_in(task.folder / "storage")
            database.dispose()
        return Outcome(rows, used, kept)

    @contextmanager
    def running(self, folder: Path, in_flight: int, workers: int = 1) -> Iterator[BenchService]:
        """A fresh service over an empty database."""
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            with pinned(CORE):
                broker = stack.enter_context(ValkeyServer())
                postgres = None
                if self.database == "postgresql":
                    postgres = stack.enter_context(PostgresServer(durable=True))
            url = f"sqlite:///{folder / 'retort.db'}" if postgres is None else postgres.create("bench")
            upgrade(url)
            settings: dict[str, Any] = {
                "PYTHONPATH": str(ROOT),
                "RETORT_ENGINE__MAX_IN_FLIGHT": str(in_flight),
                "RETORT_ENGINE__POLL_SECONDS": "2",  # as a user's, not as the tests'
                "RETORT_BENCH_FLUSH_SLEEP": str(self.flush_sleep),
                **self.settings,
            }
            service = BenchService(url, broker, folder, **settings)
            if postgres is not None:
                service.parts["database"] = [postgres.pid]
            stack.callback(service.stop)
            service.start(workers)
            yield service


EMBEDDED = Retort("retort", "Retort embedded", "sqlite")
SCALED = Retort("retort-scaled", "Retort scaled", "postgresql")
COMPACT = Retort("retort-vllm", "Retort embedded, driver vllm", "sqlite", driver="vllm")
