"""The tables of exports, of what is in them, and of takedowns; same conventions as `app.db.models`."""

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, Integer, SmallInteger, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.models import Base


class Export(Base):
    __tablename__ = "export"
    __table_args__ = (
        Index("ix_export_project_id_id", "project_id", "id"),
        Index(
            "ix_export_active",
            "status",
            postgresql_where=text("status IN ('ready', 'running', 'parked')"),
            sqlite_where=text("status IN ('ready', 'running', 'parked')"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"))
    name: Mapped[str]
    status: Mapped[str]
    error: Mapped[str | None] = mapped_column(Text)
    selection: Mapped[dict[str, Any]]
    format: Mapped[str]
    options: Mapped[dict[str, Any]]  # of the format
    layout: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # split, file_size
    intended_use: Mapped[dict[str, Any]]
    watermark: Mapped[float | None]  # rows recorded before it are in the snapshot, no others
    on_refusal: Mapped[str | None]  # refuse (or None) | drop: what happens to rows that the policy blocks
    policy_decision_id: Mapped[str | None]  # the last one: at creation, then by what was really written
    n_rows: Mapped[int] = mapped_column(default=0)
    n_rows_expected: Mapped[int] = mapped_column(default=0)  # before metadata and other filters
    n_seen: Mapped[int] = mapped_column(default=0, server_default="0")  # of n_rows_expected
    n_bytes: Mapped[int] = mapped_column(default=0, server_default="0")
    rows_per_second: Mapped[float | None]
    manifest: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    path: Mapped[str | None]  # folder, relative to the storage URL
    owner: Mapped[str | None]
    epoch: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    created_by: Mapped[str]
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]


class ExportUse(Base):
    """A student that was trained on an export."""

    __tablename__ = "export_use"
    __table_args__ = (Index("ix_export_use_export_id_id", "export_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    export_id: Mapped[str] = mapped_column(ForeignKey("export.id"))
    student: Mapped[str]
    revision: Mapped[str | None]
    run: Mapped[str | None]
    note: Mapped[str | None] = mapped_column(Text)
    created_by: Mapped[str]
    created_at: Mapped[float]


class ExportFile(Base):
    __tablename__ = "export_file"

    export_id: Mapped[str] = mapped_column(ForeignKey("export.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str | None]  # relative to the storage URL
    n_bytes: Mapped[int]
    n_rows: Mapped[int | None]
    sha256: Mapped[bytes]
    split: Mapped[str | None]  # of a data file
    place: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))  # its last row
    counts: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class ExportMember(Base):
    """Which completions are in a file of an export: one row for 65,536 prompts of a job, stage, teacher and sample.

    `bits` holds a bit for each prompt number of the chunk (`app.domain.membership`): about a bit a row, before zlib.
    """

    __tablename__ = "export_member"
    __table_args__ = (Index("ix_export_member_job_id_teacher_chunk", "job_id", "teacher", "chunk"),)

    export_id: Mapped[str] = mapped_column(ForeignKey("export.id"), primary_key=True)
    file: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    stage: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    teacher: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    sample_index: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    chunk: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # prompt number // 65,536
    n_rows: Mapped[int] = mapped_column(Integer)
    bits: Mapped[bytes]


class Takedown(Base):
    """An order to remove what was made from a source, of prompts, or by a teacher. The row is the outbox: a worker
    carries it out under a lease, as often as it takes.
    """

    __tablename__ = "takedown"
    __table_args__ = (
        Index("ix_takedown_project_id_id", "project_id", "id"),
        Index(
            "ix_takedown_active",
            "status",
            postgresql_where=text("status IN ('ready', 'running')"),
            sqlite_where=text("status IN ('ready', 'running')"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("project.id"))
    kind: Mapped[str]  # source | prompts | teacher
    target: Mapped[dict[str, Any]]
    who: Mapped[str]
    why: Mapped[str] = mapped_column(Text)
    withdraw_exports: Mapped[bool]
    status: Mapped[str]
    error: Mapped[str | None] = mapped_column(Text)
    n_prompts: Mapped[int] = mapped_column(default=0)
    n_completions: Mapped[int] = mapped_column(default=0)
    n_segments: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str | None]
    epoch: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[float | None]
    created_by: Mapped[str]
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]


class TakedownExport(Base):
    """An export that holds rows which were taken down."""

    __tablename__ = "takedown_export"

    takedown_id: Mapped[str] = mapped_column(ForeignKey("takedown.id"), primary_key=True)
    export_id: Mapped[str] = mapped_column(ForeignKey("export.id"), primary_key=True, index=True)
    n_rows: Mapped[int]
    withdrawn_at: Mapped[float | None]
