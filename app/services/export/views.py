"""Exports as the API tells them: made, read, cancelled, deleted. The rows are chosen when an export is made."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from sqlalchemy.orm import Session

from app.db import export_rows
from app.db import exports as rows
from app.db import jobs as job_rows
from app.db.models import Export, ExportFile
from app.db.session import db_now
from app.domain.fingerprints import new_id
from app.domain.lifecycle import ExportStatus
from app.domain.sampling import IntendedUse
from app.domain.splits import Split
from app.errors import Conflict, NotFound
from app.exporters import exporter, format_of, known_formats
from app.services.export.facts import facts
from app.services.export.spec import ExportSpec, FileSize, Layout, Selection, wanted
from app.services.job_views import moment


class FileView(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    n_bytes: int
    n_rows: int | None = Field(description="Null: a file beside the data.")
    split: str | None = None
    sha256: str


class ExportView(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    status: ExportStatus
    error: str | None = Field(description="Why it failed, or what it waits for while it is `parked`.")
    format: str
    options: dict[str, JsonValue]
    selection: Selection
    split: Split
    file_size: FileSize
    intended_use: IntendedUse
    n_rows: int = Field(description="Rows written so far; all of them once it is completed.")
    n_bytes: int = Field(description="The same of bytes.")
    n_rows_expected: int = Field(description="Rows to look at, before filters that only a look can decide.")
    n_rows_seen: int = Field(description="Rows looked at by the attempt under way.")
    eta_seconds: float | None = Field(description="Null while nothing can be said.")
    snapshot_at: datetime | None = Field(description="Rows recorded before it are in; none that came later.")
    files: list[FileView] = Field(description="Those that are finished.")
    created_by: str
    created_at: datetime
    ended_at: datetime | None


class FormatView(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    summary: str
    options: dict[str, JsonValue] = Field(description="JSON Schema of `options`.")


def create(session: Session, project_id: str, key_id: str, spec: ExportSpec) -> ExportView:
    """Raises `InvalidInput` for an unknown format or wrong options, `Unfit` where the rows do not fit the format,
    `NotFound` for an unknown job."""
    made = exporter(spec.format, spec.options)
    selection = wanted(spec.selection)
    names = []
    for job_id in spec.selection.jobs:
        job = job_rows.get(session, project_id, job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id!r} in this project")
        names.append(job.name)
    connection = session.connection()
    jobs = facts(connection, selection)
    made.check([binding for one in jobs for binding in one.bindings()])
    completed = export_rows.completed(connection, selection.jobs)
    expected = sum(completed.get((one.id, lane.position), 0) for one in jobs for lane in one.lanes)
    export = Export(
        id=new_id("exp"),
        project_id=project_id,
        name=spec.name or names[0],
        status=ExportStatus.READY,
        selection=selection.model_dump(mode="json", exclude_unset=True),
        format=spec.format,
        options=spec.options,
        layout=Layout(split=spec.split, file_size=spec.file_size).model_dump(mode="json"),
        intended_use=spec.intended_use.model_dump(mode="json"),
        watermark=export_rows.watermark(connection, selection.jobs),
        n_rows_expected=expected,
        created_by=key_id,
        created_at=db_now(),
    )
    session.add(export)
    session.flush()
    session.refresh(export)
    return view(export, [])


def view(export: Export, files: list[ExportFile]) -> ExportView:
    layout = Layout.model_validate(export.layout or {})
    return ExportView(
        id=export.id,
        name=export.name,
        status=ExportStatus(export.status),
        error=export.error,
        format=export.format,
        options=export.options,
        selection=Selection.model_validate(export.selection),
        split=layout.split,
        file_size=layout.file_size,
        intended_use=IntendedUse.model_validate(export.intended_use),
        n_rows=export.n_rows,
        n_bytes=export.n_bytes,
        n_rows_expected=export.n_rows_expected,
        n_rows_seen=export.n_seen,
        eta_seconds=_eta(export),
        snapshot_at=None if export.watermark is None else moment(export.watermark),
        files=[_file(file) for file in files],
        created_by=export.created_by,
        created_at=moment(export.created_at),
        ended_at=None if export.ended_at is None else moment(export.ended_at),
    )


def _file(file: ExportFile) -> FileView:
    return FileView(
        name=file.name, n_bytes=file.n_bytes, n_rows=file.n_rows, split=file.split, sha256=file.sha256.hex()
    )


def _eta(export: Export) -> float | None:
    if export.status != ExportStatus.RUNNING or not export.rows_per_second:
        return None
    return max(0, export.n_rows_expected - export.n_seen) / export.rows_per_second


def get(session: Session, project_id: str, export_id: str) -> ExportView:
    found = _found(session, project_id, export_id)
    return view(found, rows.files(session, [export_id])[export_id])


def page(session: Session, project_id: str, before: str | None, limit: int) -> list[ExportView]:
    found = rows.page(session, project_id, before, limit)
    files = rows.files(session, [export.id for export in found])
    return [view(export, files[export.id]) for export in found]


def file_of(session: Session, project_id: str, export_id: str, name: str) -> tuple[str, FileView]:
    """Where a finished export's file lies in the storage, and what it is."""
    found = _found(session, project_id, export_id)
    if found.status == ExportStatus.COMPLETED:
        for file in rows.files(session, [export_id])[export_id]:
            if file.name == name:
                return file.path or f"{found.path}/{name}", _file(file)
    raise NotFound(f"export {export_id!r} ({found.status}) has no file {name!r}")


def cancel(session: Session, project_id: str, export_id: str) -> ExportView:
    """Stop making it; what was written goes. Raises `Conflict` for one that has ended."""
    found = _found(session, project_id, export_id)
    if not rows.end(session, export_id, ExportStatus.CANCELLED, only_active=True):
        raise Conflict(f"export {export_id!r} is {found.status}: there is nothing to cancel")
    session.refresh(found)
    return view(found, [])


def delete(session: Session, project_id: str, export_id: str) -> ExportView:
    """Its files go, in whatever status it is; the record and the manifest stay, for what was trained on it."""
    found = _found(session, project_id, export_id)
    rows.end(session, export_id, ExportStatus.DELETED, only_active=False)
    session.refresh(found)
    return view(found, [])


def formats() -> list[FormatView]:
    """The formats that there are, with the schema of their options."""
    found = [(name, format_of(name)) for name in known_formats()]
    return [
        FormatView(name=name, summary=one.summary, options=one.options.model_json_schema())
        for name, one in found
    ]


def _found(session: Session, project_id: str, export_id: str) -> Export:
    found = rows.get(session, project_id, export_id)
    if found is None:
        raise NotFound(f"there is no export {export_id!r} in this project")
    return found
