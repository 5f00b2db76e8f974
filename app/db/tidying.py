"""What housekeeping takes away, each in a statement that touches a bounded number of rows found by an index."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    any_,
    cast,
    delete,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.types import BigInteger

from app.db.models import (
    Base,
    IdempotentRequest,
    Job,
    Pace,
    Segment,
    Shard,
    ShardAttempt,
    SlotGrant,
)
from app.db.session import db_now
from app.db.shards import ACTIVE
from app.domain.clock import PACE_SECONDS

AT_ONCE = 2000

NOTHING, SCRATCH, HISTORIES = 0, 1, 2  # `job.tidied`


def _delete_some(connection: Connection, table: type[Base], where: Any, order: Sequence[Any]) -> int:
    """At most `AT_ONCE` rows, found by the index of `order`. Returns how many there were."""
    made: Table = table.__table__  # type: ignore[assignment]
    place: ColumnElement[Any] = literal_column("rowid" if connection.dialect.name == "sqlite" else "ctid")
    some = select(place).select_from(made).where(where).order_by(*order).limit(AT_ONCE)
    found: ColumnElement[bool] = place.in_(some)
    if connection.dialect.name == "postgresql":  # by an array: it might walk through the table to join a list
        found = place == any_(func.array(some.scalar_subquery()))
    return connection.execute(delete(made).where(found)).rowcount


def expired_requests(connection: Connection, hours: float) -> int:
    old = IdempotentRequest.created_at < db_now() - hours * 3600
    return _delete_some(connection, IdempotentRequest, old, [IdempotentRequest.created_at])


def expired_grants(connection: Connection) -> int:
    return _delete_some(connection, SlotGrant, SlotGrant.lease_until < db_now(), [SlotGrant.lease_until])


def active_jobs(connection: Connection) -> list[str]:
    return list(connection.execute(select(Job.id).where(ACTIVE).order_by(Job.id)).scalars())


def old_pace(connection: Connection, job_id: str, hours: float) -> int:
    """Samples of throughput of a job that goes on."""
    step = cast(func.floor(db_now() / PACE_SECONDS), BigInteger) - int(hours * 3600 / PACE_SECONDS)
    old = (Pace.job_id == job_id) & (Pace.step < step)
    return _delete_some(connection, Pace, old, [Pace.job_id, Pace.step])


def pace(connection: Connection, job_id: str) -> int:
    return _delete_some(connection, Pace, Pace.job_id == job_id, [Pace.job_id, Pace.step])


def jobs_to_tidy(connection: Connection, tidied: int, seconds: float, limit: int = 100) -> list[str]:
    """Jobs that ended more than so many seconds ago and from which no more than `tidied` was taken."""
    return list(
        connection.execute(
            select(Job.id)
            .where(Job.tidied == tidied, Job.ended_at < db_now() - seconds)
            .order_by(Job.ended_at)
            .limit(limit)
        ).scalars()
    )


def mark_tidied(connection: Connection, job_id: str, tidied: int) -> None:
    """Unless it runs again."""
    connection.execute(update(Job).where(Job.id == job_id, Job.ended_at.is_not(None)).values(tidied=tidied))


def histories(connection: Connection, job_id: str, after: int) -> int | None:
    """Take the histories of some shards, from the one after `after`. Returns the last one; None: that was all."""
    shards = list(
        connection.execute(
            select(Shard.id).where(Shard.job_id == job_id, Shard.id > after).order_by(Shard.id).limit(AT_ONCE)
        ).scalars()
    )
    if not shards:
        return None
    connection.execute(delete(ShardAttempt).where(ShardAttempt.shard_id.in_(shards)))
    return shards[-1]


def may_still_be_committed(
    connection: Connection, leases: Collection[tuple[int, int]]
) -> set[tuple[int, int]]:
    """Those of (shard, epoch) that are under lease: the holder may yet commit a pointer to its file.

    An epoch never comes back: what is not leased under it now never is again.
    """
    rows = connection.execute(
        select(Shard.id, Shard.epoch).where(
            Shard.id.in_(sorted({shard_id for shard_id, _ in leases})), Shard.lease_until.is_not(None)
        )
    )
    return {(shard_id, epoch) for shard_id, epoch in rows}


def pointed_at(connection: Connection, paths: Sequence[str]) -> set[str]:
    """Those of the files that a shard's pointer names."""
    return set(
        connection.execute(
            select(Segment.path)
            .join(Shard, (Shard.id == Segment.shard_id) & (Shard.segment_id == Segment.id))
            .where(Segment.path.in_(paths))
        ).scalars()
    )
