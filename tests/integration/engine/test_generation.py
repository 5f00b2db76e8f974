"""The engine's loop against a teacher in this process: order, faults, pausing, caps. Kills are in tests/faults."""

import asyncio
import threading
import time
from collections import Counter as Tally

import pytest
from sqlalchemy import Engine, select, update

from app.db.models import Completion, Job, Lane, PromptSet, Shard, ShardAttempt, Worker
from app.db.session import reading, transaction
from app.errors import (
    MalformedAnswer,
    PermanentTeacherError,
    RateLimited,
    TeacherUnavailable,
    TransientTeacherError,
)
from app.services import dispatch
from app.services.generate.ledger import Ledger
from app.storage.places import Storage
from app.teachers.base import GenerateRequest, Generation
from tests.fixtures.jobs import JobSetup, add_prompts, check_whole, job_row, make_job
from tests.integration.engine.running import Teacher, config, finish, running, status, until


def test_every_prompt_gets_its_samples_and_its_tokens(engine: Engine, storage: Storage) -> None:
    job = make_job(engine, JobSetup(prompts=50, n=3, top_logprobs=4))
    with running(engine, storage, Teacher()):
        finish(engine, job)
    counts = check_whole(engine, storage, job)
    assert counts == {"completed": 150, "failed": 0, "segments": 7}
    with reading(engine) as connection:
        assert connection.execute(select(ShardAttempt.outcome)).scalars().all() == ["finished"] * 7
        assert connection.execute(select(Worker.id)).all() == []


def test_siblings_travel_in_one_request_where_the_teacher_takes_n(engine: Engine, storage: Storage) -> None:
    job = make_job(engine, JobSetup(prompts=5, n=4))
    teacher = Teacher(native_n=True)
    with running(engine, storage, teacher):
        finish(engine, job)
    assert check_whole(engine, storage, job)["completed"] == 20
    assert set(teacher.calls.values()) == {1}


def test_faults_become_retries_or_failed_rows_with_their_kind(engine: Engine, storage: Storage) -> None:
    def hook(prompt: str, call: int) -> None:
        match prompt:
            case "prompt 1" if call < 3:
                raise TransientTeacherError("500")
            case "prompt 2":
                raise PermanentTeacherError("400")
            case "prompt 3":
                raise MalformedAnswer("NaN")
            case "prompt 4":
                raise ZeroDivisionError("a bug")
            case "prompt 5" if call == 1:
                raise RateLimited("429", retry_after=0.1)

    job = make_job(engine, JobSetup(prompts=10))
    with running(engine, storage, Teacher(hook=hook)):
        finish(engine, job)
    assert check_whole(engine, storage, job) == {"completed": 7, "failed": 3, "segments": 0}
    with reading(engine) as connection:
        rows = {
            r.prompt_number: r
            for r in connection.execute(
                select(
                    Completion.prompt_number, Completion.error_kind, Completion.attempts, Completion.status
                )
            )
        }
    assert (rows[1].status, rows[1].attempts) == ("completed", 3)
    assert (rows[2].error_kind, rows[2].attempts) == ("teacher-permanent", 1)
    assert (rows[3].error_kind, rows[3].attempts) == ("teacher-malformed-answer", 3)
    assert rows[4].error_kind == "internal"
    assert (rows[5].status, rows[5].attempts) == ("completed", 1)


def test_a_dead_teacher_parks_the_job_and_it_goes_on_by_itself(engine: Engine, storage: Storage) -> None:
    dead = threading.Event()
    dead.set()

    def hook(prompt: str, call: int) -> None:
        if dead.is_set():
            raise TeacherUnavailable("connection refused")

    job = make_job(engine, JobSetup(prompts=30))
    with running(engine, storage, Teacher(hook=hook)):
        until(lambda: status(engine, job) == "parked")
        assert "connection refused" in job_row(engine, job).status_reason
        dead.clear()
        finish(engine, job)
    assert check_whole(engine, storage, job)["completed"] == 30
    with reading(engine) as connection:
        assert set(connection.execute(select(Completion.attempts)).scalars()) == {1}
        assert connection.execute(select(Lane.parked_reason)).scalar_one() is None


