"""Shards are cut from a prompt set, in portions, so that a set of millions holds nobody up."""

from sqlalchemy import Connection, func, insert, select, update

from app.db.models import Job, Lane, PromptRow, PromptSet, Shard, Stage
from app.domain.lifecycle import ENDED, ShardStatus

RANGES_AT_ONCE = 1000  # some tenths of a second of one transaction, for each teacher

Named = dict[int, dict[str, int]]  # bucket → name of a teacher → how many prompts


def cut(connection: Connection, job_id: str) -> bool:
    """Cut the next prompts that are not in shards yet, at most `RANGES_AT_ONCE` shards' worth. True: there are more.

    Idempotent: `job.cut_through` moves in the same transaction, under the job's row lock.
    """
    job = connection.execute(
        select(Job.prompt_set_id, Job.shard_size, Job.cut_through, Job.status)
        .where(Job.id == job_id)
        .with_for_update()
    ).one()
    if job.status in ENDED:
        return False
    prompts = connection.execute(
        select(PromptSet.n_prompts, PromptSet.n_removed, PromptSet.names_teachers).where(
            PromptSet.id == job.prompt_set_id
        )
    ).one()
    begin = job.cut_through
    through = min(prompts.n_prompts, begin + RANGES_AT_ONCE * job.shard_size)
    if begin >= through:
        return False
    lanes = connection.execute(
        select(Lane.teacher, Lane.teacher_name).where(Lane.job_id == job_id, Lane.removed_by.is_(None))
    ).all()
    stages = connection.execute(select(Stage.position, Stage.n).where(Stage.job_id == job_id)).all()
    named, gone = Named(), Named()
    if prompts.names_teachers:
        named = _named_prompts(connection, job.prompt_set_id, begin, through, job.shard_size)
    if prompts.n_removed:
        gone = _removed_prompts(connection, job.prompt_set_id, begin, through, job.shard_size)
    rows = []
    expected = 0
    for bucket, first in enumerate(range(begin, through, job.shard_size)):
        end = min(first + job.shard_size, through)
        for lane in lanes:
            mine = end - first
            mine -= sum(n for name, n in named.get(bucket, {}).items() if name != lane.teacher_name)
            mine -= sum(n for name, n in gone.get(bucket, {}).items() if name in ("", lane.teacher_name))
            if mine == 0:
                continue
            expected += sum(mine * stage.n for stage in stages)
            rows += [
                {
                    "job_id": job_id,
                    "stage": stage.position,
                    "teacher": lane.teacher,
                    "first_prompt": first,
                    "end_prompt": end,
                    "n_expected": mine * stage.n,
                    "status": ShardStatus.READY,
                }
                for stage in stages
            ]
    if rows:
        connection.execute(insert(Shard), rows)
    connection.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(cut_through=through, n_expected=Job.n_expected + expected, n_shards=Job.n_shards + len(rows))
    )
    return bool(through < prompts.n_prompts)


def _named_prompts(connection: Connection, prompt_set_id: str, first: int, end: int, size: int) -> Named:
    """How many prompts of each shard-to-be ask for a teacher by name."""
    bucket = (PromptRow.number - first) // size
    found = Named()
    for number, name, count in connection.execute(
        select(bucket.label("bucket"), PromptRow.teacher, func.count())
        .where(
            PromptRow.prompt_set_id == prompt_set_id,
            PromptRow.number >= first,
            PromptRow.number < end,
            PromptRow.teacher.is_not(None),
        )
        .group_by("bucket", PromptRow.teacher)
    ):
        found.setdefault(int(number), {})[str(name)] = count
    return found


def _removed_prompts(connection: Connection, prompt_set_id: str, first: int, end: int, size: int) -> Named:
    """How many prompts of each shard-to-be are taken down, by the name that they ask for, or ""."""
    bucket = (PromptRow.number - first) // size
    name = func.coalesce(PromptRow.teacher, "")
    found = Named()
    for number, asked, count in connection.execute(
        select(bucket.label("bucket"), name.label("asked"), func.count())
        .where(
            PromptRow.prompt_set_id == prompt_set_id,
            PromptRow.number >= first,
            PromptRow.number < end,
            PromptRow.removed_by.is_not(None),
        )
        .group_by("bucket", "asked")
    ):
        found.setdefault(int(number), {})[str(asked)] = count
    return found
