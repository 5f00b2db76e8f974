"""Every fault of a teacher once through a running job, over real HTTP: each prompt ends as docs/teachers.md says."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select, update

from app.db.models import Completion, Counter, Lane, Teacher
from app.db.session import reading, transaction
from app.services.generate.config import EngineConfig, RetryPolicy
from app.services.generate.engine import GenerationEngine
from app.storage.places import open_storage
from app.teachers import TeacherAccess, build
from app.teachers.scripted import Script, ScriptedTeacher
from app.teachers.scripted_faults import Fault
from tests.fixtures.jobs import JobSetup, check_whole, job_row, make_job
from tests.fixtures.loopback import serving

ACCESS = TeacherAccess(allow_loopback=True)
ATTEMPTS = 3

# Prompt → (its fault, for how many calls, what becomes of it, attempts that its row tells of). None calls: for ever.
FAULTS: dict[int, tuple[str, int | None, str, int | None]] = {
    10: ("429", 2, "completed", 1),
    11: ("429-retry-after", 1, "completed", 1),
    12: ("500", 2, "completed", 3),
    13: ("503", 1, "completed", None),
    14: ("400", None, "teacher-permanent", 1),
    15: ("hang", None, "deadline", 1),
    16: ("cut", 1, "completed", 2),
    17: ("drip", None, "completed", 1),
    18: ("half-json", 1, "completed", 2),
    19: ("wrong-type", 1, "completed", 2),
    20: ("huge", 1, "completed", 2),
    21: ("nan-logprobs", None, "teacher-malformed-answer", ATTEMPTS),
    22: ("zero-logprobs", None, "teacher-malformed-answer", ATTEMPTS),
    23: ("no-logprobs", None, "teacher-malformed-answer", ATTEMPTS),
    24: ("no-usage", None, "completed", 1),
    25: ("no-choices", 1, "completed", 2),
    26: ("500", None, "teacher-transient", ATTEMPTS),
}


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came of it in time"
        time.sleep(0.02)


@contextmanager
def running(database: Engine, folder: Path) -> Iterator[None]:
    settings = EngineConfig(
        worker_id="w",
        host="h",
        pid=1,
        version="0",
        teachers=(),
        max_in_flight=16,
        lease_seconds=10.0,
        flush_seconds=0.02,
        flush_rows=8,
        poll_seconds=0.05,
        park_seconds=0.3,
        shard_attempts=5,
        grace_seconds=2.0,
        retry=RetryPolicy(ATTEMPTS, 0.01, 6.0),
        compression_level=1,
    )
    storage = open_storage(str(folder / "storage"))
    made = GenerationEngine(database, storage, lambda spec: build(spec, ACCESS), settings)
    thread = threading.Thread(target=lambda: asyncio.run(made.run()))
    thread.start()
    try:
        yield
    finally:
        made.stop()
        thread.join(20)
    assert not thread.is_alive()


def job_at(database: Engine, url: str, **setup: Any) -> str:
    job = make_job(database, JobSetup(base_url=f"{url}/v1", top_logprobs=3, shard_size=8, **setup))
    with transaction(database) as connection:
        connection.execute(update(Teacher).values(options={"provider": "vllm"}))
    return job


def test_every_fault_ends_as_it_is_written(engine: Engine, tmp_path: Path) -> None:
    faults = tuple(
        Fault(
            kind=kind,
            contains=f"prompt {number}",
            first_calls=calls,
            seconds=30 if kind == "hang" else 0.2,
        )
        for number, (kind, calls, _, _) in FAULTS.items()
    )
    server = ScriptedTeacher(Script(model="null", tokens=8, faults=faults))
    with serving(server.application) as url:
        job = job_at(engine, url, prompts=32)
        with running(engine, tmp_path):
            until(lambda: job_row(engine, job).status in ("completed", "failed"), 90)
    counts = check_whole(engine, open_storage(str(tmp_path / "storage")), job)
    assert counts["completed"] + counts["failed"] == 32
    with reading(engine) as connection:
        rows = {row.prompt_number: row for row in connection.execute(select(Completion.__table__))}
        unpriced, completed = connection.execute(select(Counter.unpriced, Counter.completed)).one()
    told = {
        number: (row.error_kind or row.status, row.attempts)
        for number, row in rows.items()
        if number in FAULTS
    }
    wrong = {
        number: (FAULTS[number], found)
        for number, found in told.items()
        if found[0] != FAULTS[number][2] or FAULTS[number][3] not in (None, found[1])
    }
    assert wrong == {}
    assert all(rows[number].error_detail for number in told if rows[number].status == "failed")
    assert {rows[number].status for number in rows if number not in FAULTS} == {"completed"}
    assert (rows[24].prompt_tokens, rows[24].n_tokens) == (None, 8), "unknown, not 0"
    assert unpriced == completed, "no price is known of this teacher: nothing counts as free"


def test_a_refused_key_parks_the_job_and_burns_nothing(engine: Engine, tmp_path: Path) -> None:
    script = Script(model="null", tokens=8, faults=(Fault(kind="401", contains="prompt 5"),))
    server = ScriptedTeacher(script)
    with serving(server.application) as url:
        job = job_at(engine, url, prompts=12)
        with running(engine, tmp_path):
            until(lambda: job_row(engine, job).status == "parked")
            with reading(engine) as connection:
                kind = connection.execute(select(Lane.parked_kind)).scalar_one()
            assert kind == "teacher-refused-key"
            server.script = Script(model="null", tokens=8)
            until(lambda: job_row(engine, job).status == "completed")
    check_whole(engine, open_storage(str(tmp_path / "storage")), job)
    with reading(engine) as connection:
        assert set(connection.execute(select(Completion.attempts)).scalars()) == {1}


def test_a_model_that_is_gone_parks_the_job_and_burns_nothing(engine: Engine, tmp_path: Path) -> None:
    server = ScriptedTeacher(Script(model="null", tokens=8, delay=0.05))
    with serving(server.application) as url:
        job = job_at(engine, url, prompts=100)
        with running(engine, tmp_path):
            until(lambda: server.calls > 5)
            server.script = Script(model="another", tokens=8)
            until(lambda: job_row(engine, job).status == "parked")
            assert "does not exist" in job_row(engine, job).status_reason
            server.script = Script(model="null", tokens=8)
            until(lambda: job_row(engine, job).status == "completed")
    counts = check_whole(engine, open_storage(str(tmp_path / "storage")), job)
    assert (counts["completed"], counts["failed"]) == (100, 0)
