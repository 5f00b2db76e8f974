"""Workers are killed at any instruction of an export: it ends whole, the same to the byte, with nothing beside it."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select

from app.db.export_models import Export, ExportFile
from app.db.session import connect, reading, transaction
from app.storage.places import open_storage
from tests.fixtures.completed import Rows, add_job, complete, set_times
from tests.integration.exports.exporting import ask, content, digests, look, made

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("RETORT_FAULT_KILLS", "25"))
LEASE = 0.6
JOB = Rows(prompts=1500, n=2, tokens=40, k=8, shard_size=100)
SPEC = {"split": {"train": 0.7, "validation": 0.2, "test": 0.1}, "file_size": {"rows": 20}}


def worker(database_url: str, storage_url: str, name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.faults.exporter", database_url, storage_url, name, str(LEASE)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_kills(database_url: str, place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Two workers, of which one is killed and started again; every fourth time both are. The other one stands still
    meanwhile, often beyond its lease: what it then does as a zombie harms nothing either."""
    storage_url = str(tmp_path / "storage") if place == "folder" else request.getfixturevalue("bucket_url")
    database, storage = connect(database_url), open_storage(storage_url)
    add_job(database, JOB)
    complete(database, storage, JOB)
    set_times(database)
    whole = digests(made(database, storage, **SPEC))
    draw = random.Random(7)
    workers = [worker(database_url, storage_url, f"w{i}") for i in range(2)]
    asked = ask(database, **SPEC)
    kept: list[int] = []
    try:
        for number in range(KILLS):
            time.sleep(draw.uniform(0.02, 0.3))
            for process in workers:  # so that no export is whole before its next worker has begun
                process.send_signal(signal.SIGSTOP)
            for i in range(2) if number % 4 == 3 else [number % 2]:
                kill(workers[i])
                workers[i] = worker(database_url, storage_url, f"w{i}-{number}")
            for process in workers:
                process.send_signal(signal.SIGCONT)
            with reading(database) as connection:
                mine = ExportFile.export_id == asked.id
                kept.append(connection.execute(select(func.count()).where(mine)).scalar_one())
            if look(database, asked.id).status == "completed":
                break
        end = time.monotonic() + 60
        while (view := look(database, asked.id)).status != "completed":
            assert view.status in ("ready", "running", "parked"), view.error
            assert time.monotonic() < end, view
            time.sleep(0.1)
    finally:
        for process in workers:
            kill(process)
    assert len(set(kept)) >= 3, "the export was made between two kills"
    assert kept == sorted(kept), "a file that was finished was lost"
    assert digests(view) == whole
    for file in view.files:
        content(database, storage, view, file.name)
    with transaction(database) as connection:
        row = connection.execute(select(Export).where(Export.id == asked.id)).one()
    names = {file.name for file in view.files}
    lying = {path.removeprefix(f"{row.path}/") for path in storage.list(row.path)}
    assert lying == names, "the folder of an export holds the export and nothing else"
    database.dispose()
