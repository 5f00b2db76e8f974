"""Budgets of jobs over real HTTP, with one worker and with two: nothing passes a cap, and everything made is kept."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, func, select, update

from app.db import budgets, jobs
from app.db.models import Completion, Job, Lane
from app.db.session import reading, session, transaction
from app.domain.budget import NOTHING, Caps, Use
from app.errors import Conflict
from app.services import budgets as budget_service
from app.services.budgets import BudgetChanges
from app.storage.places import Storage
from app.teachers import TeacherAccess, build
from app.teachers.base import Teacher, TeacherSpec
from tests.faults.world import ScriptedServer
from tests.fixtures.jobs import JobSetup, check_whole, ensure_project, job_row, make_job
from tests.integration.engine.running import finish, running, status, until

PRICE = {"source": "teacher", "rates": [{"input": 1000, "output": 2000}]}  # USD per million tokens
PROMPT, ANSWER = 2, 40  # tokens: "prompt 7" and its answer, as the scripted teacher counts


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ScriptedServer]:
    made = ScriptedServer(tmp_path, {"model": "null", "tokens": ANSWER})
    made.start()
    yield made
    made.stop()


def opened(spec: TeacherSpec) -> Teacher:
    return build(spec, TeacherAccess(allow_loopback=True))


def job_with(database: Engine, server: ScriptedServer, budget: dict[str, Any], **setup: Any) -> str:
    sampling = {"temperature": 0.7, "max_tokens": ANSWER, "seed": 1}
    job = make_job(database, JobSetup(base_url=f"{server.url}/v1", sampling=sampling, **setup))
    with transaction(database) as connection:
        connection.execute(update(Job).where(Job.id == job).values(budget=budget))
        connection.execute(update(Lane).where(Lane.job_id == job).values(price=PRICE))
    return job


def raise_cap(database: Engine, job: str, **changes: Any) -> None:
    with session(database, writes=True) as work:
        budget_service.change(work, ensure_project(database), job, BudgetChanges(**changes))


def parked(database: Engine, job: str) -> bool:
    return status(database, job) == "parked"


def made_of(database: Engine, job: str) -> tuple[int, int]:
    """(completions, tokens) as they are recorded."""
    with reading(database) as connection:
        tokens = Completion.prompt_tokens + Completion.completion_tokens
        row = connection.execute(
            select(func.count(), func.coalesce(func.sum(tokens), 0)).where(Completion.job_id == job)
        ).one()
    return row[0], int(row[1] or 0)


def asked_of(server: ScriptedServer, prompts: int) -> int:
    """Answers that the server made to the job's prompts; a probe's are others."""
    with httpx.Client(trust_env=False) as client:
        found = [
            client.get(f"{server.url}/_stats", params={"prompt": f"prompt {number}"}).json()
            for number in range(prompts)
        ]
    return sum(int(one["samples_for_prompt"]) for one in found)


def totals(database: Engine, job: str) -> budgets.Totals:
    with session(database, writes=False) as work:
        return budgets.totals(work, [job])[job]


def test_requests_stop_at_the_cap_and_go_on_when_it_is_raised(
    engine: Engine, storage: Storage, server: ScriptedServer
) -> None:
    server.change(delay=0.02)
    job = job_with(engine, server, {"max_requests": 30}, prompts=60)
    with running(engine, storage, opened), running(engine, storage, opened, worker="w2"):
        until(lambda: parked(engine, job))
        assert asked_of(server, 60) == 30
        assert made_of(engine, job)[0] == 30, "everything up to the cap is made, and kept"
        assert totals(engine, job).used.requests == 30
        row = job_row(engine, job)
        assert "budget is reached" in row.status_reason
        with reading(engine) as connection:
            lane = connection.execute(select(Lane.parked_kind, Lane.parked_until)).one()
        assert tuple(lane) == ("budget", None)
        raise_cap(engine, job, max_requests=45)
        until(lambda: made_of(engine, job)[0] == 45)
        until(lambda: parked(engine, job))
        raise_cap(engine, job, max_requests=None)
        finish(engine, job)
    assert check_whole(engine, storage, job)["completed"] == 60
    assert asked_of(server, 60) == 60


@pytest.mark.parametrize("cap", [{"max_tokens": 1200}, {"max_cost_usd": 1.2}], ids=["tokens", "cost"])
def test_tokens_and_cost_never_pass_the_cap(
    engine: Engine, storage: Storage, server: ScriptedServer, cap: dict[str, Any]
) -> None:
    """What a call may use at its worst is some 350 tokens here, what it uses are 42: reservations are given back."""
    server.change(delay=0.01)
    job = job_with(engine, server, cap, prompts=200)
    over: list[object] = []
    with running(engine, storage, opened), running(engine, storage, opened, worker="w2"):
        while not parked(engine, job):
            found = totals(engine, job) if made_of(engine, job)[0] else budgets.NO_TOTALS
            whole = found.used + found.held + found.lost
            over += [whole] * bool(Caps.of(cap).short_of(whole))
            time.sleep(0.05)
    n_made, tokens = made_of(engine, job)
    assert not over, f"used and reserved passed the cap: {over}"
    found = totals(engine, job)
    assert n_made
    assert tokens == n_made * (PROMPT + ANSWER) == found.used.tokens
    assert found.used.nanousd == n_made * (PROMPT * 1000 + ANSWER * 2000) * 1000
    at_worst = 256 + 100 + ANSWER
    left = 1200 - tokens if "max_tokens" in cap else (1.2e9 - found.used.nanousd) / 1e6
    assert 0 <= left < at_worst, "it stops only where not one more call surely fits"


def test_a_call_that_breaks_off_counts_with_all_that_it_may_have_used(
    engine: Engine, storage: Storage, server: ScriptedServer
) -> None:
    server.change(faults=[{"kind": "cut", "contains": "prompt 3", "first_calls": 1}])
    job = job_with(engine, server, {"max_requests": 1000, "max_tokens": 100_000}, prompts=8)
    with running(engine, storage, opened):
        finish(engine, job)
    assert check_whole(engine, storage, job)["completed"] == 8
    until(lambda: totals(engine, job).held.requests == 0)
    used = totals(engine, job).used
    assert used.requests == 9
    assert used.tokens > 8 * (PROMPT + ANSWER) + 256, "the call that was cut, at its worst"


def test_time_runs_out_and_more_is_given(engine: Engine, storage: Storage, server: ScriptedServer) -> None:
    server.change(delay=0.2)
    job = job_with(engine, server, {"max_seconds": 1.5}, prompts=400, max_in_flight=4)
    with running(engine, storage, opened):
        until(lambda: parked(engine, job))
        n_made = made_of(engine, job)[0]
        assert n_made < 400  # on a busy machine none may have come in time
        assert "time" in job_row(engine, job).status_reason
        server.change(delay=0.0)
        with transaction(engine) as connection:
            connection.execute(update(Job).values(max_in_flight=None))
        raise_cap(engine, job, max_seconds=3600)
        finish(engine, job)
    assert check_whole(engine, storage, job)["completed"] == 400


def test_what_a_killed_worker_held_is_lost_and_no_more(
    engine: Engine, storage: Storage, server: ScriptedServer
) -> None:
    """Its share comes from the ledger, as another process would have left it; its lease runs out."""
    job = job_with(engine, server, {"max_requests": 30}, prompts=60)
    with transaction(engine) as connection:
        share = budgets.renew(connection, job, "killed", False, NOTHING, Use(4), Use(), Use(1), 2.0)
    assert share.held == Use(4)
    with running(engine, storage, opened):
        until(lambda: parked(engine, job))
    assert made_of(engine, job)[0] == 26
    found = totals(engine, job)
    assert (found.used.requests, found.lost.requests) == (26, 4)


def test_a_first_cap_needs_a_job_at_rest(engine: Engine, storage: Storage, server: ScriptedServer) -> None:
    server.change(delay=0.1)
    job = make_job(engine, JobSetup(prompts=100, base_url=f"{server.url}/v1", max_in_flight=4))
    with running(engine, storage, opened):
        until(lambda: made_of(engine, job)[0] > 0)
        with pytest.raises(Conflict, match="pause it"):
            raise_cap(engine, job, max_requests=50)
        with transaction(engine) as connection:
            connection.execute(update(Job).values(status="paused"))
        until(lambda: _rests(engine, job))
        so_far = made_of(engine, job)[0]
        raise_cap(engine, job, max_requests=so_far + 5)
        with transaction(engine) as connection:
            connection.execute(update(Job).values(status="running"))
        until(lambda: parked(engine, job))
        assert made_of(engine, job)[0] == so_far + 5


def _rests(database: Engine, job: str) -> bool:
    with session(database, writes=False) as work:
        return not jobs.under_lease(work, job)