def test_another_model_behind_the_address_parks_the_job(engine: Engine, storage: Storage) -> None:
    job = make_job(engine, JobSetup(prompts=30))
    teacher = Teacher(delay=0.05)
    with running(engine, storage, teacher, max_in_flight=4):
        until(lambda: status(engine, job) == "running" and teacher.calls)
    teacher.engine = "test 2"
    with running(engine, storage, teacher):
        until(lambda: status(engine, job) == "parked")
        assert "not the one that this job began with" in job_row(engine, job).status_reason
        teacher.engine = "test 1"
        finish(engine, job)
    check_whole(engine, storage, job)


@pytest.mark.parametrize("verb", ["paused", "cancelled"])
def test_pause_and_cancel_are_seen_soon(engine: Engine, storage: Storage, verb: str) -> None:
    job = make_job(engine, JobSetup(prompts=200))
    teacher = Teacher(delay=0.05)
    with running(engine, storage, teacher, max_in_flight=4):
        until(lambda: sum(teacher.calls.values()) > 8)
        with transaction(engine) as connection:
            connection.execute(update(Job).where(Job.id == job).values(status=verb))
        until(lambda: not held(engine), 8)
        calls = sum(teacher.calls.values())
        time.sleep(0.3)
        assert sum(teacher.calls.values()) == calls
        if verb == "paused":
            with transaction(engine) as connection:
                connection.execute(update(Job).where(Job.id == job).values(status="running"))
            finish(engine, job)
    if verb == "paused":
        check_whole(engine, storage, job)
        assert set(teacher.calls.values()) == {1}


def held(database: Engine) -> int:
    with reading(database) as connection:
        return len(connection.execute(select(Shard.id).where(Shard.status == "leased")).all())


def test_caps_hold_over_all_workers(engine: Engine, storage: Storage) -> None:
    job = make_job(engine, JobSetup(prompts=60, max_in_flight=3))
    teacher = Teacher(delay=0.02)
    with running(engine, storage, teacher), running(engine, storage, teacher, worker="w2"):
        finish(engine, job, 30)
    assert teacher.peak <= 3
    check_whole(engine, storage, job)


def test_priority_goes_first_and_equals_share(engine: Engine, storage: Storage) -> None:
    low = make_job(engine, JobSetup(prompts=24, shard_size=4))
    other = make_job(engine, JobSetup(prompts=24, shard_size=4, teachers=("t1",)))
    high = make_job(engine, JobSetup(prompts=8, shard_size=4, priority=5))
    ledger = Ledger(engine, config("another"))
    claims = [ledger.claim(set(), set()) for _ in range(8)]
    first = [claim[0].job_id for claim in claims if claim is not None]
    assert first[:2] == [high, high]
    assert Tally(first[2:]) == {low: 3, other: 3}
    for claim in claims:
        assert claim is not None
        ledger.release(claim[0], "released", "by the test")
    with running(engine, storage, Teacher(delay=0.01), max_in_flight=4):
        for job in (low, other, high):
            finish(engine, job)


def test_a_followed_prompt_set_grows_until_it_is_sealed(engine: Engine, storage: Storage) -> None:
    job = make_job(engine, JobSetup(prompts=5, follow=True))
    prompt_set = job_row(engine, job).prompt_set_id
    woken: list[str | None] = []
    with running(engine, storage, Teacher()):
        until(lambda: job_row(engine, job).n_shards_finished == 1)
        dispatch.tick(engine, woken.append)
        assert status(engine, job) == "running"
        add_prompts(engine, prompt_set, 12)
        dispatch.tick(engine, woken.append)
        until(lambda: job_row(engine, job).n_shards_finished == 3)
        with transaction(engine) as connection:
            connection.execute(update(PromptSet).values(sealed=True))
        dispatch.tick(engine, woken.append)
        finish(engine, job)
    assert check_whole(engine, storage, job)["completed"] == 17


def test_drain_hands_back_what_is_not_done(engine: Engine, storage: Storage) -> None:
    job = make_job(engine, JobSetup(prompts=100))
    teacher = Teacher(delay=0.2)
    with running(engine, storage, teacher, max_in_flight=8) as made:
        until(lambda: made.in_flight == 8)
    calls = sum(teacher.calls.values())
    with reading(engine) as connection:
        rows = len(connection.execute(select(Completion.sample_index)).all())
        assert rows == calls, "the calls in flight were finished and recorded"
        assert {s for (s,) in connection.execute(select(Shard.status))} <= {"ready", "finished"}
    with running(engine, storage, Teacher()):
        finish(engine, job)
    check_whole(engine, storage, job)


