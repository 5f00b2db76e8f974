"""The audit log as it is read, and the proof that nothing of it was changed."""

import re
from dataclasses import dataclass
from datetime import datetime

import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from sqlalchemy import Connection
from sqlalchemy.orm import Session

from app.db import audit as rows
from app.domain.audit import event_hash, genesis
from app.errors import InvalidInput

_PROBLEMS_TOLD = 20


class AuditEventView(BaseModel):
    model_config = ConfigDict(frozen=True)

    sequence: int = Field(description="From 1, without a gap, in the project.")
    at: datetime
    actor: str = Field(description="Id of a key, `worker:…` or `system`.")
    actor_name: str | None = Field(description="The key's name.")
    action: str = Field(description="For example `job.submit`.")
    subject: str = Field(description="Id of what it was done to.")
    detail: dict[str, JsonValue]
    hash: str = Field(description="SHA-256 over the event and the hash before it, hexadecimal.")


class AuditHeadView(BaseModel):
    """The end of the chain. Kept elsewhere, it proves later that nothing up to it was changed or taken away."""

    model_config = ConfigDict(frozen=True)

    sequence: int
    hash: str


class AuditProblem(BaseModel):
    model_config = ConfigDict(frozen=True)

    sequence: int
    detail: str


class AuditVerification(BaseModel):
    model_config = ConfigDict(frozen=True)

    intact: bool
    n_events: int
    head: AuditHeadView
    anchors_checked: int = Field(description="Heads kept elsewhere that were found in the chain again.")
    problems: list[AuditProblem] = Field(description="The first ones, in order.")


@dataclass(frozen=True, slots=True)
class Anchor:
    """A head that somebody kept."""

    sequence: int
    hash: str

    @classmethod
    def parsed(cls, text: str) -> "Anchor":
        """From `sequence:hash`. Raises `InvalidInput`."""
        match = re.fullmatch(r"(\d{1,18}):([0-9a-fA-F]{64})", text)
        if match is None:
            raise InvalidInput(
                f"{text[:100]!r} is no anchor: write sequence:hash, for example 17:3f…, as `/v1/audit/head` gave them"
            )
        return cls(int(match.group(1)), match.group(2).lower())


def page(
    session: Session, project_id: str, subject: str | None, before: int | None, limit: int
) -> list[AuditEventView]:
    """Newest first."""
    return [
        AuditEventView(
            sequence=row.sequence,
            at=row.at,
            actor=row.actor,
            actor_name=row.actor_name,
            action=row.action,
            subject=row.subject,
            detail=orjson.loads(row.detail),
            hash=row.hash.hex(),
        )
        for row in rows.page(session.connection(), project_id, subject, before, limit)
    ]


def head(session: Session, project_id: str) -> AuditHeadView:
    found = rows.head(session.connection(), project_id)
    return AuditHeadView(sequence=found.sequence, hash=found.hash.hex())


def verify(connection: Connection, project_id: str, anchors: tuple[Anchor, ...] = ()) -> AuditVerification:
    """Walk the chain from its beginning. It is intact where every link holds, its end is the head, and the anchors are
    in it. (Whoever can write to the database can make a whole new chain: only an anchor that was kept elsewhere shows
    that.)
    """
    end = rows.head(connection, project_id)
    wanted: dict[int, set[str]] = {}
    for anchor in anchors:
        wanted.setdefault(anchor.sequence, set()).add(anchor.hash.lower())
    problems: list[AuditProblem] = []
    found_anchors, n_events, sequence, digest = 0, 0, 0, genesis(project_id)
    if wanted.get(0) == {digest.hex()}:  # kept before anything was done
        found_anchors += len(wanted.pop(0))

    def wrong(at: int, detail: str) -> None:
        if len(problems) < _PROBLEMS_TOLD:
            problems.append(AuditProblem(sequence=at, detail=detail))

    for row in rows.walk(connection, project_id):
        n_events += 1
        if row.sequence != sequence + 1:
            wrong(row.sequence, f"event {sequence + 1} should come here: one was taken away or put in")
        made = event_hash(
            digest, project_id, row.sequence, row.at, row.actor, row.action, row.subject, row.detail
        )
        if made != row.hash:
            wrong(row.sequence, "the event, or the one before it, is not what was written: its hash differs")
        sequence, digest = row.sequence, row.hash
        for kept in wanted.pop(sequence, ()):
            if kept == digest.hex():
                found_anchors += 1
            else:
                wrong(sequence, "the anchor that was kept of this event has another hash")
    if (sequence, digest) != (end.sequence, end.hash):
        wrong(
            end.sequence,
            f"the chain ends at event {sequence}, its head says {end.sequence}: the tail was taken away or added to",
        )
    for missing in sorted(wanted):
        wrong(missing, "an anchor was kept of this event, and the chain does not have it")
    return AuditVerification(
        intact=not problems,
        n_events=n_events,
        head=AuditHeadView(sequence=end.sequence, hash=end.hash.hex()),
        anchors_checked=found_anchors,
        problems=problems,
    )
