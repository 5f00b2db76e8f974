"""Several servers of one teacher over real HTTP: balanced; one that dies is taken out, comes back, and is seen so."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from aiohttp import web
from sqlalchemy import Engine, update

from app.db.models import PromptRow, Teacher
from app.db.session import connect, session, transaction
from app.services import teachers
from app.services.teachers import ServerView
from app.storage.places import Storage
from app.teachers import TeacherAccess, build
from app.teachers.base import Teacher as Driver
from app.teachers.base import TeacherSpec
from tests.faults.world import ScriptedServer
from tests.fixtures.jobs import JobSetup, check_whole, ensure_project, job_row, make_job
from tests.fixtures.loopback import serving
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


def remembering(asked: list[str]) -> web.Application:
    """A server that answers everybody, and keeps the first turn of whatever it was asked."""

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        asked.append(body["messages"][0]["content"])
        message = {"role": "assistant", "content": "yes"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        return web.json_response({"choices": [choice], "model": "null", "usage": usage})

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "null"}]})

    made = web.Application()
    made.router.add_post("/v1/chat/completions", answer)
    made.router.add_get("/v1/models", models)
    return made


def test_prompts_that_begin_alike_travel_together(sqlite_url: str, storage: Storage) -> None:
    """Twenty-four conversations of ten prompts each, mixed: each is one server's, one prompt after the other."""
    database = connect(sqlite_url)
    asked: tuple[list[str], list[str]] = [], []
    with serving(lambda: remembering(asked[0])) as first, serving(lambda: remembering(asked[1])) as second:
        job = make_job(database, JobSetup(prompts=240, shard_size=240, base_url=f"{first}/v1"))
        with transaction(database) as connection:
            connection.execute(update(Teacher).values(replicas=[f"{second}/v1"]))
            for number in range(240):
                turns = [("system", f"topic {number % 24}"), ("user", f"{number}")]
                body = {"messages": [{"role": role, "content": content} for role, content in turns]}
                here = PromptRow.number == number
                connection.execute(update(PromptRow).where(here).values(body=orjson.dumps(body)))
        with running(database, storage, opened, max_in_flight=2):
            finish(database, job, 60)
    assert check_whole(database, storage, job)["completed"] == 240
    topics = [[one for one in server if one.startswith("topic")] for server in asked]
    assert sum(map(len, topics)) == 240
    assert not set(topics[0]) & set(topics[1])
    assert all(topics)
    # Two calls are under way at the same time, so neighbours may change places where one topic ends.
    assert sum(a != b for server in topics for a, b in pairwise(server)) <= 3 * 24
    database.dispose()
