"""`reuse: true`: equal samples of earlier jobs are copied with their tokens, and counted apart."""

import numpy as np
import pytest
from sqlalchemy import Engine, insert, select, update

from app.db import jobs
from app.db.models import Completion, Job, Lane, Pace, Project, Segment, Shard
from app.db.session import db_now, reading, session, transaction
from app.storage.places import Storage
from app.storage.segments import read_segment
from app.storage.token_table import columns_of
from tests.fixtures.jobs import JobSetup, check_whole, make_job
from tests.integration.engine.running import Teacher, finish, running


def again(database: Engine, **setup: object) -> str:
    job = make_job(database, JobSetup(**setup))  # type: ignore[arg-type]
    with transaction(database) as connection:
        connection.execute(update(Job).where(Job.id == job).values(reuse=True))
    return job


def made(database: Engine, storage: Storage, job: str) -> Teacher:
    teacher = Teacher()
    with running(database, storage, teacher):
        finish(database, job)
    check_whole(database, storage, job)
    return teacher


def counts(database: Engine, job: str) -> tuple[int, int, int]:
    with session(database, writes=False) as work:
        total = jobs.counts(work, [job])[(job, 0)]
    return total.completed, total.reused, total.calls


def rows(database: Engine, job: str) -> dict[tuple[int, int], object]:
    columns = (
        Completion.answer,
        Completion.content_hash,
        Completion.completion_tokens,
        Completion.n_tokens,
        Completion.response_hash,
        Completion.reused_from,
    )
    with reading(database) as connection:
        found = connection.execute(
            select(Completion.prompt_number, Completion.sample_index, *columns).where(
                Completion.job_id == job
            )
        ).all()
    return {(row.prompt_number, row.sample_index): row for row in found}


def test_equal_samples_are_copied_with_their_tokens(engine: Engine, storage: Storage) -> None:
    """Others are asked for: more samples, more prompts. What was reused itself names the first row."""
    first = make_job(engine, JobSetup(prompts=20, n=2, top_logprobs=3))
    made(engine, storage, first)
    second = again(engine, prompts=24, n=3, top_logprobs=3, shard_size=5)
    teacher = made(engine, storage, second)
    assert sum(teacher.calls.values()) == 20 + 3 * 4
    assert counts(engine, second) == (72, 40, 32)
    third = again(engine, prompts=24, n=3, top_logprobs=3)
    assert not made(engine, storage, third).calls
    assert counts(engine, third) == (72, 72, 0)
    old, new = rows(engine, first), rows(engine, third)
    for (number, index), row in old.items():
        same = new[(number, index)]
        assert same[2:7] == row[2:7]  # type: ignore[index]
        assert same.reused_from == f"{first}/0/{number}/0/{index}"  # type: ignore[attr-defined]
        assert tokens(engine, storage, third, number, index) == tokens(engine, storage, first, number, index)
    with reading(engine) as connection:
        assert connection.execute(select(Pace.rows).where(Pace.job_id == third)).all() == []


def tokens(database: Engine, storage: Storage, job: str, number: int, index: int) -> list[object]:
    with reading(database) as connection:
        path = connection.execute(
            select(Segment.path)
            .join(Shard, Shard.segment_id == Segment.id)
            .where(Shard.job_id == job, Shard.first_prompt <= number, Shard.end_prompt > number)
        ).scalar_one()
    table = read_segment(storage, path)
    keys = list(zip(table["prompt_number"].to_pylist(), table["sample_index"].to_pylist(), strict=True))
    found = columns_of(table, keys.index((number, index)))
    return [np.asarray(getattr(found, name)).tolist() for name in ("token_ids", "topk_ids", "topk_logprobs")]


def test_what_is_not_equal_is_asked_for(engine: Engine, storage: Storage) -> None:
    """Another k, another project, and a job that does not ask for it."""
    first = make_job(engine, JobSetup(prompts=8))
    made(engine, storage, first)
    assert sum(made(engine, storage, again(engine, prompts=8, top_logprobs=2)).calls.values()) == 8
    assert sum(made(engine, storage, make_job(engine, JobSetup(prompts=8))).calls.values()) == 8
    elsewhere = again(engine, prompts=8)
    with transaction(engine) as connection:
        connection.execute(update(Completion).where(Completion.job_id != first).values(content_hash=b"other"))
        connection.execute(insert(Project).values(id="prj_other", name="other", created_at=db_now()))
        connection.execute(update(Job).where(Job.id == first).values(project_id="prj_other"))
    assert sum(made(engine, storage, elsewhere).calls.values()) == 8


def test_a_removed_row_is_not_reused(engine: Engine, storage: Storage) -> None:
    first = make_job(engine, JobSetup(prompts=8))
    made(engine, storage, first)
    with transaction(engine) as connection:
        connection.execute(update(Completion).where(Completion.prompt_number < 3).values(status="removed"))
    second = again(engine, prompts=8)
    assert set(made(engine, storage, second).calls) == {"prompt 0", "prompt 1", "prompt 2"}
    assert counts(engine, second) == (8, 5, 3)


@pytest.mark.parametrize(("column", "value"), [("terms_id", "llama-3.3"), ("trained_on", ["exp_1"])])
def test_a_row_that_other_terms_bind_is_not_reused(
    engine: Engine, storage: Storage, column: str, value: object
) -> None:
    """The same model answers, and still the copy would be a way around the terms."""
    first = make_job(engine, JobSetup(prompts=4))
    made(engine, storage, first)
    with transaction(engine) as connection:
        connection.execute(update(Lane).where(Lane.job_id == first).values({column: value}))
    assert sum(made(engine, storage, again(engine, prompts=4)).calls.values()) == 4


def test_rows_of_another_teacher_are_not_reused(engine: Engine, storage: Storage) -> None:
    """It answers alike; but whoever takes the one down, or asks where its rows went, must find them all."""
    first = make_job(engine, JobSetup(prompts=4))
    made(engine, storage, first)
    second = again(engine, prompts=4, teachers=("t1",))
    assert sum(made(engine, storage, second).calls.values()) == 4
    assert not made(engine, storage, again(engine, prompts=4, teachers=("t1",))).calls
