"""Jobs through providers' batch APIs: whole, in parts, refused, cancelled, found again."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from app.db import provider_batches
from app.db.models import Completion, Counter, Job, Lane, PromptSet, Shard, Teacher
from app.db.session import connect, reading, transaction
from app.services import dispatch, takedown
from app.services.retrying import retry
from tests.fixtures.batch_apis import BatchStore
from tests.fixtures.jobs import add_prompts, job_row

from .batching import APIS, World, until, world


@pytest.fixture
def openai(engine: Engine, tmp_path: Path) -> Iterator[World]:
    with world(engine, tmp_path, "openai") as made:
        yield made


@pytest.fixture
def lite(sqlite_url: str, tmp_path: Path) -> Iterator[World]:
    """On SQLite only: what differs is the provider."""
    database = connect(sqlite_url)
    with world(database, tmp_path, "openai") as made:
        yield made
    database.dispose()


@pytest.fixture(params=list(APIS))
def each(request: pytest.FixtureRequest, sqlite_url: str, tmp_path: Path) -> Iterator[World]:
    database = connect(sqlite_url)
    with world(database, tmp_path, request.param) as made:
        yield made
    database.dispose()


def test_a_job_goes_through_the_batch_api_for_half_the_price(each: World) -> None:
    job = each.job()
    with each.running():
        until(lambda: each.ended(job))
    assert each.check(job) == {"completed": 20, "failed": 0, "segments": 0}
    (batch,) = each.batches()
    assert (batch.status, batch.n_requests, batch.n_samples, batch.n_completed) == (
        "collected",
        20,
        20,
        batch.n_completed,
    )
    assert len(each.store.batches) == 1
    assert not each.paid_twice()
    rows = each.rows()
    extra = rows[0].provider_extra
    assert batch.id in extra
    assert batch.provider_id in extra
    usage = rows[0]
    half = usage.prompt_tokens * 500 + usage.completion_tokens * 1000
    assert usage.cost_nanousd == half, "0.5 and 1 USD per million tokens"
    assert usage.attempts == 1
    with reading(each.database) as connection:
        counter = connection.execute(select(Counter.cost_nanousd, Counter.unpriced)).one()
        shards = connection.execute(select(Shard.provider_batch_id, Shard.batch_rounds)).all()
    assert tuple(counter) == (sum(row.cost_nanousd for row in rows), 0)
    assert {tuple(shard) for shard in shards} == {(None, 0)}


def test_token_columns_come_with_a_batch_too(openai: World) -> None:
    job = openai.job(top_logprobs=3)
    with openai.running():
        until(lambda: openai.ended(job))
    assert openai.check(job) == {"completed": 20, "failed": 0, "segments": 3}
    assert {row.n_tokens for row in openai.rows()} == {8}


def test_siblings_share_one_request(lite: World) -> None:
    job = lite.job(n=3, prompts=5, sampling={"temperature": 0.7, "max_tokens": 8, "seed": 40})
    with lite.running():
        until(lambda: lite.ended(job))
    assert lite.check(job)["completed"] == 15
    (batch,) = lite.store.batches.values()
    assert len(batch.requests) == 5
    assert {body["n"] for _, body in batch.requests} == {3}
    first = [row.answer.rpartition(" ")[2] for row in lite.rows() if row.prompt_number == 0]
    assert first == ["s40", "s41", "s42"]


def test_siblings_that_are_missing_are_asked_for_alone(lite: World) -> None:
    """One of three choices came: the other two go into the next batch, with their own seeds."""
    lite.store.fate = lambda custom_id, body, times: (
        "fewer" if body.get("n") == 3 and "prompt 2" in str(body["messages"]) else "ok"
    )
    job = lite.job(n=3, prompts=5, sampling={"temperature": 0.7, "max_tokens": 8, "seed": 40})
    with lite.running():
        until(lambda: lite.ended(job))
    assert lite.check(job)["completed"] == 15
    _, second = lite.store.batches.values()
    ((_, body),) = second.requests
    assert (body["n"], body["seed"]) == (2, 41)
    again = [(row.answer.rpartition(" ")[2], row.attempts) for row in lite.rows() if row.prompt_number == 2]
    assert again == [("s40", 1), ("s41", 2), ("s42", 2)]


def test_a_job_is_cut_into_batches_that_the_provider_takes(openai: World) -> None:
    job = openai.job(prompts=40, options={"provider": "generic", "batch_max_requests": 16})
    with openai.running("w1"), openai.running("w2"):
        until(lambda: openai.ended(job))
    assert openai.check(job)["completed"] == 40
    assert sorted(len(batch.requests) for batch in openai.store.batches.values()) == [8, 16, 16]
    assert not openai.paid_twice()


def fates(store: BatchStore, by_prompt: dict[int, Any]) -> None:
    """`by_prompt`: what becomes of a prompt's request, by how often it was answered before; the last one stays."""

    def fate(custom_id: str, body: Any, times: int) -> Any:
        number = int(custom_id.split("-")[2])
        given = by_prompt.get(number, ["ok"])
        return given[min(times, len(given) - 1)]

    store.fate = fate


