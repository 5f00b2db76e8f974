"""The audit log: appended to in the transaction of what it tells of, read in pages, walked to be verified."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.db.models import ApiKey
from app.db.policy_models import AuditEvent, AuditHead
from app.db.session import db_now
from app.domain.audit import event_hash, genesis
from app.domain.fingerprints import canonical_json

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was done. `detail` is small, and holds no secret and nothing of a prompt or an answer."""

    action: str  # noun.verb
    subject: str  # the id of what it was done to
    detail: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends; sequence 0 is the chain that has no event yet."""

    sequence: int
    hash: bytes


def append(connection: Connection, project_id: str, actor: str, events: Sequence[Event]) -> None:
    """Chain events on. The last thing that a transaction does: until it commits, the project's chain is locked."""
    if not events:
        return
    upsert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    first = upsert(AuditHead).values(project_id=project_id, sequence=0, hash=genesis(project_id))
    connection.execute(first.on_conflict_do_nothing())
    end = connection.execute(
        select(AuditHead.sequence, AuditHead.hash).where(AuditHead.project_id == project_id).with_for_update()
    ).one()
    sequence, digest = end.sequence, end.hash
    at = connection.execute(select(db_now())).scalar_one()
    rows = []
    for event in events:
        sequence += 1
        detail = canonical_json(event.detail or {}).decode()
        digest = event_hash(digest, project_id, sequence, at, actor, event.action, event.subject, detail)
        rows.append(
            {
                "project_id": project_id,
                "sequence": sequence,
                "at": at,
                "actor": actor,
                "action": event.action,
                "subject": event.subject,
                "detail": detail,
                "hash": digest,
            }
        )
    connection.execute(insert(AuditEvent), rows)
    connection.execute(
        update(AuditHead).where(AuditHead.project_id == project_id).values(sequence=sequence, hash=digest)
    )


def head(connection: Connection, project_id: str) -> Head:
    row = connection.execute(
        select(AuditHead.sequence, AuditHead.hash).where(AuditHead.project_id == project_id)
    ).one_or_none()
    return Head(0, genesis(project_id)) if row is None else Head(row.sequence, row.hash)


def page(
    connection: Connection, project_id: str, subject: str | None, before: int | None, limit: int
) -> list[Row[tuple[AuditEvent, str | None]]]:
    """Newest first, each with the name of the key that did it, where it was a key."""
    query = (
        select(AuditEvent.__table__, ApiKey.name.label("actor_name"))
        .outerjoin(ApiKey, ApiKey.id == AuditEvent.actor)
        .where(AuditEvent.project_id == project_id)
        .order_by(AuditEvent.sequence.desc())
        .limit(limit)
    )
    if subject is not None:
        query = query.where(AuditEvent.subject == subject)
    if before is not None:
        query = query.where(AuditEvent.sequence < before)
    return list(connection.execute(query))


def walk(connection: Connection, project_id: str) -> Iterator[Row[tuple[AuditEvent]]]:
    """Every event from the first one, a page at a time."""
    last = -(2**63)
    while True:
        rows = list(
            connection.execute(
                select(AuditEvent.__table__)
                .where(AuditEvent.project_id == project_id, AuditEvent.sequence > last)
                .order_by(AuditEvent.sequence)
                .limit(_PAGE)
            )
        )
        if not rows:
            return
        yield from rows
        last = rows[-1].sequence
