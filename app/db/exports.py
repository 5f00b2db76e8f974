"""Exports and their files: claimed like shards, under a lease and a fencing token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, or_, select, tuple_, update
from sqlalchemy.orm import Session

from app.db.models import (
    Completion,
    Counter,
    Export,
    ExportFile,
    Job,
    Lane,
    PromptRow,
    PromptSet,
    Segment,
    Shard,
    Stage,
)
from app.db.session import db_now
from app.domain.lifecycle import CompletionStatus, ExportStatus

_PAGE = 256


@dataclass(frozen=True, slots=True)
class ExportClaim:
    export_id: str
    epoch: int
    attempts: int


def get(session: Session, project_id: str, export_id: str) -> Export | None:
    found = session.get(Export, export_id)
    return found if found is not None and found.project_id == project_id else None


def page(session: Session, project_id: str, before: str | None, limit: int) -> list[Export]:
    """Newest first."""
    query = select(Export).where(Export.project_id == project_id).order_by(Export.id.desc()).limit(limit)
    if before is not None:
        query = query.where(Export.id < before)
    return list(session.scalars(query))


def files(session: Session, export_ids: Sequence[str]) -> dict[str, list[ExportFile]]:
    found: dict[str, list[ExportFile]] = {export_id: [] for export_id in export_ids}
    query = select(ExportFile).where(ExportFile.export_id.in_(export_ids)).order_by(ExportFile.name)
    for file in session.scalars(query):
        found[file.export_id].append(file)
    return found


def claim(connection: Connection, owner: str, lease_seconds: float) -> ExportClaim | None:
    """Take the oldest export that waits or whose worker is gone."""
    choice = (
        select(Export.id)
        .where(
            or_(
                Export.status == ExportStatus.READY,
                (Export.status == ExportStatus.RUNNING) & (Export.lease_until < db_now()),
            )
        )
        .order_by(Export.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = connection.execute(
        update(Export)
        .where(Export.id == choice.scalar_subquery())
        .values(
            status=ExportStatus.RUNNING,
            owner=owner,
            epoch=Export.epoch + 1,
            attempts=Export.attempts + 1,
            lease_until=db_now() + lease_seconds,
            started_at=func.coalesce(Export.started_at, db_now()),
            n_rows=0,
        )
        .returning(Export.id, Export.epoch, Export.attempts)
    ).one_or_none()
    return None if row is None else ExportClaim(row.id, row.epoch, row.attempts)


def _ours(claim: ExportClaim) -> tuple[Any, ...]:
    return (Export.id == claim.export_id, Export.epoch == claim.epoch, Export.status == ExportStatus.RUNNING)


def beat(connection: Connection, claim: ExportClaim, n_rows: int, lease_seconds: float) -> bool:
    """Show progress and prolong the lease. False: another worker makes this export now."""
    return bool(
        connection.execute(
            update(Export).where(*_ours(claim)).values(n_rows=n_rows, lease_until=db_now() + lease_seconds)
        ).rowcount
    )


def release(connection: Connection, claim: ExportClaim) -> None:
    connection.execute(
        update(Export).where(*_ours(claim)).values(status=ExportStatus.READY, lease_until=None)
    )


def complete(
    connection: Connection,
    claim: ExportClaim,
    path: str,
    manifest: dict[str, Any],
    written: list[dict[str, Any]],
) -> bool:
    done = connection.execute(
        update(Export)
        .where(*_ours(claim))
        .values(
            status=ExportStatus.COMPLETED,
            path=path,
            manifest=manifest,
            n_rows=manifest["n_rows"],
            ended_at=db_now(),
            lease_until=None,
            error=None,
        )
    ).rowcount
    if done:
        connection.execute(delete(ExportFile).where(ExportFile.export_id == claim.export_id))
        connection.execute(insert(ExportFile), [{"export_id": claim.export_id, **file} for file in written])
    return bool(done)


def fail(connection: Connection, claim: ExportClaim, error: str) -> None:
    connection.execute(
        update(Export)
        .where(*_ours(claim))
        .values(status=ExportStatus.FAILED, error=error, ended_at=db_now(), lease_until=None)
    )


def jobs(connection: Connection, job_ids: Sequence[str]) -> list[Row[Any]]:
    return list(connection.execute(select(Job.__table__).where(Job.id.in_(job_ids)).order_by(Job.id)))


def lanes(connection: Connection, job_id: str) -> list[Row[Any]]:
    return list(
        connection.execute(select(Lane.__table__).where(Lane.job_id == job_id).order_by(Lane.teacher))
    )


def stages(connection: Connection, job_id: str) -> list[Row[Any]]:
    return list(
        connection.execute(select(Stage.__table__).where(Stage.job_id == job_id).order_by(Stage.position))
    )


def prompt_set(connection: Connection, prompt_set_id: str) -> Row[Any]:
    return connection.execute(select(PromptSet.__table__).where(PromptSet.id == prompt_set_id)).one()


def totals(connection: Connection, job_id: str) -> dict[str, int]:
    """All that a job cost, failed and retried calls included."""
    names = ("completed", "failed", "reused", "prompt_tokens", "completion_tokens", "calls", "retries")
    row = connection.execute(
        select(*(func.coalesce(func.sum(getattr(Counter, name)), 0) for name in names)).where(
            Counter.job_id == job_id
        )
    ).one()
    return dict(zip(names, map(int, row), strict=True))


def completed_rows(
    connection: Connection, job_id: str, prompt_set_id: str, stage: int, until_prompt: int
) -> Iterator[list[Row[Any]]]:
    """Completed rows of a stage with their prompts, in pages, in order of (prompt number, teacher, sample index).

    `until_prompt` bounds what a job that still runs may add meanwhile.
    """
    place = (-1, 0, 0)
    key = tuple_(Completion.prompt_number, Completion.teacher, Completion.sample_index)
    while True:
        rows = list(
            connection.execute(
                select(
                    Completion.__table__,
                    PromptRow.body.label("prompt_body"),
                    PromptRow.source.label("prompt_source"),
                    PromptRow.custom_id,
                    PromptRow.license_assumed,
                    PromptRow.content_hash.label("prompt_hash"),
                )
                .join(
                    PromptRow,
                    (PromptRow.prompt_set_id == prompt_set_id)
                    & (PromptRow.number == Completion.prompt_number),
                )
                .where(
                    Completion.job_id == job_id,
                    Completion.stage == stage,
                    Completion.prompt_number < until_prompt,
                    Completion.prompt_number >= place[0],
                    key > place,
                    Completion.status == CompletionStatus.COMPLETED,
                )
                .order_by(Completion.prompt_number, Completion.teacher, Completion.sample_index)
                .limit(_PAGE)
            )
        )
        if not rows:
            return
        yield rows
        place = (rows[-1].prompt_number, rows[-1].teacher, rows[-1].sample_index)


def token_sources(connection: Connection, shard_ids: Sequence[int]) -> dict[int, tuple[str, bytes]]:
    """(segment path, sha256) of the shards that have a segment."""
    found = connection.execute(
        select(Shard.id, Segment.path, Segment.sha256)
        .join(Segment, Segment.id == Shard.segment_id)
        .where(Shard.id.in_(shard_ids))
    )
    return {row.id: (row.path, row.sha256) for row in found}
