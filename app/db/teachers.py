"""Registered teachers."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from app.db.inserting import insert_ignoring
from app.db.models import Lane, Teacher
from app.db.session import db_now


def add(session: Session, teacher_id: str, project_id: str, values: Mapping[str, Any]) -> Teacher | None:
    """None: the name is taken."""
    row = {"id": teacher_id, "project_id": project_id, "created_at": db_now(), **values}
    if not insert_ignoring(session.connection(), Teacher, row):
        return None
    return session.execute(select(Teacher).where(Teacher.id == teacher_id)).scalar_one()


def get(session: Session, project_id: str, name_or_id: str) -> Teacher | None:
    return session.execute(
        select(Teacher).where(
            Teacher.project_id == project_id, or_(Teacher.name == name_or_id, Teacher.id == name_or_id)
        )
    ).scalar_one_or_none()


def named(session: Session, project_id: str, names: Sequence[str]) -> dict[str, Teacher]:
    """The teachers among `names` that exist, by name."""
    found = session.execute(select(Teacher).where(Teacher.project_id == project_id, Teacher.name.in_(names)))
    return {teacher.name: teacher for teacher in found.scalars()}


def page(session: Session, project_id: str, after: str | None, limit: int) -> list[Teacher]:
    """By name."""
    query = select(Teacher).where(Teacher.project_id == project_id).order_by(Teacher.name).limit(limit)
    if after is not None:
        query = query.where(Teacher.name > after)
    return list(session.execute(query).scalars())


def change(session: Session, teacher_id: str, values: Mapping[str, Any]) -> None:
    session.execute(update(Teacher).where(Teacher.id == teacher_id).values(**values))


def used(session: Session, teacher_id: str) -> str | None:
    """Id of a job that this teacher works or worked for."""
    return session.execute(
        select(Lane.job_id).where(Lane.teacher_id == teacher_id).limit(1)
    ).scalar_one_or_none()


def remove(session: Session, teacher_id: str) -> None:
    session.execute(delete(Teacher).where(Teacher.id == teacher_id))
