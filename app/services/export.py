"""Exports: immutable snapshots of completions, made by a worker, written whole or not at all."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import IO, Any

import orjson
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from sqlalchemy import Connection, Engine, Row
from sqlalchemy.orm import Session

from app.db import checkpoints
from app.db import exports as rows
from app.db import jobs as job_rows
from app.db.exports import ExportClaim
from app.db.models import Export, ExportFile
from app.db.session import db_now, reading, transaction
from app.domain.columns import TokenColumns
from app.domain.fingerprints import new_id
from app.domain.lifecycle import ExportStatus
from app.domain.sampling import IntendedUse
from app.domain.version import code_version
from app.errors import InvalidInput, NotFound, RetortError
from app.exporters import ExportRow, exporter
from app.storage.places import Storage
from app.storage.segments import read_segment
from app.storage.token_table import columns_of, decode_part

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_ATTEMPTS = 5
_OPEN_SEGMENTS = 8


class Selection(BaseModel):
    """Which completions an export holds: the completed ones of these jobs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobs: tuple[str, ...] = Field(min_length=1, max_length=100, description="Ids of jobs.")
    teachers: tuple[str, ...] = Field(
        (), max_length=100, description="Only rows of these teachers; none: of all."
    )


class ExportOptions(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rows_per_file: int = Field(100_000, ge=1, le=10_000_000)


class ExportSpec(BaseModel):
    """What to write, how, and for what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(None, min_length=1, max_length=200, description="For people.")
    format: str = Field("jsonl", max_length=50, description="How rows are written.")
    selection: Selection
    options: ExportOptions = ExportOptions()
    intended_use: IntendedUse = Field(IntendedUse(), description="What the data is for.")


class FileView(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    n_bytes: int
    n_rows: int | None
    sha256: str


class ExportView(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    status: ExportStatus
    error: str | None
    format: str
    selection: Selection
    options: ExportOptions
    intended_use: IntendedUse
    n_rows: int = Field(description="Rows written so far; all of them once it is completed.")
    n_rows_expected: int
    files: list[FileView]
    created_by: str
    created_at: datetime
    ended_at: datetime | None


def create(session: Session, project_id: str, key_id: str, spec: ExportSpec) -> ExportView:
    """Raises `InvalidInput` for an unknown format, `NotFound` for an unknown job."""
    exporter(spec.format)
    expected = 0
    names = []
    for job_id in spec.selection.jobs:
        job = job_rows.get(session, project_id, job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id!r} in this project")
        names.append(job.name)
        expected += rows.totals(session.connection(), job_id)["completed"]
    made = Export(
        id=new_id("exp"),
        project_id=project_id,
        name=spec.name or names[0],
        status=ExportStatus.READY,
        selection=spec.selection.model_dump(mode="json"),
        format=spec.format,
        options=spec.options.model_dump(mode="json"),
        intended_use=spec.intended_use.model_dump(mode="json"),
        n_rows_expected=expected,
        created_by=key_id,
        created_at=db_now(),
    )
    session.add(made)
    session.flush()
    session.refresh(made)
    return view(made, [])


def view(export: Export, files: list[ExportFile]) -> ExportView:
    return ExportView(
        id=export.id,
        name=export.name,
        status=ExportStatus(export.status),
        error=export.error,
        format=export.format,
        selection=Selection.model_validate(export.selection),
        options=ExportOptions.model_validate(export.options),
        intended_use=IntendedUse.model_validate(export.intended_use),
        n_rows=export.n_rows,
        n_rows_expected=export.n_rows_expected,
        files=[
            FileView(name=f.name, n_bytes=f.n_bytes, n_rows=f.n_rows, sha256=f.sha256.hex()) for f in files
        ],
        created_by=export.created_by,
        created_at=datetime.fromtimestamp(export.created_at, UTC),
        ended_at=None if export.ended_at is None else datetime.fromtimestamp(export.ended_at, UTC),
    )


def get(session: Session, project_id: str, export_id: str) -> ExportView:
    found = rows.get(session, project_id, export_id)
    if found is None:
        raise NotFound(f"there is no export {export_id!r} in this project")
    return view(found, rows.files(session, [export_id])[export_id])


def page(session: Session, project_id: str, before: str | None, limit: int) -> list[ExportView]:
    found = rows.page(session, project_id, before, limit)
    files = rows.files(session, [export.id for export in found])
    return [view(export, files[export.id]) for export in found]


def file_of(session: Session, project_id: str, export_id: str, name: str) -> tuple[str, FileView]:
    """Where a finished export's file lies in the storage, and what it is."""
    found = rows.get(session, project_id, export_id)
    if found is None:
        raise NotFound(f"there is no export {export_id!r} in this project")
    for file in rows.files(session, [export_id])[export_id]:
        if file.name == name and found.path is not None:
            return f"{found.path}/{name}", view(found, [file]).files[0]
    raise NotFound(f"export {export_id!r} ({found.status}) has no file {name!r}")


# -- the worker's side -----------------------------------------------------------------------------------------


class _Gone(Exception):
    """Another worker makes this export now, or this one was asked to stop."""


def run_next(
    database: Engine, storage: Storage, worker_id: str, lease_seconds: float, stopped: Callable[[], bool]
) -> bool:
    """Make one export that waits. False: there was none."""
    with transaction(database) as connection:
        claim = rows.claim(connection, worker_id, lease_seconds)
    if claim is None:
        return False
    try:
        _Run(database, storage, claim, lease_seconds, stopped).write()
    except _Gone:
        if stopped():
            with transaction(database) as connection:
                rows.release(connection, claim)
    except RetortError as error:
        log.error("export %s: %s", claim.export_id, error.detail)
        final = isinstance(error, InvalidInput) or claim.attempts >= _ATTEMPTS
        with transaction(database) as connection:
            if final:
                rows.fail(connection, claim, error.detail)
            else:
                rows.release(connection, claim)
        if not final:
            time.sleep(1)  # a full disk is not emptied by asking again at once
    return True


class _Run:
    """One attempt at an export: a folder of its own, published under the export's name when it is whole."""

    def __init__(
        self,
        database: Engine,
        storage: Storage,
        claim: ExportClaim,
        lease: float,
        stopped: Callable[[], bool],
    ) -> None:
        self._database = database
        self._storage = storage
        self._claim = claim
        self._lease = lease
        self._stopped = stopped
        self._beaten = time.monotonic()
        self._n_rows = 0
        self._segments: OrderedDict[str, pa.Table] = OrderedDict()
        self._places: dict[tuple[str, int, int], int] = {}

    def write(self) -> None:
        with reading(self._database) as connection:
            export = rows_export(connection, self._claim.export_id)
            writer = exporter(export.format)
            folder = f"exports/.{self._claim.export_id}-e{self._claim.epoch}"
            options = ExportOptions.model_validate(export.options)
            jobs = rows.jobs(connection, Selection.model_validate(export.selection).jobs)
            source = self._rows(
                connection, jobs, Selection.model_validate(export.selection), writer.needs_tokens
            )
            written = []
            for number in range(1_000_000):
                first = next(source, None)
                if first is None and number > 0:
                    break
                before = self._n_rows - (first is not None)
                content = _chained(first, islice(source, options.rows_per_file - 1))
                name = f"data-{number:05d}{writer.suffix}"

                def write(file: IO[bytes], content: Iterator[ExportRow] = content) -> None:
                    writer.write(content, file)

                done = self._storage.write_atomically(f"{folder}/{name}", write)
                written.append(
                    {
                        "name": name,
                        "n_bytes": done.n_bytes,
                        "n_rows": self._n_rows - before,
                        "sha256": done.sha256,
                    }
                )
            manifest = self._manifest(connection, export, jobs, written)
        text = orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
        done = self._storage.write_atomically(f"{folder}/{MANIFEST}", lambda file: _put(file, text))
        written.append({"name": MANIFEST, "n_bytes": done.n_bytes, "n_rows": None, "sha256": done.sha256})
        self._check(force=True)
        final = f"exports/{self._claim.export_id}"
        if self._storage.exists(f"{final}/{MANIFEST}"):
            self._storage.delete_folder(final)  # published by an attempt that died before its commit
        path = self._storage.publish(folder, final)
        with transaction(self._database) as connection:
            if not rows.complete(connection, self._claim, path, manifest, written):
                raise _Gone

    def _check(self, force: bool = False) -> None:
        if self._stopped():
            raise _Gone
        if not force and time.monotonic() - self._beaten < min(1.0, self._lease / 3):
            return
        with transaction(self._database) as connection:
            if not rows.beat(connection, self._claim, self._n_rows, self._lease):
                raise _Gone
        self._beaten = time.monotonic()

    def _rows(
        self, connection: Connection, jobs: list[Row[Any]], selection: Selection, with_tokens: bool
    ) -> Iterator[ExportRow]:
        for job in jobs:
            lanes = {lane.teacher: lane for lane in rows.lanes(connection, job.id)}
            until = rows.prompt_set(connection, job.prompt_set_id).n_prompts
            for stage in rows.stages(connection, job.id):
                for page_of_rows in rows.completed_rows(
                    connection, job.id, job.prompt_set_id, stage.position, until
                ):
                    chosen = [
                        row
                        for row in page_of_rows
                        if not selection.teachers or lanes[row.teacher].teacher_name in selection.teachers
                    ]
                    tokens = self._tokens(connection, chosen) if with_tokens else {}
                    for row in chosen:
                        self._n_rows += 1
                        yield _export_row(
                            row,
                            job,
                            stage,
                            lanes[row.teacher],
                            tokens.get((row.shard_id, row.prompt_number, row.sample_index)),
                        )
                    self._check()

    def _tokens(
        self, connection: Connection, page_of_rows: list[Row[Any]]
    ) -> dict[tuple[int, int, int], TokenColumns]:
        wanted = {row.shard_id for row in page_of_rows if row.n_tokens is not None}
        if not wanted:
            return {}
        found: dict[tuple[int, int, int], TokenColumns] = {}
        sources = rows.token_sources(connection, sorted(wanted))
        numbers = {(row.shard_id, row.prompt_number, row.sample_index) for row in page_of_rows}
        for shard_id in sorted(wanted):
            tables = [decode_part(part) for part in checkpoints.parts_of(connection, shard_id)]
            if shard_id in sources:
                tables.append(self._segment(sources[shard_id][0]))
            for table in tables:
                places = zip(
                    table.column("prompt_number").to_pylist(),
                    table.column("sample_index").to_pylist(),
                    strict=True,
                )
                for place, (number, index) in enumerate(places):
                    if (shard_id, number, index) in numbers:
                        found[shard_id, number, index] = columns_of(table, place)
        return found

    def _segment(self, path: str) -> pa.Table:
        table = self._segments.get(path)
        if table is None:
            table = read_segment(self._storage, path)
            self._segments[path] = table
            if len(self._segments) > _OPEN_SEGMENTS:
                self._segments.popitem(last=False)
        return table

    def _manifest(
        self, connection: Connection, export: Row[Any], jobs: list[Row[Any]], written: list[dict[str, Any]]
    ) -> dict[str, Any]:
        return {
            "format_version": 1,
            "export": export.id,
            "name": export.name,
            "format": export.format,
            "n_rows": self._n_rows,
            "selection": export.selection,
            "options": export.options,
            "intended_use": export.intended_use,
            "code_version": code_version(),
            "created_at": datetime.fromtimestamp(export.created_at, UTC).isoformat(),
            "files": [{**file, "sha256": file["sha256"].hex()} for file in written],
            "jobs": [_job_in_manifest(connection, job) for job in jobs],
        }


def rows_export(connection: Connection, export_id: str) -> Row[Any]:
    from sqlalchemy import select

    return connection.execute(select(Export.__table__).where(Export.id == export_id)).one()


def _put(file: IO[bytes], content: bytes) -> None:
    file.write(content)


def _chained(first: ExportRow | None, rest: Iterator[ExportRow]) -> Iterator[ExportRow]:
    if first is not None:
        yield first
        yield from rest


def _job_in_manifest(connection: Connection, job: Row[Any]) -> dict[str, Any]:
    prompts = rows.prompt_set(connection, job.prompt_set_id)
    return {
        "id": job.id,
        "name": job.name,
        "code_version": job.code_version,
        "intended_use": job.intended_use,
        "prompt_set": {
            "id": prompts.id,
            "content_hash": prompts.content_hash.hex(),
            "n_prompts": prompts.n_prompts,
        },
        "stages": [
            {
                "name": stage.name,
                "sampling": stage.sampling,
                "n": stage.n,
                "top_logprobs": stage.top_logprobs,
                "elicit": stage.elicit,
            }
            for stage in rows.stages(connection, job.id)
        ],
        "teachers": [
            {
                "name": lane.teacher_name,
                "model": lane.model,
                "revision": lane.revision,
                "access_route": lane.access_route,
                "license": lane.license,
                "terms": lane.terms_id,
                "identity_sha256": None if lane.identity_sha256 is None else lane.identity_sha256.hex(),
            }
            for lane in rows.lanes(connection, job.id)
        ],
        "totals": rows.totals(connection, job.id),
    }


def _export_row(
    row: Row[Any], job: Row[Any], stage: Row[Any], lane: Row[Any], tokens: TokenColumns | None
) -> ExportRow:
    body = orjson.loads(row.prompt_body)
    sampling = row.sampling if row.sampling is not None else orjson.dumps(stage.sampling).decode()
    provenance: dict[str, JsonValue] = {
        "job": job.id,
        "stage": row.stage,
        "prompt_number": row.prompt_number,
        "sample_index": row.sample_index,
        "custom_id": row.custom_id,
        "teacher": lane.teacher_name,
        "teacher_model": lane.model,
        "teacher_revision": lane.revision,
        "teacher_access_route": lane.access_route,
        "teacher_license": row.teacher_license,
        "teacher_terms": lane.terms_id,
        "prompt_license": row.prompt_license,
        "prompt_license_assumed": bool(row.license_assumed),
        "prompt_source": row.prompt_source,
        "prompt_sha256": row.prompt_hash.hex(),
        "prompt_set": job.prompt_set_id,
        "sampling_json": sampling,
        "engine": row.engine,
        "attempts": row.attempts,
        "calls": row.calls,
        "latency_ms": row.latency_ms,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "reasoning_tokens": row.reasoning_tokens,
        "request_sha256": None if row.request_hash is None else row.request_hash.hex(),
        "response_sha256": None if row.response_hash is None else row.response_hash.hex(),
        "content_sha256": row.content_hash.hex(),
        "generated_at": datetime.fromtimestamp(row.created_at, UTC).isoformat(timespec="milliseconds"),
    }
    return ExportRow(
        row_id=f"{job.id}/{row.stage}/{row.prompt_number}/{row.teacher}/{row.sample_index}",
        messages=body["messages"],
        answer=row.answer or "",
        reasoning=row.reasoning,
        reasoning_source=row.reasoning_source,
        reasoning_truncated=bool(row.reasoning_truncated),
        tool_calls=None if row.tool_calls is None else orjson.loads(row.tool_calls),
        tools=body.get("tools"),
        response_schema=body.get("response_schema"),
        reference=body.get("reference"),
        metadata=body.get("metadata", {}),
        finish_reason=row.finish_reason,
        provenance=provenance,
        tokens=tokens,
    )
