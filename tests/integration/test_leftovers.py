"""What killed writers leave behind goes in time; what anything points to stays."""

import os
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, update

from app.db.export_models import Export, ExportFile
from app.db.session import transaction
from app.services.housekeeping import Retention, export_orphans, tidy
from app.storage.places import LocalFolder, Storage, open_storage
from tests.fixtures.completed import Rows, add_job, complete
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
    tidy(engine, storage, KEEP)
    assert [file.exists() for file in (dead, unknown, half)] == [False] * 3
    assert [file.exists() for file in (young, being_written)] == [True] * 2
    for name in names:
        content(engine, storage, view, name)
    with transaction(engine) as connection:
        connection.execute(update(ExportFile).values(path=None))
    old(storage, f"exports/{view.id}/e8/train-00000.parquet", 10_000)
    assert export_orphans(engine, storage, 60) == []
