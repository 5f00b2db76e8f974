"""Exports as the API tells them: made, read, cancelled, deleted. The rows are chosen when an export is made."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from sqlalchemy.orm import Session

from app.db import export_rows
from app.db import exports as rows
from app.db import jobs as job_rows
from app.db.export_models import Export, ExportFile
from app.db.session import db_now
from app.domain.fingerprints import new_id
from app.domain.lifecycle import ExportStatus
from app.domain.sampling import IntendedUse
from app.domain.splits import Split
from app.errors import Conflict, NotFound, PolicyRefusal
from app.exporters import Exporter, exporter, format_of, known_formats
from app.policy.decisions import Decision
from app.policy.rules import PolicyRules
from app.services import policy
from app.services.export.facts import JobFacts, facts
from app.services.export.judging import Verdict, verdict
from app.services.export.spec import ExportSpec, FileSize, Layout, Selection, wanted
from app.services.job_views import moment
from app.services.lineage import TaintView, taints
from app.services.policy import PolicyForecast, PolicySummary


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
    on_refusal: str = "refuse"
    policy: PolicySummary | None = Field(
        None,
        description="What terms and licences said: when it was asked for, and once it is made, of what is in it.",
    )
    left_out: dict[str, int] | None = Field(
        None,
        description="Part → rows that were left out with `on_refusal: drop`; null until it is completed.",
    )
    n_rows: int = Field(description="Rows written so far; all of them once it is completed.")
    n_bytes: int = Field(description="The same of bytes.")
    n_rows_expected: int = Field(description="Rows to look at, before filters that only a look can decide.")
    n_rows_seen: int = Field(description="Rows looked at by the attempt under way.")
    eta_seconds: float | None = Field(description="Null while nothing can be said.")
    snapshot_at: datetime | None = Field(description="Rows recorded before it are in; none that came later.")
    tainted_by: list[TaintView] = Field([], description="Takedowns of rows that it holds, after it was made.")
    files: list[FileView] = Field(description="Those that are finished.")
    created_by: str
    created_at: datetime
    ended_at: datetime | None


class ExportForecast(BaseModel):
    """What an export would be. Nothing was stored."""

    model_config = ConfigDict(frozen=True)

    n_rows_at_most: int = Field(
        description="Before filters that only a look can decide; 0 where it is refused."
    )
    policy: PolicyForecast


class FormatView(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    summary: str
    options: dict[str, JsonValue] = Field(description="JSON Schema of `options`.")


def create(
    session: Session, project_id: str, key_id: str, spec: ExportSpec, rules: PolicyRules | None = None
) -> ExportView:
    """Raises `InvalidInput` for an unknown format or wrong options, `Unfit` where the rows do not fit the format,
    `NotFound` for an unknown job, `PolicyRefusal` where terms or licences forbid the use."""
    export, judged = _asked(session, project_id, key_id, spec, rules or PolicyRules())
    connection = session.connection()
    policy.keep(connection, project_id, key_id, judged.decision_id, judged.decision, export.id)
    session.add(export)
    session.flush()
    session.refresh(export)
    return _views(session, [export], {export.id: []})[0]


def forecast(
    session: Session, project_id: str, key_id: str, spec: ExportSpec, rules: PolicyRules
) -> ExportForecast:
    """What `create` would make. Raises what it raises, but for a refusal: that is a part of it."""
    try:
        export, judged = _asked(session, project_id, key_id, spec, rules)
    except PolicyRefusal as refusal:
        return ExportForecast(
            n_rows_at_most=0, policy=policy.forecast(Decision.model_validate_json(refusal.decision))
        )
    return ExportForecast(n_rows_at_most=export.n_rows_expected, policy=policy.forecast(judged.decision))


def _asked(
    session: Session, project_id: str, key_id: str, spec: ExportSpec, rules: PolicyRules
) -> tuple[Export, Verdict]:
    _, jobs, name = checked(session, project_id, spec)
    selection, connection = wanted(spec.selection), session.connection()
    completed = export_rows.completed(connection, selection.jobs)
    expected = sum(completed.get((one.id, lane.position), 0) for one in jobs for lane in one.lanes)
    _, judged = verdict(connection, project_id, jobs, selection, spec.intended_use, spec.on_refusal, rules)
    export = Export(
        id=new_id("exp"),
        project_id=project_id,
        name=spec.name or name,
        status=ExportStatus.READY,
        selection=selection.model_dump(mode="json", exclude_unset=True),
        format=spec.format,
        options=spec.options,
        layout=Layout(split=spec.split, file_size=spec.file_size).model_dump(mode="json"),
        intended_use=spec.intended_use.model_dump(mode="json"),
        on_refusal=spec.on_refusal,
        policy_decision_id=judged.decision_id,
        watermark=export_rows.watermark(connection, selection.jobs),
        n_rows_expected=expected,
        created_by=key_id,
        created_at=db_now(),
    )
    return export, judged


def checked(session: Session, project_id: str, spec: ExportSpec) -> tuple[Exporter, list[JobFacts], str]:
    """The format bound to its options, the jobs that were selected, the first one's name.

    Raises `InvalidInput`, `Unfit`, `NotFound`, as `create` does.
    """
    made = exporter(spec.format, spec.options)
    names = []
    for job_id in spec.selection.jobs:
        job = job_rows.get(session, project_id, job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id!r} in this project")
        names.append(job.name)
    jobs = facts(session.connection(), wanted(spec.selection))
    made.check([binding for one in jobs for binding in one.bindings()])
    return made, jobs, names[0]


def _views(session: Session, exports: list[Export], files: dict[str, list[ExportFile]]) -> list[ExportView]:
    judged = policy.summaries(session.connection(), (export.policy_decision_id for export in exports))
    tainted = taints(session.connection(), [export.id for export in exports])
    return [
        _view(
            export,
            files[export.id],
            judged.get(export.policy_decision_id or ""),
            tainted.get(export.id, []),
        )
        for export in exports
    ]


def _view(
    export: Export, files: list[ExportFile], judged: PolicySummary | None, tainted: list[TaintView]
) -> ExportView:
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
        on_refusal=export.on_refusal or "refuse",
        policy=judged,
        left_out=_left_out(export),
        tainted_by=tainted,
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


def _left_out(export: Export) -> dict[str, int] | None:
    told = (export.manifest or {}).get("policy")
    return None if told is None else {one["part"]: one["n_rows"] for one in told["left_out"]}


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
    return _views(session, [found], rows.files(session, [export_id]))[0]


def page(session: Session, project_id: str, before: str | None, limit: int) -> list[ExportView]:
    found = rows.page(session, project_id, before, limit)
    files = rows.files(session, [export.id for export in found])
    return _views(session, found, files)


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
    return _views(session, [found], {found.id: []})[0]


def delete(session: Session, project_id: str, export_id: str) -> ExportView:
    """Its files go, in whatever status it is; the record and the manifest stay, for what was trained on it."""
    found = _found(session, project_id, export_id)
    rows.end(session, export_id, ExportStatus.DELETED, only_active=False)
    session.refresh(found)
    return _views(session, [found], {found.id: []})[0]


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
