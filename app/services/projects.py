"""Projects, their keys, and who stands behind a request."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.db import projects as rows
from app.db.models import ApiKey
from app.db.session import reading
from app.domain.fingerprints import new_id
from app.domain.licences import normalise_license
from app.errors import Conflict, Forbidden, NotFound, Unauthenticated

SECRET_PREFIX = "rtk_"


class StorageProfile(StrEnum):
    FP16 = "fp16"
    COMPACT = "compact"


class Role(StrEnum):
    READER = "reader"
    WRITER = "writer"
    ADMIN = "admin"

    def may(self, needed: "Role") -> bool:
        """Each role may do what the ones before it may."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Caller:
    """The key behind a request."""

    key_id: str
    project_id: str
    role: Role


class ProjectView(BaseModel):
    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: str
    name: str
    default_license: str | None = Field(description="SPDX expression that prompts without a licence take.")
    storage_profile: StorageProfile | None = Field(
        None, description="How logprobs of jobs are kept; null: as the service's settings say."
    )
    created_at: datetime


class KeyView(BaseModel):
    """A key without its secret."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: str
    name: str
    role: Role
    loopback_only: bool
    created_at: datetime
    revoked_at: datetime | None


class NewKeyView(KeyView):
    secret: str | None = Field(
        description="Shown this once, and never stored. Null in the replay of an earlier answer."
    )


class NewProjectView(ProjectView):
    admin_key: NewKeyView


def authenticate(engine: Engine, secret: str, from_loopback: bool) -> Caller:
    """Who this secret belongs to. Raises `Unauthenticated`, or `Forbidden` for a loopback-only key from afar."""
    if not secret.startswith(SECRET_PREFIX):
        raise Unauthenticated(f"the key is not one of this service's: those begin with {SECRET_PREFIX}")
    with reading(engine) as connection:
        owner = rows.key_owner(connection, _digest(secret))
    if owner is None:
        raise Unauthenticated("the key is not known, or it was revoked")
    if owner.loopback_only and not from_loopback:
        raise Forbidden(
            "this key works on the service's own machine only; ask an administrator for another one"
        )
    return Caller(owner.key_id, owner.project_id, Role(owner.role))


def create_project(session: Session, name: str, default_license: str | None) -> NewProjectView:
    """A project and its first admin key."""
    project_id = new_id("prj")
    if not rows.add_project(session, project_id, name, checked_license(default_license)):
        raise Conflict(f"there is a project named {name!r} already")
    key = create_key(session, project_id, "first", Role.ADMIN, loopback_only=False)
    view = ProjectView.model_validate(rows.project(session, project_id))
    return NewProjectView(**view.model_dump(), admin_key=key)


def project(session: Session, project_id: str) -> ProjectView:
    return ProjectView.model_validate(rows.project(session, project_id))


def change(session: Session, project_id: str, changes: dict[str, str | None]) -> ProjectView:
    """`changes`: `default_license`, for prompts that are appended, and `storage_profile`, for segments that are
    written from now on."""
    if "default_license" in changes:
        changes = {**changes, "default_license": checked_license(changes["default_license"])}
    if changes:
        rows.change(session, project_id, changes)
    return project(session, project_id)


def create_key(session: Session, project_id: str, name: str, role: Role, loopback_only: bool) -> NewKeyView:
    secret = SECRET_PREFIX + secrets.token_urlsafe(32)
    row = rows.add_key(session, new_id("key"), project_id, name, role, _digest(secret), loopback_only)
    return NewKeyView(**_view(row).model_dump(), secret=secret)


def keys(session: Session, project_id: str, before: str | None, limit: int) -> list[KeyView]:
    return [_view(row) for row in rows.keys(session, project_id, before, limit)]


def revoke_key(session: Session, project_id: str, key_id: str) -> KeyView:
    """Idempotent. The last live admin key of a project cannot be revoked: nobody could make another."""
    rows.lock_project(session, project_id)
    row = rows.key(session, project_id, key_id, lock=True)
    if row is None:
        raise NotFound(f"there is no key {key_id!r} in this project")
    if row.revoked_at is None:
        if row.role == Role.ADMIN and rows.live_admin_keys(session, project_id) == 1:
            raise Conflict("this is the project's last admin key: make another one first")
        rows.revoke(session, key_id)
        session.refresh(row)
    return _view(row)


def _view(row: ApiKey) -> KeyView:
    return KeyView.model_validate(row)


def checked_license(expression: str | None) -> str | None:
    """Normalised. Raises `InvalidLicense`."""
    return None if expression is None else normalise_license(expression)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
