"""Caps of calls in flight, of a job or a teacher, shared out among the workers under a lease."""

from collections.abc import Mapping

from sqlalchemy import Connection, delete, insert, select, update

from app.db.models import Job, SlotGrant, Teacher
from app.db.session import db_now


def grant(
    connection: Connection, scope: str, cap: int, worker: str, wanted: int, held: int, seconds: float
) -> tuple[int, int]:
    """(this worker's share of a cap, its fair share). The shares of all live workers never exceed the cap.

    `held`: what the worker may use while this is asked. The row never falls below it, so that no other worker is given
    what is in use; a worker that holds more than its fair share stops using the rest, and gives it back the next time.
    The caller holds the lock of the scope's row.
    """
    connection.execute(delete(SlotGrant).where(SlotGrant.scope == scope, SlotGrant.lease_until < db_now()))
    rows = {
        row.worker_id: row
        for row in connection.execute(
            select(SlotGrant.worker_id, SlotGrant.slots, SlotGrant.wanted).where(SlotGrant.scope == scope)
        )
    }
    wants = {name: row.wanted for name, row in rows.items()} | {worker: wanted}
    fair = fair_shares(cap, wants)[worker]
    others = sum(row.slots for name, row in rows.items() if name != worker)
    slots = max(0, min(max(held, fair), cap - others))
    values = {"slots": slots, "wanted": wanted, "lease_until": db_now() + seconds}
    if worker in rows:
        connection.execute(
            update(SlotGrant).where(SlotGrant.scope == scope, SlotGrant.worker_id == worker).values(**values)
        )
    else:
        connection.execute(insert(SlotGrant).values(scope=scope, worker_id=worker, **values))
    return slots, fair


def fair_shares(cap: int, wants: Mapping[str, int]) -> dict[str, int]:
    """Max-min fairness: nobody gets more than it wants, and what some leave goes to the others in equal parts.

    Whole numbers; a remainder goes to those whose names come first.
    """
    shares: dict[str, int] = {}
    left = cap
    for position, name in enumerate(sorted(wants, key=lambda name: (wants[name], name))):
        equal = -(-left // (len(wants) - position)) if left > 0 else 0
        shares[name] = min(wants[name], equal)
        left -= shares[name]
    return shares


def locked_cap(connection: Connection, table: type[Job] | type[Teacher], scope: str) -> int | None:
    """The cap of calls in flight of a job or teacher, with its row locked."""
    return connection.execute(
        select(table.max_in_flight).where(table.id == scope).with_for_update()
    ).scalar_one_or_none()
