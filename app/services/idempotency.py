"""`Idempotency-Key`: the answer is committed with what it tells of, so that neither exists without the other."""

from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from app.db import idempotency as rows
from app.errors import IdempotencyConflict


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes


def recall(session: Session, project_id: str, key: str, request_sha256: bytes) -> Answer | None:
    """The answer to this request, where it was given before; else None, and the key is ours until we commit.

    Raises `IdempotencyConflict` where the key belongs to another request, or to this one while it is under way.
    """
    connection = session.connection()
    if not rows.try_lock(connection, project_id, key):
        raise IdempotencyConflict(
            f"the request with Idempotency-Key {key!r} is still under way: ask again shortly"
        )
    found = rows.find(connection, project_id, key)
    if found is None:
        return None
    check_same(key, found.request_sha256, request_sha256)
    if found.status is None:
        raise IdempotencyConflict(
            f"the request with Idempotency-Key {key!r} is still under way: ask again shortly"
        )
    return Answer(found.status, found.body)


def is_known(connection: Connection, project_id: str, key: str) -> bool:
    """Whether some request has this key, answered or not."""
    return rows.find(connection, project_id, key) is not None


def remember(session: Session, project_id: str, key: str, request_sha256: bytes, answer: Answer) -> None:
    rows.add(session.connection(), project_id, key, request_sha256, answer.status, answer.body)


def check_same(key: str, known: bytes, sent: bytes) -> None:
    if known != sent:
        raise IdempotencyConflict(
            f"Idempotency-Key {key!r} was used for another request: use a new key for a new request"
        )
