"""Takedowns as the API tells them: ordered, foreseen, read."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import Row
from sqlalchemy.orm import Session

from app.db import jobs as job_rows
from app.db import takedowns as rows
from app.db import teachers as teacher_rows
from app.domain.fingerprints import new_id
from app.domain.lifecycle import ExportStatus, TakedownStatus
from app.errors import InvalidInput, NotFound
from app.services import lineage
from app.services.job_views import moment
from app.services.lineage import ExportHit


class TakedownRequest(BaseModel):
    """What to take down: a `source`, prompts of a set (all of them without `prompts`), or what a `teacher` made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | None = Field(
        None, min_length=1, max_length=1024, description="Every prompt with this very source, in all sets."
    )
    prompt_set: str | None = Field(None, max_length=64, description="Id of a prompt set.")
    prompts: tuple[int, ...] | None = Field(
        None, min_length=1, max_length=10_000, description="Numbers of prompts of the set; none: all."
    )
    teacher: str | None = Field(None, max_length=128, description="Name or id: all rows that it made.")
    who: str = Field(min_length=1, max_length=200, description="Who asked for it.")
    why: str = Field(min_length=1, max_length=2000, description="For example the letter that asked for it.")
    withdraw_exports: bool = Field(False, description="Also delete the files of exports that hold such rows.")

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if sum(one is not None for one in (self.source, self.prompt_set, self.teacher)) != 1:
            raise ValueError("give one of `source`, `prompt_set` and `teacher`")
        if self.prompts is not None and self.prompt_set is None:
            raise ValueError("`prompts` are numbers in a `prompt_set`: give that too")
        if self.prompts is not None and min(self.prompts) < 0:
            raise ValueError("prompts are numbered from 0")
        return self


class TakedownExportView(BaseModel):
    """An export that was made before, and holds rows that were taken down: it is tainted."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    status: ExportStatus
    n_rows: int = Field(description="Rows of it that were taken down.")
    withdrawn_at: datetime | None


class TakedownView(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    status: TakedownStatus
    error: str | None = Field(description="What it waits for, where it cannot go on at once.")
    kind: str = Field(description="`source`, `prompts` or `teacher`.")
    target: dict[str, Any]
    who: str
    why: str
    withdraw_exports: bool
    n_prompts: int = Field(description="Prompts whose text is gone.")
    n_completions: int = Field(description="Completions whose text and tokens are gone; their hashes stay.")
    n_segments: int = Field(description="Segments that were written anew without their rows, or deleted.")
    tainted_exports: list[TakedownExportView]
    created_by: str = Field(description="Id of the key.")
    created_at: datetime
    ended_at: datetime | None


class TakedownForecast(BaseModel):
    """What a takedown would find. Nothing was stored."""

    model_config = ConfigDict(frozen=True)

    n_prompts: int | None = Field(description="Null for a teacher.")
    exports: list[ExportHit] = Field(description="Exports that would be tainted.")


def order(session: Session, project_id: str, key_id: str, asked: TakedownRequest) -> TakedownView:
    """From its commit on a worker carries it out. Raises `NotFound`; `InvalidInput` for prompts that are not there."""
    kind, target = _target(session, project_id, asked)
    takedown_id = new_id("tkd")
    rows.add(
        session.connection(),
        {
            "id": takedown_id,
            "project_id": project_id,
            "kind": kind,
            "target": target,
            "who": asked.who,
            "why": asked.why,
            "withdraw_exports": asked.withdraw_exports,
            "created_by": key_id,
        },
    )
    return get(session, project_id, takedown_id)


def forecast(session: Session, project_id: str, asked: TakedownRequest) -> TakedownForecast:
    """Raises what `order` raises."""
    kind, target = _target(session, project_id, asked)
    if kind == "source":
        found = lineage.of_source(session, project_id, target["source"])
    elif kind == "teacher":
        found = lineage.of_teacher(session, project_id, target["teacher"])
    else:
        found = lineage.of_prompts(session, project_id, target["prompt_set"], target["prompts"])
    return TakedownForecast(n_prompts=found.n_prompts, exports=found.exports)


def _target(session: Session, project_id: str, asked: TakedownRequest) -> tuple[str, dict[str, Any]]:
    if asked.source is not None:
        return "source", {"source": asked.source}
    if asked.teacher is not None:
        teacher = teacher_rows.get(session, project_id, asked.teacher)
        if teacher is None:
            raise NotFound(f"there is no teacher {asked.teacher!r} in this project")
        return "teacher", {"teacher": teacher.id, "name": teacher.name}
    assert asked.prompt_set is not None
    found = job_rows.prompt_set(session, project_id, asked.prompt_set)
    if found is None:
        raise NotFound(f"there is no prompt set {asked.prompt_set!r} in this project")
    if asked.prompts is not None and max(asked.prompts) >= found.n_prompts:
        raise InvalidInput(
            f"prompt set {found.id} has no prompt {max(asked.prompts)}; it has {found.n_prompts:,}, counted from 0"
        )
    numbers = None if asked.prompts is None else sorted(set(asked.prompts))
    return "prompts", {"prompt_set": found.id, "prompts": numbers}


def get(session: Session, project_id: str, takedown_id: str) -> TakedownView:
    row = rows.get(session.connection(), project_id, takedown_id)
    if row is None:
        raise NotFound(f"there is no takedown {takedown_id!r} in this project")
    return _views(session, [row])[0]


def page(session: Session, project_id: str, before: str | None, limit: int) -> list[TakedownView]:
    """Newest first."""
    return _views(session, rows.page(session.connection(), project_id, before, limit))


def _views(session: Session, found: Sequence[Row[Any]]) -> list[TakedownView]:
    tainted: dict[str, list[TakedownExportView]] = {row.id: [] for row in found}
    for one in rows.exports_of(session.connection(), list(tainted)):
        tainted[one.takedown_id].append(
            TakedownExportView(
                id=one.export_id,
                name=one.name,
                status=ExportStatus(one.status),
                n_rows=one.n_rows,
                withdrawn_at=None if one.withdrawn_at is None else moment(one.withdrawn_at),
            )
        )
    return [
        TakedownView(
            id=row.id,
            status=TakedownStatus(row.status),
            error=row.error,
            kind=row.kind,
            target=row.target,
            who=row.who,
            why=row.why,
            withdraw_exports=row.withdraw_exports,
            n_prompts=row.n_prompts,
            n_completions=row.n_completions,
            n_segments=row.n_segments,
            tainted_exports=tainted[row.id],
            created_by=row.created_by,
            created_at=moment(row.created_at),
            ended_at=None if row.ended_at is None else moment(row.ended_at),
        )
        for row in found
    ]
