"""Projects and their keys."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, select, update
from sqlalchemy.orm import Session

from app.db.inserting import insert_ignoring
from app.db.models import ApiKey, Project
from app.db.session import db_now


@dataclass(frozen=True, slots=True)
class KeyOwner:
    """A live key and the project that it opens."""

    key_id: str
    project_id: str
    role: str
    loopback_only: bool


def key_owner(connection: Connection, secret_sha256: bytes) -> KeyOwner | None:
    """The live key with this secret; None where there is none or it was revoked."""
    row = connection.execute(
        select(ApiKey.id, ApiKey.project_id, ApiKey.role, ApiKey.loopback_only).where(
            ApiKey.secret_sha256 == secret_sha256, ApiKey.revoked_at.is_(None)
        )
    ).one_or_none()
    return None if row is None else KeyOwner(row.id, row.project_id, row.role, row.loopback_only)


def add_project(session: Session, project_id: str, name: str, default_license: str | None) -> bool:
    """False: the name is taken."""
    return insert_ignoring(
        session.connection(),
        Project,
        {"id": project_id, "name": name, "default_license": default_license, "created_at": db_now()},
    )


def project(session: Session, project_id: str) -> Project:
    return session.execute(select(Project).where(Project.id == project_id)).scalar_one()


def change(session: Session, project_id: str, changes: dict[str, str | None]) -> None:
    """`changes`: column → value, of `default_license` and `storage_profile`."""
    session.execute(update(Project).where(Project.id == project_id).values(**changes))


def add_key(
    session: Session,
    key_id: str,
    project_id: str,
    name: str,
    role: str,
    secret_sha256: bytes,
    loopback_only: bool,
) -> ApiKey:
    insert_ignoring(
        session.connection(),
        ApiKey,
        {
            "id": key_id,
            "project_id": project_id,
            "name": name,
            "role": role,
            "secret_sha256": secret_sha256,
            "loopback_only": loopback_only,
            "created_at": db_now(),
        },
    )
    return session.execute(select(ApiKey).where(ApiKey.id == key_id)).scalar_one()


def keys(session: Session, project_id: str, before: str | None, limit: int) -> list[ApiKey]:
    """Newest first."""
    query = select(ApiKey).where(ApiKey.project_id == project_id).order_by(ApiKey.id.desc()).limit(limit)
    if before is not None:
        query = query.where(ApiKey.id < before)
    return list(session.execute(query).scalars())


def key(session: Session, project_id: str, key_id: str, lock: bool = False) -> ApiKey | None:
    query = select(ApiKey).where(ApiKey.project_id == project_id, ApiKey.id == key_id)
    return session.execute(query.with_for_update() if lock else query).scalar_one_or_none()


def lock_project(session: Session, project_id: str) -> None:
    """One change of this project's keys at a time."""
    session.execute(select(Project.id).where(Project.id == project_id).with_for_update())


def live_admin_keys(session: Session, project_id: str) -> int:
    return session.execute(
        select(func.count())
        .select_from(ApiKey)
        .where(ApiKey.project_id == project_id, ApiKey.role == "admin", ApiKey.revoked_at.is_(None))
    ).scalar_one()


def revoke(session: Session, key_id: str) -> None:
    session.execute(
        update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=db_now())
    )


def any_project(session: Session) -> str | None:
    """Id of the oldest project."""
    return session.execute(
        select(Project.id).order_by(Project.created_at, Project.id).limit(1)
    ).scalar_one_or_none()
