"""A job on driver `vllm` whose server becomes another one under the same address, and then the first one again."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from app.db.models import Completion, Lane
from app.db.session import reading
from app.services.generate.config import EngineConfig, RetryPolicy
from app.services.generate.engine import GenerationEngine
from app.storage.places import open_storage
from app.teachers import TeacherAccess, build
from tests.faults.world import ScriptedServer
from tests.fixtures.jobs import JobSetup, check_whole, job_row, make_job


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ScriptedServer]:
    made = ScriptedServer(tmp_path, {"model": "null", "tokens": 8, "delay": 0.02})
    made.start()
    yield made
    made.stop()


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came of it in time"
        time.sleep(0.02)


def test_a_server_that_became_another_parks_the_job_until_it_is_back(
    engine: Engine, server: ScriptedServer, tmp_path: Path
) -> None:
    storage = open_storage(str(tmp_path / "storage"))
    access = TeacherAccess(allow_loopback=True)
    settings = EngineConfig(
        worker_id="w",
        host="h",
        pid=1,
        version="0",
        teachers=(),
        max_in_flight=4,
        lease_seconds=6.0,
        flush_seconds=0.02,
        flush_rows=4,
        poll_seconds=0.05,
        park_seconds=0.3,
        shard_attempts=20,
        grace_seconds=2.0,
        retry=RetryPolicy(3, 0.01, 5.0),
        compression_level=1,
    )
    made = GenerationEngine(engine, storage, lambda spec: build(spec, access), settings)
    thread = threading.Thread(target=lambda: asyncio.run(made.run()))
    job = make_job(
        engine, JobSetup(prompts=120, top_logprobs=4, shard_size=16, driver="vllm", base_url=server.url)
    )

    def count() -> int:
        with reading(engine) as connection:
            return connection.execute(select(func.count()).select_from(Completion)).scalar_one()

    thread.start()
    try:
        until(lambda: count() >= 8)
        server.change(version="0.33.0")
        until(lambda: job_row(engine, job).status == "parked")
        kept = count()
        assert 8 <= kept < 120
        with reading(engine) as connection:
            reason = str(connection.execute(select(Lane.parked_reason)).scalar_one())
        assert "0.33.0" in reason
        time.sleep(0.7)  # it is tried again, and parks again
        assert (job_row(engine, job).status, count()) == ("parked", kept)
        server.change(version="0.32.0")
        until(lambda: job_row(engine, job).status == "completed", 30)
    finally:
        made.stop()
        thread.join(20)
    assert check_whole(engine, storage, job)["completed"] == 120
    assert check_whole(engine, storage, job)["failed"] == 0
