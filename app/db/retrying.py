"""Failed rows are asked for again: they, their shards' and the job's counters move in one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, literal_column, select, tuple_, update

from app.db.models import Completion, Counter, Job, Shard
from app.domain.lifecycle import ENDED, CompletionStatus, JobStatus, ShardStatus

_FAILED = Completion.status == literal_column(f"'{CompletionStatus.FAILED}'")

ShardPlace = tuple[int, int, int]  # stage, teacher, first prompt


@dataclass(frozen=True, slots=True)
class Portion:
    n_retried: int
    last: ShardPlace | None  # where the next portion begins; None: that was the last one


def retry_portion(
    connection: Connection, job_id: str, kinds: Sequence[str], after: ShardPlace | None, n_shards: int
) -> Portion:
    """Mark the failed rows of the next `n_shards` shards that have any; the job runs again where it had ended.

    A shard that is finished becomes ready; one under lease goes on, and its holder finds the rows missing at its end.
    """
    # The order of locks is the checkpoint's: shards, then the job.
    place = (Shard.stage, Shard.teacher, Shard.first_prompt)
    query = (
        select(Shard.id, *place, Shard.end_prompt, Shard.status)
        .where(Shard.job_id == job_id, Shard.n_failed > 0)
        .order_by(*place)
        .limit(n_shards)
        .with_for_update()
    )
    if after is not None:
        query = query.where(tuple_(*place) > after)
    shards = connection.execute(query).all()
    total, reopened = 0, 0
    by_teacher: dict[int, int] = {}
    for shard in shards:
        failed = (
            update(Completion)
            .where(
                Completion.job_id == job_id,
                Completion.stage == shard.stage,
                Completion.prompt_number >= shard.first_prompt,
                Completion.prompt_number < shard.end_prompt,
                Completion.teacher == shard.teacher,
                _FAILED,
            )
            .values(status=CompletionStatus.RETRY)
        )
        if kinds:
            failed = failed.where(Completion.error_kind.in_(kinds))
        count = connection.execute(failed).rowcount
        if not count:
            continue
        values: dict[str, object] = {
            "n_failed": Shard.n_failed - count,
            "claims_without_progress": 0,
            "batch_rounds": 0,
        }
        if shard.status == ShardStatus.FINISHED:
            values["status"] = ShardStatus.READY
            reopened += 1
        connection.execute(update(Shard).where(Shard.id == shard.id).values(**values))
        total += count
        by_teacher[shard.teacher] = by_teacher.get(shard.teacher, 0) + count
    for teacher, count in by_teacher.items():
        _uncount(connection, job_id, teacher, count)
    if total:
        _reopen(connection, job_id, reopened)
    last = None
    if len(shards) == n_shards:
        last = (shards[-1].stage, shards[-1].teacher, shards[-1].first_prompt)
    return Portion(total, last)


def _uncount(connection: Connection, job_id: str, teacher: int, n_failed: int) -> None:
    """Only the stripes' sum has a meaning: any one of them can give."""
    mine = (Counter.job_id == job_id, Counter.teacher == teacher)
    any_stripe = select(func.min(Counter.stripe)).where(*mine).scalar_subquery()
    connection.execute(
        update(Counter).where(*mine, Counter.stripe == any_stripe).values(failed=Counter.failed - n_failed)
    )


def _reopen(connection: Connection, job_id: str, n_shards: int) -> None:
    connection.execute(
        update(Job).where(Job.id == job_id).values(n_shards_finished=Job.n_shards_finished - n_shards)
    )
    connection.execute(
        update(Job)
        .where(
            Job.id == job_id,
            Job.status.in_((*ENDED, JobStatus.FINALIZING)),
            Job.status != JobStatus.CANCELLED,
        )
        .values(status=JobStatus.RUNNING, status_reason=None, ended_at=None, tidied=0)
    )
