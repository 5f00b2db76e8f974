"""Where a row comes from, and where prompts, sources and teachers went to."""

import re
from datetime import datetime
from typing import Any, cast

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from sqlalchemy import Connection, Row
from sqlalchemy.orm import Session

from app.db import jobs as job_rows
from app.db import lineage as rows
from app.db import policy as policy_rows
from app.db import teachers as teacher_rows
from app.domain.lifecycle import CompletionStatus, ExportStatus
from app.errors import InvalidInput, NotFound
from app.policy.decisions import Decision
from app.services.job_views import moment

_ROW_ID = re.compile(r"(job_[0-9a-z_]{1,60})/(\d{1,4})/(\d{1,18})/(\d{1,4})/(\d{1,4})")
_LONGEST_DIALOGUE = 100


class TaintView(BaseModel):
    """Rows of the export that were taken down after it was made."""

    model_config = ConfigDict(frozen=True)

    takedown: str
    n_rows: int
    why: str
    at: datetime
    withdrawn_at: datetime | None = Field(description="When the export's files were removed for it.")


class ExportHit(BaseModel):
    """An export that holds rows of what was asked for."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    status: ExportStatus
    format: str
    n_rows: int = Field(description="Rows of what was asked for, in this export.")
    created_by: str
    created_at: datetime
    tainted_by: list[TaintView]


class PromptOrigin(BaseModel):
    model_config = ConfigDict(frozen=True)

    prompt_set: str
    prompt_set_name: str
    prompt_set_hash: str
    number: int
    content_hash: str
    source: str | None
    custom_id: str | None
    license: str
    license_assumed: bool
    removed_by: str | None = Field(description="The takedown that removed its text.")


class TeacherOrigin(BaseModel):
    """The teacher as it was when the job began."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    driver: str
    model: str
    revision: str | None
    access_route: str
    license: str | None
    identity: str | None
    trained_on: list[str] = Field(description="Exports that it was trained on.")
    terms: list[str] = Field(description="Ids of the terms that bound the row when its job was judged.")