def test_the_next_shard_starts_before_the_last_one_drains(engine: Engine, storage: Storage) -> None:
    """One slow prompt at a shard's end leaves the other slots busy."""
    job = make_job(engine, JobSetup(prompts=40, shard_size=10))

    class Slow(Teacher):
        async def generate(self, request: GenerateRequest) -> list[Generation]:
            if request.messages[-1]["content"] == "prompt 9":
                async with asyncio.timeout(20):
                    while len(self.order) < 39:  # noqa: ASYNC110 - all the others, three shards' worth
                        await asyncio.sleep(0.01)
            return await super().generate(request)

    teacher = Slow()
    with running(engine, storage, teacher, max_in_flight=4):
        finish(engine, job)
    assert teacher.order[-1] == "prompt 9"
    check_whole(engine, storage, job)


def test_a_worker_that_claims_its_own_lapsed_shard_again(engine: Engine, storage: Storage) -> None:
    """It was starved for longer than its lease, and does not know that it holds the shard twice."""
    job = make_job(engine, JobSetup(prompts=4, shard_size=2, top_logprobs=2))
    again = threading.Event()

    class Held(Teacher):
        async def generate(self, request: GenerateRequest) -> list[Generation]:
            while not again.is_set():  # noqa: ASYNC110 - set by another thread; nothing is answered before the shards were claimed again
                await asyncio.sleep(0.01)
            return await super().generate(request)

    def claimed_again() -> bool:
        with transaction(
            engine
        ) as connection:  # a heartbeat may have prolonged the lease meanwhile: every time
            connection.execute(update(Shard).where(Shard.epoch == 1).values(lease_until=1.0))
            return set(connection.execute(select(Shard.epoch)).scalars()) == {2}

    with running(engine, storage, Held(), lease_seconds=60) as made:
        until(lambda: made.in_flight == 4)
        until(claimed_again)
        again.set()
        finish(engine, job)
    check_whole(engine, storage, job)
    with reading(engine) as connection:
        outcomes = connection.execute(select(ShardAttempt.outcome)).scalars().all()
    assert Tally(outcomes) == {"lost": 2, "finished": 2}


def test_a_shard_over_which_workers_died_is_asked_prompt_by_prompt(engine: Engine, storage: Storage) -> None:
    """Each is named in the database before it is sent; the one over which they go on dying fails, and no other."""
    job = make_job(engine, JobSetup(prompts=12, shard_size=6, n=2))
    with transaction(engine) as connection:
        first, second = connection.execute(select(Shard.id).order_by(Shard.id)).scalars()
        connection.execute(update(Shard).where(Shard.id == first).values(claims_without_progress=3))
        connection.execute(
            update(Shard).where(Shard.id == second).values(claims_without_progress=4, suspect=8)
        )
    named: list[tuple[str, int | None]] = []

    class Named(Teacher):
        async def generate(self, request: GenerateRequest) -> list[Generation]:
            prompt = str(request.messages[-1]["content"])
            named.append((prompt, await asyncio.to_thread(suspect)))
            return await super().generate(request)

    def suspect() -> int | None:
        with reading(engine) as connection:
            return connection.execute(select(Shard.suspect).where(Shard.id == first)).scalar_one()

    with running(engine, storage, Named(), shard_attempts=20):
        finish(engine, job)
    assert check_whole(engine, storage, job) == {"completed": 22, "failed": 2, "segments": 0}
    assert {(f"prompt {n}", n) for n in range(6)} == {seen for seen in named if int(seen[0][7:]) < 6}
    with reading(engine) as connection:
        failed = connection.execute(
            select(Completion.prompt_number, Completion.error_kind).where(Completion.status == "failed")
        ).all()
    assert [tuple(row) for row in failed] == [(8, "worker-died")] * 2


def test_a_worker_that_slept_accuses_nobody(engine: Engine, storage: Storage) -> None:
    """It takes its own lapsed shard again and again, and lives: that is no death over the shard."""
    job = make_job(engine, JobSetup(prompts=4))
    mine, others = Ledger(engine, config("mine")), Ledger(engine, config("others"))
    seen = []
    for ledger in (mine, mine, mine, others, mine):
        claimed = ledger.claim(set(), set())
        assert claimed is not None
        seen.append(claimed[0].claims_without_progress)
        with transaction(engine) as connection:
            connection.execute(update(Shard).where(Shard.job_id == job).values(lease_until=1.0))
    assert seen == [1, 1, 1, 2, 3]
