"""Completions of a job, as they are read: text and numbers from the database, token columns from storage."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import orjson
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from sqlalchemy.orm import Session

from app.db import completions as rows
from app.db import jobs as job_rows
from app.db.completions import Place
from app.db.models import Completion, Job
from app.domain.columns import TokenColumns
from app.domain.lifecycle import CompletionStatus
from app.domain.prices import dollars
from app.errors import NotFound, StorageError
from app.services.job_views import moment
from app.storage.places import Storage
from app.storage.segment_reader import rows_of
from app.storage.token_table import columns_of, decode_part


class CompletionView(BaseModel):
    """One sample of one prompt by one teacher."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    stage: int
    prompt_number: int
    teacher: int = Field(description="Position in the job's `teachers`.")
    teacher_name: str
    sample_index: int
    status: CompletionStatus
    answer: str | None
    reasoning: str | None
    reasoning_source: str | None = Field(description="`native`, or `elicited` by the job.")
    reasoning_truncated: bool
    tool_calls: JsonValue
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    reasoning_tokens: int | None
    cached_tokens: int | None
    cost_usd: float | None = Field(description="Null: not known.")
    n_tokens: int | None = Field(description="Tokens whose ids are kept; null: the teacher told none.")
    attempts: int
    calls: int
    latency_ms: int
    content_hash: str = Field(
        description="SHA-256 of teacher identity, prompt, sampling parameters and index."
    )
    request_hash: str | None
    response_hash: str | None
    sampling: JsonValue = Field(description="Where it differs from the stage's.")
    engine: str | None
    provider_extra: JsonValue
    prompt_license: str
    teacher_license: str | None
    reused_from: str | None
    removed_by: str | None = Field(
        None, description="The takedown that removed text and tokens; hashes stay."
    )
    error_kind: str | None
    error_detail: str | None
    created_at: datetime


class TokensView(BaseModel):
    """Token-aligned numbers: natural logarithms, unnormalised, at temperature 1. −inf and NaN are null."""

    model_config = ConfigDict(frozen=True)

    k: int
    token_ids: list[int]
    sampled_logprob: list[float | None]
    sampled_rank: list[int] = Field(description="1: the likeliest; 0: outside the candidates.")
    tail_logmass: list[float | None] = Field(description="Logarithm of the mass outside the candidates.")
    sampled: list[bool] = Field(description="False: the token was put there, not drawn.")
    topk_ids: list[list[int]] = Field(description="Candidates of each position, likeliest first; −1: none.")
    topk_logprobs: list[list[float | None]]
    prompt_ids: list[int]


class CompletionOut(CompletionView):
    messages: list[dict[str, JsonValue]] | None = Field(None, description="With `include=prompt`.")
    tokens: TokensView | None = Field(None, description="With `include=tokens`, where the teacher told any.")


@dataclass(frozen=True, slots=True)
class Found:
    """A completion and what was asked for with it."""

    view: CompletionView
    messages: list[dict[str, JsonValue]] | None = None
    tokens: TokenColumns | None = None


@dataclass(frozen=True, slots=True)
class Include:
    prompt: bool = False
    tokens: bool = False


def page(
    session: Session,
    storage: Storage,
    project_id: str,
    job_id: str,
    prompt_number: int | None,
    completed_only: bool,
    after: Place | None,
    limit: int,
    include: Include,
) -> list[Found]:
    """In order of (stage, prompt number, teacher, sample index)."""
    job = _job(session, project_id, job_id)
    stages = [stage.position for stage in job_rows.stages(session, [job_id])[job_id]]
    found = rows.page(session, job_id, stages, prompt_number, completed_only, after, limit)
    return _with(session, storage, job, found, include)


def failures(
    session: Session,
    storage: Storage,
    project_id: str,
    job_id: str,
    kinds: Sequence[str],
    prompt_number: int | None,
    after: Place | None,
    limit: int,
    include: Include,
) -> list[Found]:
    """Failed ones, in order of (prompt number, stage, teacher, sample index)."""
    job = _job(session, project_id, job_id)
    found = rows.failed(session, job_id, kinds, prompt_number, after, limit)
    return _with(session, storage, job, found, include)


