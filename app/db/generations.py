"""What was trained on which export, and how many generations of teachers lie behind a row."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select
from sqlalchemy.orm import Session

from app.db.export_models import Export, ExportUse
from app.db.models import Lane
from app.db.session import db_now


def exports_of(
    connection: Connection, project_id: str, export_ids: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The selection of each export among these that the project has."""
    found = connection.execute(
        select(Export.id, Export.selection).where(Export.project_id == project_id, Export.id.in_(export_ids))
    )
    return {row.id: row.selection for row in found}


def deepest(connection: Connection, selection: Mapping[str, Any]) -> int:
    """The greatest generation depth among the teachers whose rows a selection takes."""
    query = select(func.max(Lane.generation_depth)).where(Lane.job_id.in_(selection["jobs"]))
    if selection.get("teachers"):
        query = query.where(Lane.teacher_name.in_(selection["teachers"]))
    return int(connection.execute(query).scalar_one() or 0)


def add_use(session: Session, use_id: str, values: Mapping[str, Any]) -> ExportUse:
    session.execute(insert(ExportUse).values(id=use_id, created_at=db_now(), **values))
    return session.execute(select(ExportUse).where(ExportUse.id == use_id)).scalar_one()


def uses(session: Session, export_id: str, before: str | None, limit: int) -> list[ExportUse]:
    """Newest first."""
    query = (
        select(ExportUse).where(ExportUse.export_id == export_id).order_by(ExportUse.id.desc()).limit(limit)
    )
    if before is not None:
        query = query.where(ExportUse.id < before)
    return list(session.execute(query).scalars())