def test_what_a_batch_leaves_goes_into_the_next(each: World) -> None:
    kinds: dict[int, Any] = {
        1: ["500", "ok"],
        2: ["expired", "ok"],
        3: ["missing", "ok"],
        4: ["400"],
        5: ["500"],
    }
    fates(each.store, kinds)
    job = each.job()
    with each.running():
        until(lambda: each.ended(job))
    assert each.check(job) == {"completed": 18, "failed": 2, "segments": 0}
    rows = {row.prompt_number: row for row in each.rows()}
    assert {number: rows[number].attempts for number in (0, 1, 2, 3, 4, 5)} == {
        0: 1,
        1: 2,
        2: 2,
        3: 2,
        4: 1,
        5: 3,
    }
    assert (rows[4].error_kind, rows[5].error_kind) == ("teacher-permanent", "teacher-transient")
    assert "scripted 400" in rows[4].error_detail
    assert [len(batch.requests) for batch in each.store.batches.values()] == [20, 4, 1]


def test_a_line_that_cannot_be_read_is_a_malformed_answer(lite: World) -> None:
    fates(lite.store, {3: ["broken"]})
    job = lite.job(prompts=5)
    with lite.running():
        until(lambda: lite.ended(job))
    (failed,) = [row for row in lite.rows() if row.status == "failed"]
    assert (failed.prompt_number, failed.error_kind, failed.attempts) == (3, "teacher-malformed-answer", 3)


def test_failed_rows_are_retried_in_a_new_batch(openai: World) -> None:
    fates(openai.store, {7: ["400", "ok"]})
    job = openai.job()
    with openai.running():
        until(lambda: openai.ended(job))
        assert openai.check(job)["failed"] == 1
        project = job_row(openai.database, job).project_id
        assert retry(openai.database, project, "key", job, ()).n_retried == 1
        until(lambda: openai.status(job) == "completed" and openai.check(job)["failed"] == 0)
    assert openai.check(job)["completed"] == 20


def test_a_full_queue_at_the_provider_is_waited_for(lite: World) -> None:
    too_much = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None}
    lite.store.fail_with.append(too_much)
    job = lite.job()
    with lite.running():
        until(lambda: lite.status(job) == "parked")
        (batch,) = lite.batches()
        assert (batch.status, "Enqueued" in batch.error) == ("failed", True)
        with transaction(lite.database) as connection:
            lane = connection.execute(select(Lane.parked_kind, Lane.parked_until)).one()
            assert (lane.parked_kind, lane.parked_until is not None) == ("teacher-rate-limited", True)
            connection.execute(update(Lane).values(parked_until=0))
        until(lambda: lite.ended(job))
    assert lite.check(job)["completed"] == 20
    assert {row.attempts for row in lite.rows()} == {1}, "a batch that was not taken is no attempt"


@pytest.mark.parametrize("where", ["create", "validation"])
def test_a_batch_that_is_refused_waits_for_a_person(lite: World, where: str) -> None:
    error = {"code": "invalid_model", "message": "this model takes no batches", "line": 1}
    if where == "create":
        lite.store.refuse_create.append((400, error))
    else:
        lite.store.fail_with.append(error)
    job = lite.job()
    with lite.running():
        until(lambda: lite.status(job) == "parked")
        assert "this model takes no batches" in job_row(lite.database, job).status_reason
        time.sleep(0.3)
        assert len(lite.batches()) == 1, "it is not tried again by itself"
        with transaction(lite.database) as connection:
            connection.execute(update(Lane).values(parked_kind=None, parked_reason=None))
            connection.execute(update(Job).values(status="running"))
        until(lambda: lite.ended(job))
    assert lite.check(job)["completed"] == 20
    assert {row.attempts for row in lite.rows()} == {1}