def _job(session: Session, project_id: str, job_id: str) -> Job:
    job = job_rows.get(session, project_id, job_id)
    if job is None:
        raise NotFound(f"there is no job {job_id!r} in this project")
    return job


def _with(
    session: Session, storage: Storage, job: Job, found: list[Completion], include: Include
) -> list[Found]:
    names = {lane.teacher: lane.teacher_name for lane in job_rows.lanes(session, [job.id])[job.id]}
    messages: dict[int, list[dict[str, JsonValue]]] = {}
    if include.prompt:
        numbers = sorted({row.prompt_number for row in found})
        for number, body in rows.prompt_bodies(session, job.prompt_set_id, numbers).items():
            messages[number] = orjson.loads(body)["messages"]
    tokens = _tokens(session, storage, found) if include.tokens else {}
    return [
        Found(
            _view(row, names.get(row.teacher, "")),
            messages.get(row.prompt_number),
            tokens.get((row.shard_id, row.prompt_number, row.sample_index)),
        )
        for row in found
    ]


def _tokens(
    session: Session, storage: Storage, found: list[Completion]
) -> dict[tuple[int, int, int], TokenColumns]:
    """(shard, prompt number, sample index) → columns, of those completions that have any."""
    wanted: dict[int, set[int]] = {}
    for row in found:
        if row.n_tokens is not None:
            wanted.setdefault(row.shard_id, set()).add(row.prompt_number)
    if not wanted:
        return {}
    made: dict[tuple[int, int, int], TokenColumns] = {}
    paths = rows.segment_paths(session, list(wanted))
    for shard_id, payloads in rows.parts(session, list(wanted)).items():
        for payload in payloads:
            made |= _columns(shard_id, decode_part(payload), wanted[shard_id])
    for shard_id, path in paths.items():
        try:
            table = rows_of(storage, path, wanted[shard_id])
        except StorageError:
            # A retried shard's new segment may have taken its place a moment ago.
            now = _fresh_path(session, shard_id)
            if now == path:
                raise
            table = rows_of(storage, now, wanted[shard_id])
        made |= _columns(shard_id, table, wanted[shard_id])
    return made


def _fresh_path(session: Session, shard_id: int) -> str:
    session.rollback()  # a new transaction sees the new pointer
    return rows.segment_paths(session, [shard_id])[shard_id]


def _columns(shard_id: int, table: pa.Table, numbers: set[int]) -> dict[tuple[int, int, int], TokenColumns]:
    keys = zip(
        table.column("prompt_number").to_pylist(), table.column("sample_index").to_pylist(), strict=True
    )
    return {
        (shard_id, number, index): columns_of(table, row)
        for row, (number, index) in enumerate(keys)
        if number in numbers
    }


def _view(row: Completion, teacher_name: str) -> CompletionView:
    return CompletionView(
        job_id=row.job_id,
        stage=row.stage,
        prompt_number=row.prompt_number,
        teacher=row.teacher,
        teacher_name=teacher_name,
        sample_index=row.sample_index,
        status=CompletionStatus(row.status),
        answer=row.answer,
        reasoning=row.reasoning,
        reasoning_source=row.reasoning_source,
        reasoning_truncated=row.reasoning_truncated,
        tool_calls=_json(row.tool_calls),
        finish_reason=row.finish_reason,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        reasoning_tokens=row.reasoning_tokens,
        cached_tokens=row.cached_tokens,
        cost_usd=dollars(row.cost_nanousd),
        n_tokens=row.n_tokens,
        attempts=row.attempts,
        calls=row.calls,
        latency_ms=row.latency_ms,
        content_hash=row.content_hash.hex(),
        request_hash=None if row.request_hash is None else row.request_hash.hex(),
        response_hash=None if row.response_hash is None else row.response_hash.hex(),
        sampling=_json(row.sampling),
        engine=row.engine,
        provider_extra=_json(row.provider_extra),
        prompt_license=row.prompt_license,
        teacher_license=row.teacher_license,
        reused_from=row.reused_from,
        removed_by=row.removed_by,
        error_kind=row.error_kind,
        error_detail=row.error_detail,
        created_at=moment(row.created_at),
    )


def _json(text: str | None) -> JsonValue:
    value: JsonValue = None if text is None else orjson.loads(text)
    return value
