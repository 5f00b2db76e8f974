"""Takedowns as rows: ordered, claimed under a lease like an export, counted, ended; and what they find to take down."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, Row, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.db.export_models import Export, ExportFile, Takedown, TakedownExport
from app.db.exports import forget_members
from app.db.models import IdempotentRequest, Job, Lane, PromptError, PromptRow, PromptSet, Shard
from app.db.policy_models import PromptPart
from app.db.session import db_now
from app.domain.fingerprints import source_key
from app.domain.lifecycle import ExportStatus, TakedownStatus

TOMBSTONE = b'{"messages":[]}'
"""What stays of a prompt's body."""


@dataclass(frozen=True, slots=True)
class TakedownClaim:
    takedown_id: str
    project_id: str
    epoch: int
    kind: str
    target: dict[str, Any]
    withdraw_exports: bool


def add(connection: Connection, values: dict[str, Any]) -> None:
    connection.execute(
        insert(Takedown).values(
            status=TakedownStatus.READY,
            n_prompts=0,
            n_completions=0,
            n_segments=0,
            epoch=0,
            created_at=db_now(),
            **values,
        )
    )


def get(connection: Connection, project_id: str, takedown_id: str) -> Row[Any] | None:
    return connection.execute(
        select(Takedown.__table__).where(Takedown.id == takedown_id, Takedown.project_id == project_id)
    ).one_or_none()