@pytest.mark.parametrize("status", [429, 503])
def test_a_provider_that_is_busy_is_asked_again(lite: World, status: int) -> None:
    lite.store.refuse_create.append((status, {"message": "busy"}))
    job = lite.job()
    with lite.running():
        until(lambda: lite.batches() and lite.batches()[0].tries == 1)
        with transaction(lite.database) as connection:
            connection.exec_driver_sql("UPDATE provider_batch SET next_at = 0")
        until(lambda: lite.ended(job))
    assert lite.check(job)["completed"] == 20
    assert not lite.paid_twice()


def test_a_cancelled_job_cancels_at_the_provider_and_keeps_what_was_paid(openai: World) -> None:
    openai.store.looks = None
    job = openai.job()
    with openai.running():
        until(lambda: openai.batches() and openai.batches()[0].status == "in_progress")
        with transaction(openai.database) as connection:
            connection.execute(update(Job).values(status="cancelled"))
        until(lambda: openai.batches()[0].status == "collected")
    assert openai.store.cancelled == [openai.batches()[0].provider_id]
    assert len(openai.rows()) == 10
    with reading(openai.database) as connection:
        shards = connection.execute(select(Shard.status, Shard.owner, Shard.provider_batch_id)).all()
    assert {tuple(shard) for shard in shards} <= {("ready", None, None), ("finished", None, None)}
    assert openai.status(job) == "cancelled"


def test_a_paused_job_submits_nothing_and_keeps_what_comes(openai: World) -> None:
    openai.store.looks = None
    job = openai.job(prompts=24, options={"provider": "generic", "batch_max_requests": 16})
    with openai.running(most_open=1):
        until(lambda: openai.batches() and openai.batches()[0].status == "in_progress")
        with transaction(openai.database) as connection:
            connection.execute(update(Job).values(status="paused"))
        openai.store.end_all()
        until(lambda: len(openai.rows()) == 16)
        time.sleep(0.2)
        assert len(openai.store.batches) == 1
        assert openai.status(job) == "paused"
        with transaction(openai.database) as connection:
            connection.execute(update(Job).values(status="running"))
        until(lambda: len(openai.store.batches) == 2)
        openai.store.end_all()
        until(lambda: openai.ended(job))
    assert openai.check(job)["completed"] == 24


def test_a_batch_whose_submission_broke_off_is_found_again(each: World) -> None:
    """The provider took it, and the connection was cut before its answer."""
    each.store.cut_after_create = 1
    job = each.job()
    with each.running():
        until(lambda: each.batches() and each.batches()[0].tries == 1)
        with transaction(each.database) as connection:
            connection.exec_driver_sql("UPDATE provider_batch SET next_at = 0")
        until(lambda: each.ended(job))
    assert each.check(job)["completed"] == 20
    assert len(each.store.batches) == 1
    assert not each.paid_twice()


def test_a_strangers_batch_is_not_taken_for_ours(sqlite_url: str, tmp_path: Path) -> None:
    """Anthropic's batches carry no mark: one of the same age and size is taken for ours until its results tell."""
    database = connect(sqlite_url)
    with world(database, tmp_path, "anthropic") as made:
        made.store.looks = None
        made.store.refuse_create.append((503, {"type": "overloaded_error", "message": "busy"}))
        job = made.job()
        with made.running():
            until(lambda: made.batches() and made.batches()[0].tries == 1)
            stranger = made.store.add(
                [(f"request-{i}", {"max_tokens": 1, "messages": []}) for i in range(20)], {}, "msgbatch_"
            )
            made.store.fate = lambda custom_id, body, times: (
                "expired" if custom_id.startswith("request") else "ok"
            )
            with transaction(database) as connection:
                connection.exec_driver_sql("UPDATE provider_batch SET next_at = 0")
            until(lambda: made.batches()[0].status == "in_progress")
            assert (made.batches()[0].provider_id, made.batches()[0].confirmed) == (stranger.id, False)
            made.store.end_all()
            until(lambda: len(made.store.batches) == 2)
            made.store.end_all()
            until(lambda: made.ended(job))
        assert made.check(job)["completed"] == 20
        assert made.batches()[0].rejected == [stranger.id]
    database.dispose()


