"""Several servers of one teacher over real HTTP: balanced; one that dies is taken out, comes back, and is seen so."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import Engine, update

from app.db.models import Teacher
from app.db.session import connect, session, transaction
from app.services import teachers
from app.services.teachers import ServerView
from app.storage.places import Storage
from app.teachers import TeacherAccess, build
from app.teachers.base import Teacher as Driver
from app.teachers.base import TeacherSpec
from tests.faults.world import ScriptedServer
from tests.fixtures.jobs import JobSetup, check_whole, ensure_project, job_row, make_job
from tests.integration.engine.running import finish, running, status, until


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[list[ScriptedServer]]:
    with ExitStack() as stack:
        made = []
        for number in range(3):
            (folder := tmp_path / f"server{number}").mkdir()
            server = ScriptedServer(folder, {"model": "null", "tokens": 8, "delay": 0.5})
            server.start()
            stack.callback(server.stop)
            made.append(server)
        yield made


def opened(spec: TeacherSpec) -> Driver:
    return build(spec, TeacherAccess(allow_loopback=True))


def job_at(database: Engine, farm: list[ScriptedServer], prompts: int) -> str:
    job = make_job(database, JobSetup(prompts=prompts, shard_size=50, base_url=f"{farm[0].url}/v1"))
    with transaction(database) as connection:
        connection.execute(update(Teacher).values(replicas=[f"{one.url}/v1" for one in farm[1:]]))
    return job


def seen(database: Engine) -> dict[str, ServerView]:
    with session(database, writes=False) as work:
        found = teachers.load(work, ensure_project(database), "t0").servers
    return {one.url.removesuffix("/v1"): one for one in found}


def test_one_of_three_dies_and_comes_back(
    engine: Engine, storage: Storage, farm: list[ScriptedServer]
) -> None:
    job = job_at(engine, farm, 1500)
    first, second, third = farm
    with running(engine, storage, opened, max_in_flight=24, lease_seconds=30.0, flush_rows=64):
        until(lambda: all(server.samples() > 4 for server in farm))
        until(lambda: {one.state for one in seen(engine).values()} == {"up"} and len(seen(engine)) == 3)
        assert all(one.room > 0 for one in seen(engine).values())
        second.kill()
        until(lambda: seen(engine)[second.url].state == "down")
        assert seen(engine)[second.url].reason
        assert status(engine, job) == "running"
        before = second.samples()
        second.start()
        until(lambda: second.samples() > before + 4)
        until(lambda: seen(engine)[second.url].state == "up")
        for server in farm:
            server.change(delay=0.0)
        finish(engine, job, 60)
    assert check_whole(engine, storage, job)["completed"] == 1500
    assert job_row(engine, job).status_reason is None
    assert seen(engine) == {}, "nobody calls it any more"
    assert third.samples() > 4
    assert first.samples() > 4


def test_addresses_that_change_hold_for_a_running_job(
    sqlite_url: str, storage: Storage, farm: list[ScriptedServer]
) -> None:
    database = connect(sqlite_url)
    first, second, third = farm
    job = job_at(database, [first, second], 3000)
    with running(database, storage, opened, max_in_flight=16, lease_seconds=30.0, flush_rows=64):
        until(lambda: first.samples() > 5 and second.samples() > 5)
        with transaction(database) as connection:
            connection.execute(update(Teacher).values(replicas=[f"{third.url}/v1"]))
        until(lambda: third.samples() > 5)
        until(lambda: second.under_way() == 0)
        left = second.samples()
        for server in farm:
            server.change(delay=0.0)
        finish(database, job, 60)
        assert second.samples() == left
    assert check_whole(database, storage, job)["completed"] == 3000
    database.dispose()
