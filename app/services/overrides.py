"""Overrides of the shipped terms: recorded with who and why, listed, revoked; never changed."""

from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Row
from sqlalchemy.orm import Session

from app.db import policy as rows
from app.domain.fingerprints import new_id
from app.errors import NotFound
from app.policy.overrides import LicenceOverride, LicenceStatement, TermsOverride, TermsStatement
from app.services.policy import read_override


class NewTermsOverride(TermsStatement):
    since: date | None = Field(None, description="First day on which it holds; none: today.")  # type: ignore[assignment]


class NewLicenceOverride(LicenceStatement):
    since: date | None = Field(None, description="First day on which it holds; none: today.")  # type: ignore[assignment]


NewOverride = Annotated[NewTermsOverride | NewLicenceOverride, Field(discriminator="kind")]


class OverrideView(BaseModel):
    """An override, and what became of it."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: Literal["terms", "license"]
    in_force: bool
    override: TermsOverride | LicenceOverride
    created_by: str = Field(description="Id of the key that recorded it.")
    created_at: datetime
    revoked_at: datetime | None
    revoked_by: str | None
    revoked_why: str | None


def record(
    session: Session, project_id: str, key_id: str, new: NewTermsOverride | NewLicenceOverride
) -> OverrideView:
    """From now on decisions are made with it; those that were made stay as they are."""
    connection = session.connection()
    body = new.model_dump(mode="json")
    if new.since is None:
        body["since"] = rows.today(connection).isoformat()
    override_id = new_id("ovr")
    read_override(override_id, body)
    rows.add_override(connection, override_id, project_id, new.kind, body, key_id)
    return get(session, project_id, override_id)


def get(session: Session, project_id: str, override_id: str) -> OverrideView:
    row = rows.override(session.connection(), project_id, override_id)
    if row is None:
        raise NotFound(f"there is no override {override_id!r} in this project")
    return _view(row, rows.today(session.connection()))


def page(session: Session, project_id: str, before: str | None, limit: int) -> list[OverrideView]:
    """Newest first, revoked ones too."""
    today = rows.today(session.connection())
    return [_view(row, today) for row in rows.overrides(session.connection(), project_id, before, limit)]


def revoke(session: Session, project_id: str, key_id: str, override_id: str, why: str) -> OverrideView:
    """Revoking it again changes nothing."""
    get(session, project_id, override_id)
    rows.revoke_override(session.connection(), override_id, key_id, why)
    return get(session, project_id, override_id)


def _view(row: Row[Any], today: date) -> OverrideView:
    found = read_override(row.id, row.body)
    return OverrideView(
        id=row.id,
        kind=row.kind,
        in_force=row.revoked_at is None and found.in_force(today),
        override=found,
        created_by=row.created_by,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        revoked_by=row.revoked_by,
        revoked_why=row.revoked_why,
    )