def test_a_batch_that_the_provider_forgot_is_submitted_again(lite: World) -> None:
    lite.store.looks = None
    job = lite.job()
    with lite.running():
        until(lambda: lite.batches() and lite.batches()[0].status == "in_progress")
        lite.store.batches.clear()
        until(lambda: len(lite.batches()) == 2 and lite.batches()[1].status == "in_progress")
        lite.store.end_all()
        until(lambda: lite.ended(job))
    assert "does not know batch" in lite.batches()[0].error
    assert lite.check(job)["completed"] == 20


def test_a_stalled_worker_does_not_submit_twice(openai: World) -> None:
    """Its lease runs out while the provider takes its time; its successor finds the batch."""
    openai.store.create_delay = 1.5
    job = openai.job()

    def deaf(teacher: Any) -> Any:
        return teacher

    with openai.running("stalled", lease_seconds=0.3, wrap=deaf) as stalled:
        stalled._beating = _no_heart  # type: ignore[assignment, method-assign]
        until(lambda: openai.store.batches)
        with openai.running("other", lease_seconds=5.0):
            until(lambda: openai.ended(job))
    assert openai.check(job)["completed"] == 20
    assert len(openai.store.batches) == 1
    assert not openai.paid_twice()


class _NoHeart:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


def _no_heart(held: object) -> _NoHeart:
    return _NoHeart()


def test_a_dead_provider_parks_the_job_and_it_goes_on_by_itself(openai: World) -> None:
    job = openai.job()
    with transaction(openai.database) as connection:
        connection.execute(update(Teacher).values(base_url="http://127.0.0.1:9/v1"))
    with openai.running():
        until(lambda: openai.status(job) == "parked")
        with transaction(openai.database) as connection:
            connection.execute(update(Teacher).values(base_url=openai.base_url))
        until(lambda: openai.ended(job))
    assert openai.check(job)["completed"] == 20
    with reading(openai.database) as connection:
        assert connection.execute(select(Lane.parked_reason)).scalar_one() is None
        assert set(connection.execute(select(Completion.attempts)).scalars()) == {1}


def test_requests_that_cannot_be_put_into_words_fail_alone(sqlite_url: str, tmp_path: Path) -> None:
    database = connect(sqlite_url)
    with world(database, tmp_path, "gemini") as made:
        job = made.job(prompts=4)
        with transaction(database) as connection:
            body = b'{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}'
            connection.exec_driver_sql("UPDATE prompt SET body = ? WHERE number = 2", (body,))
        with made.running():
            until(lambda: made.ended(job))
        assert made.check(job) == {"completed": 3, "failed": 1, "segments": 0}
        (failed,) = [row for row in made.rows() if row.status == "failed"]
        assert (failed.prompt_number, failed.error_kind) == (2, "teacher-unsupported")
        assert [len(batch.requests) for batch in made.store.batches.values()] == [3]
    database.dispose()


def test_the_engines_loop_leaves_batch_lanes_alone(openai: World) -> None:
    from app.db import shards

    openai.job()
    with reading(openai.database) as connection:
        assert shards.candidates(connection, ()) == []


def test_files_are_deleted_at_the_provider_when_all_is_recorded(lite: World) -> None:
    job = lite.job()
    with lite.running():
        until(lambda: lite.ended(job))
        until(lambda: not lite.store.files)


def test_a_provider_that_is_away_for_a_while_parks_the_job_and_is_asked_again(openai: World) -> None:
    openai.store.looks = None
    job = openai.job()
    with openai.running():
        until(lambda: openai.batches() and openai.batches()[0].status == "in_progress")
        with transaction(openai.database) as connection:
            connection.execute(update(Teacher).values(base_url="http://127.0.0.1:9/v1"))
        until(lambda: openai.status(job) == "parked")
        with transaction(openai.database) as connection:
            connection.execute(update(Teacher).values(base_url=openai.base_url))
        until(lambda: hurried(openai) and openai.status(job) == "running")
        openai.store.end_all()
        until(lambda: openai.ended(job))
    assert openai.status(job) == "completed"
    assert openai.check(job)["completed"] == 20
    assert not openai.paid_twice()


