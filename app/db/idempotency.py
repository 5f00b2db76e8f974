"""Requests that a client may send twice: what was answered, or how far a long one has come."""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select, update

from app.db.inserting import insert_ignoring
from app.db.models import IdempotentRequest
from app.db.session import db_now


@dataclass(frozen=True, slots=True)
class Remembered:
    request_sha256: bytes
    status: int | None  # None: under way
    body: bytes
    age: float  # seconds since it was written, or since its last sign of life


def find(connection: Connection, project_id: str, key: str) -> Remembered | None:
    row = connection.execute(
        select(
            IdempotentRequest.request_sha256,
            IdempotentRequest.status,
            IdempotentRequest.body,
            (db_now() - IdempotentRequest.created_at).label("age"),
        ).where(IdempotentRequest.project_id == project_id, IdempotentRequest.key == key)
    ).one_or_none()
    return None if row is None else Remembered(row.request_sha256, row.status, row.body or b"", row.age)


def try_lock(connection: Connection, project_id: str, key: str) -> bool:
    """Hold the key until the transaction ends. False: another transaction holds it.

    On SQLite a writing transaction is alone anyway.
    """
    if connection.dialect.name != "postgresql":
        return True
    number = func.hashtextextended(f"{project_id}\n{key}", 0)
    return bool(connection.execute(select(func.pg_try_advisory_xact_lock(number))).scalar_one())


def add(
    connection: Connection, project_id: str, key: str, request_sha256: bytes, status: int | None, body: bytes
) -> bool:
    """False: the key is there already."""
    return insert_ignoring(
        connection,
        IdempotentRequest,
        {
            "project_id": project_id,
            "key": key,
            "request_sha256": request_sha256,
            "status": status,
            "body": body,
            "created_at": db_now(),
        },
    )


def advance(
    connection: Connection, project_id: str, key: str, before: bytes, after: bytes, status: int | None
) -> bool:
    """Move an unfinished request from body `before` to `after`. False: someone else has taken it over."""
    return bool(
        connection.execute(
            update(IdempotentRequest)
            .where(
                IdempotentRequest.project_id == project_id,
                IdempotentRequest.key == key,
                IdempotentRequest.status.is_(None),
                IdempotentRequest.body == before,
            )
            .values(body=after, status=status, created_at=db_now())
        ).rowcount
    )


def forget(connection: Connection, project_id: str, key: str, body: bytes) -> None:
    """Drop an unfinished request of which nothing was done."""
    connection.execute(
        delete(IdempotentRequest).where(
            IdempotentRequest.project_id == project_id,
            IdempotentRequest.key == key,
            IdempotentRequest.status.is_(None),
            IdempotentRequest.body == body,
        )
    )
