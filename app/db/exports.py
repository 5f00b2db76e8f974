"""Exports and their files: claimed like shards, under a lease and a fencing token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from app.db.export_models import Export, ExportFile, ExportMember
from app.db.session import db_now
from app.domain.lifecycle import ExportStatus

_ACTIVE = (ExportStatus.READY, ExportStatus.RUNNING, ExportStatus.PARKED)


@dataclass(frozen=True, slots=True)
class ExportClaim:
    """`attempts`: claims since the last file was finished, this one included."""

    export_id: str
    epoch: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Progress:
    n_rows: int
    n_seen: int
    n_bytes: int
    rows_per_second: float | None


@dataclass(frozen=True, slots=True)
class FinishedFile:
    """A file that is synced. `place`: its last row, behind which the next attempt goes on; None beside the data."""

    name: str
    path: str
    n_bytes: int
    sha256: bytes
    n_rows: int | None = None
    split: str | None = None
    place: list[Any] | None = None
    counts: dict[str, Any] | None = None

    def row(self, export_id: str) -> dict[str, Any]:
        return {"export_id": export_id, **{name: getattr(self, name) for name in self.__slots__}}


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


def end(session: Session, export_id: str, status: ExportStatus, only_active: bool) -> bool:
    """Cancel or delete: a worker that makes it finds its fence gone. The files' rows go with them."""
    allowed = Export.status.in_(_ACTIVE) if only_active else Export.status != status
    done = session.execute(
        update(Export)
        .where(Export.id == export_id, allowed)
        .values(
            status=status,
            epoch=Export.epoch + 1,
            ended_at=func.coalesce(Export.ended_at, db_now()),
            lease_until=None,
            owner=None,
            path=None,
        )
    )
    if not done.rowcount:  # type: ignore[attr-defined]
        return False
    session.execute(delete(ExportFile).where(ExportFile.export_id == export_id))
    if session.execute(select(Export.id).where(Export.id == export_id, Export.manifest.is_(None))).first():
        forget_members(session.connection(), export_id)  # it was never whole: nothing was trained on it
    return True


def forget_members(connection: Connection, export_id: str) -> None:
    connection.execute(delete(ExportMember).where(ExportMember.export_id == export_id))


# -- the worker's side -----------------------------------------------------------------------------------------


def claim(connection: Connection, owner: str, lease_seconds: float) -> ExportClaim | None:
    """Take the oldest export that waits, whose time to be tried again has come, or whose worker is gone.

    A worker makes one export at a time: one that it holds when it asks for the next was left by an error.
    """
    due = or_(Export.lease_until < db_now(), Export.owner == owner)
    choice = (
        select(Export.id)
        .where(
            or_(
                Export.status == ExportStatus.READY,
                and_(Export.status == ExportStatus.PARKED, Export.lease_until < db_now()),
                and_(Export.status == ExportStatus.RUNNING, due),
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
        )
        .returning(Export.id, Export.epoch, Export.attempts)
    ).one_or_none()
    return None if row is None else ExportClaim(row.id, row.epoch, row.attempts)


def row_of(connection: Connection, export_id: str) -> Row[Any]:
    return connection.execute(select(Export.__table__).where(Export.id == export_id)).one()


def finished(connection: Connection, export_id: str) -> list[FinishedFile]:
    """The data files that earlier attempts finished, by name."""
    found = connection.execute(
        select(ExportFile.__table__).where(ExportFile.export_id == export_id).order_by(ExportFile.name)
    )
    return [FinishedFile(**{name: getattr(row, name) for name in FinishedFile.__slots__}) for row in found]


def _ours(claim: ExportClaim) -> tuple[Any, ...]:
    return (Export.id == claim.export_id, Export.epoch == claim.epoch, Export.status == ExportStatus.RUNNING)


def beat(connection: Connection, claim: ExportClaim, progress: Progress, lease_seconds: float) -> bool:
    """Show progress and prolong the lease. False: it is not ours any more, or was cancelled."""
    return bool(
        connection.execute(
            update(Export)
            .where(*_ours(claim))
            .values(
                n_rows=progress.n_rows,
                n_seen=progress.n_seen,
                n_bytes=progress.n_bytes,
                rows_per_second=progress.rows_per_second,
                lease_until=db_now() + lease_seconds,
                error=None,
            )
        ).rowcount
    )


def add_file(
    connection: Connection,
    claim: ExportClaim,
    file: FinishedFile,
    members: Sequence[dict[str, Any]],
    n_rows: int,
    n_bytes: int,
) -> bool:
    """Keep a finished data file, and what is in it: no attempt writes it again. False: the export is not ours.

    `n_rows` and `n_bytes`: of all finished files, this one included.
    """
    told = {"attempts": 0, "error": None, "n_rows": n_rows, "n_bytes": n_bytes}
    if not connection.execute(update(Export).where(*_ours(claim)).values(**told)).rowcount:
        return False
    connection.execute(insert(ExportFile), [file.row(claim.export_id)])
    if members:
        of_file = {"export_id": claim.export_id, "file": file.name}
        connection.execute(insert(ExportMember), [{**of_file, **one} for one in members])
    return True


def leave(
    connection: Connection,
    claim: ExportClaim,
    status: ExportStatus,
    error: str | None,
    again_in: float | None,
) -> bool:
    """Give an export back: `ready` at once, `parked` for `again_in` seconds, or `failed` for good.

    With the last go the rows of its files: nobody will ever complete it.
    """
    given: dict[str, Any] = {
        "status": status,
        "error": error,
        "owner": None,
        "lease_until": None if again_in is None else db_now() + again_in,
    }
    if status == ExportStatus.FAILED:
        given["ended_at"] = db_now()
    if status == ExportStatus.READY:
        given["attempts"] = Export.attempts - 1  # an orderly end is no sign of trouble
    left = bool(connection.execute(update(Export).where(*_ours(claim)).values(**given)).rowcount)
    if left and status == ExportStatus.FAILED:
        connection.execute(delete(ExportFile).where(ExportFile.export_id == claim.export_id))
        forget_members(connection, claim.export_id)
    return left


def complete(
    connection: Connection,
    claim: ExportClaim,
    path: str,
    manifest: dict[str, Any],
    written: Sequence[FinishedFile],
    decision_id: str,
) -> bool:
    """All files of the export, which lie under `path`, in one transaction. False: it is not ours any more."""
    done = connection.execute(
        update(Export)
        .where(*_ours(claim))
        .values(
            status=ExportStatus.COMPLETED,
            path=path,
            manifest=manifest,
            policy_decision_id=decision_id,
            n_rows=manifest["n_rows"],
            n_bytes=sum(file.n_bytes for file in written),
            ended_at=db_now(),
            lease_until=None,
            owner=None,
            error=None,
        )
    ).rowcount
    if done:
        connection.execute(delete(ExportFile).where(ExportFile.export_id == claim.export_id))
        connection.execute(insert(ExportFile), [file.row(claim.export_id) for file in written])
    return bool(done)