def test_a_line_that_is_no_json_is_fetched_again_and_then_given_up(lite: World) -> None:
    fates(lite.store, {3: ["garbled", "ok"]})
    job = lite.job(prompts=5)
    with lite.running():
        until(lambda: hurried(lite) and lite.ended(job))
    assert lite.check(job) == {"completed": 5, "failed": 0, "segments": 0}
    assert {row.prompt_number: row.attempts for row in lite.rows()} == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1}
    assert lite.store.calls["GET /v1/files/file-out-#/content"] >= 4, (
        "a file that was cut off may be whole next time"
    )


def test_results_that_cannot_be_had_are_given_up_in_the_end(lite: World) -> None:
    """Each batch may have been paid for: after so many of the same samples, a person decides."""
    lite.store.no_results = True
    job = lite.job(prompts=5)
    with lite.running():
        until(lambda: hurried(lite) and lite.status(job) == "parked")
        time.sleep(0.3)
        assert [batch.status for batch in lite.batches()] == ["failed"] * 3
        reason = job_row(lite.database, job).status_reason
        assert "3 batches of the same samples were lost" in reason
        assert "No such File object" in reason
        lite.store.no_results = False
        with transaction(lite.database) as connection:  # as `resume` does
            connection.execute(update(Lane).values(parked_kind=None, parked_reason=None, parked_until=None))
            connection.execute(update(Job).values(status="running"))
        until(lambda: lite.ended(job))
    assert lite.check(job)["completed"] == 5


def test_a_shard_that_was_being_recorded_when_the_provider_forgot_its_batch_is_free_again(
    openai: World,
) -> None:
    openai.store.looks = None
    job = openai.job()
    with openai.running():
        until(lambda: openai.batches() and openai.batches()[0].status == "in_progress")
    with transaction(openai.database) as connection:  # where its worker died
        connection.execute(
            update(Shard)
            .where(Shard.first_prompt == 0)
            .values(status="leased", owner="w1/batches", lease_until=0, epoch=Shard.epoch + 1)
        )
    openai.store.batches.clear()
    with openai.running("w2"):
        until(lambda: openai.store.batches)
        openai.store.end_all()
        until(lambda: openai.ended(job))
    assert openai.check(job)["completed"] == 20


def test_a_shard_that_its_own_worker_records_again_is_no_sign_of_a_death(openai: World) -> None:
    """As in the engine's loop: only another worker's claim tells that the one before may have died over it."""
    openai.job(prompts=3, shard_size=3)
    with transaction(openai.database) as connection:
        (lane,) = provider_batches.to_plan(connection, (), 1)
        (shard,) = provider_batches.plan(connection, "bat_1", lane, 10, 1)
        counts = []
        for worker in ("w1", "w1", "w2"):
            held = provider_batches.claim_due(connection, worker, -1, ())
            assert held is not None
            claim = provider_batches.claim_shard(connection, held, shard, worker, -1)
            assert claim is not None
            counts.append(claim.claims_without_progress)
    assert counts == [1, 1, 2]


def test_a_cancelled_job_whose_teacher_became_another_lets_its_batch_go(lite: World) -> None:
    lite.store.looks = None
    job = lite.job()
    with lite.running():
        until(lambda: lite.batches() and lite.batches()[0].status == "in_progress")
    with transaction(lite.database) as connection:
        connection.execute(update(Lane).values(identity_sha256=bytes(32)))
    lite.store.end_all()
    with lite.running("w2"):
        until(lambda: hurried(lite) and lite.status(job) == "parked")
        assert "is not the one that this job began with" in job_row(lite.database, job).status_reason
        assert lite.batches()[0].status == "ended"
        with transaction(lite.database) as connection:
            connection.execute(update(Job).values(status="cancelled"))
        until(lambda: hurried(lite) and lite.batches()[0].status == "failed")
    assert not lite.rows()


def test_answers_of_another_model_are_failed_rows_and_can_be_asked_for_again(each: World) -> None:
    """The alias led to another model by the time that the batch was worked off."""
    each.store.looks = None
    each.store.api.version = "20260101"
    job = each.job(prompts=4)
    with each.running():
        until(lambda: each.batches() and each.batches()[0].status == "in_progress")
        each.store.api.version = "20270102"
        each.store.end_all()
        until(lambda: each.ended(job))
        assert {row.error_kind for row in each.rows()} == {"teacher-identity-changed"}
        each.store.api.version = "20260101"
        each.store.looks = 1
        assert retry(each.database, job_row(each.database, job).project_id, "key", job, ()).n_retried == 4
        until(lambda: each.status(job) == "completed" and each.check(job)["failed"] == 0)
    assert each.check(job)["completed"] == 4


