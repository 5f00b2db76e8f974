"""How often a worker looks into the database for something to claim."""

from typing import Any

from sqlalchemy import Engine, event

from app.storage.places import Storage
from tests.fixtures.jobs import JobSetup, check_whole, make_job
from tests.integration.engine.running import Teacher, finish, running


def test_a_worker_looks_for_shards_where_one_is_needed_and_not_after_each_answer(
    engine: Engine, storage: Storage
) -> None:
    job = make_job(engine, JobSetup(prompts=600, shard_size=300, max_in_flight=4))
    looks = checkpoints = 0

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal looks, checkpoints
        looks += "lane.parked_until" in statement and statement.startswith("SELECT")
        checkpoints += statement.startswith("INSERT INTO completion")

    event.listen(engine, "before_cursor_execute", count)
    # Answers come apart, so that each could be followed by a look of its own; none is by the clock.
    teacher = Teacher(delay=0.02)
    with running(engine, storage, teacher, flush_seconds=0.5, flush_rows=600, poll_seconds=60):
        finish(engine, job)
    event.remove(engine, "before_cursor_execute", count)
    assert check_whole(engine, storage, job)["completed"] == 600
    # One after each checkpoint, and where a shard begins or ends: by then no more than 4 calls are under way.
    assert looks <= checkpoints + 25
