"""A provider's limits per minute over real HTTP: workers that share nothing but the database keep them together."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from sqlalchemy import Engine, select, update

from app.db import rates
from app.db.admission_models import TeacherPace
from app.db.models import Teacher
from app.db.rates import Throttles
from app.db.session import connect, reading, session, transaction
from app.domain.rates import NO_AMOUNTS, PACE_SECONDS, Amounts, Limits
from app.storage.places import Storage, open_storage
from app.teachers import TeacherAccess, build
from app.teachers.base import Teacher as Driver
from app.teachers.base import TeacherSpec
from app.teachers.scripted import Route, Script, ScriptedTeacher
from app.teachers.scripted_faults import json_response
from tests.fixtures import processes
from tests.fixtures.jobs import JobSetup, check_whole, ensure_teacher, make_job
from tests.fixtures.loopback import serving
from tests.integration.engine.running import finish, running, until

PER_SECOND, ANSWER = 4, 40


class Provider(ScriptedTeacher):
    """Notes when each call of a job arrives. `refuse` once with a 429; `headers` go with every answer."""

    def __init__(self) -> None:
        super().__init__(Script(model="null", tokens=ANSWER, delay=0.02))
        self.arrivals: list[float] = []
        self.refuse: dict[str, str] | None = None
        self.refused_at = 0.0
        self.headers: dict[str, str] = {}

    async def _answer(
        self, request: web.Request, body: dict[str, Any], key: str, k: int, route: Route
    ) -> web.StreamResponse:
        if "prompt" in key:
            self.arrivals.append(time.monotonic())
            if self.refuse is not None:
                headers, self.refuse, self.refused_at = self.refuse, None, time.monotonic()
                answer = json_response({"error": {"message": "too much", "code": 429}}, 429)
                answer.headers.update(headers)
                return answer
        made = await super()._answer(request, body, key, k, route)
        if "prompt" in key:
            made.headers.update(self.headers)
        return made

    def between(self, first: float, last: float) -> int:
        return sum(first <= at <= last for at in self.arrivals)


@contextmanager
def provider() -> Iterator[tuple[Provider, str]]:
    made: list[Provider] = []

    def application() -> web.Application:
        made.append(Provider())
        return made[0].application()

    with serving(application) as url:
        yield made[0], url


def job_at(database: Engine, url: str, prompts: int, **limits: Any) -> str:
    sampling = {"temperature": 0.7, "max_tokens": ANSWER, "seed": 1}
    job = make_job(database, JobSetup(base_url=f"{url}/v1", prompts=prompts, sampling=sampling, shard_size=4))
    with transaction(database) as connection:
        connection.execute(update(Teacher).values(**limits))
    return job


def opened(spec: TeacherSpec) -> Driver:
    return build(spec, TeacherAccess(allow_loopback=True))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "storage"))


def check_kept(arrivals: list[float]) -> None:
    """No more than what the limit grants in any stretch of time: the pace's part at once, spent within a second."""
    for first in range(len(arrivals)):
        for last in range(first, len(arrivals)):
            seconds = arrivals[last] - arrivals[first]
            most = PER_SECOND * (seconds + PACE_SECONDS + 2)
            assert last - first + 1 <= most, f"{last - first + 1} calls in {seconds:.2f} s"


def test_two_processes_keep_a_limit_of_requests_together(
    database_url: str, tmp_path: Path, storage: Storage
) -> None:
    database = connect(database_url)
    with provider() as (api, url), ExitStack() as workers:
        job = job_at(database, url, 40, max_requests_per_minute=60 * PER_SECOND)
        for name in ("w1", "w2"):
            command = ["-m", "tests.integration.engine.one_worker", database_url, str(tmp_path / "storage")]
            log = tmp_path / f"{name}.log"
            process = processes.start([sys.executable, *command, name], log)
            workers.callback(processes.stop, process)
        finish(database, job, 60)
        check_kept(api.arrivals)
        assert len(api.arrivals) == 40
        spread = api.arrivals[-1] - api.arrivals[0]
        assert spread >= (40 - PER_SECOND * PACE_SECONDS) / PER_SECOND - 1, f"40 calls in {spread:.1f} s"
    assert check_whole(database, storage, job)["completed"] == 40
    database.dispose()


