"""Prompt sets, their prompts and the rows that did not parse."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.orm import Session

from app.db import policy
from app.db.models import Job, PromptError, PromptRow, PromptSet
from app.db.session import db_now
from app.domain.fingerprints import chained, source_key
from app.domain.lifecycle import ENDED
from app.domain.prompts import StoredPrompt

EMPTY_SET_HASH = bytes(32)  # of a set without prompts; each prompt is chained on


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that did not parse."""

    line: int  # from 1, in its append
    kind: str
    reason: str
    excerpt: str


@dataclass(frozen=True, slots=True)
class SetHead:
    """Where a set ends, as the next append needs it."""

    sealed: bool
    n_prompts: int
    n_errors: int
    content_hash: bytes


def add(session: Session, set_id: str, project_id: str, name: str, key_id: str) -> PromptSet:
    session.execute(
        insert(PromptSet).values(
            id=set_id,
            project_id=project_id,
            name=name,
            content_hash=EMPTY_SET_HASH,
            created_by=key_id,
            created_at=db_now(),
        )
    )
    return session.execute(select(PromptSet).where(PromptSet.id == set_id)).scalar_one()


def get(session: Session, project_id: str, set_id: str) -> PromptSet | None:
    return session.execute(
        select(PromptSet).where(PromptSet.id == set_id, PromptSet.project_id == project_id)
    ).scalar_one_or_none()


def page(
    session: Session,
    project_id: str,
    name: str | None,
    content_hash: bytes | None,
    sealed: bool | None,
    before: str | None,
    limit: int,
) -> list[PromptSet]:
    """Newest first."""
    query = (
        select(PromptSet).where(PromptSet.project_id == project_id).order_by(PromptSet.id.desc()).limit(limit)
    )
    if name is not None:
        query = query.where(PromptSet.name == name)
    if content_hash is not None:
        query = query.where(PromptSet.content_hash == content_hash)
    if sealed is not None:
        query = query.where(PromptSet.sealed == sealed)
    if before is not None:
        query = query.where(PromptSet.id < before)
    return list(session.execute(query).scalars())


def locked_head(connection: Connection, set_id: str) -> SetHead:
    """The set's end, its row locked until the transaction ends: one append numbers rows at a time."""
    row = connection.execute(
        select(PromptSet.sealed, PromptSet.n_prompts, PromptSet.n_errors, PromptSet.content_hash)
        .where(PromptSet.id == set_id)
        .with_for_update()
    ).one()
    return SetHead(row.sealed, row.n_prompts, row.n_errors, row.content_hash)


def extend(
    connection: Connection,
    set_id: str,
    head: SetHead,
    prompts: Sequence[StoredPrompt],
    errors: Sequence[RowError],
    append_id: str,
) -> SetHead:
    """Add rows behind `head` (locked by the caller) and move it."""
    content_hash = head.content_hash
    for prompt in prompts:
        content_hash = chained(content_hash, prompt.content_hash)
    if prompts:
        connection.execute(
            insert(PromptRow),
            [
                {
                    "prompt_set_id": set_id,
                    "number": number,
                    "body": prompt.body,
                    "content_hash": prompt.content_hash,
                    "license": prompt.license,
                    "license_assumed": prompt.license_assumed,
                    "source": prompt.source,
                    "source_key": source_key(prompt.source),
                    "custom_id": prompt.custom_id,
                    "teacher": prompt.teacher,
                }
                for number, prompt in enumerate(prompts, head.n_prompts)
            ],
        )
        policy.count_parts(connection, set_id, head.n_prompts, prompts)
    if errors:
        connection.execute(
            insert(PromptError),
            [
                {
                    "prompt_set_id": set_id,
                    "number": number,
                    "append_id": append_id,
                    "line": error.line,
                    "kind": error.kind,
                    "reason": error.reason,
                    "excerpt": error.excerpt,
                }
                for number, error in enumerate(errors, head.n_errors)
            ],
        )
    moved = SetHead(False, head.n_prompts + len(prompts), head.n_errors + len(errors), content_hash)
    values: dict[str, object] = {
        "n_prompts": moved.n_prompts,
        "n_errors": moved.n_errors,
        "content_hash": content_hash,
        "n_license_assumed": PromptSet.n_license_assumed + sum(prompt.license_assumed for prompt in prompts),
    }
    if any(prompt.teacher is not None for prompt in prompts):
        values["names_teachers"] = True
    connection.execute(update(PromptSet).where(PromptSet.id == set_id).values(**values))
    return moved


def seal(connection: Connection, set_id: str) -> None:
    connection.execute(
        update(PromptSet)
        .where(PromptSet.id == set_id, PromptSet.sealed.is_(False))
        .values(sealed=True, sealed_at=db_now())
    )


def followers(connection: Connection, set_id: str) -> list[str]:
    """Jobs that have not ended and go on with what is appended to this set."""
    return list(
        connection.execute(
            select(Job.id).where(Job.prompt_set_id == set_id, Job.follow.is_(True), Job.status.not_in(ENDED))
        ).scalars()
    )


def prompts(session: Session, set_id: str, after: int, limit: int) -> list[PromptRow]:
    """In order of number, from the one after `after`."""
    return list(
        session.execute(
            select(PromptRow)
            .where(PromptRow.prompt_set_id == set_id, PromptRow.number > after)
            .order_by(PromptRow.number)
            .limit(limit)
        ).scalars()
    )


def errors(session: Session, set_id: str, after: int, limit: int) -> list[PromptError]:
    """In order of arrival, from the one after `after`."""
    return list(
        session.execute(
            select(PromptError)
            .where(PromptError.prompt_set_id == set_id, PromptError.number > after)
            .order_by(PromptError.number)
            .limit(limit)
        ).scalars()
    )


def unknown_teacher(session: Session, set_id: str, known: Sequence[str]) -> tuple[int, str] | None:
    """(number, teacher) of one prompt that asks for a teacher outside `known`."""
    row = session.execute(
        select(PromptRow.number, PromptRow.teacher)
        .where(
            PromptRow.prompt_set_id == set_id,
            PromptRow.teacher.is_not(None),
            PromptRow.teacher.not_in(known),
        )
        .limit(1)
    ).one_or_none()
    return None if row is None else (row.number, row.teacher)
