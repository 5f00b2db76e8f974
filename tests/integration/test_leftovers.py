"""What killed writers leave behind goes in time; what anything points to stays."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, Select, func, insert, select, update

from app.broker import celery_app, forget_through, wake_through
from app.db import shards
from app.db.export_models import Export, ExportFile
from app.db.models import IdempotentRequest, Job, Pace, Project, Shard, ShardAttempt
from app.db.session import db_now, reading, transaction
from app.domain.clock import PACE_SECONDS
from app.services.housekeeping import Retention, export_orphans, forget_wake_ups, sweep, tidy
from app.storage.places import LocalFolder, Storage, open_storage
from tests.fixtures import processes
from tests.fixtures.completed import Rows, add_job, complete
from tests.fixtures.jobs import JobSetup, make_job
from tests.integration.exports.exporting import content, made

KEEP = Retention(idempotency_hours=24, pace_hours=24, attempts_days=30, lease_seconds=60)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "storage"))


def old(storage: Storage, path: str, seconds: float) -> Path:
    file = Path(storage.url) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_bytes(b"x")
    os.utime(file, (time.time() - seconds,) * 2)
    return file


def test_files_of_dead_attempts_go_and_exports_stay(engine: Engine, storage: Storage) -> None:
    rows = Rows(prompts=6, tokens=2, k=1)
    add_job(engine, rows)
    complete(engine, storage, rows)
    view = made(engine, storage)
    names = [file.name for file in view.files]
    mine = [path for path in storage.list("exports") if view.id in path]
    for path in mine:
        old(storage, path, 10_000)
    dead = old(storage, f"exports/{view.id}/e7/train-00000.parquet", 10_000)
    unknown = old(storage, "exports/exp_unknown/e1/train-00000.parquet", 10_000)
    young = old(storage, f"exports/{view.id}/e8/train-00000.parquet", 5)
    assert isinstance(storage, LocalFolder)
    half = old(storage, "exports/x/.a.parquet.00.partial", 100_000)
    being_written = old(storage, "exports/x/.b.parquet.00.partial", 1_000)
    with transaction(engine) as connection:
        connection.execute(update(Export).values(status="running"))
    assert export_orphans(engine, storage, 60) == ["exports/exp_unknown/e1/train-00000.parquet"]
    with transaction(engine) as connection:
        connection.execute(update(Export).values(status="completed"))
    sweep(engine, storage)
    assert [file.exists() for file in (dead, unknown, half)] == [False] * 3
    assert [file.exists() for file in (young, being_written)] == [True] * 2
    for name in names:
        content(engine, storage, view, name)
    with transaction(engine) as connection:
        connection.execute(update(ExportFile).values(path=None))
    old(storage, f"exports/{view.id}/e8/train-00000.parquet", 10_000)
    assert export_orphans(engine, storage, 60) == []


def test_a_segment_whose_writer_may_still_commit_stays(engine: Engine, storage: Storage) -> None:
    """A worker that was cut off from the database for hours writes its file, and commits when it is back."""
    job = add_job(engine, Rows(prompts=6, tokens=2, k=1))
    with transaction(engine) as connection:
        shard, epoch = connection.execute(select(Shard.id, Shard.epoch).limit(1)).one()
        connection.execute(
            update(Shard).where(Shard.id == shard).values(status="leased", epoch=epoch + 1, lease_until=1.0)
        )
    writing = old(storage, f"segments/{job}/{shard:08d}-e{epoch + 1}-g1.parquet", 100_000)
    earlier = old(storage, f"segments/{job}/{shard:08d}-e{epoch}-g1.parquet", 100_000)
    young = old(storage, f"segments/{job}/{shard:08d}-e{epoch}-g2.parquet", 100)
    sweep(engine, storage)
    assert [file.exists() for file in (writing, earlier, young)] == [True, False, True]
    with transaction(engine) as connection:
        connection.execute(update(Shard).where(Shard.id == shard).values(status="ready", lease_until=None))
    sweep(engine, storage)
    assert not writing.exists()


def test_rows_go_when_their_time_is_over(engine: Engine) -> None:
    ended, running = make_job(engine, JobSetup(prompts=8)), make_job(engine, JobSetup(prompts=8))
    with transaction(engine) as connection:
        claimed = shards.claim(connection, shards.candidates(connection, ())[0], "w", 60, 1)
        assert claimed is not None
        connection.execute(update(Shard).where(Shard.job_id == ended).values(status="finished"))
        connection.execute(
            update(Job).where(Job.id == ended).values(status="completed", ended_at=db_now() - 3600)
        )
        now = connection.execute(select(db_now())).scalar_one()
        project = connection.execute(select(Project.id)).scalar_one()
        for job in (ended, running):
            for hours in (0.1, 50):
                step = int((now - hours * 3600) / PACE_SECONDS)
                connection.execute(insert(Pace).values(job_id=job, step=step, stripe=7, rows=1, tokens=1))
        for age in (10, 100_000):
            connection.execute(
                insert(IdempotentRequest).values(
                    project_id=project, key=str(age), request_sha256=b"", created_at=now - age
                )
            )

    def left() -> tuple[int, int, int, int]:
        """Samples of pace of the ended and of the running job, histories, requests."""
        with reading(engine) as connection:

            def count(query: Select[Any]) -> int:
                return int(
                    connection.execute(select(func.count()).select_from(query.subquery())).scalar_one()
                )

            return (
                count(select(Pace.step).where(Pace.job_id == ended)),
                count(select(Pace.step).where(Pace.job_id == running)),
                count(select(ShardAttempt.epoch)),
                count(select(IdempotentRequest.key)),
            )

    assert left() == (2, 2, 1, 2)
    for days, wanted in ((0.1, (2, 1, 1, 1)), (1.1, (0, 1, 1, 1)), (31, (0, 1, 0, 1))):
        with transaction(engine) as connection:
            connection.execute(update(Job).where(Job.id == ended).values(ended_at=db_now() - days * 86_400))
        tidy(engine, KEEP)
        assert left() == wanted


def test_wake_ups_that_nobody_takes_are_dropped(engine: Engine, broker_url: str, tmp_path: Path) -> None:
    make_job(engine, JobSetup(teachers=("deaf", "heard")))
    celery = celery_app(broker_url, tmp_path)
    wake = wake_through(celery)
    for _ in range(150):
        wake("deaf")
    wake("heard")
    forget_wake_ups(engine, forget_through(celery))
    with redis.Redis.from_url(broker_url) as client:
        assert (client.llen("retort.deaf"), client.llen("retort.heard")) == (0, 1)
    celery.close()
    away = celery_app(f"redis://127.0.0.1:{processes.free_port()}/0", tmp_path)
    forget_wake_ups(engine, forget_through(away))  # a broker that is away is no fault
