"""Admission against real servers over HTTP: how much is sent, to whom, and what a refusal costs."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from app.db.models import Completion
from app.db.session import connect, reading
from app.storage.places import Storage, open_storage
from app.teachers import TeacherAccess, build
from app.teachers.admission import queue_for
from app.teachers.base import Teacher, TeacherSpec
from tests.faults.world import ScriptedServer
from tests.fixtures.jobs import JobSetup, check_whole, job_row, make_job
from tests.integration.engine.running import finish, running, status, until


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Engine]:
    made = connect(sqlite_url)
    yield made
    made.dispose()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "storage"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ScriptedServer]:
    made = ScriptedServer(tmp_path, {"model": "null", "tokens": 8})
    made.start()
    yield made
    made.stop()


def opened(spec: TeacherSpec) -> Teacher:
    return build(spec, TeacherAccess(allow_loopback=True))


def test_an_engine_with_slots_is_kept_full_and_is_not_overrun(
    database: Engine, storage: Storage, server: ScriptedServer
) -> None:
    slots = 16
    server.change(slots=slots, delay=1.0)
    make_job(database, JobSetup(prompts=2000, shard_size=100, base_url=f"{server.url}/v1"))
    with running(database, storage, opened, max_in_flight=256, lease_seconds=30.0, flush_rows=64):
        until(lambda: server.stats()["running"] == slots)
        until(lambda: server.stats()["waiting"] <= 2 * queue_for(slots))
        first, began = server.stats(), time.monotonic()
        waiting = []
        while time.monotonic() - began < 4:
            waiting.append(server.stats()["waiting"])
            time.sleep(0.1)
        last, seconds = server.stats(), time.monotonic() - began
    share = (last["busy_seconds"] - first["busy_seconds"]) / (slots * seconds)
    assert share >= 0.8, f"{share:.3f} of the slot-seconds"  # 0.98 and more where nothing else runs here
    waiting.sort()
    assert waiting[len(waiting) // 2] <= 3 * queue_for(slots), waiting


def test_what_a_server_refuses_for_want_of_room_is_asked_again_and_counts_no_attempt(
    database: Engine, storage: Storage, server: ScriptedServer
) -> None:
    server.change(
        delay=0.02,
        faults=[
            {"kind": "503", "share": 0.2, "first_calls": 3},
            {"kind": "429", "share": 0.02, "first_calls": 3},
        ],
    )
    job = make_job(database, JobSetup(prompts=100, base_url=f"{server.url}/v1"))
    with running(database, storage, opened, lease_seconds=60.0):
        finish(database, job, 60)
    assert check_whole(database, storage, job)["completed"] == 100
    assert server.stats()["faults"]["503"] > 0
    with reading(database) as connection:
        assert set(connection.execute(select(Completion.attempts)).scalars()) == {1}


def test_a_server_that_takes_nothing_parks_the_job_and_burns_no_attempt(
    database: Engine, storage: Storage, server: ScriptedServer
) -> None:
    server.change(delay=0.05)
    job = make_job(database, JobSetup(prompts=400, base_url=f"{server.url}/v1"))
    with running(database, storage, opened, max_in_flight=16, lease_seconds=60.0):
        until(lambda: server.stats()["samples"] > 20)
        server.change(down=True)
        until(lambda: status(database, job) == "parked", 30)
        assert "503" in job_row(database, job).status_reason
        server.change(down=False, delay=0.0)
        finish(database, job, 30)
    assert check_whole(database, storage, job)["completed"] == 400


def test_a_prompt_that_is_always_too_much_fails_alone(
    database: Engine, storage: Storage, server: ScriptedServer
) -> None:
    server.change(delay=0.01, faults=[{"kind": "429-retry-after", "contains": "prompt 7", "seconds": 0.01}])
    job = make_job(database, JobSetup(prompts=60, base_url=f"{server.url}/v1"))
    with running(database, storage, opened, lease_seconds=60.0):
        finish(database, job, 60)
    check_whole(database, storage, job)
    with reading(database) as connection:
        failed = connection.execute(
            select(Completion.prompt_number, Completion.error_kind).where(Completion.status == "failed")
        ).all()
    assert [tuple(row) for row in failed] == [(7, "teacher-rate-limited")]
