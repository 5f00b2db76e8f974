"""An engine in a thread of the test's process, and waiting for what it does."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from app.services.generate.config import EngineConfig, RetryPolicy
from app.services.generate.engine import GenerationEngine
from app.services.generate.replicas import BuildTeacher
from app.storage.places import Storage
from app.teachers.base import Teacher, TeacherSpec
from tests.fixtures.jobs import job_row


def config(worker: str = "w1", **changes: object) -> EngineConfig:
    values: dict[str, object] = {
        "worker_id": worker,
        "host": "h",
        "pid": 1,
        "version": "0",
        "teachers": (),
        "max_in_flight": 32,
        "lease_seconds": 6.0,
        "flush_seconds": 0.02,
        "flush_rows": 16,
        "poll_seconds": 0.05,
        "park_seconds": 0.3,
        "shard_attempts": 3,
        "grace_seconds": 2.0,
        "retry": RetryPolicy(3, 0.01, 5.0),
        "compression_level": 1,
    }
    return EngineConfig(**(values | changes))  # type: ignore[arg-type]


@contextmanager
def running(
    database: Engine, storage: Storage, teacher: Teacher | BuildTeacher, **changes: object
) -> Iterator[GenerationEngine]:
    def build(spec: TeacherSpec) -> Teacher:
        return teacher(spec) if callable(teacher) else teacher

    made = GenerationEngine(database, storage, build, config(**changes))  # type: ignore[arg-type]
    failure: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(made.run())
        except BaseException as error:  # noqa: BLE001 - told by the fixture's end
            failure.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield made
    finally:
        made.stop()
        thread.join(20)
    assert not thread.is_alive()
    assert not failure, failure


def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came of it in time"
        time.sleep(0.02)


def status(database: Engine, job: str) -> str:
    return str(job_row(database, job).status)


def finish(database: Engine, job: str, seconds: float = 15.0) -> None:
    until(lambda: status(database, job) in ("completed", "failed", "cancelled"), seconds)
