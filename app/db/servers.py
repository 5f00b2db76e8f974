"""How the servers of teachers are, as the workers that call them see it: for people who ask."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, func, insert, select
from sqlalchemy.orm import Session

from app.db.admission_models import ReplicaState
from app.db.session import db_now

_SECONDS = 15.0  # after which what a worker told is not true any more


@dataclass(frozen=True, slots=True)
class ServerSeen:
    """`state`: up, failing or down. `room`: samples that may be in flight; `running` and `waiting`: in the server."""

    teacher_id: str
    url: str
    state: str
    reason: str | None
    room: float
    in_flight: int
    running: int | None
    waiting: int | None


@dataclass(frozen=True, slots=True)
class Server:
    """A server as all workers see it together."""

    url: str
    state: str
    reason: str | None
    room: float
    in_flight: int
    running: int | None
    waiting: int | None
    workers: int


def tell(connection: Connection, worker: str, seen: Sequence[ServerSeen]) -> None:
    """In the place of what the worker told before."""
    connection.execute(delete(ReplicaState).where(ReplicaState.worker_id == worker))
    connection.execute(
        insert(ReplicaState).values(lease_until=db_now() + _SECONDS),
        [{"worker_id": worker, **asdict(one)} for one in seen],
    )


def of(session: Session, teacher_id: str) -> list[Server]:
    """By address. One that some worker finds well is well; the others say why it is not."""
    rows = session.execute(
        select(
            ReplicaState.url,
            func.max(ReplicaState.state).label("best"),
            func.max(ReplicaState.reason).label("reason"),
            func.sum(ReplicaState.room).label("room"),
            func.sum(ReplicaState.in_flight).label("in_flight"),
            func.max(ReplicaState.running).label("running"),
            func.max(ReplicaState.waiting).label("waiting"),
            func.count().label("workers"),
        )
        .where(ReplicaState.teacher_id == teacher_id, ReplicaState.lease_until >= db_now())
        .group_by(ReplicaState.url)
        .order_by(ReplicaState.url)
    )
    return [
        Server(
            url=row.url,
            state=row.best,  # down < failing < up
            reason=row.reason,
            room=float(row.room),
            in_flight=int(row.in_flight),
            running=row.running,
            waiting=row.waiting,
            workers=int(row.workers),
        )
        for row in rows
    ]
