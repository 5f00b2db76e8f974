"""Batches at providers: planned, leased like shards, fenced by their epoch, followed until their results are recorded.

A shard of a lane in batch mode is never claimed by the engine's loop. It is `ready`, with or without an open batch that
its missing samples are in, and `leased` for the moments in which a batch's results are recorded into it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, case, exists, func, insert, or_, select, update
from sqlalchemy.orm import Session

from app.db.batch_models import ProviderBatch
from app.db.models import Job, Lane, Shard
from app.db.session import db_now
from app.db.shards import Claim, begin_attempt, claim_of
from app.domain.lifecycle import BATCH_OVER, CLAIMABLE, Execution, JobStatus, ProviderBatchStatus, ShardStatus

_PLANNED_FOR = (*CLAIMABLE, JobStatus.PARKED)


@dataclass(frozen=True, slots=True)
class Held:
    """A batch under this worker's lease, as it was when the lease was taken."""

    id: str
    epoch: int
    job_id: str
    teacher: int
    status: ProviderBatchStatus
    provider_id: str | None
    confirmed: bool
    rejected: tuple[str, ...]
    n_requests: int
    tries: int
    submitting_at: float | None
    submitted_at: float | None
    ended_at: float | None
    job_status: JobStatus


@dataclass(frozen=True, slots=True)
class ToPlan:
    """A lane with ready shards that are in no batch."""

    job_id: str
    teacher: int


def to_plan(connection: Connection, teacher_names: Sequence[str], most_open: int) -> list[ToPlan]:
    """Lanes in batch mode that can have one more batch, by priority."""
    mine = (ProviderBatch.job_id == Lane.job_id, ProviderBatch.teacher == Lane.teacher)
    n_open = (
        select(func.count())
        .select_from(ProviderBatch)
        .where(*mine, ProviderBatch.status.not_in(BATCH_OVER))
        .scalar_subquery()
    )
    waiting = exists().where(
        Shard.job_id == Lane.job_id,
        Shard.teacher == Lane.teacher,
        Shard.status == ShardStatus.READY,
        Shard.provider_batch_id.is_(None),
    )
    query = (
        select(Lane.job_id, Lane.teacher)
        .join(Job, Job.id == Lane.job_id)
        .where(
            Lane.execution == Execution.BATCH,
            Job.status.in_(_PLANNED_FOR),
            or_(Lane.parked_reason.is_(None), Lane.parked_until <= db_now()),
            waiting,
            n_open < most_open,
        )
        .order_by(Job.priority.desc(), Job.id, Lane.teacher)
    )
    if teacher_names:
        query = query.where(Lane.teacher_name.in_(teacher_names))
    return [ToPlan(row.job_id, row.teacher) for row in connection.execute(query)]


def plan(connection: Connection, batch_id: str, lane: ToPlan, max_samples: int, most_open: int) -> list[int]:
    """Make a batch of the lane's next ready shards: at least one, and no more samples than `max_samples`.

    Returns the shards' ids; none where another worker was faster. The lane's row is locked, so that two workers
    never choose the same shards.
    """
    locked = connection.execute(
        select(Lane.job_id).where(Lane.job_id == lane.job_id, Lane.teacher == lane.teacher).with_for_update()
    ).one_or_none()
    if locked is None or lane not in to_plan(connection, (), most_open):
        return []
    rows = connection.execute(
        select(Shard.id, Shard.n_expected)
        .where(
            Shard.job_id == lane.job_id,
            Shard.teacher == lane.teacher,
            Shard.status == ShardStatus.READY,
            Shard.provider_batch_id.is_(None),
        )
        .order_by(Shard.id)
        .limit(max(1, max_samples))
    )
    chosen: list[int] = []
    samples = 0
    for row in rows:
        if chosen and samples + row.n_expected > max_samples:
            break
        chosen.append(row.id)
        samples += row.n_expected
    if not chosen:
        return []
    connection.execute(
        update(Shard)
        .where(Shard.id.in_(chosen))
        .values(provider_batch_id=batch_id, batch_rounds=Shard.batch_rounds + 1)
    )
    connection.execute(
        insert(ProviderBatch).values(
            id=batch_id,
            job_id=lane.job_id,
            teacher=lane.teacher,
            status=ProviderBatchStatus.PLANNED,
            rejected=[],
            next_at=db_now(),
            created_at=db_now(),
        )
    )
    connection.execute(
        update(Job)
        .where(Job.id == lane.job_id, Job.status.in_((JobStatus.READY, JobStatus.PARKED)))
        .values(
            status=JobStatus.RUNNING, status_reason=None, started_at=func.coalesce(Job.started_at, db_now())
        )
    )
    return chosen