def test_tokens_per_minute_are_kept_and_reservations_set_right(sqlite_url: str, storage: Storage) -> None:
    database = connect(sqlite_url)
    with provider() as (api, url):
        job = job_at(database, url, 30, max_output_tokens_per_minute=60 * PER_SECOND * ANSWER)
        with running(database, storage, opened, lease_seconds=30.0):
            finish(database, job, 60)
        check_kept(api.arrivals)
    assert check_whole(database, storage, job)["completed"] == 30
    with session(database, writes=False) as work:
        teacher = work.execute(select(Teacher)).scalar_one()
        used = rates.paces(work, [teacher])[teacher.id].used
    assert used == Amounts(30, 60, 30 * ANSWER), "what was taken is what was used in the end"
    database.dispose()


def test_a_wait_that_one_worker_is_told_holds_for_all(sqlite_url: str, storage: Storage) -> None:
    database = connect(sqlite_url)
    with provider() as (api, url):
        job = job_at(database, url, 400, max_requests_per_minute=600)
        first = running(database, storage, opened, lease_seconds=30.0)
        second = running(database, storage, opened, lease_seconds=30.0, worker="w2")
        with first, second:
            until(lambda: len(api.arrivals) > 20)
            api.refuse = {"Retry-After": "6"}
            until(lambda: api.refused_at > 0)
            until(lambda: api.between(api.refused_at + 6, time.monotonic()) > 5)
            assert api.between(api.refused_at + 3, api.refused_at + 5.9) == 0
        with reading(database) as connection:
            pace = connection.execute(select(TeacherPace.__table__)).one()
        assert (pace.throttled, pace.factor) == (1, 0.8)
    assert job
    database.dispose()


def test_a_limit_that_headers_tell_is_kept(sqlite_url: str, storage: Storage) -> None:
    """Over the client for providers' APIs. The limit is nowhere in the teacher's row."""
    database = connect(sqlite_url)
    with provider() as (api, url):
        api.headers = {
            "x-ratelimit-limit-requests": str(60 * PER_SECOND),
            "x-ratelimit-remaining-requests": str(60 * PER_SECOND - 1),
            "x-ratelimit-reset-requests": f"{1000 / PER_SECOND:g}ms",
        }
        job = job_at(database, url, 60, options={"provider": "openai"})
        with running(database, storage, opened, lease_seconds=30.0, max_in_flight=4):
            until(lambda: len(api.arrivals) >= 45)
            later = api.arrivals[25:45]  # the first ones went before it was known
            assert later[-1] - later[0] >= 19 / PER_SECOND - PACE_SECONDS - 2
            assert max(b - a for a, b in pairwise(later)) < 10
            with reading(database) as connection:
                told = connection.execute(select(TeacherPace.announced)).scalar_one()
            assert told == {"requests": 240, "input_tokens": None, "output_tokens": None, "tokens": None}
    assert job
    database.dispose()


def test_refusals_cut_the_limits_and_time_brings_them_back(engine: Engine) -> None:
    teacher = ensure_teacher(engine, "t0", JobSetup())
    with transaction(engine) as connection:
        connection.execute(update(Teacher).values(max_requests_per_minute=600))

    def take(wanted: int, throttles: Throttles = rates.NO_THROTTLES) -> rates.Block:
        with transaction(engine) as connection:
            return rates.take(connection, teacher, Amounts(wanted), Amounts(1), {}, throttles)

    assert take(10).given == Amounts(10)
    assert take(1000).given == Amounts(20), "three seconds' part of the limit, less what was granted"
    assert take(1).given == NO_AMOUNTS
    cut = take(1, Throttles(3, 7.0))
    assert cut.limits == Limits(requests=480)
    assert 6 < cut.held_seconds <= 7
    assert take(1, Throttles(1, 0.0)).limits.requests == 480, "once in a while, not for each refusal"
    with transaction(engine) as connection:  # as if a minute had passed
        connection.execute(
            update(TeacherPace).values(cut_at=TeacherPace.cut_at - 60, held_until=TeacherPace.held_until - 60)
        )
    grown = take(0)
    assert grown.limits.requests is not None
    assert 535 <= grown.limits.requests <= 545
    assert grown.throttled == 4
    with transaction(engine) as connection:
        connection.execute(update(TeacherPace).values(cut_at=TeacherPace.cut_at - 600))
    assert take(0).limits == Limits(requests=600)
