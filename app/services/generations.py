"""Students and what they were trained on; and what it means when a student becomes a teacher.

*Generation depth* of a row: 0 where its teacher is not known to have been trained on an export; otherwise one more
than the deepest rows of the exports that it was trained on. It is fixed when the job is submitted.
"""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection
from sqlalchemy.orm import Session

from app.db import exports, generations
from app.db.models import Teacher
from app.domain.fingerprints import new_id
from app.errors import InvalidInput, NotFound


class NewUse(BaseModel):
    """A student that was trained on an export."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    student: str = Field(
        min_length=1, max_length=300, description="The student's name, for example its repository."
    )
    revision: str | None = Field(None, max_length=200, description="Of the student's weights.")
    run: str | None = Field(None, max_length=1000, description="The training run: an id or an address.")
    note: str | None = Field(None, max_length=10_000, description="For people.")


class UseView(NewUse):
    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)

    id: str
    export_id: str
    created_by: str = Field(description="Id of the key that recorded it.")
    created_at: datetime


def record_use(session: Session, project_id: str, key_id: str, export_id: str, use: NewUse) -> UseView:
    """Raises `NotFound`. A deleted export can be named: students outlive files."""
    _known(session, project_id, export_id)
    values = {**use.model_dump(), "export_id": export_id, "created_by": key_id}
    return UseView.model_validate(generations.add_use(session, new_id("use"), values))


def uses(session: Session, project_id: str, export_id: str, before: str | None, limit: int) -> list[UseView]:
    """Newest first. Raises `NotFound`."""
    _known(session, project_id, export_id)
    return [UseView.model_validate(row) for row in generations.uses(session, export_id, before, limit)]


def check_trained_on(connection: Connection, project_id: str, export_ids: tuple[str, ...]) -> None:
    """Raises `InvalidInput` that names the exports that the project does not have."""
    known = generations.exports_of(connection, project_id, export_ids)
    if unknown := [export_id for export_id in export_ids if export_id not in known]:
        raise InvalidInput(
            f"trained_on names exports that this project does not have: {', '.join(unknown)}",
            errors=[{"detail": f"there is no export {one!r}", "pointer": "#/trained_on"} for one in unknown],
        )


def depth(connection: Connection, teacher: Teacher) -> int:
    """Of the rows that this teacher would make now."""
    if not teacher.trained_on:
        return 0
    found = generations.exports_of(connection, teacher.project_id, teacher.trained_on)
    return 1 + max((generations.deepest(connection, selection) for selection in found.values()), default=0)


def _known(session: Session, project_id: str, export_id: str) -> None:
    if exports.get(session, project_id, export_id) is None:
        raise NotFound(f"there is no export {export_id!r} in this project")