@pytest.mark.parametrize("batch_max_requests", [0, "many"])
def test_options_that_are_none_park_the_job_and_not_the_worker(lite: World, batch_max_requests: Any) -> None:
    job = lite.job(options={"provider": "generic", "batch_max_requests": batch_max_requests})
    with lite.running():
        until(lambda: lite.status(job) == "parked")
        assert "`batch_max_requests`" in job_row(lite.database, job).status_reason


def test_a_provider_that_talks_nonsense_takes_no_worker_with_it(each: World) -> None:
    """Whatever it tells of a batch: the step is tried again, and the row says what came."""
    nonsense: list[Any] = [
        [], "batch", 7, None, {"id": 7}, {"id": "b", "request_counts": [1]},
        {"id": "b", "status": {}, "errors": {"data": [1]}, "request_counts": {"completed": "x"}},
        {"name": "batches/b", "metadata": "x"}, {"name": "batches/b", "metadata": {"batchStats": 3}},
        {"id": "b", "processing_status": None, "request_counts": {"succeeded": "x"}},
    ]  # fmt: skip
    each.store.looks = None
    each.store.nonsense = nonsense
    job = each.job(prompts=4)
    with each.running():
        until(lambda: hurried(each) and not nonsense)
        each.store.end_all()
        until(lambda: hurried(each) and each.ended(job))
    assert each.check(job) == {"completed": 4, "failed": 0, "segments": 0}


def test_files_of_a_killed_worker_are_swept_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    def python(code: str) -> subprocess.CompletedProcess[str]:
        start = "import os, signal\nfrom app.teachers.batch_files import scratch, sweep\nwith scratch() as folder:\n "
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "-c", start + code], env=environment, capture_output=True, text=True
        )

    killed = python(
        "(folder / 'requests.jsonl').write_text('a prompt'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert killed.returncode == -9
    assert [file.name for file in tmp_path.rglob("*.jsonl")] == ["requests.jsonl"]
    later = python("print(sweep(), sweep(0), folder.exists())")  # at first it may be about to be locked
    assert (later.stdout, later.stderr) == ("0 1 True\n", "")
    assert not list(tmp_path.iterdir())


def take_down(world: World, project: str, job: str, number: int) -> None:
    """One prompt of the job, ordered and carried out."""
    asked = takedown.TakedownRequest(
        prompt_set=job_row(world.database, job).prompt_set_id, prompts=(number,), who="w", why="a letter"
    )
    with transaction(world.database) as connection, Session(connection) as session:
        takedown.order(session, project, "key", asked)
    until(lambda: takedown.run_next(world.database, world.storage, "w", 60, lambda: False, again_seconds=0))


def hurried(world: World) -> bool:
    """What waits is due now."""
    with transaction(world.database) as connection:
        connection.exec_driver_sql("UPDATE provider_batch SET next_at = 0 WHERE owner IS NULL")
    return True


def test_a_followed_prompt_set_goes_on_in_batches_until_it_is_sealed(openai: World) -> None:
    job = openai.job(prompts=5, follow=True)
    prompt_set = job_row(openai.database, job).prompt_set_id
    woken: list[str | None] = []
    with openai.running():
        until(lambda: job_row(openai.database, job).n_shards_finished == 1)
        dispatch.tick(openai.database, woken.append)
        assert openai.status(job) == "running"
        add_prompts(openai.database, prompt_set, 12)
        dispatch.tick(openai.database, woken.append)
        until(lambda: job_row(openai.database, job).n_shards_finished == 3)
        with transaction(openai.database) as connection:
            connection.execute(update(PromptSet).values(sealed=True))
        dispatch.tick(openai.database, woken.append)
        until(lambda: openai.ended(job))
    assert openai.check(job)["completed"] == 17


def test_a_prompt_that_is_taken_down_meanwhile_is_not_recorded(openai: World) -> None:
    openai.store.looks = None
    job = openai.job()
    project = job_row(openai.database, job).project_id
    with openai.running():
        until(lambda: openai.batches() and openai.batches()[0].status == "in_progress")
        take_down(openai, project, job, 3)
        openai.store.end_all()
        until(lambda: openai.ended(job))
    assert openai.status(job) == "completed"
    assert [row.prompt_number for row in openai.rows()] == [number for number in range(20) if number != 3]