def page(connection: Connection, project_id: str, before: str | None, limit: int) -> list[Row[Any]]:
    """Newest first."""
    query = (
        select(Takedown.__table__)
        .where(Takedown.project_id == project_id)
        .order_by(Takedown.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(Takedown.id < before)
    return list(connection.execute(query))


def exports_of(connection: Connection, takedown_ids: Sequence[str]) -> list[Row[Any]]:
    return list(
        connection.execute(
            select(TakedownExport.__table__, Export.name, Export.status)
            .join(Export, Export.id == TakedownExport.export_id)
            .where(TakedownExport.takedown_id.in_(takedown_ids))
            .order_by(TakedownExport.export_id)
        )
    )


# -- the worker's side -----------------------------------------------------------------------------------------


def claim(connection: Connection, owner: str, lease_seconds: float) -> TakedownClaim | None:
    """Take the oldest one that waits and is due, or whose worker is gone."""
    due = or_(Takedown.lease_until.is_(None), Takedown.lease_until < db_now())
    choice = (
        select(Takedown.id)
        .where(
            or_(
                (Takedown.status == TakedownStatus.READY) & due,
                (Takedown.status == TakedownStatus.RUNNING) & (due | (Takedown.owner == owner)),
            )
        )
        .order_by(Takedown.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = connection.execute(
        update(Takedown)
        .where(Takedown.id == choice.scalar_subquery())
        .values(
            status=TakedownStatus.RUNNING,
            owner=owner,
            epoch=Takedown.epoch + 1,
            lease_until=db_now() + lease_seconds,
            started_at=func.coalesce(Takedown.started_at, db_now()),
        )
        .returning(Takedown)
    ).one_or_none()
    if row is None:
        return None
    return TakedownClaim(row.id, row.project_id, row.epoch, row.kind, row.target, row.withdraw_exports)


def count(
    connection: Connection,
    claim: TakedownClaim,
    lease_seconds: float,
    prompts: int = 0,
    completions: int = 0,
    segments: int = 0,
) -> bool:
    """Add to its counts and prolong the lease. False: another worker has it now."""
    return bool(
        connection.execute(
            update(Takedown)
            .where(*_ours(claim))
            .values(
                n_prompts=Takedown.n_prompts + prompts,
                n_completions=Takedown.n_completions + completions,
                n_segments=Takedown.n_segments + segments,
                lease_until=db_now() + lease_seconds,
                error=None,
            )
        ).rowcount
    )


def put_off(connection: Connection, claim: TakedownClaim, error: str | None, again_in: float) -> None:
    connection.execute(
        update(Takedown)
        .where(*_ours(claim))
        .values(status=TakedownStatus.READY, owner=None, error=error, lease_until=db_now() + again_in)
    )


def complete(connection: Connection, claim: TakedownClaim) -> bool:
    return bool(
        connection.execute(
            update(Takedown)
            .where(*_ours(claim))
            .values(status=TakedownStatus.COMPLETED, ended_at=db_now(), lease_until=None, error=None)
        ).rowcount
    )


def _ours(claim: TakedownClaim) -> tuple[Any, ...]:
    return (
        Takedown.id == claim.takedown_id,
        Takedown.epoch == claim.epoch,
        Takedown.status == TakedownStatus.RUNNING,
    )


def due_prompts(connection: Connection, claim: TakedownClaim, limit: int) -> list[Row[Any]]:
    """(set, number, license, license_assumed, teacher) of prompts that are still to be taken down."""
    query = (
        select(
            PromptRow.prompt_set_id,
            PromptRow.number,
            PromptRow.license,
            PromptRow.license_assumed,
            PromptRow.teacher,
        )
        .join(PromptSet, PromptSet.id == PromptRow.prompt_set_id)
        .where(PromptSet.project_id == claim.project_id, PromptRow.removed_by.is_(None))
        .limit(limit)
    )
    if claim.kind == "source":
        source = claim.target["source"]
        query = query.where(PromptRow.source_key == source_key(source), PromptRow.source == source)
    else:
        query = query.where(PromptRow.prompt_set_id == claim.target["prompt_set"])
        if claim.target["prompts"] is not None:
            query = query.where(PromptRow.number.in_(claim.target["prompts"]))
    return list(connection.execute(query))


def remove_prompts(connection: Connection, takedown_id: str, prompts: Sequence[Row[Any]]) -> None:
    """Their text goes; number, hash, licence and source stay. Counts of their sets move in the same transaction."""
    by_set: dict[str, list[Row[Any]]] = {}
    for prompt in prompts:
        by_set.setdefault(prompt.prompt_set_id, []).append(prompt)
    for set_id, found in sorted(by_set.items()):
        connection.execute(select(PromptSet.id).where(PromptSet.id == set_id).with_for_update())
        gone = connection.execute(
            update(PromptRow)
            .where(
                PromptRow.prompt_set_id == set_id,
                PromptRow.number.in_([one.number for one in found]),
                PromptRow.removed_by.is_(None),
            )
            .values(body=TOMBSTONE, custom_id=None, removed_by=takedown_id)
        ).rowcount
        connection.execute(
            update(PromptSet).where(PromptSet.id == set_id).values(n_removed=PromptSet.n_removed + gone)
        )
        parts: dict[tuple[str, bool, str], int] = {}
        for one in found:
            key = (one.license, one.license_assumed, one.teacher or "")
            parts[key] = parts.get(key, 0) + 1
        for (licence, assumed, teacher), n in sorted(parts.items()):
            connection.execute(
                update(PromptPart)
                .where(
                    PromptPart.prompt_set_id == set_id,
                    PromptPart.license == licence,
                    PromptPart.license_assumed == assumed,
                    PromptPart.teacher == teacher,
                )
                .values(n_prompts=PromptPart.n_prompts - n)
            )


def clear_excerpts(connection: Connection, project_id: str, set_id: str) -> None:
    """The beginnings of rows that did not parse: nobody knows which of them belonged to what is taken down.

    The answers to appends, which are remembered for those who ask twice, hold some of them.
    """
    connection.execute(update(PromptError).where(PromptError.prompt_set_id == set_id).values(excerpt=""))
    kept = (IdempotentRequest.key, IdempotentRequest.body)
    for key, body in connection.execute(
        select(*kept).where(IdempotentRequest.project_id == project_id)
    ).all():
        if body is None or set_id.encode() not in body or b'"excerpt"' not in body:
            continue
        told = orjson.loads(body)
        cleared = {**told, "errors": [{**error, "excerpt": ""} for error in told["errors"]]}
        connection.execute(
            update(IdempotentRequest)
            .where(IdempotentRequest.project_id == project_id, IdempotentRequest.key == key)
            .values(body=orjson.dumps(cleared))
        )


def removed_prompts(connection: Connection, takedown_id: str) -> dict[str, list[int]]:
    """Prompt set → ascending numbers of the prompts that this takedown took down."""
    found: dict[str, list[int]] = {}
    query = (
        select(PromptRow.prompt_set_id, PromptRow.number)
        .where(PromptRow.removed_by == takedown_id)
        .order_by(PromptRow.prompt_set_id, PromptRow.number)
    )
    for set_id, number in connection.execute(query):
        found.setdefault(set_id, []).append(number)
    return found


def jobs_of_sets(connection: Connection, set_ids: Sequence[str]) -> list[tuple[str, str]]:
    """(job, prompt set)."""
    found: list[tuple[str, str]] = []
    for set_id in set_ids:
        rows = connection.execute(select(Job.id).where(Job.prompt_set_id == set_id).order_by(Job.id))
        found += [(job_id, set_id) for job_id in rows.scalars()]
    return found


def close_lanes(connection: Connection, takedown_id: str, teacher_id: str) -> None:
    """Nothing more is made by this teacher in the jobs that there are."""
    connection.execute(
        update(Lane)
        .where(Lane.teacher_id == teacher_id, Lane.removed_by.is_(None))
        .values(removed_by=takedown_id)
    )


def shards(connection: Connection, job_id: str, lanes: Sequence[int] | None) -> list[Row[Any]]:
    """(id, first_prompt, end_prompt) of a job's shards, of these lanes or of all, in order."""
    query = (
        select(Shard.id, Shard.first_prompt, Shard.end_prompt)
        .where(Shard.job_id == job_id)
        .order_by(Shard.stage, Shard.teacher, Shard.first_prompt)
    )
    if lanes is not None:
        query = query.where(Shard.teacher.in_(lanes))
    return list(connection.execute(query))


def active_exports(connection: Connection, project_id: str) -> list[Row[Any]]:
    """(id, selection, epoch) of exports that are not made yet."""
    active = (ExportStatus.READY, ExportStatus.RUNNING, ExportStatus.PARKED)
    return list(
        connection.execute(
            select(Export.id, Export.selection, Export.epoch).where(
                Export.project_id == project_id, Export.status.in_(active)
            )
        )
    )


def restart_export(connection: Connection, export_id: str) -> int | None:
    """Make it from its beginning again, in a later epoch than the one told. None: it has ended meanwhile."""
    active = (ExportStatus.READY, ExportStatus.RUNNING, ExportStatus.PARKED)
    done = connection.execute(
        update(Export)
        .where(Export.id == export_id, Export.status.in_(active))
        .values(status=ExportStatus.READY, epoch=Export.epoch + 1, owner=None, lease_until=None, attempts=0)
        .returning(Export.epoch)
    ).scalar_one_or_none()
    if done is not None:
        connection.execute(ExportFile.__table__.delete().where(ExportFile.export_id == export_id))  # type: ignore[attr-defined]
        forget_members(connection, export_id)
    return done


def taint(connection: Connection, takedown_id: str, counts: dict[str, int]) -> None:
    """Note the exports that hold rows of it. Again changes nothing."""
    upsert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    for export_id, n_rows in sorted(counts.items()):
        made = upsert(TakedownExport).values(takedown_id=takedown_id, export_id=export_id, n_rows=n_rows)
        connection.execute(made.on_conflict_do_nothing())


def withdrawn(connection: Connection, takedown_id: str, export_id: str) -> None:
    connection.execute(
        update(TakedownExport)
        .where(
            TakedownExport.takedown_id == takedown_id,
            TakedownExport.export_id == export_id,
            TakedownExport.withdrawn_at.is_(None),
        )
        .values(withdrawn_at=db_now())
    )
