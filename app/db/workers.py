"""Worker processes by their heartbeat, and the duties that one of them holds."""

from sqlalchemy import Connection, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from app.db.admission_models import BudgetUse, ReplicaState
from app.db.batch_models import ProviderBatch
from app.db.export_models import Export
from app.db.models import Leader, Shard, SlotGrant, Worker
from app.db.session import db_now
from app.domain.lifecycle import ExportStatus, ShardStatus


def enter(connection: Connection, worker_id: str, host: str, pid: int, version: str, seconds: float) -> None:
    connection.execute(
        insert(Worker).values(
            id=worker_id,
            host=host,
            pid=pid,
            version=version,
            started_at=db_now(),
            heartbeat_at=db_now(),
            lease_until=db_now() + seconds,
        )
    )


def beat(
    connection: Connection, worker_id: str, seconds: float, in_flight: int, unflushed: int, draining: bool
) -> bool:
    """Say that the worker lives. False: its row was swept while it was silent; it must `enter` again."""
    return bool(
        connection.execute(
            update(Worker)
            .where(Worker.id == worker_id)
            .values(
                heartbeat_at=db_now(),
                lease_until=db_now() + seconds,
                in_flight=in_flight,
                unflushed=unflushed,
                draining=draining,
            )
        ).rowcount
    )


def leave(connection: Connection, worker_id: str) -> None:
    connection.execute(delete(SlotGrant).where(SlotGrant.worker_id == worker_id))
    connection.execute(delete(ReplicaState).where(ReplicaState.worker_id == worker_id))
    connection.execute(delete(Worker).where(Worker.id == worker_id))


def bury(connection: Connection, host: str, pid: int) -> int:
    """A worker process is known to be dead: what it held is free at once, not when its leases end.

    Returns how many workers that were. Harmless where the process lives after all: its shards' fences hold.
    """
    dead = connection.execute(select(Worker.id).where(Worker.host == host, Worker.pid == pid)).scalars().all()
    for worker_id in dead:
        for held in (
            update(Shard).where(Shard.status == ShardStatus.LEASED, Shard.owner == worker_id),
            update(ProviderBatch).where(ProviderBatch.owner == worker_id),
            update(Export).where(Export.status == ExportStatus.RUNNING, Export.owner == worker_id),
            update(Leader).where(Leader.owner == worker_id),
            update(BudgetUse).where(BudgetUse.worker_id == worker_id),
        ):
            connection.execute(held.values(lease_until=db_now()))
        leave(connection, worker_id)
    return len(dead)


def sweep(connection: Connection, seconds: float) -> int:
    """Forget workers whose lease ended more than `seconds` ago."""
    connection.execute(delete(ReplicaState).where(ReplicaState.lease_until < db_now() - seconds))
    return connection.execute(delete(Worker).where(Worker.lease_until < db_now() - seconds)).rowcount


def lead(connection: Connection, duty: str, owner: str, seconds: float) -> bool:
    """Take or keep a duty. One process holds it at a time, by the database's clock."""
    if connection.execute(
        update(Leader)
        .where(Leader.duty == duty, or_(Leader.owner == owner, Leader.lease_until < db_now()))
        .values(owner=owner, lease_until=db_now() + seconds)
    ).rowcount:
        return True
    if connection.execute(select(Leader.duty).where(Leader.duty == duty)).one_or_none() is not None:
        return False
    try:
        with connection.begin_nested():
            connection.execute(insert(Leader).values(duty=duty, owner=owner, lease_until=db_now() + seconds))
    except IntegrityError:
        return False
    return True