def claim_due(
    connection: Connection, owner: str, lease_seconds: float, teacher_names: Sequence[str]
) -> Held | None:
    """Take the lease of the batch that is due for longest. None: nothing is due."""
    due = (
        select(ProviderBatch.id)
        .where(
            ProviderBatch.status.not_in(BATCH_OVER),
            ProviderBatch.next_at <= db_now(),
            or_(ProviderBatch.lease_until.is_(None), ProviderBatch.lease_until < db_now()),
        )
        .order_by(ProviderBatch.next_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if teacher_names:
        due = due.where(
            exists().where(
                Lane.job_id == ProviderBatch.job_id,
                Lane.teacher == ProviderBatch.teacher,
                Lane.teacher_name.in_(teacher_names),
            )
        )
    row = connection.execute(
        update(ProviderBatch)
        .where(ProviderBatch.id == due.scalar_subquery())
        .values(owner=owner, epoch=ProviderBatch.epoch + 1, lease_until=db_now() + lease_seconds)
        .returning(ProviderBatch)
    ).one_or_none()
    return None if row is None else _held(connection, row)


def read(connection: Connection, held: Held) -> Held | None:
    """The batch as it is now. None: the lease is lost."""
    row = connection.execute(
        select(ProviderBatch.__table__).where(ProviderBatch.id == held.id, ProviderBatch.epoch == held.epoch)
    ).one_or_none()
    return None if row is None else _held(connection, row)


def _held(connection: Connection, row: Any) -> Held:
    job_status = connection.execute(select(Job.status).where(Job.id == row.job_id)).scalar_one()
    return Held(
        id=row.id,
        epoch=row.epoch,
        job_id=row.job_id,
        teacher=row.teacher,
        status=ProviderBatchStatus(row.status),
        provider_id=row.provider_id,
        confirmed=row.confirmed,
        rejected=tuple(row.rejected),
        n_requests=row.n_requests,
        tries=row.tries,
        submitting_at=row.submitting_at,
        submitted_at=row.submitted_at,
        ended_at=row.ended_at,
        job_status=JobStatus(job_status),
    )


def still_held(connection: Connection, held: Held) -> bool:
    """Whether the lease is ours; its row is locked until the transaction ends."""
    return (
        connection.execute(
            select(ProviderBatch.id)
            .where(ProviderBatch.id == held.id, ProviderBatch.epoch == held.epoch)
            .with_for_update()
        ).one_or_none()
        is not None
    )


def change(connection: Connection, held: Held, values: dict[str, Any]) -> bool:
    """Write under the fence. False: the lease is lost, and nothing was written."""
    return bool(
        connection.execute(
            update(ProviderBatch)
            .where(ProviderBatch.id == held.id, ProviderBatch.epoch == held.epoch)
            .values(**values)
        ).rowcount
    )


def release(connection: Connection, held: Held, seconds: float, values: dict[str, Any]) -> bool:
    """Write under the fence and give the lease back; the batch is due again in so many seconds."""
    return change(
        connection, held, {**values, "owner": None, "lease_until": None, "next_at": db_now() + seconds}
    )


def extend(connection: Connection, held: Held, lease_seconds: float) -> bool:
    return change(connection, held, {"lease_until": db_now() + lease_seconds})


def provider_id_of(connection: Connection, batch_id: str) -> str | None:
    return connection.execute(
        select(ProviderBatch.provider_id).where(ProviderBatch.id == batch_id)
    ).scalar_one_or_none()


def others(connection: Connection, batch_id: str) -> set[str]:
    """Ids at providers that belong to other batches."""
    rows = connection.execute(
        select(ProviderBatch.provider_id).where(
            ProviderBatch.provider_id.is_not(None), ProviderBatch.id != batch_id
        )
    )
    return {row.provider_id for row in rows}


def shards_of(connection: Connection, batch_id: str) -> list[Claim]:
    """The shards of a batch, in order, as claims that hold nothing: to be read, not written."""
    rows = connection.execute(
        select(Shard.__table__).where(Shard.provider_batch_id == batch_id).order_by(Shard.id)
    )
    return [claim_of(row) for row in rows]


def rounds_of(connection: Connection, shard_id: int) -> int:
    return connection.execute(select(Shard.batch_rounds).where(Shard.id == shard_id)).scalar_one()


def most_rounds(connection: Connection, batch_id: str) -> int:
    """In how many batches the shards of this one were, this one counted."""
    return (
        connection.execute(
            select(func.max(Shard.batch_rounds)).where(Shard.provider_batch_id == batch_id)
        ).scalar_one()
        or 0
    )


def claim_shard(
    connection: Connection, held: Held, shard_id: int, owner: str, lease_seconds: float
) -> Claim | None:
    """Lease a shard of a batch that this worker holds, to record results. None: it is not to be had.

    The job's status stays: results that were paid for are kept though it is paused or cancelled meanwhile.
    """
    if not still_held(connection, held):
        return None
    row = connection.execute(
        update(Shard)
        .where(
            Shard.id == shard_id,
            Shard.provider_batch_id == held.id,
            or_(
                Shard.status == ShardStatus.READY,
                # Whoever held the batch before recorded into it: the batch's fence has passed to us.
                Shard.status == ShardStatus.LEASED,
            ),
        )
        .values(
            status=ShardStatus.LEASED,
            owner=owner,
            epoch=Shard.epoch + 1,
            lease_until=db_now() + lease_seconds,
            # As in `shards.claim`: a worker that slept past its own lease lives.
            claims_without_progress=Shard.claims_without_progress + case((Shard.owner == owner, 0), else_=1),
        )
        .returning(Shard)
    ).one_or_none()
    if row is None:
        return None
    begin_attempt(connection, row, owner)
    return claim_of(row)


def untie(
    connection: Connection, batch_id: str, shard_ids: Sequence[int] | None = None, *, took_part: bool = True
) -> None:
    """Take shards out of a batch that this worker holds: all that are left in it, or these.

    Those that are finished begin at round 0 again; `took_part` false: for the others it was no round. One into which
    a worker was recording when it died is ready again.
    """
    tied = update(Shard).where(Shard.provider_batch_id == batch_id)
    if shard_ids is not None:
        tied = tied.where(Shard.id.in_(shard_ids))
    connection.execute(
        tied.where(Shard.status == ShardStatus.FINISHED).values(provider_batch_id=None, batch_rounds=0)
    )
    if not took_part:
        tied = tied.values(batch_rounds=Shard.batch_rounds - 1)
    connection.execute(
        tied.where(Shard.status == ShardStatus.LEASED).values(
            status=ShardStatus.READY, owner=None, lease_until=None
        )
    )
    connection.execute(tied.where(Shard.status != ShardStatus.FINISHED).values(provider_batch_id=None))


def page(session: Session, job_id: str, after: str | None, limit: int) -> list[ProviderBatch]:
    """In order of planning: ids ascend with time."""
    query = (
        select(ProviderBatch).where(ProviderBatch.job_id == job_id).order_by(ProviderBatch.id).limit(limit)
    )
    if after is not None:
        query = query.where(ProviderBatch.id > after)
    return list(session.execute(query).scalars())
