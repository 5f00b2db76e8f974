"""Prompt sets: made, read, sealed. Rows come in through `app.services.appends`."""

from datetime import datetime

import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from sqlalchemy.orm import Session

from app.db import prompt_sets as rows
from app.db.models import PromptError, PromptRow, PromptSet
from app.domain.fingerprints import new_id
from app.errors import NotFound


class PromptSetView(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    sealed: bool
    content_hash: str = Field(
        description="SHA-256 over all prompts in order, hexadecimal. Equal sets have equal hashes."
    )
    n_prompts: int
    n_errors: int = Field(description="Rows that did not parse; see `/errors`.")
    n_removed: int = Field(0, description="Prompts whose text was taken down; they are in `n_prompts`.")
    n_license_assumed: int = Field(
        description="Prompts that named no licence and took the project's default, else NOASSERTION: a warning."
    )
    created_at: datetime
    sealed_at: datetime | None


class PromptView(BaseModel):
    """A prompt as it is stored: licence normalised, a bare string as one user message."""

    model_config = ConfigDict(frozen=True)

    number: int
    messages: list[dict[str, JsonValue]]
    license: str
    license_assumed: bool
    source: str | None
    custom_id: str | None
    teacher: str | None
    metadata: dict[str, JsonValue] | None
    reference: JsonValue
    parameters: dict[str, JsonValue] | None
    tools: list[dict[str, JsonValue]] | None
    response_schema: dict[str, JsonValue] | None
    content_hash: str
    removed_by: str | None = Field(
        description="The takedown that removed its text; `messages` is empty then."
    )


class PromptErrorView(BaseModel):
    model_config = ConfigDict(frozen=True, from_attributes=True)

    number: int
    append_id: str
    line: int = Field(description="From 1, in the append that brought it.")
    kind: str
    reason: str
    excerpt: str


def create(session: Session, project_id: str, key_id: str, name: str) -> PromptSetView:
    return view(rows.add(session, new_id("ps"), project_id, name, key_id))


def get(session: Session, project_id: str, set_id: str) -> PromptSetView:
    return view(_found(session, project_id, set_id))


def page(
    session: Session,
    project_id: str,
    name: str | None,
    content_hash: bytes | None,
    sealed: bool | None,
    before: str | None,
    limit: int,
) -> list[PromptSetView]:
    return [view(row) for row in rows.page(session, project_id, name, content_hash, sealed, before, limit)]


def seal(session: Session, project_id: str, set_id: str) -> PromptSetView:
    """Make a set immutable. Sealing it again changes nothing."""
    row = _found(session, project_id, set_id)
    connection = session.connection()
    rows.locked_head(connection, set_id)
    rows.seal(connection, set_id)
    session.refresh(row)
    return view(row)


def prompts(session: Session, project_id: str, set_id: str, after: int, limit: int) -> list[PromptView]:
    _found(session, project_id, set_id)
    return [_prompt(row) for row in rows.prompts(session, set_id, after, limit)]


def errors(session: Session, project_id: str, set_id: str, after: int, limit: int) -> list[PromptErrorView]:
    _found(session, project_id, set_id)
    return [_error(row) for row in rows.errors(session, set_id, after, limit)]


def view(row: PromptSet) -> PromptSetView:
    return PromptSetView(
        id=row.id,
        name=row.name,
        sealed=row.sealed,
        content_hash=row.content_hash.hex(),
        n_prompts=row.n_prompts,
        n_errors=row.n_errors,
        n_removed=row.n_removed,
        n_license_assumed=row.n_license_assumed,
        created_at=row.created_at,
        sealed_at=row.sealed_at,
    )


def _found(session: Session, project_id: str, set_id: str) -> PromptSet:
    row = rows.get(session, project_id, set_id)
    if row is None:
        raise NotFound(f"there is no prompt set {set_id!r} in this project")
    return row


def _prompt(row: PromptRow) -> PromptView:
    body = orjson.loads(row.body)
    return PromptView(
        number=row.number,
        messages=body["messages"],
        license=row.license,
        license_assumed=row.license_assumed,
        source=row.source,
        custom_id=row.custom_id,
        teacher=row.teacher,
        metadata=body.get("metadata"),
        reference=body.get("reference"),
        parameters=body.get("parameters"),
        tools=body.get("tools"),
        response_schema=body.get("response_schema"),
        content_hash=row.content_hash.hex(),
        removed_by=row.removed_by,
    )


def _error(row: PromptError) -> PromptErrorView:
    return PromptErrorView.model_validate(row)