class JobOrigin(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    stage: str
    sampling: dict[str, JsonValue] = Field(description="Parameters of this very sample.")
    top_logprobs: int
    elicit: JsonValue
    intended_use: dict[str, JsonValue]
    decision: str | None
    code_version: str
    asked_by: str = Field(description="Id of the key.")
    asked_by_name: str | None
    asked_at: datetime


class AttemptOrigin(BaseModel):
    """The worker's hold on the shard in which the row was made."""

    model_config = ConfigDict(frozen=True)

    shard: int
    epoch: int
    worker: str | None = Field(description="Null once the history of an old job is tidied away.")
    claimed_at: datetime | None
    attempts: int
    calls: int
    latency_ms: int
    engine: str | None


class SegmentOrigin(BaseModel):
    """The file that holds the row's token columns."""

    model_config = ConfigDict(frozen=True)

    path: str
    sha256: str
    generation: int


class RowLineage(BaseModel):
    """All that a row comes from, and every export that it is in."""

    model_config = ConfigDict(frozen=True)

    row_id: str
    status: CompletionStatus
    removed_by: str | None
    made_at: datetime
    content_hash: str
    request_hash: str | None
    response_hash: str | None
    prompt: PromptOrigin
    teacher: TeacherOrigin
    job: JobOrigin
    attempt: AttemptOrigin
    segment: SegmentOrigin | None
    parents: list[str] = Field(description="Row ids of the turns before, the nearest first.")
    reused_from: str | None
    exports: list[ExportHit]


class ForwardLineage(BaseModel):
    """Every export that holds rows made of these prompts, or by this teacher."""

    model_config = ConfigDict(frozen=True)

    n_prompts: int | None = Field(description="Prompts that were found; null for a teacher.")
    jobs: list[str] = Field(description="Jobs of a teacher; empty for prompts.")
    exports: list[ExportHit]


def of_row(session: Session, project_id: str, row_id: str) -> RowLineage:
    """Raises `InvalidInput` for what is no row id, `NotFound`."""
    match = _ROW_ID.fullmatch(row_id)
    if match is None:
        raise InvalidInput(
            f"{row_id[:100]!r} is no row id: write job/stage/prompt number/teacher's position/sample index, as in the "
            "column `row_id` of an export, for example job_01/0/17/0/0"
        )
    job_id, *numbers = match.groups()
    stage, number, teacher, sample = map(int, numbers)
    connection = session.connection()
    row = rows.completion(connection, project_id, job_id, stage, number, teacher, sample)
    if row is None:
        raise NotFound(f"there is no row {row_id!r} in this project")
    hits = rows.exports_of_row(connection, job_id, stage, number, teacher, sample)
    return RowLineage(
        row_id=row_id,
        status=CompletionStatus(row.status),
        removed_by=row.removed_by,
        made_at=moment(row.created_at),
        content_hash=row.content_hash.hex(),
        request_hash=_hex(row.request_hash),
        response_hash=_hex(row.response_hash),
        prompt=_prompt(row),
        teacher=_teacher(row, _terms(connection, project_id, row)),
        job=_job(row),
        attempt=AttemptOrigin(
            shard=row.shard_id,
            epoch=row.epoch,
            worker=row.worker,
            claimed_at=None if row.claimed_at is None else moment(row.claimed_at),
            attempts=row.attempts,
            calls=row.calls,
            latency_ms=row.latency_ms,
            engine=row.engine,
        ),
        segment=None
        if row.segment_path is None or row.n_tokens is None
        else SegmentOrigin(path=row.segment_path, sha256=row.segment_sha256.hex(), generation=row.generation),
        parents=_parents(connection, project_id, row.parent_id),
        reused_from=row.reused_from,
        exports=_hits(connection, dict.fromkeys(hits, 1)),
    )


def of_source(session: Session, project_id: str, source: str) -> ForwardLineage:
    connection = session.connection()
    prompts = rows.prompts_of_source(connection, project_id, source)
    return ForwardLineage(
        n_prompts=sum(len(numbers) for numbers in prompts.values()),
        jobs=[],
        exports=_hits(connection, rows.exports_of_prompts(connection, prompts)),
    )


def of_prompt(session: Session, project_id: str, prompt_set: str, number: int) -> ForwardLineage:
    """Raises `NotFound`."""
    found = job_rows.prompt_set(session, project_id, prompt_set)
    if found is None:
        raise NotFound(f"there is no prompt set {prompt_set!r} in this project")
    if number >= found.n_prompts:
        raise NotFound(
            f"prompt set {prompt_set} has no prompt {number}; it has {found.n_prompts:,}, counted from 0"
        )
    connection = session.connection()
    hits = rows.exports_of_prompts(connection, {prompt_set: np.array([number], np.int64)})
    return ForwardLineage(n_prompts=1, jobs=[], exports=_hits(connection, hits))


def of_prompts(
    session: Session, project_id: str, prompt_set: str, numbers: list[int] | None
) -> ForwardLineage:
    """Of a set that is there: these prompts, or all of them."""
    connection = session.connection()
    found = rows.prompts_of_set(connection, prompt_set) if numbers is None else np.array(numbers, np.int64)
    hits = rows.exports_of_prompts(connection, {prompt_set: found})
    return ForwardLineage(n_prompts=len(found), jobs=[], exports=_hits(connection, hits))


def of_teacher(session: Session, project_id: str, name_or_id: str) -> ForwardLineage:
    """Raises `NotFound`."""
    teacher = teacher_rows.get(session, project_id, name_or_id)
    if teacher is None:
        raise NotFound(f"there is no teacher {name_or_id!r} in this project")
    connection = session.connection()
    lanes = rows.lanes_of_teacher(connection, teacher.id)
    return ForwardLineage(
        n_prompts=None,
        jobs=[job for job, _ in lanes],
        exports=_hits(connection, rows.exports_of_lanes(connection, lanes)),
    )


def taints(connection: Connection, export_ids: list[str]) -> dict[str, list[TaintView]]:
    """Export → what was taken down of it."""
    return {
        export_id: [
            TaintView(
                takedown=one.takedown_id,
                n_rows=one.n_rows,
                why=one.why,
                at=moment(one.created_at),
                withdrawn_at=None if one.withdrawn_at is None else moment(one.withdrawn_at),
            )
            for one in found
        ]
        for export_id, found in rows.taints(connection, export_ids).items()
    }


def _hits(connection: Connection, counts: dict[str, int]) -> list[ExportHit]:
    found = rows.exports(connection, sorted(counts))
    tainted = taints(connection, [row.id for row in found])
    return [
        ExportHit(
            id=row.id,
            name=row.name,
            status=ExportStatus(row.status),
            format=row.format,
            n_rows=counts[row.id],
            created_by=row.created_by,
            created_at=moment(row.created_at),
            tainted_by=tainted.get(row.id, []),
        )
        for row in found
    ]


def _prompt(row: Row[Any]) -> PromptOrigin:
    return PromptOrigin(
        prompt_set=row.prompt_set_id,
        prompt_set_name=row.set_name,
        prompt_set_hash=row.set_hash.hex(),
        number=row.prompt_number,
        content_hash=row.prompt_hash.hex(),
        source=row.source,
        custom_id=row.custom_id,
        license=row.prompt_license,
        license_assumed=row.license_assumed,
        removed_by=row.prompt_removed_by,
    )


def _teacher(row: Row[Any], terms: list[str]) -> TeacherOrigin:
    return TeacherOrigin(
        id=row.teacher_id,
        name=row.teacher_name,
        driver=row.driver,
        model=row.model,
        revision=row.revision,
        access_route=row.access_route,
        license=row.teacher_license,
        identity=_hex(row.identity_sha256),
        trained_on=row.trained_on or [],
        terms=terms,
    )


def _job(row: Row[Any]) -> JobOrigin:
    own: dict[str, JsonValue] | None = None if row.sampling is None else orjson.loads(row.sampling)
    return JobOrigin(
        id=row.job_id,
        name=row.job_name,
        stage=row.stage_name,
        sampling=row.stage_sampling if own is None else own,
        top_logprobs=row.top_logprobs,
        elicit=row.elicit,
        intended_use=row.intended_use,
        decision=row.policy_decision_id,
        code_version=row.code_version,
        asked_by=row.asked_by,
        asked_by_name=row.asked_by_name,
        asked_at=moment(row.asked_at),
    )


def _terms(connection: Connection, project_id: str, row: Row[Any]) -> list[str]:
    """The terms that the job's decision bound this row by."""
    if row.policy_decision_id is None:
        return []
    kept = policy_rows.decision(connection, project_id, row.policy_decision_id)
    if kept is None:
        return []
    decision = Decision.model_validate_json(kept.body)
    of_teacher = [part for part in decision.parts if row.teacher_name in part.teachers]
    for part in of_teacher:
        if part.prompt_license == row.prompt_license:
            return list(part.terms)
    # A prompt that came to an open set later: what binds every row of its teacher.
    return (
        sorted(frozenset.intersection(*(frozenset(part.terms) for part in of_teacher))) if of_teacher else []
    )


def _parents(connection: Connection, project_id: str, parent_id: str | None) -> list[str]:
    chain: list[str] = []
    while parent_id is not None and len(chain) < _LONGEST_DIALOGUE:
        chain.append(parent_id)
        match = _ROW_ID.fullmatch(parent_id)
        if match is None:
            break
        job_id, *numbers = match.groups()
        stage, number, teacher, sample = map(int, numbers)
        row = rows.completion(connection, project_id, job_id, stage, number, teacher, sample)
        parent_id = None if row is None else cast("str | None", row.parent_id)
    return chain


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()
